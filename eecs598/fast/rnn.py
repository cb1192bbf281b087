"""The vanilla RNN over a sequence: all inputs are multiplied by Wx at once, padding is skipped."""

from typing import NamedTuple

import torch
from torch import Tensor

from eecs598.fast.arithmetic import product, tanh_
from eecs598.fast.packing import Packing, packing_of, pad_rows


class RNNCache(NamedTuple):
    x: Tensor  # packed (P, D)
    h: Tensor  # h0 and the state after each step, (N, T + 1, H)
    Wx: Tensor
    Wh: Tensor
    packing: Packing


@torch.no_grad()
def rnn_forward(x, h0, Wx, Wh, b, lengths=None):
    """`rnn_forward` of the lesson. lengths (N,), longest first: steps after a caption's end are skipped, and h is 0.

    x (N, T, D), h0 (N, H), Wx (D, H), Wh (H, H), b (H,). Returns h (N, T, H) and a cache.
    """
    packing = packing_of(x, lengths, 1, h0=h0, Wx=Wx, Wh=Wh, b=b)
    packed = packing.pack(x)
    projected = product(packed, Wx).add_(b)  # all steps at once: (P, D) @ (D, H) -> (P, H)
    states = [h0]
    for a in projected.split(packing.sizes):
        states.append(tanh_(product(states[-1][: len(a)], Wh).add_(a)))
    h = torch.stack([pad_rows(state, len(x)) for state in states]).transpose(0, 1)
    return h[:, 1:], RNNCache(packed, h, Wx, Wh, packing)


@torch.no_grad()
def rnn_backward(dh, cache):
    """Gradient of `rnn_forward`. dh (N, T, H). Returns dx (N, T, D), dh0 (N, H), dWx, dWh, db."""
    x, h, Wx, Wh, packing = cache
    da = x.new_empty(len(x), dh.shape[2])  # packed; filled step by step
    dprev_h = dh.new_zeros(0, dh.shape[2])
    for t in reversed(range(packing.T)):
        n, da_t = packing.sizes[t], da[packing.rows(t)]
        dh_t, h_t = dh[:n, t] + pad_rows(dprev_h, n), h[:n, t + 1]  # from the loss, and from step t + 1
        torch.addcmul(dh_t, dh_t * h_t, h_t, value=-1, out=da_t)  # dh (1 - h^2)
        dprev_h = product(da_t, Wh.t())
    dx = packing.unpack(product(da, Wx.t()))
    dWx = product(x.t(), da)  # sums over steps: (D, P) @ (P, H)
    dWh = product(packing.pack(h[:, :-1]).t(), da)
    return dx, pad_rows(dprev_h, len(dh)), dWx, dWh, da.sum(0)
