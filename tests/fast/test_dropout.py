"""Dropout is dropout: how much is dropped, what the rest becomes, the gradient, and the generator that draws it."""

import pytest
import torch

from eecs598.fast.dropout import LEVELS, dropout

SHAPES = pytest.mark.parametrize("shape", [(1,), (3,), (5, 1, 7), (0, 4), (4, 8)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


@SHAPES
@DTYPES
def test_what_is_kept_is_scaled_and_so_is_its_gradient(shape, dtype):
    x = (torch.rand(shape, dtype=torch.float64) + 1).to(dtype).requires_grad_()
    y = dropout(x, 0.25)  # a multiple of 2^-16
    (gradient,) = torch.autograd.grad(y.sum(), x)
    kept = y != 0
    scale = torch.tensor(1 / 0.75, dtype=torch.float64).to(dtype)
    assert y.dtype == dtype and torch.equal(y, torch.where(kept, x * scale, 0)) and torch.equal(gradient, kept * scale)


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.5, 0.9])
def test_as_many_are_dropped_as_wanted_everywhere_in_a_draw(p):
    torch.manual_seed(0)
    n = 200_000
    y = dropout(torch.ones(n, 4, dtype=torch.float64), p)  # a draw for each row
    dropped = (y == 0).double()
    limit = 5 * (p * (1 - p) / n) ** 0.5  # five standard deviations
    assert ((dropped.mean(0) - p).abs() < limit + 1 / LEVELS).all() and (y.mean(0) - 1).abs().max() < limit / (1 - p)
    correlations = torch.corrcoef(dropped.t()) - torch.eye(4)
    assert correlations.abs().max() < 5 / n**0.5


def test_the_same_seed_draws_the_same_mask_and_the_next_draw_another():
    x, masks = torch.ones(100), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append([dropout(x, 0.5), dropout(x, 0.5)])
    assert torch.equal(masks[0][0], masks[1][0]) and torch.equal(masks[0][1], masks[1][1])
    assert not torch.equal(masks[0][0], masks[0][1]) and not torch.equal(masks[0][0], masks[2][0])


def test_the_edges():
    x = torch.rand(50)
    assert dropout(x, 0) is x
    assert torch.equal(dropout(x, 1e-9), x)  # rounded to 0
    almost_all = dropout(torch.ones(1000), 1 - 1e-9)
    assert almost_all.isfinite().all() and (almost_all == 0).double().mean() > 0.99
