"""Image captioning with recurrent networks: every forward and backward step by hand.

Symbols, used everywhere in this file:

    N   captions in a batch             D   size of a step's input x
    T   steps (words) of a caption      H   size of the hidden state h and of the cell state c
    V   words in the vocabulary         W   size of a word vector
    C   channels of the image features  h,w rows and columns of the image grid, L = h * w cells
    A   image features, one H-vector for each cell of the grid, (N, H, h, w)
    a   a step's activations before the nonlinearity; da is the loss's gradient with respect to a
    P   steps that are really computed: N * T, less the padding at the ends of the captions

A gradient has the name of its quantity with a d before it and the same shape. The LSTM's gates lie side by
side in the order i, f, o, g (input, forget, output, candidate), so its weights are (D, 4H) and (H, 4H).

The *step* functions say the mathematics as plainly as it can be said. The *sequence* functions do the same
mathematics fast: the inputs of all steps meet Wx in one matrix product, each weight's gradient is one
product at the end, and steps that are only padding are not computed; `product(a, b)` is a @ b and `tanh_`
is tanh, by the fastest way on this machine. The modules train through the sequence functions: autograd only
calls them (see `SequenceFunction`).
"""

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from eecs598 import decoding
from eecs598.encoders import ImageEncoder
from eecs598.fast import kernels
from eecs598.fast.arithmetic import product, tanh_

CELL_TYPES = ("rnn", "lstm", "attn")


# ---------------------------------------------------------------------------------------------------------
# Captions of different lengths in one batch
# ---------------------------------------------------------------------------------------------------------
# Sorted longest first, the captions that still run at step t are the first sizes[t] rows of the batch. Packed,
# a sequence (T, N, D) is the real rows of step 0, then those of step 1, and so on: (P, D).


def _step_sizes(x: Tensor, Wx: Tensor, lengths: Tensor | None) -> list[int]:
    """How many rows run at each step of x (N, T, D). lengths: (N,) steps a row, longest first; None: all T."""
    if x.dim() != 3 or x.shape[2] != len(Wx) or 0 in x.shape:
        raise ValueError(f"x is {tuple(x.shape)}; it must be (N, T, {len(Wx)}), with N and T at least 1")
    N, T = x.shape[:2]
    if lengths is None:
        return [N] * T
    if lengths.shape != (N,) or bool((lengths.diff() > 0).any()) or bool((lengths > T).any()):
        raise ValueError(f"lengths must be ({N},), longest first, none above T = {T}; seen {lengths.tolist()}")
    return (lengths.unsqueeze(1) > torch.arange(T, device=lengths.device)).sum(0).tolist()


def _pack(x: Tensor, sizes: list[int]) -> Tensor:
    if sizes[-1] == x.shape[1]:
        return x.flatten(0, 1)  # no padding
    return torch.cat([x_t[:n] for x_t, n in zip(x, sizes)])  # (T, N, D) -> (P, D)


def _unpack(packed: Tensor, sizes: list[int], N: int) -> Tensor:
    if sizes[-1] == N:
        return packed.unflatten(0, (len(sizes), N))
    return torch.stack([_grow(rows, N) for rows in packed.split(sizes)])  # (P, D) -> (T, N, D), zero after the end


def _grow(rows: Tensor, n: int) -> Tensor:
    """Rows for captions that have ended, or, going back in time, not yet joined in: append zeros up to n rows."""
    return rows if len(rows) == n else F.pad(rows, (0, 0, 0, n - len(rows)))


BLOCK_ROWS = 512  # enough for a product at full speed, and da still in the processor's cache


def _steps_back(z, sizes, dW, db):
    """Go back in time: yield each step t, last first, with the rows of da that the loop's body is to fill.

    Meanwhile adds z_t^T da_t to dW and da_t to db, z being packed: as many steps in one product as make up
    BLOCK_ROWS rows. So da never exists for all steps at once, which is as fast as one product, and lighter.
    """
    starts, end = [0, *itertools.accumulate(sizes)], len(z)
    steps = max(1, BLOCK_ROWS // max(1, sizes[0]))
    da = z.new_empty(min(len(z), steps * sizes[0]), dW.shape[1])
    for t in reversed(range(len(sizes))):
        first = starts[t - t % steps]
        yield t, da[starts[t] - first : starts[t + 1] - first]
        if t % steps == 0:
            later = 0 if end == len(z) else 1  # the first product fills dW, the others add in place
            dW.addmm_(z[first:end].t(), da[: end - first], beta=later)
            db.add_(da[: end - first].sum(0))
            end = first


# ---------------------------------------------------------------------------------------------------------
# Vanilla RNN (Elman, "Finding structure in time", 1990)
# ---------------------------------------------------------------------------------------------------------


class RNNStepCache(NamedTuple):
    x: Tensor
    prev_h: Tensor
    Wx: Tensor
    Wh: Tensor
    next_h: Tensor


class RNNCache(NamedTuple):
    x: Tensor  # packed
    h: Tensor  # h0, then the state after each step: (T + 1, N, H)
    Wx: Tensor
    Wh: Tensor
    sizes: list[int]


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    """One step of a vanilla RNN: next_h = tanh(x Wx + prev_h Wh + b).

    x (N, D), prev_h (N, H), Wx (D, H), Wh (H, H), b (H,). Returns next_h (N, H) and a cache.
    """
    # ANSWER rnn_step_forward: keep in the cache what the backward step needs, as a tuple, a list or a dict.
    next_h = torch.tanh(x @ Wx + prev_h @ Wh + b)
    return next_h, RNNStepCache(x, prev_h, Wx, Wh, next_h)


def rnn_step_backward(dnext_h, cache):
    """Gradient of one RNN step. dnext_h (N, H). Returns dx (N, D), dprev_h (N, H), dWx, dWh, db."""
    # ANSWER rnn_step_backward: Formula: da = dnext_h * (1 - next_h^2); dx = da Wx^T; dWx = x^T da; db = da, summed
    #   over the batch. Hint: a gradient has its quantity's shape.
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h**2)  # tanh'(a) = 1 - tanh(a)^2
    dx = da @ Wx.t()
    dprev_h = da @ Wh.t()
    dWx = x.t() @ da
    dWh = prev_h.t() @ da
    db = da.sum(0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b, lengths=None):
    """A vanilla RNN over a whole sequence; also differentiable by autograd.

    x (N, T, D), h0 (N, H), Wx (D, H), Wh (H, H), b (H,). lengths (N,), longest first: steps beyond a row's
    length are not computed, their h is 0. Returns the states after each step, h (N, T, H), and a cache.
    """
    # ANSWER rnn_forward: Formula: h_t = tanh(x_t Wx + h_(t-1) Wh + b). Hint: loop over rnn_step_forward and keep each
    #   step's cache; lengths, for speed, may stay unused.
    sizes = _step_sizes(x, Wx, lengths)
    packed = _pack(x.transpose(0, 1), sizes)
    projected = product(packed, Wx).add_(b)  # all steps at once: (P, D) @ (D, H) -> (P, H)
    states = [h0]
    for a in projected.split(sizes):
        states.append(tanh_(product(states[-1][: len(a)], Wh).add_(a)))
    h = torch.stack([_grow(state, len(x)) for state in states])
    return h[1:].transpose(0, 1), RNNCache(packed, h, Wx, Wh, sizes)


