"""The checks of the assignment: each hand-written function against PyTorch's own, in float64.

`check_<part>(<the functions of that part>)` takes the learner's functions or classes, runs them on fixed inputs
whose dimensions all differ, and returns a `CheckTable`, or raises `CheckError` with the table and a hint at the
likely mistake. `CHECKS` lists the checks in the order of the lesson, with the names of the functions each needs.

Every part is also written out as a formula (below), with the usual mistakes as data: a sentence, and the formula
with that mistake made. Autograd through a mistaken formula is the gradient that the mistake gives. An output that
misses is compared with each of them, so a hint is not a guess: the learner's numbers are the mistake's numbers.
"""

import inspect
import itertools
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eecs598.grad import NUMERIC, TIGHT, CheckTable, compute_numeric_gradient, rel_error

# All different, so that no wrong axis fits by chance; G = 4H, the LSTM's gates side by side.
SIZES = {"N": 3, "T": 4, "D": 6, "H": 5, "G": 20, "V": 11, "W": 8, "h": 2, "w": 7}
SAME = 1e-6  # a wrong output within this of a mistake's value is that mistake
PARAMETERS = ("Wx", "Wh", "Wattn", "b", "W_embed")


class Check(NamedTuple):
    """A check, and the names of the functions and classes to call it with, in order."""

    run: Callable[..., CheckTable]
    needs: tuple[str, ...]


CHECKS: dict[str, Check] = {}


def _register(check):
    CHECKS[check.__name__.removeprefix("check_")] = Check(check, tuple(inspect.signature(check).parameters))
    return check


# ---------------------------------------------------------------------------------------------------------
# The mathematics, written out; each keyword argument is a place where a mistake can be made
# ---------------------------------------------------------------------------------------------------------


def _same(value, *_):
    return value


def _detach(value, *_):
    return value.detach()


def _zero(value, *_):
    return 0 * value


def _slope(f, slope):
    """f with another derivative: the value f(z), the gradient slope(z, f(z))."""

    def mistaken(z):
        y = f(z).detach()
        k = slope(z.detach(), y)
        return k * z + (y - k * z).detach()

    return mistaken


def rnn_step(x, prev_h, Wx, Wh, b, tanh=torch.tanh):
    return (tanh(x @ Wx + prev_h @ Wh + b),)


def lstm_step(
    x, prev_h, prev_c, Wx, Wh, b,
    order="ifog", sigmoid=torch.sigmoid, tanh=torch.tanh, squash=torch.tanh,
    cell=lambda i, f, g, prev_c: f * prev_c + i * g, show=_same,
):  # fmt: skip
    gates = dict(zip(order, (x @ Wx + prev_h @ Wh + b).chunk(4, dim=1)))
    i, f, o, g = sigmoid(gates["i"]), sigmoid(gates["f"]), sigmoid(gates["o"]), tanh(gates["g"])
    next_c = cell(i, f, g, prev_c)
    return o * squash(show(next_c, prev_c)), next_c


def attention_lstm_step(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b, **slip):
    return lstm_step(torch.cat([x, attn], 1), prev_h, prev_c, torch.cat([Wx, Wattn]), Wh, b, **slip)


def _unroll(step, x, start, weights, carry=_same, use=_same, **slip):
    """carry: what a step takes over of the state before; use: what step t of T takes of each weight."""
    state, h, T = start, [], x.shape[1]
    for t in range(T):
        if t > 0:
            state = [carry(s, s0) for s, s0 in zip(state, start)]
        state = step(x[:, t], *state, *(use(weight, t, T) for weight in weights), **slip)
        h.append(state[0])
    return torch.stack(h, 1)


def rnn(x, h0, Wx, Wh, b, **slip):
    return (_unroll(rnn_step, x, (h0,), (Wx, Wh, b), **slip),)


def lstm(x, h0, c0, Wx, Wh, b, **slip):
    return (_unroll(lstm_step, x, (h0, c0), (Wx, Wh, b), **slip),)


def lstm_from_h0(x, h0, Wx, Wh, b, c0=torch.zeros_like, **slip):
    return lstm(x, h0, c0(h0), Wx, Wh, b, **slip)


def attention(prev_h, A, scale=lambda s, H: s / H**0.5, softmax=None, keys=_same, values=_same, attend=_same):
    scores = scale(torch.einsum("nh,nhij->nij", prev_h, keys(A)), A.shape[1])
    weights = softmax(scores) if softmax else scores.flatten(1).softmax(1).view_as(scores)
    return torch.einsum("nij,nhij->nh", attend(weights), values(A)), weights


