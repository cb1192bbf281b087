"""Common mistakes in each part, as pairs of a sentence and a function of the formula f and its inputs p.

Autograd through a formula with a mistake gives the gradients of the mistake, so forward and backward share them. If a
learner's numbers equal those of a mistake, its sentence is the hint, after "what comes out when".
"""

import itertools

import torch
from torch import Tensor

from eecs598.checks.formulas import both, identity, next_cell, over_cells, scaled, zero


def _detach(value, *_):
    return value.detach()


def _slope(f, slope):
    """f with another derivative: the value f(z), the gradient slope(z, f(z))."""

    def mistaken(z):
        y = f(z).detach()
        k = slope(z.detach(), y)
        return k * z + (y - k * z).detach()

    return mistaken


def _with(**changes):
    """Other keyword arguments."""
    return lambda f, p: f(**{**p, **changes})


def _on(**changes):
    """Inputs changed by a function."""
    return lambda f, p: f(**{**p, **{name: change(p[name]) for name, change in changes.items()}})


def _after(change):
    """Outputs changed by a function."""
    return lambda f, p: change(*f(**p))


def _only_last(h, *rest):
    return torch.cat([h[:, :-1].detach(), h[:, -1:]], 1), *rest


def _recur_late(f, p):
    """The gradient of Wh computed from next_h, through a product of value 0, while that through prev_h is detached."""
    next_h = f(**p)[0].detach()
    return f(**p, recur=lambda h, Wh: h @ Wh.detach() + next_h @ (Wh - Wh.detach()))


def _forget_late(i, f, g, prev_c):
    """The gradient of the forget gate computed from next_c, in the same way."""
    next_c = next_cell(i, f, g, prev_c).detach()
    return f.detach() * prev_c + i * g + (f - f.detach()) * next_c


def _keep_whole(i, f, g, prev_c):
    """The gradient of prev_c not multiplied by the forget gate."""
    return f * prev_c.detach() + (prev_c - prev_c.detach()) + i * g


def _last_only(x):
    """1 at the words of x (N, T) that are not followed by the same word, row after row, else 0."""
    words = x.flatten().tolist()
    return torch.tensor([word not in words[k + 1 :] for k, word in enumerate(words)]).view(x.shape)


def _last_in_row(x):
    """1 at the words of x (N, T) that are not followed by the same word in their row, else 0."""
    return torch.cat([_last_only(row) for row in x.split(1)])


def _unscaled_slope(scores, H):
    return scores + (scaled(scores, H) - scores).detach()


# If two mistakes explain the same outputs, the first one is named. So mistakes in the backward come before mistakes in
# the forward with the same gradient.