@torch.no_grad()
def rnn_backward(dh, cache):
    """Gradient of `rnn_forward`: backpropagation through time.

    dh (N, T, H): the gradient that reaches each state from outside the RNN (not from later steps: those
    gradients are added here). Returns dx (N, T, D), dh0 (N, H), dWx, dWh, db.
    """
    # ANSWER rnn_backward: Formula: dh_t = dh[:, t] + dprev_h of step t + 1; dWx, dWh, db are sums over the steps.
    #   Hint: loop over rnn_step_backward from the last step to the first.
    x, h, Wx, Wh, sizes = cache
    N = len(dh)
    da = x.new_empty(len(x), h.shape[2])
    dprev_h = h.new_zeros(0, h.shape[2])
    for t, da_t in reversed(list(enumerate(da.split(sizes)))):
        n = sizes[t]
        dh_t, h_t = dh[:n, t] + _grow(dprev_h, n), h[t + 1, :n]  # from the loss, and from step t + 1
        torch.addcmul(dh_t, dh_t * h_t, h_t, value=-1, out=da_t)  # dh (1 - h^2)
        dprev_h = product(da_t, Wh.t())
    dx = _unpack(product(da, Wx.t()), sizes, N).transpose(0, 1)
    dWx = product(x.t(), da)  # the sum over steps is part of the product: (D, P) @ (P, H)
    dWh = product(_pack(h[:-1], sizes).t(), da)
    return dx, _grow(dprev_h, N), dWx, dWh, da.sum(0)


# ---------------------------------------------------------------------------------------------------------
# LSTM (Hochreiter and Schmidhuber, "Long short-term memory", 1997; with the forget gate of Gers et al., 2000)
# ---------------------------------------------------------------------------------------------------------


class LSTMStepCache(NamedTuple):
    x: Tensor
    prev_h: Tensor
    prev_c: Tensor
    Wx: Tensor
    Wh: Tensor
    i: Tensor
    f: Tensor
    o: Tensor
    g: Tensor
    next_c: Tensor


class LSTMCache(NamedTuple):
    z: Tensor  # packed inputs and states side by side: x_t, h_{t-1}
    W: Tensor  # Wx above Wh
    gates: list[Tensor]  # i, f, o, g of each step, (n, 4H)
    c: list[Tensor]  # c0, then the cell state after each step, (n, H)


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    """One step of an LSTM.

        a = x Wx + prev_h Wh + b;  i, f, o = sigmoid(a_i, a_f, a_o);  g = tanh(a_g)
        next_c = f * prev_c + i * g;  next_h = o * tanh(next_c)

    x (N, D), prev_h and prev_c (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,). Returns next_h, next_c (N, H), a cache.
    """
    # ANSWER lstm_step_forward: chunk a into four gates, in the order i, f, o, g.
    a = x @ Wx + prev_h @ Wh + b
    a_i, a_f, a_o, a_g = a.chunk(4, dim=1)  # (N, 4H) -> 4 x (N, H)
    i, f, o, g = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.sigmoid(a_o), torch.tanh(a_g)
    next_c = f * prev_c + i * g
    next_h = o * torch.tanh(next_c)
    return next_h, next_c, LSTMStepCache(x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)


def lstm_step_backward(dnext_h, dnext_c, cache):
    """Gradient of one LSTM step. dnext_h, dnext_c (N, H). Returns dx, dprev_h, dprev_c, dWx, dWh, db."""
    # ANSWER lstm_step_backward: Formula: dc = dnext_c + dnext_h o tanh'(next_c); do = dnext_h tanh(next_c); di = dc g;
    #   df = dc prev_c; dg = dc i; dprev_c = dc f. Hint: then through the nonlinearities to da, whose parts lie as a's
    #   do; from there as in the RNN.
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c = cache
    tanh_c = torch.tanh(next_c)
    dc = dnext_c + dnext_h * o * (1 - tanh_c**2)  # the cell is reached from step t + 1 and through next_h
    do = dnext_h * tanh_c
    di, df, dg = dc * g, dc * prev_c, dc * i
    da = torch.cat([di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dg * (1 - g**2)], dim=1)  # (N, 4H)
    return da @ Wx.t(), da @ Wh.t(), dc * f, x.t() @ da, prev_h.t() @ da, da.sum(0)


def _cell_forward_(a, prev_c, next_h):
    """The LSTM's nonlinear half, in place: a (n, 4H) becomes the gates, next_h (n, H) is filled. Returns next_c."""
    if kernels.fits(a):  # on a GPU, the same in one go
        return kernels.cell_forward_(a, prev_c, next_h)
    H = prev_c.shape[1]
    a[:, : 3 * H].sigmoid_()
    tanh_(a[:, 3 * H :])
    i, f, o, g = a.chunk(4, dim=1)
    next_c = (f * prev_c).addcmul_(i, g)
    torch.mul(o, tanh_(next_c.clone()), out=next_h)
    return next_c


def _cell_backward(dh, dc, gates, prev_c, next_c, da):
    """Gradient of `_cell_forward_`: fills da (n, 4H), returns dprev_c. The lines of `lstm_step_backward`.

    In place, and multiplied out: u s (1 - s) is v - v s with v = u s, and most of the v are needed anyway.
    """
    if kernels.fits(gates):
        return kernels.cell_backward(dh, dc, gates, prev_c, next_c, da)
    (i, f, o, g), (di, df, do, dg), tanh_c = gates.chunk(4, dim=1), da.chunk(4, dim=1), tanh_(next_c.clone())
    torch.mul(dh, o, out=do)
    dc = dc + do
    dc.addcmul_(do.mul_(tanh_c), tanh_c, value=-1)  # dc + dh o (1 - tanh_c^2)
    torch.mul(dc, i, out=dg)
    torch.mul(dg, g, out=di)
    dg.addcmul_(di, g, value=-1)  # dc i (1 - g^2)
    dprev_c = dc.mul_(f)
    torch.mul(dprev_c, prev_c, out=df)
    sigmoids, dsigmoids = gates[:, : -g.shape[1]], da[:, : -g.shape[1]]
    dsigmoids.addcmul_(dsigmoids, sigmoids, value=-1)  # dc g i, dc prev_c f and dh tanh_c o, each times (1 - s)
    return dprev_c


@torch.no_grad()
def lstm_forward(x, h0, c0, Wx, Wh, b, lengths=None):
    """An LSTM over a whole sequence. Autograd does not record it: `SequenceFunction` joins it to `lstm_backward`.

    x (N, T, D), h0 and c0 (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,); lengths as in `rnn_forward`. Returns the
    states after each step, h (N, T, H), and a cache.
    """
    # ANSWER lstm_forward: Formula: h_t, c_t = lstm_step_forward(x_t, h_(t-1), c_(t-1), Wx, Wh, b). Hint: first a loop
    #   that is right; then, if you like, x Wx of all steps at once. lengths may stay unused.
    sizes = _step_sizes(x, Wx, lengths)
    W = torch.cat([Wx, Wh])  # x Wx + h Wh is one product of [x, h] with Wx above Wh
    z = x.new_empty(sum(sizes), len(W))
    h = x.new_empty(len(sizes), *h0.shape)
    prev_h, gates, c = h0, [], [c0]
    for t, z_t in enumerate(z.split(sizes)):
        n = sizes[t]
        torch.cat([x[:n, t], prev_h[:n]], dim=1, out=z_t)
        a, prev_h = product(z_t, W).add_(b), h[t, :n]
        h[t, n:] = 0
        c.append(_cell_forward_(a, c[t][:n], prev_h))
        gates.append(a)
    return h.transpose(0, 1), LSTMCache(z, W, gates, c)


