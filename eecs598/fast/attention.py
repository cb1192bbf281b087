"""The attention LSTM over a sequence: an LSTM step on [h, attn], with the gradients of attention as matrix products."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from eecs598.fast.arithmetic import add_product_, product
from eecs598.fast.lstm import cell_backward, cell_forward_
from eecs598.fast.packing import Packing, packing_of, pad_rows


class AttentionLSTMCache(NamedTuple):
    x: Tensor  # packed (P, D)
    z: Tensor  # packed (P, 2H): [h_{t-1}, attn_t]
    Wx: Tensor
    W: Tensor  # [Wh; Wattn], (2H, 4H)
    gates: Tensor  # packed (P, 4H): i, f, o, g
    c: list[Tensor]  # c0 and the cell state after each step, (n, H)
    A: Tensor
    weights: Tensor  # (T, N, L)
    packing: Packing


def attend(prev_h, cells):
    """`dot_product_attention` of the lesson for a flat grid (n, H, L). Returns attn (n, H) and the weights (n, L)."""
    scores = torch.einsum("nh,nhl->nl", prev_h, cells) / math.sqrt(cells.shape[1])
    weights = torch.softmax(scores, dim=1)
    return torch.einsum("nl,nhl->nh", weights, cells), weights


def attend_backward(dattn, cells, weights):
    """Gradients of `attend` with respect to prev_h (n, H) and to the dot products of prev_h and the cells (n, L)."""
    dweights = torch.einsum("nh,nhl->nl", dattn, cells)
    dscores = weights * (dweights - (weights * dweights).sum(1, keepdim=True))  # through the softmax
    dproducts = dscores / math.sqrt(cells.shape[1])
    return torch.einsum("nl,nhl->nh", dproducts, cells), dproducts


@torch.no_grad()
def attention_lstm_forward(x, A, Wx, Wh, Wattn, b, lengths=None):
    """`attention_lstm_forward` of the lesson; lengths as in `eecs598.fast.rnn.rnn_forward`.

    x (N, T, D), A (N, H, h, w), Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,). Returns h (N, T, H), attn_weights
    (N, T, h, w), which are 0 after a caption's end, and a cache.
    """
    packing = packing_of(x, lengths, 4, A=A, Wx=Wx, Wh=Wh, Wattn=Wattn, b=b)
    W, cells = torch.cat([Wh, Wattn]), A.flatten(2)
    N, H, L = cells.shape
    packed = packing.pack(x)
    gates = product(packed, Wx).add_(b)  # all steps at once
    z = x.new_empty(len(packed), 2 * H)
    h, weights = x.new_zeros(packing.T, N, H), x.new_zeros(packing.T, N, L)
    prev_h = A.mean(dim=(2, 3))
    c = [prev_h]
    for t, n in enumerate(packing.sizes):
        attn, weights[t, :n] = attend(prev_h[:n], cells[:n])
        z_t = torch.cat([prev_h[:n], attn], dim=1, out=z[packing.rows(t)])
        gates_t = add_product_(gates[packing.rows(t)], z_t, W)
        c.append(cell_forward_(gates_t, c[t][:n], out=h[t, :n]))
        prev_h = h[t]
    maps = weights.transpose(0, 1).unflatten(2, A.shape[2:])
    return h.transpose(0, 1), maps, AttentionLSTMCache(packed, z, Wx, W, gates, c, A, weights, packing)


@torch.no_grad()
def attention_lstm_backward(dh, cache):
    """Gradient of `attention_lstm_forward`. dh (N, T, H). Returns dx, dA, dWx, dWh, dWattn, db."""
    x, z, Wx, W, gates, c, A, weights, packing = cache
    (N, T, H), L, cells = dh.shape, weights.shape[2], A.flatten(2)
    dx, dWx, dW, db = torch.empty_like(x), torch.zeros_like(Wx), torch.zeros_like(W), W.new_zeros(4 * H)
    dattn, dproducts = dh.new_zeros(T, N, H), dh.new_zeros(T, N, L)
    dprev_h = dprev_c = dh.new_zeros(0, H)
    for first, last in reversed(packing.blocks()):
        block = packing.rows(first, last)
        da = gates.new_empty(block.stop - block.start, 4 * H)
        for t in reversed(range(first, last)):
            n = packing.sizes[t]
            dh_t, dc_t = dh[:n, t] + pad_rows(dprev_h, n), pad_rows(dprev_c, n)  # from the loss, and from step t + 1
            da_t = da[packing.rows(t, since=first)]
            dprev_c = cell_backward(dh_t, dc_t, gates[packing.rows(t)], c[t][:n], c[t + 1], out=da_t)
            dprev_h, dattn[t, :n] = product(da_t, W.t()).chunk(2, dim=1)
            dquery, dproducts[t, :n] = attend_backward(dattn[t, :n], cells[:n], weights[t, :n])
            dprev_h = dprev_h + dquery  # prev_h is used twice: in the step, and as the query of attention
        dx[block] = product(da, Wx.t())
        dWx.addmm_(x[block].t(), da)
        dW.addmm_(z[block].t(), da)
        db += da.sum(0)
    dcells = _sum_over_steps(dattn, weights, packing.unpack(z[:, :H]), dproducts)
    dcells += pad_rows(dprev_h + dprev_c, N).unsqueeze(2) / L  # through h0 = c0 = mean of A
    return packing.unpack(dx), dcells.unflatten(2, A.shape[2:]), dWx, *dW.chunk(2), db


def _sum_over_steps(dattn, weights, prev_h, dproducts):
    """The gradient of the cells (N, H, L), as values and as keys of attention.

    For each picture, the sum over steps is a matrix product, (H, T) @ (T, L). dattn (T, N, H), weights and
    dproducts (T, N, L), prev_h (N, T, H).
    """
    dcells = torch.bmm(dattn.permute(1, 2, 0), weights.transpose(0, 1))
    return dcells.baddbmm_(prev_h.transpose(1, 2), dproducts.transpose(0, 1))
