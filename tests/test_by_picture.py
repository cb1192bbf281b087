"""eecs598.by_picture: every row gets a place of its own, under its picture, and comes back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from eecs598.by_picture import ByPicture


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(4, 5))
def test_rows_are_spread_under_their_pictures_and_gathered_again(pictures, N):
    layout = ByPicture.of(torch.tensor(pictures), N)
    assert max(map(pictures.count, pictures)) == layout.K  # the smallest that has room
    rows = torch.arange(1.0, len(pictures) + 1).unsqueeze(1).expand(-1, 2)
    spread = layout.spread(rows)
    assert spread.shape == (N, layout.K, 2)
    for n in range(N):
        wanted = [i + 1 for i, picture in enumerate(pictures) if picture == n]
        assert spread[n, :, 1].tolist() == wanted + [0] * (layout.K - len(wanted))
    assert torch.equal(layout.gather(spread), rows)


def test_one_row_for_each_picture_is_not_copied():
    rows = torch.randn(3, 2)
    layout = ByPicture(None, 3)
    assert layout.spread(rows).shape == (3, 1, 2) and layout.spread(rows).data_ptr() == rows.data_ptr()
    assert torch.equal(layout.gather(layout.spread(rows)), rows)


def test_gradients_go_through_both():
    rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    layout = ByPicture.of(torch.tensor([1, 0, 1, 1]), 3)
    factors = torch.randn(3, 3, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((layout.gather(layout.spread(rows) * factors)).sum(), rows)
    assert torch.equal(gradient, layout.gather(factors))