@torch.no_grad()
def lstm_backward(dh, cache):
    """Gradient of `lstm_forward`. dh (N, T, H), from outside. Returns dx, dh0, dc0, dWx, dWh, db."""
    # ANSWER lstm_backward: Formula: dh_t = dh[:, t] + dprev_h of step t + 1; dc_t = dprev_c of step t + 1; dWx, dWh,
    #   db are sums. Hint: loop over lstm_step_backward from the last step to the first; both states go back.
    z, W, gates, c = cache
    (N, T, H), D = dh.shape, len(W) - dh.shape[2]
    sizes = [len(gates_t) for gates_t in gates]
    dx, dW, db = dh.new_zeros(N, T, D), torch.empty_like(W), W.new_zeros(4 * H)
    dprev_h = dprev_c = dh.new_zeros(0, H)
    for t, da_t in _steps_back(z, sizes, dW, db):
        n = sizes[t]
        dh_t = dh[:n, t] + _grow(dprev_h, n)  # from the loss, and from step t + 1
        dprev_c = _cell_backward(dh_t, _grow(dprev_c, n), gates[t], c[t][:n], c[t + 1], da_t)
        dz = product(da_t, W.t())
        dx[:n, t], dprev_h = dz[:, :D], dz[:, D:]
    return dx, _grow(dprev_h, N), _grow(dprev_c, N), dW[:D], dW[D:], db


# ---------------------------------------------------------------------------------------------------------
# Scaled dot-product attention over an image grid (Xu et al., "Show, attend and tell", 2015, with the scaling
# of Vaswani et al., "Attention is all you need", 2017, equation 1)
# ---------------------------------------------------------------------------------------------------------


def dot_product_attention(prev_h, A):
    """Where to look: score each cell of the grid by its product with the state, and average the cells.

        weights = softmax(prev_h . A / sqrt(H)) over the cells;  attn = sum over the cells of weights * A

    prev_h (N, H), A (N, H, h, w). Returns attn (N, H) and attn_weights (N, h, w), each picture's sum 1.
    """
    # ANSWER dot_product_attention: flatten the grid to (N, H, L), it need not be square; give the weights its shape at
    #   the end.
    H = A.shape[1]
    cells = A.flatten(2)  # (N, H, h, w) -> (N, H, L)
    scores = torch.einsum("nh,nhl->nl", prev_h, cells) / math.sqrt(H)
    weights = torch.softmax(scores, dim=1)
    attn = torch.einsum("nl,nhl->nh", weights, cells)
    return attn, weights.unflatten(1, A.shape[2:])


def dot_product_attention_backward(dattn, prev_h, A, attn_weights):
    """Gradient of `dot_product_attention`. dattn (N, H). Returns dprev_h (N, H), dA (N, H, h, w)."""
    # ANSWER dot_product_attention_backward: Formula: dw = dattn . A; ds = w (dw - sum of w dw); dprev_h = sum of ds A
    #   / sqrt(H); dA = w dattn + ds prev_h / sqrt(H). Hint: s are the scores, w the weights, the sums go over the
    #   cells.
    H = A.shape[1]
    cells, weights = A.flatten(2), attn_weights.flatten(1)
    dweights = torch.einsum("nh,nhl->nl", dattn, cells)
    dscores = weights * (dweights - (weights * dweights).sum(1, keepdim=True))  # the softmax's Jacobian
    dprev_h = torch.einsum("nl,nhl->nh", dscores, cells) / math.sqrt(H)
    # A cell is reached twice: as a value, in the average, and as a key, in the scores.
    dcells = torch.einsum("nh,nl->nhl", dattn, weights) + torch.einsum("nh,nl->nhl", prev_h, dscores) / math.sqrt(H)
    return dprev_h, dcells.unflatten(2, A.shape[2:])


class AttentionLSTMCache(NamedTuple):
    z: Tensor  # packed inputs, states and views side by side: x_t, h_{t-1}, attn_t
    W: Tensor  # Wx above Wh above Wattn
    gates: list[Tensor]  # i, f, o, g of each step, (n, 4H)
    c: list[Tensor]  # c0, then the cell state after each step, (n, H)
    A: Tensor
    weights: Tensor  # (T, N, L)


