"""Packing: batches of captions of different lengths, without the padding.

If captions are sorted longest first, those that have a step t are the first sizes[t] rows of the batch. A packed
sequence (N, T, D) consists of the rows of step 0, then those of step 1, and so on: (P, D), P = sum(sizes). This is the
layout of `torch.nn.utils.rnn.PackedSequence`.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**21  # numbers: enough rows for fast matrix products, and few enough for the memory to be reused


class Packing:
    """The layout of N captions of up to T steps.

    lengths (N,): the number of steps of each caption, longest first, at most T; None: all T. sizes: the number of
    captions that have each step. Raises ValueError.
    """

    def __init__(self, N: int, T: int, lengths: Tensor | None = None):
        self.N, self.T, self.sizes = N, T, [N] * T
        if lengths is not None:
            if lengths.shape != (N,) or bool((lengths.diff() > 0).any()) or bool((lengths > T).any()):
                raise ValueError(f"lengths are {lengths.tolist()}; they must be ({N},), longest first, at most T = {T}")
            self.sizes = (lengths.unsqueeze(1) > torch.arange(T, device=lengths.device)).sum(0).tolist()
        self.starts = [0, *itertools.accumulate(self.sizes)]

    def rows(self, first: int, last: int | None = None, since: int = 0) -> slice:
        """The rows of steps `first` to `last` - 1, or of the single step `first`, in a packed sequence.

        since: the step at which that sequence begins.
        """
        begin, end = self.starts[first], self.starts[first + 1 if last is None else last]
        return slice(begin - self.starts[since], end - self.starts[since])

    def blocks(self, columns: int):
        """(first, last) for consecutive blocks of steps, whose rows have up to BLOCK numbers in so many columns."""
        steps = max(1, BLOCK // max(1, self.sizes[0] * columns))
        return [(first, min(first + steps, self.T)) for first in range(0, self.T, steps)]

    def pack(self, x: Tensor) -> Tensor:
        """(N, T, ...) -> (P, ...)."""
        x = x.transpose(0, 1)
        if self.sizes[-1] == self.N:
            return x.flatten(0, 1)  # no padding
        return torch.cat([x_t[:n] for x_t, n in zip(x, self.sizes)])

    def unpack(self, packed: Tensor) -> Tensor:
        """(P, D) -> (N, T, D), 0 after a caption's end."""
        if self.sizes[-1] == self.N:
            return packed.unflatten(0, (self.T, self.N)).transpose(0, 1)
        return torch.stack([pad_rows(rows, self.N) for rows in packed.split(self.sizes)], dim=1)

    def shift(self, start: Tensor, packed: Tensor) -> Tensor:
        """What each row of a packed sequence was one step earlier, at first the row of start (N, D). (P, D)."""
        steps = start, *packed.split(self.sizes)
        return torch.cat([earlier[:n] for earlier, n in zip(steps, self.sizes)])


def pad_rows(rows: Tensor, n: int) -> Tensor:
    """Append rows of zeros up to n, for captions that have ended."""
    return rows if len(rows) == n else F.pad(rows, (0, 0, 0, n - len(rows)))


def packing_of(x: Tensor, lengths: Tensor | None, gates: int, order: Tensor | None = None, **others: Tensor) -> Packing:
    """The packing of x (N, T, D). Raises ValueError for shapes of x or the other arguments that do not match.

    gates: the number of columns of a weight, in units of H. order (N,): given if captions share grids, K captions each.
    others: states (N, H), a grid A (N, H, h, w) or (N / K, H, h, w), weights and bias. The hidden size is that of the
    bias b.
    """
    (columns,), Wx = others["b"].shape if others["b"].dim() == 1 else (0,), others["Wx"]
    H = columns // gates
    fits = Wx.dim() == 2 and Wx.shape[1] == columns  # else Wx is wrong, perhaps transposed, and not x
    D = len(Wx) if fits else x.shape[-1] if x.dim() == 3 else "D"
    if x.dim() != 3 or x.shape[2] != D or 0 in x.shape:
        raise ValueError(f"x is {tuple(x.shape)}; it must be (N, T, {D}), with N and T at least 1")
    N = len(x)
    if order is not None and (order.shape != (N,) or N % len(others["A"])):
        raise ValueError(f"order is {tuple(order.shape)}; it must be ({N},), and {N} captions a multiple of the "
                         f"{len(others['A'])} grids")  # fmt: skip
    wanted = {"Wx": (D, columns), "Wh": (H, columns), "Wattn": (H, columns), "b": (gates * H,)}
    for name, value in others.items():
        shape = wanted.get(name, (len(value) if name == "A" and order is not None else N, H))
        seen = value.shape[:2] if name == "A" and value.dim() == 4 else value.shape
        if tuple(seen) != shape:
            listed = f"({shape[0]}, {shape[1]}, h, w)" if name == "A" else shape
            raise ValueError(f"{name} is {tuple(value.shape)}; it must be {listed}, for x {tuple(x.shape)} and H = {H}")
    return Packing(*x.shape[:2], lengths)
