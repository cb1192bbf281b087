"""The attention LSTM over a sequence: an LSTM whose z is [x, h, attn], and attention's gradients summed by products."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from eecs598.fast.arithmetic import product
from eecs598.fast.lstm import add_weight_gradients_, cell_backward, cell_forward_
from eecs598.fast.packing import Packing, packing_of, pad_rows


class AttentionLSTMCache(NamedTuple):
    z: Tensor  # packed inputs, states and views side by side: x_t, h_{t-1}, attn_t
    W: Tensor  # Wx above Wh above Wattn
    gates: list[Tensor]  # i, f, o, g of each step, (n, 4H)
    c: list[Tensor]  # c0, then the cell state after each step, (n, H)
    A: Tensor
    weights: Tensor  # (T, N, L)
    packing: Packing


def attend(prev_h, cells):
    """The lesson's `dot_product_attention` on cells (n, H, L). Returns attn (n, H) and the weights (n, L)."""
    scores = torch.einsum("nh,nhl->nl", prev_h, cells) / math.sqrt(cells.shape[1])
    weights = torch.softmax(scores, dim=1)
    return torch.einsum("nl,nhl->nh", weights, cells), weights


def attend_backward(dattn, cells, weights):
    """Gradient of `attend` with respect to prev_h (n, H), and to the products of prev_h and the cells (n, L)."""
    dweights = torch.einsum("nh,nhl->nl", dattn, cells)
    dscores = weights * (dweights - (weights * dweights).sum(1, keepdim=True))  # the softmax's Jacobian
    dproducts = dscores / math.sqrt(cells.shape[1])
    return torch.einsum("nl,nhl->nh", dproducts, cells), dproducts


@torch.no_grad()
def attention_lstm_forward(x, A, Wx, Wh, Wattn, b, lengths=None):
    """As the lesson's `attention_lstm_forward`; lengths as in `eecs598.fast.rnn.rnn_forward`.

    x (N, T, D), A (N, H, h, w), Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,). Returns h (N, T, H), attn_weights
    (N, T, h, w), zero after a row's end, and a cache.
    """
    packing, W, cells = packing_of(x, Wx, lengths), torch.cat([Wx, Wh, Wattn]), A.flatten(2)
    N, H, L = cells.shape
    z = x.new_empty(packing.starts[-1], len(W))
    h, weights = x.new_empty(packing.T, N, H), x.new_zeros(packing.T, N, L)
    prev_h = A.mean(dim=(2, 3))
    gates, c = [], [prev_h]
    for t, n in enumerate(packing.sizes):
        attn, weights[t, :n] = attend(prev_h[:n], cells[:n])
        z_t = torch.cat([x[:n, t], prev_h[:n], attn], dim=1, out=z[packing.rows(t)])
        gates.append(product(z_t, W).add_(b))
        c.append(cell_forward_(gates[t], c[t][:n], out=h[t, :n]))
        h[t, n:] = 0
        prev_h = h[t]
    maps = weights.transpose(0, 1).unflatten(2, A.shape[2:])
    return h.transpose(0, 1), maps, AttentionLSTMCache(z, W, gates, c, A, weights, packing)


@torch.no_grad()
def attention_lstm_backward(dh, cache):
    """Gradient of `attention_lstm_forward`. dh (N, T, H). Returns dx, dA, dWx, dWh, dWattn, db."""
    z, W, gates, c, A, weights, packing = cache
    (N, T, H), D, L, cells = dh.shape, len(W) - 2 * dh.shape[2], weights.shape[2], A.flatten(2)
    dx, dW, db = dh.new_zeros(N, T, D), torch.zeros_like(W), W.new_zeros(4 * H)
    dattn, dproducts = dh.new_zeros(T, N, H), dh.new_zeros(T, N, L)
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
            dx[:n, t], dprev_h, dattn[t, :n] = dz[:, :D], dz[:, D:-H], dz[:, -H:]
            dlook, dproducts[t, :n] = attend_backward(dattn[t, :n], cells[:n], weights[t, :n])
            dprev_h = dprev_h + dlook  # the state before was used twice: in the step, and to look
        add_weight_gradients_(dW, db, z[block], da)
    dcells = _sum_over_steps(dattn, weights, packing.unpack(z[:, D:-H]), dproducts)
    dcells += pad_rows(dprev_h + dprev_c, N).unsqueeze(2) / L  # through h0 = c0 = mean of A
    return dx, dcells.unflatten(2, A.shape[2:]), *dW.split([D, H, H]), db


def _sum_over_steps(dattn, weights, prev_h, dproducts):
    """The gradient of the cells (N, H, L): as values, in the views, and as keys, in the scores.

    For each picture the sum over steps is a product, (H, T) @ (T, L). dattn (T, N, H), weights and dproducts
    (T, N, L), prev_h (N, T, H).
    """
    dcells = torch.bmm(dattn.permute(1, 2, 0), weights.transpose(0, 1))
    return dcells.baddbmm_(prev_h.transpose(1, 2), dproducts.transpose(0, 1))