def attention_lstm_step_forward(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    """One step of an LSTM that sees the picture: a = x Wx + prev_h Wh + attn Wattn + b, then as in an LSTM.

    That is an LSTM step whose input is x and attn side by side. x (N, D), prev_h, prev_c and attn (N, H),
    Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,). Returns next_h, next_c (N, H) and a cache.
    """
    # ANSWER attention_lstm_step_forward: x and attn side by side are one input, and Wx above Wattn its weight.
    seen = torch.cat([x, attn], dim=1)  # (N, D + H)
    return lstm_step_forward(seen, prev_h, prev_c, torch.cat([Wx, Wattn]), Wh, b)


def attention_lstm_step_backward(dnext_h, dnext_c, cache):
    """Gradient of `attention_lstm_step_forward`. Returns dx, dprev_h, dprev_c, dattn, dWx, dWh, dWattn, db."""
    # ANSWER attention_lstm_step_backward: Formula: as in an LSTM; dattn = da Wattn^T; dWattn = attn^T da. Hint: what
    #   the forward put side by side comes apart again.
    dseen, dprev_h, dprev_c, dW, dWh, db = lstm_step_backward(dnext_h, dnext_c, cache)
    H = dnext_h.shape[1]
    dx, dattn = dseen[:, :-H], dseen[:, -H:]
    dWx, dWattn = dW[:-H], dW[-H:]
    return dx, dprev_h, dprev_c, dattn, dWx, dWh, dWattn, db


@torch.no_grad()
def attention_lstm_forward(x, A, Wx, Wh, Wattn, b, lengths=None):
    """An attention LSTM over a whole sequence; each step looks with the state that the step before left.

    x (N, T, D), A (N, H, h, w), Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,); h0 = c0 = mean of A over the grid;
    lengths as in `rnn_forward`. Returns h (N, T, H), attn_weights (N, T, h, w) and a cache. Autograd does not
    record it: `SequenceFunction` joins it to `attention_lstm_backward`.
    """
    # ANSWER attention_lstm_forward: Formula: attn_t = dot_product_attention(h_(t-1), A); h_t, c_t = the step with x_t,
    #   attn_t. Hint: loop over the steps; lengths may stay unused.
    sizes = _step_sizes(x, Wx, lengths)
    N, H, L = A.flatten(2).shape
    W = torch.cat([Wx, Wh, Wattn])  # one product of [x, h, attn] with the three weights stacked
    z = x.new_empty(sum(sizes), len(W))
    h, weights = x.new_empty(len(sizes), N, H), x.new_zeros(len(sizes), N, L)
    prev_h = A.mean(dim=(2, 3))
    gates, c = [], [prev_h]
    for t, z_t in enumerate(z.split(sizes)):
        n = sizes[t]
        attn, weights_t = dot_product_attention(prev_h[:n], A[:n])
        torch.cat([x[:n, t], prev_h[:n], attn], dim=1, out=z_t)
        a, prev_h = product(z_t, W).add_(b), h[t, :n]
        h[t, n:] = 0
        c.append(_cell_forward_(a, c[t][:n], prev_h))
        gates.append(a)
        weights[t, :n] = weights_t.flatten(1)
    cache = AttentionLSTMCache(z, W, gates, c, A, weights)
    return h.transpose(0, 1), weights.transpose(0, 1).unflatten(2, A.shape[2:]), cache


@torch.no_grad()
def attention_lstm_backward(dh, cache):
    """Gradient of `attention_lstm_forward`. dh (N, T, H). Returns dx, dA, dWx, dWh, dWattn, db."""
    # ANSWER attention_lstm_backward: Formula: dh_(t-1) comes from the step and from where it looked; dA is the sum of
    #   all steps', and (dh0 + dc0) / L in each cell. Hint: loop over the two backward functions above, from the last
    #   step.
    z, W, gates, c, A, weights = cache
    (N, T, H), D, L, scale = dh.shape, len(W) - 2 * dh.shape[2], weights.shape[2], 1 / math.sqrt(dh.shape[2])
    sizes, cells = [len(gates_t) for gates_t in gates], A.flatten(2)
    dx, dW, db = dh.new_zeros(N, T, D), torch.empty_like(W), W.new_zeros(4 * H)
    dattn, dscores = dh.new_zeros(T, N, H), dh.new_zeros(T, N, L)
    dprev_h = dprev_c = dh.new_zeros(0, H)
    for t, da_t in _steps_back(z, sizes, dW, db):
        n = sizes[t]
        dh_t = dh[:n, t] + _grow(dprev_h, n)  # from the loss, and from step t + 1
        dprev_c = _cell_backward(dh_t, _grow(dprev_c, n), gates[t], c[t][:n], c[t + 1], da_t)
        dz = product(da_t, W.t())
        dx[:n, t], dprev_h, dattn[t, :n] = dz[:, :D], dz[:, D:-H], dz[:, -H:]
        weights_t, dweights = weights[t, :n], torch.einsum("nh,nhl->nl", dattn[t, :n], cells[:n])
        dscores[t, :n] = scale * weights_t * (dweights - (weights_t * dweights).sum(1, keepdim=True))
        dprev_h = dprev_h + torch.einsum("nl,nhl->nh", dscores[t, :n], cells[:n])
    # For each picture the sum over steps is a product, (H, T) @ (T, L): as values, and as keys.
    prev_h = _unpack(z[:, D:-H], sizes, N)
    dcells = torch.bmm(dattn.permute(1, 2, 0), weights.transpose(0, 1))
    dcells.baddbmm_(prev_h.permute(1, 2, 0), dscores.transpose(0, 1))
    dcells += _grow(dprev_h + dprev_c, N).unsqueeze(2) / L  # through h0 = c0 = mean of A
    return dx, dcells.unflatten(2, A.shape[2:]), *dW.split([D, H, H]), db


# ---------------------------------------------------------------------------------------------------------
# Words in, words out: embedding, scores, loss
# ---------------------------------------------------------------------------------------------------------


class WordEmbeddingCache(NamedTuple):
    x: Tensor
    vocab_size: int


class TemporalAffineCache(NamedTuple):
    h: Tensor
    W: Tensor


def word_embedding_forward(x, W_embed):
    """Look words up. x (N, T) int64 ids, W_embed (V, W). Returns out (N, T, W) and a cache."""
    # ANSWER word_embedding_forward: Formula: out[n, t] = W_embed[x[n, t]]. Hint: a tensor of ids is an index.
    return W_embed[x], WordEmbeddingCache(x, len(W_embed))


def word_embedding_backward(dout, cache):
    """Gradient of the look-up: each word's row gathers the gradients of its occurrences. Returns dW_embed (V, W)."""
    # ANSWER word_embedding_backward: Formula: dW_embed[v] = sum of dout[n, t] where x[n, t] = v. Hint: words repeat,
    #   so add up (index_add_).
    dW_embed = dout.new_zeros(cache.vocab_size, dout.shape[-1])
    return dW_embed.index_add_(0, cache.x.flatten(), dout.flatten(0, -2))


def temporal_affine_forward(h, W, b):
    """Scores for every step: h W + b. h (..., D), W (D, M), b (M,). Returns scores (..., M) and a cache."""
    # ANSWER temporal_affine_forward: a matrix product takes any dimensions before the last.
    return h @ W + b, TemporalAffineCache(h, W)


def temporal_affine_backward(dout, cache):
    """Gradient of `temporal_affine_forward`. dout (..., M). Returns dh (..., D), dW (D, M), db (M,)."""
    # ANSWER temporal_affine_backward: Formula: dh = dout W^T; dW = h^T dout and db = dout, summed over batch and
    #   steps. Hint: flatten to (N * T, D).
    h, W = cache
    rows, drows = h.flatten(0, -2), dout.flatten(0, -2)  # (N, T, D) -> (N * T, D)
    return dout @ W.t(), rows.t() @ drows, drows.sum(0)


def temporal_softmax_loss(x, y, ignore_index=None):
    """Cross-entropy of the words, summed over time and averaged over the batch; differentiable by autograd.

        loss = - (1 / N) sum over n, t of log softmax(x[n, t])[y[n, t]]

    x (N, T, V) scores, y (N, T) int64 ids. Steps where y is ignore_index count nothing. Returns a scalar, in
    float32 at least.
    """
    # ANSWER temporal_softmax_loss: log_softmax is safe for large scores; autograd may differentiate PyTorch's own
    #   functions here.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return TemporalSoftmaxFunction.apply(x, y, ignore_index)


def temporal_softmax_backward(x, y, ignore_index=None):
    """Gradient of `temporal_softmax_loss`: (softmax(x) - one-hot(y)) / N, zero where y is ignore_index.

    Returns dx (N, T, V).
    """
    # ANSWER temporal_softmax_backward: from softmax(x) take 1 at each right word; then the mask, then 1 / N.
    target, real = _targets(y, ignore_index)
    dx = torch.softmax(x, dim=2)
    dx.scatter_add_(2, target, dx.new_full((), -1.0).expand_as(target))
    return dx.mul_(real.to(dx.dtype) / len(x))


def _targets(y, ignore_index):
    """y as an index, (N, T, 1), in which ignored steps point at word 0; and which steps are real, (N, T, 1)."""
    y = y.unsqueeze(2)
    real = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    return y.where(real, 0), real


# ---------------------------------------------------------------------------------------------------------
# The bridge: autograd calls the functions above
# ---------------------------------------------------------------------------------------------------------
# A cache's tensors go through save_for_backward, so that autograd frees them after the backward pass and notices
# a weight that was changed in between. Nothing here computes; what trains a model is the mathematics above.


def _keep(ctx, cache):
    """Give autograd the tensors of a cache, whatever nest of tuples, lists and dicts it is."""
    leaves, ctx.structure = tree_flatten(cache)
    ctx.save_for_backward(*(leaf if torch.is_tensor(leaf) else None for leaf in leaves))
    ctx.others = [None if torch.is_tensor(leaf) else leaf for leaf in leaves]


def _kept(ctx):
    leaves = [other if tensor is None else tensor for tensor, other in zip(ctx.saved_tensors, ctx.others)]
    return tree_unflatten(leaves, ctx.structure)


class SequenceFunction(torch.autograd.Function):
    """A cell's forward and backward over a sequence as one node: (forward, backward, *inputs, lengths) -> h."""

    @staticmethod
    def forward(ctx, forward, backward, *inputs):
        h, *_, cache = forward(*inputs)
        ctx.backward_by_hand = backward
        _keep(ctx, cache)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, dh):
        return None, None, *ctx.backward_by_hand(dh, _kept(ctx)), None


