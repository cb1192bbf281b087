"""What the published notebook imports from `eecs598.utils`."""

import random
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw


def reset_seed(number):
    """Seed the random generators of Python, numpy and torch (on the CPU and all GPUs)."""
    random.seed(number)
    np.random.seed(number % 2**32)  # numpy takes unsigned 32-bit seeds
    torch.manual_seed(number)


def attention_visualizer(img, attn_weights, token):
    """A picture overlaid with an attention map, with the token above: uint8 numpy array (H + 25, W, 3), RGB.

    img: (3, H, W) or (H, W, 3), tensor or array, uint8 or float in [0, 1]. attn_weights: (h, w), any grid.
    token: a string; a long one is set in a smaller font, and a very long one is truncated with an ellipsis. The
    shape does not depend on the token, so torchvision's `make_grid` takes the results. The published function
    swapped width and height, dimmed the picture and returned BGR; this one does not. Raises ValueError for an
    invalid picture or map.
    """
    from eecs598.vis import attention_overlay, fonts_for, load_font  # with matplotlib, which takes half a second

    picture, token = attention_overlay(img, attn_weights), " ".join(str(token).split())
    width = picture.shape[1]
    room, text = width - 4, token
    load = partial(load_font, family=fonts_for(token)[-1])
    size = next((s for s in range(15, 8, -1) if load(s).getlength(token) <= room), 8)
    while token and load(size).getlength(text) > room:
        token = token[:-1]
        text = token + "…"
    band = Image.new("RGB", (width, 25), "white")
    ImageDraw.Draw(band).text((width / 2, 12), text, fill="black", font=load(size), anchor="mm")
    return np.concatenate([np.asarray(band), picture])
