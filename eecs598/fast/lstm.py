"""The LSTM over a sequence: inputs of several steps are multiplied by Wx at once, gates are computed in place, padding
is skipped.

Everything that does not depend on the previous step is one matrix product for a block of steps, large enough for a fast
product, and small enough for the processor's cache. The same holds for the weight gradients: [dWx; dWh], the sum over
steps of [x_t, h_{t-1}]^T da_t, is a single product of the inputs and da_t stacked over the steps of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eecs598.fast import kernels
from eecs598.fast.arithmetic import add_product_, product, tanh
from eecs598.fast.packing import Packing, packing_of, pad_rows


class LSTMCache(NamedTuple):
    x: Tensor  # packed (P, D)
    prev_h: Tensor  # packed (P, H)
    Wx: Tensor
    Wh: Tensor
    gates: list[Tensor]  # i, f, o, g of each block of steps, packed: (rows of the block, 4H)
    c: list[Tensor]  # c0 and the cell state after each step, (n, H)
    tanh_c: list[Tensor | None]  # of the cell state after each step; None from a fused kernel
    packing: Packing


@torch.no_grad()
def lstm_forward(x, h0, c0, Wx, Wh, b, lengths=None):
    """`lstm_forward` of the lesson; lengths as in `eecs598.fast.rnn.rnn_forward`.

    x (N, T, D), h0 and c0 (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,). Returns h (N, T, H) and a cache.
    """
    packing = packing_of(x, lengths, 4, h0=h0, c0=c0, Wx=Wx, Wh=Wh, b=b)
    packed = packing.pack(x)
    h, c, tanh_c, gates = x.new_zeros(packing.T + 1, *h0.shape), [c0], [], []
    h[0] = h0
    for first, last in packing.blocks(len(b)):
        gates.append(product(packed[packing.rows(first, last)], Wx, b))  # all steps of the block at once
        for t in range(first, last):  # each step adds h_{t-1} Wh
            n = packing.sizes[t]
            gates_t = add_product_(gates[-1][packing.rows(t, since=first)], h[t, :n], Wh)
            next_c, tanh_next_c = cell_forward_(gates_t, c[t][:n], out=h[t + 1, :n])
            c.append(next_c)
            tanh_c.append(tanh_next_c)
    prev_h = packing.pack(h[:-1].transpose(0, 1))
    return h[1:].transpose(0, 1), LSTMCache(packed, prev_h, Wx, Wh, gates, c, tanh_c, packing)


@torch.no_grad()
def lstm_backward(dh, cache):
    """Gradient of `lstm_forward`. dh (N, T, H). Returns dx, dh0, dc0, dWx, dWh, db."""
    x, prev_h, Wx, Wh, gates, c, tanh_c, packing = cache
    (N, _, H), (D, columns) = dh.shape, Wx.shape
    dx, dW, db = torch.empty_like(x), Wx.new_zeros(D + H, columns), Wx.new_zeros(columns)
    dprev_h = dprev_c = dh.new_zeros(0, H)
    buffer = torch.empty_like(gates[0])  # for da; the first block is the largest
    for (first, last), block_gates in zip(reversed(packing.blocks(columns)), reversed(gates)):
        block, da = packing.rows(first, last), buffer[: len(block_gates)]
        for t in reversed(range(first, last)):
            n, rows = packing.sizes[t], packing.rows(t, since=first)
            dh_t, dc_t = dh[:n, t] + pad_rows(dprev_h, n), pad_rows(dprev_c, n)  # from the loss, and from step t + 1
            dprev_c = cell_backward(dh_t, dc_t, block_gates[rows], c[t][:n], c[t + 1], tanh_c[t], out=da[rows])
            dprev_h = product(da[rows], Wh.t())
        dx[block] = product(da, Wx.t())
        inputs = torch.cat([x[block], prev_h[block]], dim=1)
        add_product_(dW, inputs.t(), da)  # dWx and dWh: sums over the steps of the block
        db += da.sum(0)
    return packing.unpack(dx), pad_rows(dprev_h, N), pad_rows(dprev_c, N), *dW.split([D, H]), db


def cell_forward_(a, prev_c, out):
    """The elementwise part of an LSTM step. a (n, 4H) becomes the gates, `out` next_h (n, H).

    Returns next_c and, for `cell_backward`, its tanh, which is None from a fused kernel.
    """
    if kernels.fits(a):
        return kernels.cell_forward_(a, prev_c, out), None
    H = prev_c.shape[1]
    a[:, : 3 * H].sigmoid_()
    tanh(a[:, 3 * H :], out=a[:, 3 * H :])
    i, f, o, g = a.chunk(4, dim=1)
    next_c = (f * prev_c).addcmul_(i, g)
    tanh_c = tanh(next_c)
    torch.mul(o, tanh_c, out=out)
    return next_c, tanh_c


def cell_backward(dh, dc, gates, prev_c, next_c, tanh_c, out):
    """Gradient of `cell_forward_`: `out` becomes da (n, 4H). Returns dprev_c.

    The formulas of `lstm_step_backward` in place: u s (1 - s) is computed as v - v s with v = u s.
    """
    if kernels.fits(gates):
        return kernels.cell_backward(dh, dc, gates, prev_c, next_c, out)
    (i, f, o, g), (di, df, do, dg) = gates.chunk(4, dim=1), out.chunk(4, dim=1)
    torch.mul(dh, o, out=do)
    dc = dc + do
    dc.addcmul_(do.mul_(tanh_c), tanh_c, value=-1)  # dc + dh o (1 - tanh_c^2)
    torch.mul(dc, i, out=dg)
    torch.mul(dg, g, out=di)
    dg.addcmul_(di, g, value=-1)  # dc i (1 - g^2)
    dprev_c = dc.mul_(f)
    torch.mul(dprev_c, prev_c, out=df)
    sigmoids, dsigmoids = gates[:, : -g.shape[1]], out[:, : -g.shape[1]]
    dsigmoids.addcmul_(dsigmoids, sigmoids, value=-1)  # dc g i, dc prev_c f and dh tanh_c o, each times (1 - s)
    return dprev_c
