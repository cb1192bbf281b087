"""The LSTM over a sequence: one product a step, gates in place, the weights' gradients a block of steps at a time.

x Wx + h Wh is one product, of z = [x, h] with W, which is Wx above Wh. The gradient dW is the sum over the steps of
z_t^T da_t, which is itself one product when the z_t of several steps lie one below the other, and the da_t too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eecs598.fast import kernels
from eecs598.fast.arithmetic import product, tanh_
from eecs598.fast.packing import Packing, packing_of, pad_rows


class LSTMCache(NamedTuple):
    z: Tensor  # packed inputs and states side by side: x_t, h_{t-1}
    W: Tensor  # Wx above Wh
    gates: list[Tensor]  # i, f, o, g of each step, (n, 4H)
    c: list[Tensor]  # c0, then the cell state after each step, (n, H)
    packing: Packing


@torch.no_grad()
def lstm_forward(x, h0, c0, Wx, Wh, b, lengths=None):
    """As the lesson's `lstm_forward`; lengths as in `eecs598.fast.rnn.rnn_forward`.

    x (N, T, D), h0 and c0 (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,). Returns h (N, T, H) and a cache.
    """
    packing, W = packing_of(x, Wx, lengths), torch.cat([Wx, Wh])
    z = x.new_empty(packing.starts[-1], len(W))
    h = x.new_empty(packing.T, *h0.shape)
    prev_h, gates, c = h0, [], [c0]
    for t, n in enumerate(packing.sizes):
        z_t = torch.cat([x[:n, t], prev_h[:n]], dim=1, out=z[packing.rows(t)])
        gates.append(product(z_t, W).add_(b))
        c.append(cell_forward_(gates[t], c[t][:n], out=h[t, :n]))
        h[t, n:] = 0
        prev_h = h[t]
    return h.transpose(0, 1), LSTMCache(z, W, gates, c, packing)


@torch.no_grad()
def lstm_backward(dh, cache):
    """Gradient of `lstm_forward`. dh (N, T, H). Returns dx, dh0, dc0, dWx, dWh, db."""
    z, W, gates, c, packing = cache
    (N, T, H), D = dh.shape, len(W) - dh.shape[2]
    dx, dW, db = dh.new_zeros(N, T, D), torch.zeros_like(W), W.new_zeros(4 * H)
    dprev_h = dprev_c = dh.new_zeros(0, H)
    for first, last in reversed(packing.blocks()):
        block = packing.rows(first, last)
        da = z.new_empty(block.stop - block.start, 4 * H)
        for t in reversed(range(first, last)):
            n = packing.sizes[t]
            dh_t, dc_t = dh[:n, t] + pad_rows(dprev_h, n), pad_rows(dprev_c, n)  # from the loss, and from step t + 1
            da_t = da[packing.rows(t, since=first)]
            dprev_c = cell_backward(dh_t, dc_t, gates[t], c[t][:n], c[t + 1], out=da_t)
            dz = product(da_t, W.t())
            dx[:n, t], dprev_h = dz[:, :D], dz[:, D:]
        add_weight_gradients_(dW, db, z[block], da)
    return dx, pad_rows(dprev_h, N), pad_rows(dprev_c, N), dW[:D], dW[D:], db


def add_weight_gradients_(dW, db, z, da):
    """Add what the steps of a block give: z (P, D + H) and da (P, 4H), packed. In place."""
    dW.addmm_(z.t(), da)  # the sum over the steps is part of the product
    db.add_(da.sum(0))


def cell_forward_(a, prev_c, out):
    """The nonlinear half of an LSTM step. a (n, 4H) becomes the gates, next_h (n, H) goes to `out`. Returns next_c."""
    if kernels.fits(a):  # on a GPU, the same in one go
        return kernels.cell_forward_(a, prev_c, out)
    H = prev_c.shape[1]
    a[:, : 3 * H].sigmoid_()
    tanh_(a[:, 3 * H :])
    i, f, o, g = a.chunk(4, dim=1)
    next_c = (f * prev_c).addcmul_(i, g)
    torch.mul(o, tanh_(next_c.clone()), out=out)
    return next_c


def cell_backward(dh, dc, gates, prev_c, next_c, out):
    """Gradient of `cell_forward_`: da (n, 4H) goes to `out`. Returns dprev_c. The lines of `lstm_step_backward`.

    Multiplied out: u s (1 - s) is v - v s with v = u s, and most of the v are needed anyway.
    """
    if kernels.fits(gates):
        return kernels.cell_backward(dh, dc, gates, prev_c, next_c, out)
    (i, f, o, g), (di, df, do, dg), tanh_c = gates.chunk(4, dim=1), out.chunk(4, dim=1), tanh_(next_c.clone())
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
