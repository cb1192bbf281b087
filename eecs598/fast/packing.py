"""Captions of different lengths in one batch, without the padding.

Sorted longest first, the captions that still run at step t are the first sizes[t] rows of the batch. Packed, a
sequence (N, T, D) is the rows of step 0, then those of step 1, and so on: (P, D), P = sum(sizes). The same layout as
`torch.nn.utils.rnn.PackedSequence`.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ROWS = 512  # enough for a product at full speed, and few enough that they stay in the processor's cache


class Packing:
    """Which of the N rows run at each of T steps.

    lengths (N,): the steps of each row, longest first, none above T; None: all rows run for T steps. sizes: rows that
    run at each step. Raises ValueError.
    """

    def __init__(self, N: int, T: int, lengths: Tensor | None = None):
        self.N, self.T, self.sizes = N, T, [N] * T
        if lengths is not None:
            if lengths.shape != (N,) or bool((lengths.diff() > 0).any()) or bool((lengths > T).any()):
                raise ValueError(f"lengths must be ({N},), longest first, none above T = {T}; seen {lengths.tolist()}")
            self.sizes = (lengths.unsqueeze(1) > torch.arange(T, device=lengths.device)).sum(0).tolist()
        self.starts = [0, *itertools.accumulate(self.sizes)]

    def rows(self, first: int, last: int | None = None, since: int = 0) -> slice:
        """Where the rows of the steps from `first` up to `last`, or of that one step, lie in a packed sequence.

        since: the step with which that sequence begins.
        """
        begin, end = self.starts[first], self.starts[first + 1 if last is None else last]
        return slice(begin - self.starts[since], end - self.starts[since])

    def blocks(self):
        """(first, last) of runs of steps, from the first run to the last, each with about BLOCK_ROWS rows."""
        steps = max(1, BLOCK_ROWS // max(1, self.sizes[0]))
        return [(first, min(first + steps, self.T)) for first in range(0, self.T, steps)]

    def pack(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (P, D)."""
        x = x.transpose(0, 1)
        if self.sizes[-1] == self.N:
            return x.flatten(0, 1)  # no padding
        return torch.cat([x_t[:n] for x_t, n in zip(x, self.sizes)])

    def unpack(self, packed: Tensor) -> Tensor:
        """(P, D) -> (N, T, D), zero after a row's end."""
        if self.sizes[-1] == self.N:
            return packed.unflatten(0, (self.T, self.N)).transpose(0, 1)
        return torch.stack([pad_rows(rows, self.N) for rows in packed.split(self.sizes)], dim=1)


def pad_rows(rows: Tensor, n: int) -> Tensor:
    """Append rows of zeros up to n: captions that have ended or, going back in time, have not begun yet."""
    return rows if len(rows) == n else F.pad(rows, (0, 0, 0, n - len(rows)))


def packing_of(x: Tensor, Wx: Tensor, lengths: Tensor | None) -> Packing:
    """The packing of x (N, T, D), which is multiplied by Wx (D, ...). Raises ValueError."""
    if x.dim() != 3 or x.shape[2] != len(Wx) or 0 in x.shape:
        raise ValueError(f"x is {tuple(x.shape)}; it must be (N, T, {len(Wx)}), with N and T at least 1")
    return Packing(*x.shape[:2], lengths)