class WordEmbeddingFunction(torch.autograd.Function):
    """`word_embedding_forward` and `word_embedding_backward` as one node: (x, W_embed) -> out."""

    @staticmethod
    def forward(ctx, x, W_embed):
        out, cache = word_embedding_forward(x, W_embed)
        _keep(ctx, cache)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        return None, word_embedding_backward(dout, _kept(ctx))


# ANSWER temporal_softmax_loss
class TemporalSoftmaxFunction(torch.autograd.Function):
    """The loss and `temporal_softmax_backward` as one node: (x, y, ignore_index) -> loss."""

    @staticmethod
    def forward(ctx, x, y, ignore_index):
        ctx.ignore_index = ignore_index
        ctx.save_for_backward(x, y)
        target, real = _targets(y, ignore_index)
        log_probs = x.gather(2, target) - torch.logsumexp(x, dim=2, keepdim=True)
        return -log_probs.masked_fill(~real, 0).sum() / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        return temporal_softmax_backward(*ctx.saved_tensors, ctx.ignore_index).mul_(dloss), None, None


SCORED_ROWS = 256  # states whose scores exist at a time: few enough that they stay in the processor's cache


class _WordLoss(torch.autograd.Function):
    """The affine map to the vocabulary and the loss as one node, forward and back again a block of states at a time.

    (h (P, H), W (V, H), b (V,), y (P,), counts (P,), smoothing, never, learning) -> the sum over p of counts[p] times
    the cross-entropy of softmax(W h[p] + b) with the word y[p]. A block's scores become their own gradient, softmax
    minus target, and go on into dh, dW and db before the next block has any: those of all states never exist at once.
    smoothing: the share of a target that is spread over all words. never: words ruled out. learning: go back at all.
    """

    @staticmethod
    def forward(ctx, h, W, b, y, counts, smoothing, never, learning):
        loss = torch.zeros((), dtype=torch.promote_types(h.dtype, torch.float32), device=h.device)
        dh, dW, db = torch.empty_like(h), torch.zeros_like(W), torch.zeros_like(b)
        rows = (h, y.unsqueeze(1), counts.to(loss.dtype).unsqueeze(1), dh)
        for h_block, target, count, dh_block in zip(*(each.split(SCORED_ROWS) for each in rows)):
            scores = product(h_block, W.t()).add_(b).to(loss.dtype)
            log_probs = scores.index_fill_(1, never, -math.inf).log_softmax(1)
            right = log_probs.gather(1, target)
            if smoothing:
                right = (1 - smoothing) * right + smoothing * log_probs.mean(1, keepdim=True)
            loss -= (count * right.masked_fill(count == 0, 0)).sum()
            if learning:
                dscores = log_probs.exp_().sub_(smoothing / len(W))
                dscores.scatter_add_(1, target, dscores.new_full((), smoothing - 1).expand_as(target))
                dscores = dscores.mul_(count).to(h.dtype)
                dh_block.copy_(product(dscores, W))
                dW.addmm_(dscores.t(), h_block)
                db += dscores.sum(0)
        ctx.save_for_backward(dh, dW, db)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        return *(dloss * gradient for gradient in ctx.saved_tensors), *[None] * 5


def _match_autocast(*tensors):
    """Under autocast, the tensors in its lower precision; otherwise as they are. Autograd records the casts."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)


def _run(forward, backward, *tensors, lengths=None):
    """A sequence, differentiable by hand. Its products are in the tensors' precision: no autocast inside."""
    tensors = _match_autocast(*tensors)
    with torch.autocast(tensors[0].device.type, enabled=False):
        return SequenceFunction.apply(forward, backward, *tensors, lengths)


# ---------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------


def _weight(rows: int, columns: int) -> nn.Parameter:
    """A random matrix whose product with an input of unit variance has unit variance."""
    if not (isinstance(rows, int) and isinstance(columns, int) and rows > 0 < columns):
        raise ValueError(f"a weight would be ({rows}, {columns}): every size must be a whole number, at least 1")
    return nn.Parameter(torch.randn(rows, columns) / math.sqrt(rows))


class RNN(nn.Module):
    """A vanilla RNN layer with parameters Wx (D, H), Wh (H, H), b (H,)."""

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = _weight(input_dim, hidden_dim)
        self.Wh = _weight(hidden_dim, hidden_dim)
        self.b = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, x, h0, lengths=None):
        """x (N, T, D), h0 (N, H), lengths as in `rnn_forward`. Returns the states h (N, T, H)."""
        return _run(rnn_forward, rnn_backward, x, h0, self.Wx, self.Wh, self.b, lengths=lengths)

    def step_forward(self, x, prev_h):
        """x (N, D), prev_h (N, H). Returns next_h (N, H)."""
        return rnn_step_forward(x, prev_h, self.Wx, self.Wh, self.b)[0]


class LSTM(nn.Module):
    """An LSTM layer with parameters Wx (D, 4H), Wh (H, 4H), b (4H,), gates in the order i, f, o, g."""

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = _weight(input_dim, 4 * hidden_dim)
        self.Wh = _weight(hidden_dim, 4 * hidden_dim)
        self.b = nn.Parameter(torch.zeros(4 * hidden_dim))

    def forward(self, x, h0, lengths=None):
        """x (N, T, D), h0 (N, H), lengths as in `rnn_forward`; c0 is zero. Returns the states h (N, T, H)."""
        # ANSWER lstm_module: Task: The whole sequence. Formula: c_0 = 0; h_t, c_t = a step from h_(t-1), c_(t-1).
        #   Hint: as RNN.forward does, or loop over step_forward under autograd.
        weights = self.Wx, self.Wh, self.b
        return _run(lstm_forward, lstm_backward, x, h0, torch.zeros_like(h0), *weights, lengths=lengths)

    def step_forward(self, x, prev_h, prev_c):
        """x (N, D), prev_h and prev_c (N, H). Returns next_h and next_c (N, H)."""
        # ANSWER lstm_module: Task: One step. Formula: a = x Wx + prev_h Wh + b, then the gates. Hint: the weights are
        #   self.Wx, self.Wh, self.b.
        return lstm_step_forward(x, prev_h, prev_c, self.Wx, self.Wh, self.b)[:2]