# fmt: off
NO_BIAS = ("the bias b is left out", _on(b=zero))
RNN_CELL = (
    NO_BIAS,
    ("tanh' is missing; it must be da = dnext_h * (1 - next_h**2)", _with(tanh=_slope(torch.tanh, lambda a, y: 1))),
    ("tanh' is 1 - next_h; it must be 1 - next_h**2", _with(tanh=_slope(torch.tanh, lambda a, y: 1 - y))),
    ("tanh' is computed from a, 1 - a**2; it must be 1 - next_h**2",
     _with(tanh=_slope(torch.tanh, lambda a, y: 1 - a**2))),
    ("tanh is left out", _with(tanh=identity)),
    ("sigmoid is used instead of tanh", _with(tanh=torch.sigmoid)),
    ("Wh is transposed in the forward step", _on(Wh=Tensor.t)),
)
LATE_WH = ("dWh is computed from next_h; it must be prev_h", _recur_late)
H0_UNUSED = ("h0 is not used", _on(h0=zero))
ORDERS = [order for order in map("".join, itertools.permutations("ifog")) if order != "ifog"]
LSTM_CELL = (
    *((f"da is concatenated in the order {', '.join(order)}; the columns hold i, f, o, g", _with(join=order))
      for order in ORDERS),
    *((f"the gates are split in the order {', '.join(order)}; the columns hold i, f, o, g", _with(cut=order))
      for order in ORDERS),
    NO_BIAS,
    ("next_h is computed from prev_c; it must be next_c", _with(show=lambda next_c, prev_c: prev_c)),
    ("next_h = o * next_c; it must be o * tanh(next_c)", _with(squash=identity)),
    ("the candidate g uses sigmoid; it must be tanh", _with(tanh=torch.sigmoid)),
    ("the gates i, f, o use tanh; it must be sigmoid", _with(sigmoid=torch.tanh)),
    ("the forget gate is not applied to prev_c", _with(cell=lambda i, f, g, c: c + i * g)),
    ("the input gate is not applied to g", _with(cell=lambda i, f, g, c: f * c + g)),
    ("the path from next_h through tanh(next_c) is missing; it must be dc = dnext_c + dnext_h * o * tanh'",
     _with(squash=lambda c: torch.tanh(c).detach())),
    ("tanh' of next_c is missing; it must be 1 - tanh(next_c)**2", _with(squash=_slope(torch.tanh, lambda c, y: 1))),
    ("tanh' is computed from next_c, 1 - next_c**2; it must be 1 - tanh(next_c)**2",
     _with(squash=_slope(torch.tanh, lambda c, y: 1 - c**2))),
    ("sigmoid' is missing; it must be s * (1 - s) for i, f and o",
     _with(sigmoid=_slope(torch.sigmoid, lambda a, s: 1))),
    ("tanh' of the candidate is missing; it must be 1 - g**2", _with(tanh=_slope(torch.tanh, lambda a, g: 1))),
    ("df is computed from next_c; it must be prev_c", _with(cell=_forget_late)),
    ("dprev_c lacks the forget gate; it must be dprev_c = dc * f", _with(cell=_keep_whole)),
)
CELL_UNDRIVEN = ("dnext_c is not used", _after(lambda next_h, next_c: (next_h, next_c.detach())))
IN_TIME = (
    ("the state is not passed on: every step starts from the initial state", _with(carry=lambda state, first: first)),
    ("the state is not passed on: every step starts from zero", _with(carry=zero)),
    ("the gradient that flows back from step t + 1 is not added at step t", _with(carry=_detach)),
    ("a weight's gradient is only that of step 0, which a backward loop comes to last: sum over the steps with +=",
     _with(use=lambda W, t, T: W if t == 0 else W.detach())),
    ("a weight's gradient is only that of the last step: sum over the steps",
     _with(use=lambda W, t, T: W if t == T - 1 else W.detach())),
    ("only the last step's dh is used", _after(_only_last)),
)
DOT_PRODUCT_ATTENTION = (
    ("the scores are not divided by sqrt(H)", _with(scale=lambda s, H: s)),
    ("the scores are divided by H; it must be sqrt(H)", _with(scale=lambda s, H: s / H)),
    ("the scores are multiplied by sqrt(H); they must be divided by it", _with(scale=lambda s, H: s * H**0.5)),
    ("there is no softmax", _with(softmax=identity)),
    ("the softmax is over the batch; it must be over all cells", _with(softmax=lambda s: s.softmax(0))),
    ("the softmax is over each column; it must be over all cells", _with(softmax=lambda s: s.softmax(1))),
    ("the softmax is over each row; it must be over all cells", _with(softmax=lambda s: s.softmax(2))),
    ("1/sqrt(H) is missing in the backward pass of the scores", _with(scale=_unscaled_slope)),
    ("dA lacks the path through the scores: A is both key and value", _with(keys=_detach)),
    ("dA lacks the path through the average: A is both key and value", _with(values=_detach)),
    ("the gradient through the weights is missing", _with(attend=_detach)),
    ("the gradient through the softmax is w * dw; it must be w * (dw - sum(w * dw))",
     _with(softmax=_slope(over_cells, lambda scores, weights: weights))),
)
ATTENTION_IN_TIME = (
    ("h0 and c0 are zero; both must be the mean of A over the grid", _with(start=lambda m: (0 * m, 0 * m))),
    ("c0 is zero; it must be the mean of A, like h0", _with(start=lambda m: (m, 0 * m))),
    ("h0 is zero; it must be the mean of A, like c0", _with(start=lambda m: (0 * m, m))),
    ("the gradient through h0 = c0 = mean of A is missing", _with(start=lambda m: both(m.detach()))),
    ("the gradient through c0 = mean of A is missing", _with(start=lambda m: (m, m.detach()))),
    ("the gradient through h0 = mean of A is missing", _with(start=lambda m: (m.detach(), m))),
    ("every step attends with h0; it must attend with the previous state", _with(look=lambda prev_h, h0: h0)),
    ("the gradient through the attention, from attn to A and prev_h, is missing", _with(attn=_detach)),
    ("dprev_h lacks the path through the attention scores", _with(look=_detach)),
)
ATTN_UNUSED = ("attn @ Wattn is left out", _on(Wattn=zero))
WORD_EMBEDDING = (
    ("a repeated word keeps the gradient of one occurrence, as in dW[x] = dout or dW[x] += dout: sum them all, as "
     "with index_add_", _with(share=_last_only)),
    ("a repeated word keeps the gradient of its last step, as in dW[x[:, t]] = dout[:, t]: sum them all, as with "
     "index_add_", _with(share=lambda x: _last_only(x.t()).t())),
    ("a word that is repeated within a step counts once there, as in dW[x[:, t]] += dout[:, t]: sum them all, as with "
     "index_add_", _with(share=lambda x: _last_in_row(x.t()).t())),
    ("a word that is repeated within a caption counts once there, as in dW[x[n]] += dout[n]: sum them all, as with "
     "index_add_", _with(share=_last_in_row)),
    ("the gradient of a repeated word is averaged over its occurrences: sum them",
     _with(share=lambda x: 1 / (x.unsqueeze(2) == x.flatten()).sum(2))),
    ("word 0 gets no gradient", _with(share=lambda x: x != 0)),
)
TEMPORAL_SOFTMAX = (
    ("the loss is averaged over the batch and over time; it must be summed over time",
     _with(total=lambda losses, mask: losses.mean())),
    ("the loss is averaged over the counted steps; it must be summed over time and divided by N",
     _with(total=lambda losses, mask: losses.sum() / mask.sum())),
    ("the loss is averaged over time and summed over the batch; it must be the other way round",
     _with(total=lambda losses, mask: losses.sum() / losses.shape[1])),
    ("the loss is not divided by N", _with(total=lambda losses, mask: losses.sum())),
    ("ignore_index is not used", _with(ignore_index=None)),
    ("word 0 is ignored, whatever ignore_index says", _with(ignore_index=0)),
    ("the softmax is over time (axis 1); it must be over the words (axis 2)", _with(axis=1)),
    ("the softmax is over the batch (axis 0); it must be over the words (axis 2)", _with(axis=0)),
    ("the backward pass's softmax is over time (axis 1); it must be over the words (axis 2)", _with(slope=1)),
    ("the backward pass's softmax is over the batch (axis 0); it must be over the words (axis 2)", _with(slope=0)),
    ("1 is not subtracted at the target word", _with(pick=_detach)),
    ("the softmax is missing, so only the target word gets a gradient", _with(spread=_detach)),
)
NOT_SEEN = ("the picture is not used: every caption starts from zeros", _with(see=zero))
FEATURES_AGAIN = (
    ("the pictures are divided by 255 again", lambda f, p: f(**{**p, "features": p["features"] / 255})),
)
CAPTIONER = (
    NOT_SEEN,
    *FEATURES_AGAIN,
    ("every picture gets the mean features of the batch",
     lambda f, p: f(**{**p, "features": p["features"].mean(0, keepdim=True).expand_as(p["features"])})),
    ("<NULL> is not ignored: pass ignore_index to the loss", _with(ignore=lambda null: None)),
    *TEMPORAL_SOFTMAX[:4],
    ("the inputs are also the targets: the targets must be captions[:, 1:]",
     _with(feed=lambda captions: (captions[:, :-1], captions[:, :-1]))),
    ("the targets are also the inputs: the inputs must be captions[:, :-1]",
     _with(feed=lambda captions: (captions[:, 1:], captions[:, 1:]))),
    ("inputs and targets are swapped", _with(feed=lambda captions: (captions[:, 1:], captions[:, :-1]))),
    ("the bias of the feature projection is left out", _on(b_feature=zero)),
    ("the bias of the scores is left out", _on(b_out=zero)),
)
POOLED = (
    ("the features are summed over the grid; they must be averaged", _with(pool=lambda grid: grid.sum(dim=(2, 3)))),
    ("the features are max-pooled over the grid; they must be averaged", _with(pool=lambda A: A.amax(dim=(2, 3)))),
    ("one cell of the grid is used; the features must be averaged over it", _with(pool=lambda grid: grid[:, :, 0, 0])),
)
SAMPLE = (
    NOT_SEEN,
    *FEATURES_AGAIN,
    ("the first input is <NULL>; it must be <START>", _with(first=0)),
    ("the first input is <END>; it must be <START>", _with(first=2)),
    ("<START> is the input at every step; it must be the previous word", _with(feed=lambda chosen, start: start)),
    ("h is not passed on: every step starts from the initial h", _with(carry=lambda h, h0: h0)),
    ("h is not passed on: every step starts from zeros", _with(carry=zero)),
    ("the word with the lowest score is chosen", _on(W_out=torch.neg, b_out=torch.neg)),
    ("the bias of the scores is left out", _on(b_out=zero)),
)
SAMPLE_CELL = ("the cell state c is not passed on: it is zero at every step", _with(carry_c=zero))
# fmt: on