def attention_lstm(x, A, Wx, Wh, Wattn, b, start=lambda mean: (mean, mean), look=_same, attn=_same, **slip):
    first, maps = start(A.mean(dim=(2, 3))), []

    def step(x, prev_h, prev_c, *weights, **slip):
        seen, weights_t = attention(look(prev_h, first[0]), A)
        maps.append(weights_t)
        return attention_lstm_step(x, prev_h, prev_c, attn(seen), *weights, **slip)

    return _unroll(step, x, first, (Wx, Wh, Wattn, b), **slip), torch.stack(maps, 1)


def word_embedding(x, W_embed, share=torch.ones_like):
    """share: the part of its gradient that each word of x hands to its row."""
    out, part = W_embed[x], share(x).to(W_embed).unsqueeze(2)
    return (part * out + ((1 - part) * out).detach(),)


def temporal_affine(h, W, b):
    return (h @ W + b,)


def temporal_softmax(
    x, y, ignore_index=None, axis=2, pick=_same, spread=_same, total=lambda losses, real: losses.sum() / len(losses)
):
    target, real = y.unsqueeze(2), torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    normalizer = x.logsumexp(axis, keepdim=True).expand_as(x).gather(2, target)
    losses = (spread(normalizer) - pick(x.gather(2, target))).squeeze(2)
    return (total(losses * real, real),)


# ---------------------------------------------------------------------------------------------------------
# The reference: PyTorch's own functions (torch.rnn_tanh and torch.lstm are what nn.RNN and nn.LSTM call)
# ---------------------------------------------------------------------------------------------------------


def _torch_weights(Wx, Wh, b):
    """Our weights as PyTorch keeps them: transposed, two biases, and an LSTM's gates in the order i, f, g, o."""
    if Wh.shape[1] == 4 * Wh.shape[0]:
        Wx, Wh, b = (torch.cat([(p := w.chunk(4, -1))[0], p[1], p[3], p[2]], -1) for w in (Wx, Wh, b))
    return Wx.t(), Wh.t(), b, torch.zeros_like(b)


def torch_rnn_step(x, prev_h, Wx, Wh, b):
    return (torch.rnn_tanh_cell(x, prev_h, *_torch_weights(Wx, Wh, b)),)


def torch_rnn(x, h0, Wx, Wh, b):
    return (torch.rnn_tanh(x, h0[None], _torch_weights(Wx, Wh, b), True, 1, 0.0, False, False, True)[0],)


def torch_lstm_step(x, prev_h, prev_c, Wx, Wh, b):
    return torch.lstm_cell(x, (prev_h, prev_c), *_torch_weights(Wx, Wh, b))


def torch_lstm(x, h0, c0, Wx, Wh, b):
    return (torch.lstm(x, (h0[None], c0[None]), _torch_weights(Wx, Wh, b), True, 1, 0.0, False, False, True)[0],)


def torch_lstm_from_h0(x, h0, Wx, Wh, b):
    return torch_lstm(x, h0, torch.zeros_like(h0), Wx, Wh, b)


def torch_attention(prev_h, A):
    """The weights are what attention returns when the values are one-hot."""
    query, cells = prev_h.unsqueeze(1), A.flatten(2).mT  # (N, 1, H), (N, h * w, H)
    one_hot = torch.eye(cells.shape[1], dtype=A.dtype).expand(len(A), -1, -1)
    attn, weights = (F.scaled_dot_product_attention(query, cells, v).squeeze(1) for v in (cells, one_hot))
    return attn, weights.unflatten(1, A.shape[2:])