class AttentionLSTM(nn.Module):
    """An LSTM layer that looks at an image grid: parameters Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,)."""

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = _weight(input_dim, 4 * hidden_dim)
        self.Wh = _weight(hidden_dim, 4 * hidden_dim)
        self.Wattn = _weight(hidden_dim, 4 * hidden_dim)
        self.b = nn.Parameter(torch.zeros(4 * hidden_dim))

    def forward(self, x, A, lengths=None):
        """x (N, T, D), A (N, H, h, w), lengths as in `rnn_forward`; h0 = c0 = mean of A. Returns h (N, T, H)."""
        # ANSWER attention_lstm_module: Task: The whole sequence. Formula: attn_t = dot_product_attention(h_(t-1), A).
        #   Hint: as RNN.forward does, or loop over step_forward under autograd.
        weights = self.Wx, self.Wh, self.Wattn, self.b
        return _run(attention_lstm_forward, attention_lstm_backward, x, A, *weights, lengths=lengths)

    def step_forward(self, x, prev_h, prev_c, attn):
        """x (N, D), prev_h, prev_c and attn (N, H). Returns next_h and next_c (N, H)."""
        # ANSWER attention_lstm_module: Task: One step. Formula: a = x Wx + prev_h Wh + attn Wattn + b, then the gates.
        #   Hint: the caller has looked already.
        weights = self.Wx, self.Wh, self.Wattn, self.b
        return attention_lstm_step_forward(x, prev_h, prev_c, attn, *weights)[:2]


class WordEmbedding(nn.Module):
    """A word vector for each word of the vocabulary: parameter W_embed (V, W)."""

    def __init__(self, vocab_size, embed_size):
        super().__init__()
        self.W_embed = _weight(vocab_size, embed_size)

    def forward(self, x):
        """x (N, T) or (N,) int64 ids. Returns the word vectors, (N, T, W) or (N, W)."""
        # ANSWER word_embedding_module: Task: Look words up. Formula: out[n, t] = W_embed[x[n, t]]. Hint: autograd
        #   knows the gradient of indexing.
        return WordEmbeddingFunction.apply(x, self.W_embed)


class DecoderState(NamedTuple):
    """What a captioner carries from word to word: h (N, H); for LSTMs c (N, H); for attention A (N, H, h, w)."""

    h: Tensor
    c: Tensor | None = None
    A: Tensor | None = None

    def of(self, rows):
        """The state of some of the captions, rows (M,)."""
        A = None if self.A is None else self.A.movedim(1, -1).index_select(0, rows).movedim(-1, 1)  # H stays innermost
        return DecoderState(self.h[rows], None if self.c is None else self.c[rows], A)


def _log_looks(h, A):
    """The logarithms of the attention weights behind the states h (N, T, H), of a grid A (N, H, h, w): (N, T, L)."""
    before = torch.cat([A.mean(dim=(2, 3)).unsqueeze(1), h[:, :-1]], dim=1).to(h.dtype)  # a step looks with h before
    scores = torch.einsum("nth,nhl->ntl", before, A.flatten(2).to(h.dtype)) / math.sqrt(h.shape[2])
    return scores.log_softmax(2, torch.promote_types(h.dtype, torch.float32))


def _uneven_looking(log_looks, real):
    """The mean over captions of the sum over cells of (1 - all the weight that the caption's steps gave the cell)^2.

    log_looks (N, T, L), real (N, T) bool. Xu et al., 2015, equation 14.
    """
    looked = (log_looks.exp() * real.unsqueeze(2)).sum(1)  # (N, L)
    return ((1 - looked) ** 2).sum(1).mean()


def _scattered_looking(log_looks, real):
    """The mean over captions of the sum over steps of the weights' entropy, in nats: 0 for a look at one cell alone."""
    entropy = -(log_looks.exp() * log_looks).sum(2)  # (N, T)
    return (entropy * real).sum(1).mean()


