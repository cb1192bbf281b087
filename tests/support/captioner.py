"""A small captioner, a batch for it, and its loss from the definition."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import rnn_lstm_captioning as rlc
from eecs598.captioner import CELL_TYPES

WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "red", "ball", "on", "grass"]
VOCABULARY = {word: i for i, word in enumerate(WORDS)}
NULL, START, END = 0, 1, 2
CELLS = pytest.mark.parametrize("cell_type", CELL_TYPES)


class PoolingEncoder(torch.nn.Module):
    """A tiny encoder: the picture's colours on a coarse grid of any shape."""

    def __init__(self, grid=(2, 3)):
        super().__init__()
        self.grid, self.out_channels = grid, 3

    def forward(self, images):
        return F.adaptive_avg_pool2d(images, self.grid)


def make_model(cell_type, ignore_index=NULL, grid=(2, 3), **sizes):
    """A small captioner in float64, without the cost of a RegNet."""
    torch.manual_seed(0)
    sizes = {"input_dim": 3, "wordvec_dim": 5, "hidden_dim": 7} | sizes
    with mock.patch.object(rlc, "ImageEncoder", lambda pretrained=True: PoolingEncoder(grid)):
        return rlc.CaptioningRNN(VOCABULARY, cell_type=cell_type, ignore_index=ignore_index, **sizes).double()


def batch(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 12, 18, generator=generator, dtype=torch.float64)
    captions = torch.zeros(n, 7, dtype=torch.int64)
    for row in captions:
        words = int(torch.randint(0, 6, (), generator=generator))
        row[0], row[words + 1] = START, END
        row[1 : words + 1] = torch.randint(3, len(WORDS), (words,), generator=generator)
    return images, captions


def reference_loss(model, images, captions, ignore_index):
    """The loss from its definition: steps in a loop, every step computed, F.cross_entropy."""
    state, scores = model.begin(images), []
    for words in captions[:, :-1].unbind(1):
        step_scores, state, _ = model.step(words, state)
        scores.append(step_scores)
    kept = -100 if ignore_index is None else ignore_index
    total = F.cross_entropy(torch.cat(scores), captions[:, 1:].t().flatten(), ignore_index=kept, reduction="sum")
    return total / len(captions)