def torch_attention_lstm_step(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    return torch_lstm_step(torch.cat([x, attn], 1), prev_h, prev_c, torch.cat([Wx, Wattn]), Wh, b)


def torch_attention_lstm(x, A, Wx, Wh, Wattn, b):
    h = c = F.adaptive_avg_pool2d(A, 1).flatten(1)
    hs, maps = [], []
    for x_t in x.unbind(1):
        attn, weights = torch_attention(h, A)
        h, c = torch_attention_lstm_step(x_t, h, c, attn, Wx, Wh, Wattn, b)
        hs, maps = [*hs, h], [*maps, weights]
    return torch.stack(hs, 1), torch.stack(maps, 1)


def torch_word_embedding(x, W_embed):
    return (F.embedding(x, W_embed),)


def torch_temporal_affine(h, W, b):
    return (F.linear(h, W.t(), b),)


def torch_temporal_softmax(x, y, ignore_index=None):
    ignored = {} if ignore_index is None else {"ignore_index": ignore_index}
    return (F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum", **ignored) / len(x),)


# ---------------------------------------------------------------------------------------------------------
# The usual mistakes: "..., what comes out when <sentence>", and the formula f of the inputs p with it made
# ---------------------------------------------------------------------------------------------------------


def _knob(**changes):
    return lambda f, p: f(**{**p, **changes})


def _swap(**changes):
    return lambda f, p: f(**{**p, **{name: change(p[name]) for name, change in changes.items()}})


def _after(change):
    return lambda f, p: change(*f(**p))


def _only_last(h, *rest):
    return torch.cat([h[:, :-1].detach(), h[:, -1:]], 1), *rest


def _late_state(f, p):
    """next_h where prev_h belongs in the gradient of Wh, of the same value everywhere else."""
    (next_h,) = f(**p)
    Wh = p["Wh"]
    a = p["x"] @ p["Wx"] + p["prev_h"] @ Wh.detach() + p["b"]
    return (torch.tanh(a + next_h.detach() @ (Wh - Wh.detach())),)


def _old_cell_kept(i, f, g, prev_c):
    """next_c where prev_c belongs in the gradient of the forget gate."""
    next_c = (f * prev_c + i * g).detach()
    return f.detach() * prev_c + i * g + (f - f.detach()) * next_c


def _occurrences(last):
    """For words x (N, T): 1 where an occurrence is the one that stays when each overwrites the one before."""

    def share(x):
        by = x if last == "row" else x.t()
        flat = by.flatten().tolist()
        kept = torch.tensor([word not in flat[k + 1 :] for k, word in enumerate(flat)]).view(by.shape)
        return kept if last == "row" else kept.t()

    return share


def _unscaled_gradient(s, H):
    return s + (s / H**0.5 - s).detach()


def _cut_softmax(scores):
    """The softmax with the gradient w * dw, without the part that goes through its denominator."""
    return _slope(lambda z: z.flatten(1).softmax(1).view_as(z), lambda z, w: w)(scores)


NO_BIAS = ("the bias b is left out", _swap(b=_zero))
RNN_CELL = (
    NO_BIAS,
    ("tanh is left out", _knob(tanh=_same)),
    ("sigmoid is taken in place of tanh", _knob(tanh=torch.sigmoid)),
    ("Wh is transposed in the forward step", _swap(Wh=Tensor.t)),
    ("tanh' is missing: da = dnext_h * (1 - next_h**2)", _knob(tanh=_slope(torch.tanh, lambda a, y: 1))),
    ("tanh' is 1 - next_h; it is 1 - next_h**2", _knob(tanh=_slope(torch.tanh, lambda a, y: 1 - y))),
    ("tanh' is 1 - a**2 of the activation; it is 1 - next_h**2", _knob(tanh=_slope(torch.tanh, lambda a, y: 1 - a**2))),
)
LSTM_CELL = (
    *(
        (f"the gates are cut in the order {', '.join(order)}; the columns hold i, f, o, g", _knob(order="".join(order)))
        for order in itertools.permutations("ifog")
        if order != tuple("ifog")
    ),
    NO_BIAS,
    ("next_h is made of prev_c instead of next_c", _knob(show=lambda next_c, prev_c: prev_c)),
    ("next_h = o * next_c, without tanh around next_c", _knob(squash=_same)),
    ("the candidate g goes through sigmoid; it takes tanh", _knob(tanh=torch.sigmoid)),
    ("the gates i, f, o go through tanh; they take sigmoid", _knob(sigmoid=torch.tanh)),
    ("the forget gate is not applied to prev_c", _knob(cell=lambda i, f, g, c: c + i * g)),
    ("the input gate is not applied to g", _knob(cell=lambda i, f, g, c: f * c + g)),
    ("the path from next_h through tanh(next_c) to the cell is forgotten: dc = dnext_c + dnext_h * o * tanh'(next_c)",
     _knob(squash=lambda c: torch.tanh(c).detach())),
    ("tanh' of next_c is missing: 1 - tanh(next_c)**2", _knob(squash=_slope(torch.tanh, lambda c, y: 1))),
    ("tanh' of next_c is 1 - next_c**2; it is 1 - tanh(next_c)**2",
     _knob(squash=_slope(torch.tanh, lambda c, y: 1 - c**2))),
    ("sigmoid' is missing: s * (1 - s) for i, f and o", _knob(sigmoid=_slope(torch.sigmoid, lambda a, s: 1))),
    ("tanh' of the candidate is missing: 1 - g**2", _knob(tanh=_slope(torch.tanh, lambda a, g: 1))),
    ("the forget gate's gradient takes next_c; it takes prev_c", _knob(cell=_old_cell_kept)),
    ("dprev_c lacks the forget gate: dprev_c = dc * f",
     _knob(cell=lambda i, f, g, c: f * c.detach() + (c - c.detach()) + i * g)),
)  # fmt: skip
CELL_OUT = (("dnext_c is not used", _after(lambda next_h, next_c: (next_h, next_c.detach()))),)
IN_TIME = (
    ("the state is not carried on: each step starts from the first state", _knob(carry=lambda state, first: first)),
    ("the state is not carried on: each step starts from zero", _knob(carry=_zero)),
    ("the gradient that flows back from step t + 1 is not added to that of step t", _knob(carry=_detach)),
    ("a weight's gradient is that of the first step alone (the last one that a loop backward in time writes): add "
     "up over the steps with +=", _knob(use=lambda W, t, T: W if t == 0 else W.detach())),
    ("a weight's gradient is that of the last step alone: add up over the steps",
     _knob(use=lambda W, t, T: W if t == T - 1 else W.detach())),
    ("only the last step's dh is used", _after(_only_last)),
)  # fmt: skip
H0_UNUSED = ("h0 is not used", _swap(h0=_zero))
ATTENTION = (
    ("the scores are not divided by sqrt(H)", _knob(scale=lambda s, H: s)),
    ("the scores are divided by H; it is sqrt(H)", _knob(scale=lambda s, H: s / H)),
    ("the scores are multiplied by sqrt(H); they are divided by it", _knob(scale=lambda s, H: s * H**0.5)),
    ("there is no softmax", _knob(softmax=_same)),
    ("the softmax runs over the batch; it runs over the cells", _knob(softmax=lambda s: s.softmax(0))),
    ("the softmax runs over the rows of the grid; it runs over all cells", _knob(softmax=lambda s: s.softmax(1))),
    ("the softmax runs over the columns of the grid; it runs over all cells", _knob(softmax=lambda s: s.softmax(2))),
    ("1/sqrt(H) is missing in the backward of the scores", _knob(scale=_unscaled_gradient)),
    ("dA lacks the part through the scores: A is a key and a value", _knob(keys=_detach)),
    ("dA lacks the part through the average: A is a key and a value", _knob(values=_detach)),
    ("the gradient through the weights is forgotten", _knob(attend=_detach)),
    ("the softmax's backward is w * dw; it is w * (dw - sum(w * dw))", _knob(softmax=_cut_softmax)),
)
ATTENTION_START = (
    ("h0 and c0 are zero; both are the mean of A over the grid", _knob(start=lambda m: (0 * m, 0 * m))),
    ("c0 is zero; it is the mean of A, as h0", _knob(start=lambda m: (m, 0 * m))),
    ("h0 is zero; it is the mean of A, as c0", _knob(start=lambda m: (0 * m, m))),
    ("the gradient through h0 = c0 = mean of A is forgotten", _knob(start=lambda m: (m.detach(), m.detach()))),
    ("the gradient through c0 = mean of A is forgotten", _knob(start=lambda m: (m, m.detach()))),
    ("the gradient through h0 = mean of A is forgotten", _knob(start=lambda m: (m.detach(), m))),
    ("every step looks with h0; it looks with the state before it", _knob(look=lambda prev_h, h0: h0)),
    ("the gradient through the attention (from attn to A and to prev_h) is forgotten", _knob(attn=_detach)),
    ("dprev_h lacks the part through the attention scores", _knob(look=_detach)),
)
ATTN_UNUSED = ("attn @ Wattn is left out", _swap(Wattn=_zero))
EMBEDDING = (
    ("a repeated word keeps one occurrence's gradient (dW[x] = dout overwrites): add them up with index_add_",
     _knob(share=_occurrences("row"))),
    ("a repeated word keeps one occurrence's gradient: add them up", _knob(share=_occurrences("column"))),
    ("a repeated word's gradient is averaged over its occurrences: add them up",
     _knob(share=lambda x: 1 / (x.unsqueeze(2) == x.flatten()).sum(2))),
    ("word 0 gets no gradient", _knob(share=lambda x: x != 0)),
)  # fmt: skip
SOFTMAX = (
    ("the loss is averaged over the batch and over time; it is summed over time",
     _knob(total=lambda losses, real: losses.mean())),
    ("the loss is averaged over the counted steps; it is summed over time and divided by N",
     _knob(total=lambda losses, real: losses.sum() / real.sum())),
    ("the loss is averaged over time and summed over the batch; it is the other way round",
     _knob(total=lambda losses, real: losses.sum() / losses.shape[1])),
    ("the loss is not divided by N", _knob(total=lambda losses, real: losses.sum())),
    ("ignore_index is not used", _knob(ignore_index=None)),
    ("word 0 is ignored, whatever ignore_index says", _knob(ignore_index=0)),
    ("the softmax runs over time (axis 1); it runs over the words (axis 2)", _knob(axis=1)),
    ("the softmax runs over the batch (axis 0); it runs over the words (axis 2)", _knob(axis=0)),
    ("1 is not subtracted at the right word", _knob(pick=_detach)),
    ("the softmax is missing: only the right word gets gradient", _knob(spread=_detach)),
)  # fmt: skip
