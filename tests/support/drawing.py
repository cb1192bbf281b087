"""Random pictures and attention maps, for the tests of figures."""

import numpy as np
import torch


def draw_picture(rng, height=40, width=60):
    return rng.integers(0, 256, (3, height, width), dtype=np.uint8)


def draw_maps(rng, T, h=3, w=4):
    """T maps (h, w), each with the sum 1."""
    return torch.softmax(torch.tensor(rng.normal(size=(T, h * w))), dim=1).view(T, h, w)