# ---------------------------------------------------------------------------------------------------------
# The mistakes of a part that others share
# ---------------------------------------------------------------------------------------------------------

RNN_STEP = (*RNN_CELL, LATE_WH)
RNN_SEQUENCE = (*IN_TIME, *RNN_CELL, H0_UNUSED)
LSTM_STEP = (*LSTM_CELL, CELL_UNDRIVEN)
LSTM_SEQUENCE = (*IN_TIME, *LSTM_CELL, H0_UNUSED, ("c0 is not used", _on(c0=zero)))
LSTM_FROM_H0 = (*IN_TIME, *LSTM_CELL, H0_UNUSED, ("c0 is h0; it must be zero", _with(c0=identity)))
ATTENTION_LSTM_STEP = (*LSTM_CELL, CELL_UNDRIVEN, ATTN_UNUSED)
ATTENTION_LSTM_SEQUENCE = (*IN_TIME, *ATTENTION_IN_TIME, *LSTM_CELL, ATTN_UNUSED)
TEMPORAL_AFFINE = (NO_BIAS, ("only the last step's dout is used", _after(_only_last)))
RNN_CAPTIONER_LOSS = (*CAPTIONER, *POOLED)
LSTM_CAPTIONER_LOSS = (*CAPTIONER, *POOLED, ("c0 is h0; it must be zero", _with(cell={"c0": identity})))
ATTN_CAPTIONER_LOSS = (
    *CAPTIONER,
    ("h0 and c0 are zero; both must be the mean of A over the grid", _with(cell={"start": lambda m: (0 * m, 0 * m)})),
    ("c0 is zero; it must be the mean of A, like h0", _with(cell={"start": lambda m: (m, 0 * m)})),
)
RNN_CAPTIONER_SAMPLE = SAMPLE
LSTM_CAPTIONER_SAMPLE = (*SAMPLE, SAMPLE_CELL, ("c0 is h0; it must be zero", _with(c0=identity)))
ATTN_CAPTIONER_SAMPLE = (
    *SAMPLE,
    SAMPLE_CELL,
    ("c0 is zero; it must be the mean of A, like h0", _with(c0=zero)),
    ("the attention weights of a word are those of the next word: store them before the step", _with(late=True)),
)
