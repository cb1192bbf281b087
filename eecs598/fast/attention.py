"""The attention LSTM over a sequence: an LSTM step on [h, attn], with the gradients of attention as matrix products.

Several captions may look at the same grid. Then the grid is not copied for each: their states are a batch of queries.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from eecs598.by_picture import ByPicture, for_captions
from eecs598.fast.arithmetic import add_product_, product
from eecs598.fast.lstm import cell_backward, cell_forward_
from eecs598.fast.packing import Packing, packing_of, pad_rows


class Grids(NamedTuple):
    """The grids A (n, H, h, w) of N captions, sorted longest first. order: see `attention_lstm_forward`."""

    A: Tensor
    order: Tensor | None

    def seen_by(self, count):
        """What the first `count` captions look at: flat grids (n, H, L), and the layout of the captions' queries."""
        n, cells = len(self.A), self.A.flatten(2)
        if self.order is None:
            return cells[:count], ByPicture(None, count)
        return cells, ByPicture(self.order[:count], n, len(self.order) // n)

    def by_picture(self, x):
        """Rows x (N, T, D) of the captions, as a sequence for each grid: (n, N / n * T, D)."""
        return x if self.order is None else x[self.order.argsort()].view(len(self.A), -1, x.shape[2])


class AttentionLSTMCache(NamedTuple):
    x: Tensor  # packed (P, D)
    z: Tensor  # packed (P, 2H): [h_{t-1}, attn_t]
    Wx: Tensor
    W: Tensor  # [Wh; Wattn], (2H, 4H)
    gates: list[Tensor]  # i, f, o, g of each block of steps, packed: (rows of the block, 4H)
    c: list[Tensor]  # c0 and the cell state after each step, (n, H)
    tanh_c: list[Tensor | None]  # of the cell state after each step; None from a fused kernel
    grids: Grids
    weights: Tensor  # (T, N, L)
    packing: Packing


def attend(prev_h, cells):
    """`dot_product_attention` of the lesson for K states (n, K, H) and a flat grid (n, H, L) of each picture.

    Returns attn (n, K, H) and the weights (n, K, L).
    """
    weights = torch.softmax(torch.bmm(prev_h, cells) / math.sqrt(cells.shape[1]), dim=2)
    return torch.bmm(weights, cells.transpose(1, 2)), weights


def attend_backward(dattn, cells, weights):
    """Gradients of `attend` with respect to prev_h (n, K, H) and to the products of prev_h and the cells (n, K, L)."""
    dweights = torch.bmm(dattn, cells)
    dscores = weights * (dweights - (weights * dweights).sum(2, keepdim=True))  # through the softmax
    dproducts = dscores / math.sqrt(cells.shape[1])
    return torch.bmm(dproducts, cells.transpose(1, 2)), dproducts


@torch.no_grad()
def attention_lstm_forward(x, A, Wx, Wh, Wattn, b, lengths=None, order=None):
    """`attention_lstm_forward` of the lesson; lengths as in `eecs598.fast.rnn.rnn_forward`.

    x (N, T, D), A (N, H, h, w), Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,). order (N,) int64: if the captions of a
    picture share its grid, A (N / K, H, h, w). Numbered picture by picture, K to each, caption i is number order[i].
    Returns h (N, T, H), attn_weights (N, T, h, w), which are 0 after a caption's end, and a cache.
    """
    packing = packing_of(x, lengths, 4, order, A=A, Wx=Wx, Wh=Wh, Wattn=Wattn, b=b)
    W, grids = torch.cat([Wh, Wattn]), Grids(A, order)
    N, H, L = packing.N, A.shape[1], A[0, 0].numel()
    packed, gates = packing.pack(x), []
    z = x.new_empty(len(packed), 2 * H)
    h, weights = x.new_zeros(packing.T, N, H), x.new_zeros(packing.T, N, L)
    prev_h = for_captions(A.mean(dim=(2, 3)), order)
    c, tanh_c = [prev_h], []
    for first, last in packing.blocks(len(b)):
        gates.append(product(packed[packing.rows(first, last)], Wx, b))  # all steps of the block at once
        for t in range(first, last):
            n = packing.sizes[t]
            cells, queries = grids.seen_by(n)
            attn, weights[t, :n] = map(queries.gather, attend(queries.spread(prev_h[:n]), cells))
            z_t = torch.cat([prev_h[:n], attn], dim=1, out=z[packing.rows(t)])
            gates_t = add_product_(gates[-1][packing.rows(t, since=first)], z_t, W)
            next_c, tanh_next_c = cell_forward_(gates_t, c[t][:n], out=h[t, :n])
            c.append(next_c)
            tanh_c.append(tanh_next_c)
            prev_h = h[t]
    maps = weights.transpose(0, 1).unflatten(2, A.shape[2:])
    return h.transpose(0, 1), maps, AttentionLSTMCache(packed, z, Wx, W, gates, c, tanh_c, grids, weights, packing)


@torch.no_grad()
def attention_lstm_backward(dh, cache):
    """Gradient of `attention_lstm_forward`. dh (N, T, H). Returns dx, dA, dWx, dWh, dWattn, db."""
    x, z, Wx, W, gates, c, tanh_c, grids, weights, packing = cache
    (N, T, H), D, L = dh.shape, len(Wx), weights.shape[2]
    dx, dW, db = torch.empty_like(x), W.new_zeros(D + 2 * H, 4 * H), W.new_zeros(4 * H)
    dattn, dproducts = dh.new_zeros(T, N, H), dh.new_zeros(T, N, L)
    dprev_h = dprev_c = dh.new_zeros(0, H)
    buffer = torch.empty_like(gates[0])  # for da; the first block is the largest
    for (first, last), block_gates in zip(reversed(packing.blocks(4 * H)), reversed(gates)):
        block, da = packing.rows(first, last), buffer[: len(block_gates)]
        for t in reversed(range(first, last)):
            n, rows = packing.sizes[t], packing.rows(t, since=first)
            dh_t, dc_t = dh[:n, t] + pad_rows(dprev_h, n), pad_rows(dprev_c, n)  # from the loss, and from step t + 1
            dprev_c = cell_backward(dh_t, dc_t, block_gates[rows], c[t][:n], c[t + 1], tanh_c[t], out=da[rows])
            dprev_h, dattn[t, :n] = product(da[rows], W.t()).chunk(2, dim=1)
            cells, queries = grids.seen_by(n)
            at_t = attend_backward(queries.spread(dattn[t, :n]), cells, queries.spread(weights[t, :n]))
            dquery, dproducts[t, :n] = map(queries.gather, at_t)
            dprev_h = dprev_h + dquery  # prev_h is used twice: in the step, and as the query of attention
        dx[block] = product(da, Wx.t())
        inputs = torch.cat([x[block], z[block]], dim=1)
        add_product_(dW, inputs.t(), da)  # dWx, dWh and dWattn: sums over the steps of the block
        db += da.sum(0)
    sequences = dattn.transpose(0, 1), weights.transpose(0, 1), packing.unpack(z[:, :H]), dproducts.transpose(0, 1)
    dcells = _sum_over_steps(*map(grids.by_picture, sequences))
    dstart = grids.by_picture(pad_rows(dprev_h + dprev_c, N).unsqueeze(1)).sum(1)
    dcells += dstart.unsqueeze(2) / L  # through h0 = c0 = mean of A
    return packing.unpack(dx), dcells.unflatten(2, grids.A.shape[2:]), *dW.split([D, H, H]), db


def _sum_over_steps(dattn, weights, prev_h, dproducts):
    """The gradient of the cells (n, H, L), as values and as keys of attention.

    For each picture, the sum over its S steps is a matrix product, (H, S) @ (S, L). dattn and prev_h (n, S, H), weights
    and dproducts (n, S, L).
    """
    return torch.bmm(dattn.transpose(1, 2), weights).baddbmm_(prev_h.transpose(1, 2), dproducts)