class CaptioningRNN(nn.Module):
    """An image encoder, and a recurrent decoder that writes a caption a word at a time.

    The image features become the first hidden state (rnn, lstm) or the grid that is attended to (attn). Each
    step takes the word before and scores every word of the vocabulary as the next. Vinyals et al., "Show and
    tell", 2015; Xu et al., "Show, attend and tell", 2015.

    word_to_idx: dict from word to id, with <NULL>, <START> and <END>. input_dim: channels of the encoder's
    features, C. ignore_index: the id whose steps count nothing in the loss, usually that of <NULL>.

    What helps against learning by heart, all of it in training alone, and off as published:
    dropout: the share of numbers set to 0 in the projected features, the word vectors and the states that are scored.
    label_smoothing: the share of a right word's probability that is spread over the whole vocabulary (Szegedy et al.,
    "Rethinking the Inception architecture", 2016). tie_embeddings: W_embed also is output_projection's weight, which
    takes W = H (Press and Wolf, "Using the output embedding", 2017). doubly_stochastic: for attn, the weight of
    Xu et al.'s equation 14, which asks that each cell be looked at equally often over a caption. attention_entropy: for
    attn, the weight of the entropy of where each step looks, which asks for few cells at a time (the entropy
    minimization of Grandvalet and Bengio, 2005, on attention). scheduled_sampling: the share of the words before that
    the model chose itself (Bengio et al., "Scheduled sampling", 2015).
    """

    def __init__(
        self,
        word_to_idx,
        input_dim=512,
        wordvec_dim=128,
        hidden_dim=128,
        cell_type="rnn",
        image_encoder_pretrained=True,
        ignore_index=None,
        *,
        dropout=0.0,
        label_smoothing=0.0,
        tie_embeddings=False,
        doubly_stochastic=0.0,
        attention_entropy=0.0,
        scheduled_sampling=0.0,
    ):
        super().__init__()
        if cell_type not in CELL_TYPES:
            raise ValueError(f"cell_type is {cell_type!r}; it must be one of {', '.join(CELL_TYPES)}")
        missing = [token for token in ("<NULL>", "<START>", "<END>") if token not in word_to_idx]
        if missing:
            raise ValueError(f"word_to_idx lacks {' '.join(missing)}; build the vocabulary with eecs598.coco")
        if sorted(word_to_idx.values()) != list(range(len(word_to_idx))):
            raise ValueError(f"word_to_idx must give its {len(word_to_idx)} words the ids 0 to {len(word_to_idx) - 1}, "
                             f"each once; seen {min(word_to_idx.values())} to {max(word_to_idx.values())}")
        self.cell_type, self.ignore_index = cell_type, ignore_index
        self.null, self.start, self.end = (word_to_idx[token] for token in ("<NULL>", "<START>", "<END>"))
        self.unk = word_to_idx.get("<UNK>")
        self.options = {
            "dropout": dropout, "label_smoothing": label_smoothing, "tie_embeddings": tie_embeddings,
            "doubly_stochastic": doubly_stochastic, "attention_entropy": attention_entropy,
            "scheduled_sampling": scheduled_sampling,
        }  # fmt: skip
        self._check_options(word_to_idx, input_dim, wordvec_dim, hidden_dim)
        self.drop = nn.Dropout(dropout)
        self.image_encoder = ImageEncoder(pretrained=image_encoder_pretrained)
        # ANSWER captioner_init: Task: The decoder's layers. Formula: feature_projection (C to H), word_embedding,
        #   cell, output_projection (H to V). Hint: set them as self.NAME with these names; the maps are nn.Linear.
        self.feature_projection = nn.Linear(input_dim, hidden_dim)
        self.word_embedding = WordEmbedding(len(word_to_idx), wordvec_dim)
        self.cell = {"rnn": RNN, "lstm": LSTM, "attn": AttentionLSTM}[cell_type](wordvec_dim, hidden_dim)
        self.output_projection = nn.Linear(hidden_dim, len(word_to_idx))
        if tie_embeddings:
            self.output_projection.weight = self.word_embedding.W_embed

    def forward(self, images, captions, weights=None):
        """The captioning loss.

        images (N, 3, H, W), uint8 or float in [0, 1]; captions (N, T + 1) int64, each <START> words <END>
        <NULL>..., or (N, K, T + 1), K of each picture. The words before (T) predict the words after (T). weights,
        (N,) or (N, K), for captions of the model's own: how much each one's loss counts; of the options only dropout
        then applies, and <NULL>, <START> and <UNK> are ruled out, as when the captions were drawn. Returns
        `temporal_softmax_loss`, the mean over captions.
        """
        # ANSWER captioner_forward: Formula: features -> h0, for attn the grid A -> states -> scores -> loss. Hint:
        #   captions[:, :-1] go in, captions[:, 1:] should come out; the loss needs ignore_index.
        self._check_captions(images, captions)
        K, captions = captions.shape[1] if captions.dim() == 3 else 1, captions.flatten(0, -2)
        real = self._real_steps(captions)
        order = real.sum(1).argsort(descending=True, stable=True)  # longest first: the cell skips the padding
        captions, real = captions[order], real[order]
        if K == 1:  # sorted here, so that no projected grid is copied, there and back
            images = images[order]
        state = self._first_state(self.image_encoder(images))
        if K > 1:  # the features are projected once for all captions of a picture
            state = state.of(order // K)
        h = self._states(state, captions[:, :-1], real, own=weights is not None)
        steps = real.t().flatten().nonzero().squeeze(1)  # the real ones among T * N: no scores for padding
        said = self.drop(h).transpose(0, 1).flatten(0, 1).index_select(0, steps)  # (N, T, H) -> (P, H)
        target = captions[:, 1:].t().flatten().index_select(0, steps)
        counts = None if weights is None else weights.flatten()[order].repeat(real.shape[1]).index_select(0, steps)
        loss = self._loss(said, target, counts) / len(captions)
        if self.training and weights is None and state.A is not None:
            loss = loss + self._looking_penalty(h, state.A, real)
        return loss

    def _looking_penalty(self, h, A, real):
        """What the options on attention add to the loss of states h (N, T, H)."""
        uneven, scattered = self.options["doubly_stochastic"], self.options["attention_entropy"]
        if not (uneven or scattered):
            return 0.0
        log_looks = _log_looks(h, A)
        return uneven * _uneven_looking(log_looks, real) + scattered * _scattered_looking(log_looks, real)

    def _real_steps(self, captions):
        """(N, T) bool: the steps up to each caption's last word that counts in the loss."""
        if self.ignore_index is None:
            return torch.ones_like(captions[:, 1:], dtype=torch.bool)
        counts = captions[:, 1:] != self.ignore_index
        return counts.flip(1).cummax(1).values.flip(1)

    def _states(self, state, words, real, own):
        """The cell's states from the first one, for words (N, T) of which `real` (N, T) are: (N, T, H).

        own: the words are the model's own already.
        """
        first, lengths = state.h if state.A is None else state.A, real.sum(1)
        if self.training and self.options["scheduled_sampling"] and not own:
            # In parallel: what the model would say after people's words (Duckworth et al., "Parallel scheduled
            # sampling", 2019), so that a sequence is still one pass, twice.
            with torch.no_grad():
                h = self.cell(self.drop(self.word_embedding(words)), first, lengths)
                guesses = torch.distributions.Categorical(logits=self.output_projection(h[:, :-1]).float()).sample()
            replaced = torch.rand(guesses.shape, device=words.device) < self.options["scheduled_sampling"]
            words = torch.cat([words[:, :1], guesses.where(replaced, words[:, 1:])], dim=1)
        return self.cell(self.drop(self.word_embedding(words)), first, lengths)

    def _loss(self, h, y, counts):
        """The loss of states h (P, H) that should say y (P,), summed; counts (P,): a factor for each, or None.

        Given counts, the words are the model's own. Those never are <NULL>, <START> or <UNK>; left in, these would
        gather probability.
        """
        own = counts is not None
        smoothing = self.options["label_smoothing"] if self.training and not own else 0.0
        never = [word for word in (self.null, self.start, self.unk) if own and word is not None]
        counts = counts if own else torch.ones(len(y), device=y.device)
        if self.ignore_index is not None:
            counts = counts.masked_fill(y == self.ignore_index, 0)
        h, W, b = _match_autocast(h, self.output_projection.weight, self.output_projection.bias)
        never, learning = torch.tensor(never, dtype=torch.int64, device=y.device), torch.is_grad_enabled()
        with torch.autocast(h.device.type, enabled=False):
            return _WordLoss.apply(h, W, b, y, counts, smoothing, never, learning)

    def _first_state(self, features):
        if features.dim() != 4 or features.shape[1] != self.feature_projection.in_features:
            raise ValueError(
                f"the image encoder gives features {tuple(features.shape)}, but input_dim is "
                f"{self.feature_projection.in_features}: they must be (N, {self.feature_projection.in_features}, h, w)"
            )
        features = features.to(self.feature_projection.weight.dtype)
        if self.cell_type == "attn":
            A = self.drop(self.feature_projection(features.movedim(1, -1)))  # (N, C, h, w) -> (N, h, w, H)
            A = A.movedim(-1, 1)
            mean = A.mean(dim=(2, 3))
            return DecoderState(mean, mean, A)
        h = self.drop(self.feature_projection(features.mean(dim=(2, 3))))  # (N, C, h, w) -> (N, C) -> (N, H)
        return DecoderState(h, torch.zeros_like(h) if self.cell_type == "lstm" else None)

    def begin(self, images):
        """The state from which a caption of each picture begins."""
        # ANSWER captioner_step: Formula: h = feature_projection(mean of the features), c = 0; for attn A of every
        #   cell, h = c = mean of A. Hint: return a DecoderState.
        return self._first_state(self.image_encoder(images))

    def step(self, words, state):
        """One word on: words (N,) int64. Returns scores (N, V), the next state, attn_weights (N, h, w) or None."""
        # ANSWER captioner_step: Task: One word on. Formula: h (and c) = cell.step_forward; scores =
        #   output_projection(h). Hint: for attn, look with the state before.
        x, weights = self.word_embedding(words), None
        if self.cell_type == "rnn":
            state = DecoderState(self.cell.step_forward(x, state.h))
        elif self.cell_type == "lstm":
            state = DecoderState(*self.cell.step_forward(x, state.h, state.c))
        else:
            attn, weights = dot_product_attention(state.h, state.A)
            state = DecoderState(*self.cell.step_forward(x, state.h, state.c, attn), state.A)
        return self.output_projection(state.h), state, weights

    @torch.no_grad()
    def sample(
        self, images, max_length=15, *, beam_size=1, temperature=None, top_k=None, top_p=None, length_penalty=0.0,
        no_repeat_ngram=0, generator=None,
    ):  # fmt: skip
        """Caption pictures greedily: at each step the word with the highest score.

        images (N, 3, H, W). Returns captions (N, max_length) int64, <NULL> after <END>; for attn also the
        weights (N, max_length, h, w) on the CPU, zero after <END>. Stops early when every caption has ended.
        With any of the options the caption is searched for or drawn by `eecs598.decoding.decode`, which says what
        they mean, gives several captions a picture and their probabilities, and never says <UNK>.
        """
        search = beam_size != 1 or length_penalty != 0 or no_repeat_ngram != 0
        if search or any(option is not None for option in (temperature, top_k, top_p, generator)):
            best = decoding.decode(
                self, images, max_length, beam_size=beam_size, length_penalty=length_penalty,
                no_repeat_ngram=no_repeat_ngram, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator,
            )  # fmt: skip
            return best.words[:, 0] if best.weights is None else (best.words[:, 0], best.weights[:, 0])
        # ANSWER captioner_sample: Formula: word_0 = <START>; word_t = argmax of the scores after word_(t-1). Hint:
        #   carry every state on, c too.
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; it must be at least 1")
        captions, maps = torch.full((len(images), max_length), self.null, device=images.device), []
        words = torch.full((len(images),), self.start, device=images.device)
        ended = torch.zeros_like(words, dtype=torch.bool)
        with decoding.evaluating(self):
            state = self.begin(images)
            for t in range(max_length):
                scores, state, weights = self.step(words, state)
                words = scores.argmax(dim=1).masked_fill(ended, self.null)
                captions[:, t] = words
                if weights is not None:
                    maps.append(weights.masked_fill(ended[:, None, None], 0))
                ended |= words == self.end
                if ended.all():
                    break
        if self.cell_type != "attn":
            return captions
        weights = torch.stack(maps, dim=1)
        return captions, F.pad(weights, (0, 0, 0, 0, 0, max_length - len(maps))).cpu()

    def _check_options(self, word_to_idx, input_dim, wordvec_dim, hidden_dim):
        for name, size in {"input_dim": input_dim, "wordvec_dim": wordvec_dim, "hidden_dim": hidden_dim}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number, at least 1")
        if self.ignore_index not in (None, -100) and not 0 <= self.ignore_index < len(word_to_idx):
            raise ValueError(f"ignore_index is {self.ignore_index!r}; it must be a word's id, below "
                             f"{len(word_to_idx)}, or None")
        for name in ("dropout", "label_smoothing", "scheduled_sampling"):
            if not 0 <= self.options[name] < 1:
                raise ValueError(f"{name} is {self.options[name]!r}; it must be from 0 up to, but not, 1")
        for name in ("doubly_stochastic", "attention_entropy"):
            if not 0 <= self.options[name] < math.inf:
                raise ValueError(f"{name} is {self.options[name]!r}; it must be finite, and not negative")
        if self.options["tie_embeddings"] and wordvec_dim != hidden_dim:
            raise ValueError(f"tie_embeddings takes word vectors as long as the state, but wordvec_dim is "
                             f"{wordvec_dim} and hidden_dim {hidden_dim}")

    def _check_captions(self, images, captions):
        vocab_size = self.output_projection.out_features
        sized = captions.dim() in (2, 3) and captions.shape[-1] >= 2 and captions.numel() > 0
        if not sized or len(captions) != len(images):
            raise ValueError(f"captions are {tuple(captions.shape)}; for {len(images)} pictures they must be "
                             f"({len(images)}, T + 1), or ({len(images)}, K, T + 1), with K and T at least 1")
        if captions.dtype != torch.int64:
            raise TypeError(f"captions are {captions.dtype}; they must be torch.int64 word ids")
        if captions.device != self.output_projection.weight.device:
            raise ValueError(f"captions are on {captions.device}, but the model is on "
                             f"{self.output_projection.weight.device}; move them there with .to")
        low, high = (int(edge) for edge in captions.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"captions hold ids from {low} to {high}; the vocabulary has ids 0 to {vocab_size - 1}")


# ---------------------------------------------------------------------------------------------------------
# The whole model by hand
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def captioning_gradients(model, features, captions):
    """The captioning loss and its gradient for every decoder parameter, without autograd.

    The chain rule from the loss back to the image features, each link one of the backward functions above, in
    the reverse order of the forward pass. model: a CaptioningRNN; features (N, C, h, w); captions (N, T + 1).
    Returns the loss and a dict from each decoder parameter's name to its gradient.
    """
    words, targets = captions[:, :-1], captions[:, 1:]
    W_feature, W_out = model.feature_projection.weight.t(), model.output_projection.weight.t()
    # Forward: picture -> states -> scores -> loss.
    seen = features.movedim(1, -1) if model.cell_type == "attn" else features.mean(dim=(2, 3))
    projected, cache_feature = temporal_affine_forward(seen, W_feature, model.feature_projection.bias)
    x, cache_embed = word_embedding_forward(words, model.word_embedding.W_embed)
    h, cache_cell = _cell_sequence_forward(model, x, projected)
    scores, cache_out = temporal_affine_forward(h, W_out, model.output_projection.bias)
    loss = temporal_softmax_loss(scores, targets, model.ignore_index)
    # Backward: the same links, last to first.
    dscores = temporal_softmax_backward(scores, targets, model.ignore_index)
    dh, dW_out, db_out = temporal_affine_backward(dscores, cache_out)
    dx, dprojected, dcell = _cell_sequence_backward(model, dh, cache_cell)
    dW_embed = word_embedding_backward(dx, cache_embed)
    _, dW_feature, db_feature = temporal_affine_backward(dprojected, cache_feature)
    return loss, {
        "feature_projection.weight": dW_feature.t(),
        "feature_projection.bias": db_feature,
        "word_embedding.W_embed": dW_embed,
        **{f"cell.{name}": gradient for name, gradient in dcell.items()},
        "output_projection.weight": dW_out.t(),
        "output_projection.bias": db_out,
    }


def _cell_sequence_forward(model, x, projected):
    """The cell over x (N, T, W), begun from the projected features. Returns h (N, T, H) and a cache."""
    weights = [parameter.detach() for parameter in model.cell.parameters()]
    if model.cell_type == "rnn":
        return rnn_forward(x, projected, *weights)
    if model.cell_type == "lstm":
        return lstm_forward(x, projected, torch.zeros_like(projected), *weights)
    h, _, cache = attention_lstm_forward(x, projected.movedim(-1, 1), *weights)
    return h, cache


def _cell_sequence_backward(model, dh, cache):
    """Gradient of `_cell_sequence_forward`: dx, dprojected, and a dict of the cell's parameters' gradients."""
    if model.cell_type == "rnn":
        dx, dprojected, *dweights = rnn_backward(dh, cache)
    elif model.cell_type == "lstm":
        dx, dprojected, _, *dweights = lstm_backward(dh, cache)  # c0 is zero, whatever the picture
    else:
        dx, dA, *dweights = attention_lstm_backward(dh, cache)
        dprojected = dA.movedim(1, -1)
    return dx, dprojected, dict(zip((name for name, _ in model.cell.named_parameters()), dweights))
