"""The vanilla RNN over a sequence: all inputs are multiplied by Wx at once, padding is skipped."""

from typing import NamedTuple

import torch
from torch import Tensor

from eecs598.fast.arithmetic import add_product_, product, tanh
from eecs598.fast.packing import Packing, packing_of, pad_rows


class RNNCache(NamedTuple):
    x: Tensor  # packed (P, D)
    prev_h: Tensor  # packed (P, H): the state before each step
    h: Tensor  # packed (P, H): the state after each step
    Wx: Tensor
    Wh: Tensor
    packing: Packing


@torch.no_grad()
def rnn_forward(x, h0, Wx, Wh, b, lengths=None):
    """`rnn_forward` of the lesson. lengths (N,), longest first: steps after a caption's end are skipped, and h is 0.

    x (N, T, D), h0 (N, H), Wx (D, H), Wh (H, H), b (H,). Returns h (N, T, H) and a cache.
    """
    packing = packing_of(x, lengths, 1, h0=h0, Wx=Wx, Wh=Wh, b=b)
    packed, prev_h = packing.pack(x), h0
    h = product(packed, Wx, b)  # all steps at once: (P, D) @ (D, H) -> (P, H); each step adds h_{t-1} Wh
    for h_t in h.split(packing.sizes):
        prev_h = tanh(add_product_(h_t, prev_h[: len(h_t)], Wh), out=h_t)
    return packing.unpack(h), RNNCache(packed, packing.shift(h0, h), h, Wx, Wh, packing)


@torch.no_grad()
def rnn_backward(dh, cache):
    """Gradient of `rnn_forward`. dh (N, T, H). Returns dx (N, T, D), dh0 (N, H), dWx, dWh, db."""
    x, prev_h, h, Wx, Wh, packing = cache
    da = x.new_empty(len(x), dh.shape[2])  # packed; filled step by step
    dprev_h = dh.new_zeros(0, dh.shape[2])
    for t in reversed(range(packing.T)):
        n, da_t, h_t = packing.sizes[t], da[packing.rows(t)], h[packing.rows(t)]
        dh_t = dh[:n, t] + pad_rows(dprev_h, n)  # from the loss, and from step t + 1
        torch.addcmul(dh_t, dh_t * h_t, h_t, value=-1, out=da_t)  # dh (1 - h^2)
        dprev_h = product(da_t, Wh.t())
    dx = packing.unpack(product(da, Wx.t()))
    dWx = product(x.t(), da)  # sums over steps: (D, P) @ (P, H)
    dWh = product(prev_h.t(), da)
    return dx, pad_rows(dprev_h, len(dh)), dWx, dWh, da.sum(0)
