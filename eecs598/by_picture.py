"""Captions share the grid of their picture: rows of captions as a batch of queries to each grid."""

from typing import NamedTuple

import torch
from torch import Tensor


def for_captions(rows, order):
    """Rows (n, ...) of the pictures, repeated for their captions: (N, ...).

    order (N,) int64: the number of each caption, numbered picture by picture, N / n to each; None if N = n and caption
    i is of picture i.
    """
    return rows if order is None else rows[order // (len(order) // len(rows))]


class ByPicture(NamedTuple):
    """How R rows, one for each caption, (R, D), are laid out as K rows for each of N pictures, (N, K, D).

    places (R,) int64: the index of each row among the N * K; the remaining ones are zero. None if row i belongs to
    picture i, so that R = N and K = 1.
    """

    places: Tensor | None
    N: int
    K: int = 1

    @classmethod
    def of(cls, picture, N):
        """The layout with the smallest K. picture (R,): the picture that each row belongs to."""
        counts = picture.bincount(minlength=N)
        K = int(counts.max())
        by_picture = picture.argsort(stable=True)
        rank = torch.empty_like(picture)  # among the rows of the same picture
        first = counts.cumsum(0) - counts
        rank[by_picture] = torch.arange(len(picture), device=picture.device) - first[picture[by_picture]]
        return cls(picture * K + rank, N, K)

    def spread(self, rows):
        """(R, D) -> (N, K, D). Differentiable."""
        if self.places is None:
            return rows.unsqueeze(1)
        return rows.new_zeros(self.N * self.K, rows.shape[1]).index_copy(0, self.places, rows).view(self.N, self.K, -1)

    def gather(self, spread):
        """(N, K, D) -> (R, D). Differentiable."""
        return spread.squeeze(1) if self.places is None else spread.flatten(0, 1).index_select(0, self.places)
