"""What each part of the assignment computes, what PyTorch makes of the same, and how learners get it wrong.

A `Formula` holds a part three times: written out here, as PyTorch's own functions (the reference that `checks`
compares with), and with each usual mistake made. Mistakes are data: a sentence, and the formula with that mistake.
Autograd through a mistaken formula gives the gradients that the mistake gives, so forward and backward share them.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from eecs598.grad import TIGHT

# All different, so that no wrong axis fits by chance; G = 4H, the LSTM's gates side by side.
SIZES = {"N": 3, "T": 4, "D": 6, "H": 5, "G": 20, "V": 11, "W": 8, "C": 9, "K": 10, "h": 2, "w": 7}
SEED = 601  # with it words repeat in a batch, word 0 occurs, and so does IGNORED
IGNORED = 5  # not word 0: to know that padding is often 0 is not to read ignore_index
SPECIALS = (0, 1, 2)  # the ids of <NULL>, <START> and <END> in every file of the published assignment
GRID = {"h": 4, "w": 4}  # that of the published assignment


@dataclass(frozen=True)
class Case:
    """One run of a check. The main case has no label and a row an output; any other has one row, its worst.

    sizes, and scale (input name -> factor), replace the usual ones; options are further arguments; hint is
    what to say when this case misses and those before it pass. published: the published assignment asks for it
    too; beyond: the lesson does not. strided: the inputs are not contiguous.
    """

    label: str = ""
    sizes: dict = field(default_factory=dict)
    scale: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    hint: str = ""
    published: bool = False
    beyond: bool = False
    strided: bool = False


@dataclass(frozen=True)
class Formula:
    """One part of the assignment as mathematics.

    inputs: "x:NTD y:NT<V": names with their dimensions, "<V" for integers below V. outputs: names. compute: the
    formula, compute(**inputs, **options) -> outputs. reference: the same from PyTorch; against: its name there.
    mistakes: pairs of a sentence, to follow "what comes out when", and a function of `compute` and its arguments.
    driven: how many of the outputs have a gradient coming in. limit: the error up to which an output is right.
    """

    inputs: str
    outputs: tuple[str, ...]
    compute: Callable
    reference: Callable
    against: str
    mistakes: tuple
    cases: tuple[Case, ...]
    driven: int = 1
    limit: float = TIGHT
    seed: int = SEED

    @property
    def gradients(self):
        """Names of the gradients: a d before each input that is not a tensor of integers."""
        return tuple("d" + part.split(":")[0] for part in self.inputs.split() if "<" not in part)

    def draw(self, case):
        """The case's inputs, by name, and the gradients that come in, one for each driven output."""
        generator = torch.Generator().manual_seed(self.seed)
        sizes, inputs = SIZES | case.sizes, {}
        for part in self.inputs.split():
            name, dims, bound = re.fullmatch(r"(\w+):(\w+)<?(\w*)", part).groups()
            shape = [sizes[dim] for dim in dims]
            if bound:
                inputs[name] = torch.randint(sizes[bound], shape, generator=generator)
            else:
                spread = 0.7 * case.scale.get(name, 1)  # below 1, so that tanh and sigmoid are not flat
                inputs[name] = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        driven = self.reference(**inputs, **case.options)[: self.driven]
        if driven[0].dim() == 0:  # a loss: what comes in is 1
            return inputs, [torch.ones_like(driven[0])]
        return inputs, [torch.randn(output.shape, generator=generator).to(output) for output in driven]

    def values(self, compute, inputs, incoming, options):
        """The outputs of `compute`, by name."""
        return dict(zip(self.outputs, compute(**inputs, **options)))

    def derivatives(self, compute, inputs, incoming, options):
        """The gradients that autograd gives for `compute`, by name."""
        leaves = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in inputs.items()}
        outputs = compute(**leaves, **options)
        loss = sum((output * d).sum() for output, d in zip(outputs, incoming))
        wrt = [leaves[name[1:]] for name in self.gradients]
        grads = torch.autograd.grad(loss, wrt, allow_unused=True, materialize_grads=True)
        return dict(zip(self.gradients, grads))


# ---------------------------------------------------------------------------------------------------------
# The formulas. Each keyword argument is a place where a mistake can be made.
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


def rnn_step(x, prev_h, Wx, Wh, b, tanh=torch.tanh, recur=torch.matmul):
    return (tanh(x @ Wx + recur(prev_h, Wh) + b),)


def _next_cell(i, f, g, prev_c):
    return f * prev_c + i * g


# fmt: off
def lstm_step(x, prev_h, prev_c, Wx, Wh, b, cut="ifog", join="ifog",
              sigmoid=torch.sigmoid, tanh=torch.tanh, cell=_next_cell, show=_same, squash=torch.tanh):
    """cut, join: the order in which the forward takes the gates from the columns, and the backward puts them back."""
    columns = (x @ Wx + prev_h @ Wh + b).chunk(4, dim=1)
    a = dict(zip(cut, columns))
    if join != "ifog":
        a = {gate: a[gate].detach() + column - column.detach() for gate, column in zip(join, columns)}
    i, f, o, g = sigmoid(a["i"]), sigmoid(a["f"]), sigmoid(a["o"]), tanh(a["g"])
    next_c = cell(i, f, g, prev_c)
    return o * squash(show(next_c, prev_c)), next_c
# fmt: on


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


def lstm_from_h0(x, h0, Wx, Wh, b, c0=_zero, **slip):
    return lstm(x, h0, c0(h0), Wx, Wh, b, **slip)


def _scaled(scores, H):
    return scores / H**0.5


def _over_cells(scores):
    return scores.flatten(1).softmax(1).view_as(scores)


def attention(prev_h, A, scale=_scaled, softmax=_over_cells, keys=_same, values=_same, attend=_same):
    weights = softmax(scale(torch.einsum("nh,nhij->nij", prev_h, keys(A)), A.shape[1]))
    return torch.einsum("nij,nhij->nh", attend(weights), values(A)), weights


def _both(mean):
    return mean, mean


def attention_lstm(x, A, Wx, Wh, Wattn, b, start=_both, look=_same, attn=_same, **slip):
    first, maps = start(A.mean(dim=(2, 3))), []

    def step(x, prev_h, prev_c, *weights, **slip):
        seen, attn_weights = attention(look(prev_h, first[0]), A)
        maps.append(attn_weights)
        return attention_lstm_step(x, prev_h, prev_c, attn(seen), *weights, **slip)

    return _unroll(step, x, first, (Wx, Wh, Wattn, b), **slip), torch.stack(maps, 1)


def word_embedding(x, W_embed, share=torch.ones_like):
    """share: the part of its gradient that each word of x hands to its row."""
    out, part = W_embed[x], share(x).to(W_embed).unsqueeze(2)
    return (part * out + ((1 - part) * out).detach(),)


def temporal_affine(h, W, b):
    return (h @ W + b,)


def _per_caption(losses, real):
    return losses.sum() / len(losses)


def temporal_softmax(x, y, ignore_index=None, axis=2, slope=2, pick=_same, spread=_same, total=_per_caption):
    """axis, slope: the axis of the softmax in the loss, and in its gradient."""
    real = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    right = x.gather(2, y.unsqueeze(2))
    normalizer = x.logsumexp(axis, keepdim=True).expand_as(x).gather(2, y.unsqueeze(2))
    if slope != 2:
        tangent = (x.softmax(slope).detach() * x).sum(2, keepdim=True)
        normalizer = normalizer.detach() + tangent - tangent.detach()
    return (total((spread(normalizer) - pick(right)).squeeze(2) * real, real),)


def _features_to_grid(features, W_feature, b_feature):
    """The affine map of the image features, cell by cell: (N, C, h, w) -> (N, H, h, w)."""
    return torch.einsum("nchw,cd->ndhw", features, W_feature) + b_feature[:, None, None]


def _average(grid):
    return grid.mean(dim=(2, 3))


def _shifted(captions):
    """The words that go in, and those that are to come out."""
    return captions[:, :-1], captions[:, 1:]


def captioner_loss(layer, loss, attends):
    """The captioning loss of layer(words, first state or grid, weights) and loss(scores, targets, ignored)."""

    def compute(features, captions, W_feature, b_feature, W_embed, W_out, b_out, specials=SPECIALS, ignore=_same,
                see=_same, pool=_average, feed=_shifted, cell=None, total=None, **weights):  # fmt: skip
        grid = see(_features_to_grid(features, W_feature, b_feature))
        words, targets = feed(captions)
        h = layer(W_embed[words], grid if attends else pool(grid), **weights, **(cell or {}))[0]
        return loss(h @ W_out + b_out, targets, ignore(specials[0]), **({"total": total} if total else {}))

    return compute


def captioner_sample(step, attend, memory):
    """Greedy captions: `step` is a step of the cell, `attend` the attention or None, memory whether there is a c."""

    def compute(features, W_feature, b_feature, W_embed, W_out, b_out, specials=SPECIALS, max_length=15, first=1,
                see=_same, carry=_same, carry_c=_same, c0=None, feed=_same, late=False, **weights):  # fmt: skip
        grid = see(_features_to_grid(features, W_feature, b_feature))
        h = _average(grid)
        state = (h, (c0 or (_same if attend else _zero))(h)) if memory else (h,)
        words = torch.full((len(grid),), specials[first])
        captions, maps = [], []
        for _ in range(max_length):
            attn, weights_now = attend(state[0], grid) if attend else (None, grid[:, 0])
            seen = (attn,) if attend else ()
            state = step(W_embed[words], *state, *seen, **weights)
            maps.append(attend(state[0], grid)[1] if late else weights_now)
            chosen = (state[0] @ W_out + b_out).argmax(1)
            captions.append(chosen)
            words = feed(chosen, torch.full_like(chosen, specials[1]))
            state = (carry(state[0], h), *map(carry_c, state[1:]))
        captions, maps = end_captions(torch.stack(captions, 1), torch.stack(maps, 1), specials)
        return (captions, maps) if attend else (captions,)

    return compute


def end_captions(captions, maps, specials):
    """Captions (N, L) with <NULL> after each one's first <END>, and maps (N, L, ...), or None, with zeros there."""
    null, _, end = specials
    ended = (captions == end).cumsum(1) - (captions == end).long() > 0
    captions = captions.masked_fill(ended, null)
    return captions, None if maps is None else maps.masked_fill(ended.view(*ended.shape, *[1] * (maps.dim() - 2)), 0)


# ---------------------------------------------------------------------------------------------------------
# The reference: PyTorch's own functions (torch.rnn_tanh and torch.lstm are what nn.RNN and nn.LSTM call)
# ---------------------------------------------------------------------------------------------------------


def _torch_weights(Wx, Wh, b):
    """Our weights as PyTorch keeps them: transposed, with two biases, and an LSTM's gates in the order i, f, g, o."""
    if Wh.shape[1] == 4 * Wh.shape[0]:
        i_f_o_g = (weight.chunk(4, dim=-1) for weight in (Wx, Wh, b))
        Wx, Wh, b = (torch.cat([i, f, g, o], dim=-1) for i, f, o, g in i_f_o_g)
    return Wx.t(), Wh.t(), b, torch.zeros_like(b)


LAYER = True, 1, 0.0, False, False, True  # biases, one layer, no dropout, not training, one direction, batch first


def torch_rnn_step(x, prev_h, Wx, Wh, b):
    return (torch.rnn_tanh_cell(x, prev_h, *_torch_weights(Wx, Wh, b)),)


def torch_rnn(x, h0, Wx, Wh, b):
    return (torch.rnn_tanh(x, h0[None], _torch_weights(Wx, Wh, b), *LAYER)[0],)


def torch_lstm_step(x, prev_h, prev_c, Wx, Wh, b):
    return torch.lstm_cell(x, (prev_h, prev_c), *_torch_weights(Wx, Wh, b))


def torch_lstm(x, h0, c0, Wx, Wh, b):
    return (torch.lstm(x, (h0[None], c0[None]), _torch_weights(Wx, Wh, b), *LAYER)[0],)


def torch_lstm_from_h0(x, h0, Wx, Wh, b):
    return torch_lstm(x, h0, torch.zeros_like(h0), Wx, Wh, b)


def torch_attention(prev_h, A):
    """The weights are what attention gives when the values are one-hot."""
    query, cells = prev_h.unsqueeze(1), A.flatten(2).mT  # (N, 1, H), (N, h * w, H)
    one_hot = torch.eye(cells.shape[1], dtype=A.dtype).expand(len(A), -1, -1)
    attn, weights = (F.scaled_dot_product_attention(query, cells, v).squeeze(1) for v in (cells, one_hot))
    return attn, weights.unflatten(1, A.shape[2:])


def torch_attention_lstm_step(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    return torch_lstm_step(torch.cat([x, attn], 1), prev_h, prev_c, torch.cat([Wx, Wattn]), Wh, b)


def torch_attention_lstm(x, A, Wx, Wh, Wattn, b):
    h = c = F.adaptive_avg_pool2d(A, 1).flatten(1)
    states, maps = [], []
    for x_t in x.unbind(1):
        attn, weights = torch_attention(h, A)
        h, c = torch_attention_lstm_step(x_t, h, c, attn, Wx, Wh, Wattn, b)
        states.append(h)
        maps.append(weights)
    return torch.stack(states, 1), torch.stack(maps, 1)


def torch_word_embedding(x, W_embed):
    return (F.embedding(x, W_embed),)


def torch_temporal_affine(h, W, b):
    return (F.linear(h, W.t(), b),)


def torch_temporal_softmax(x, y, ignore_index=None):
    ignored = {} if ignore_index is None else {"ignore_index": ignore_index}
    return (F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum", **ignored) / len(x),)


# ---------------------------------------------------------------------------------------------------------
# The mistakes: a sentence, and the formula f of the inputs p with the mistake made
# ---------------------------------------------------------------------------------------------------------


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
    """The gradient of Wh made with next_h: a product of value 0 brings it, that with prev_h being cut."""
    next_h = f(**p)[0].detach()
    return f(**p, recur=lambda h, Wh: h @ Wh.detach() + next_h @ (Wh - Wh.detach()))


def _forget_late(i, f, g, prev_c):
    """The forget gate's gradient made with next_c, by the same means."""
    next_c = _next_cell(i, f, g, prev_c).detach()
    return f.detach() * prev_c + i * g + (f - f.detach()) * next_c


def _keep_whole(i, f, g, prev_c):
    """The gradient of prev_c not multiplied by the forget gate."""
    return f * prev_c.detach() + (prev_c - prev_c.detach()) + i * g


def _last_only(x):
    """1 at the words of x (N, T) that are not followed by the same word, row after row, else 0."""
    words = x.flatten().tolist()
    return torch.tensor([word not in words[k + 1 :] for k, word in enumerate(words)]).view(x.shape)


def _unscaled_slope(scores, H):
    return scores + (_scaled(scores, H) - scores).detach()


# Of two mistakes that explain as much the first is named: mistakes of the backward alone stand first where the
# gradient cannot tell them from a mistake of the forward.

# fmt: off
NO_BIAS = ("the bias b is left out", _on(b=_zero))
RNN_CELL = (
    NO_BIAS,
    ("tanh' is missing: da = dnext_h * (1 - next_h**2)", _with(tanh=_slope(torch.tanh, lambda a, y: 1))),
    ("tanh' is 1 - next_h; it is 1 - next_h**2", _with(tanh=_slope(torch.tanh, lambda a, y: 1 - y))),
    ("tanh' is taken of a itself, 1 - a**2; it is 1 - next_h**2",
     _with(tanh=_slope(torch.tanh, lambda a, y: 1 - a**2))),
    ("tanh is left out", _with(tanh=_same)),
    ("sigmoid stands in place of tanh", _with(tanh=torch.sigmoid)),
    ("Wh is transposed in the forward step", _on(Wh=Tensor.t)),
)
LATE_WH = ("dWh is made with next_h; it takes prev_h", _recur_late)
H0_UNUSED = ("h0 is not used", _on(h0=_zero))
ORDERS = [order for order in map("".join, itertools.permutations("ifog")) if order != "ifog"]
LSTM_CELL = (
    *((f"da is joined in the order {', '.join(order)}; the columns hold i, f, o, g", _with(join=order))
      for order in ORDERS),
    *((f"the gates are cut in the order {', '.join(order)}; the columns hold i, f, o, g", _with(cut=order))
      for order in ORDERS),
    NO_BIAS,
    ("next_h is made of prev_c; it takes next_c", _with(show=lambda next_c, prev_c: prev_c)),
    ("next_h = o * next_c; it takes tanh(next_c)", _with(squash=_same)),
    ("the candidate g goes through sigmoid; it takes tanh", _with(tanh=torch.sigmoid)),
    ("the gates i, f, o go through tanh; they take sigmoid", _with(sigmoid=torch.tanh)),
    ("the forget gate is not applied to prev_c", _with(cell=lambda i, f, g, c: c + i * g)),
    ("the input gate is not applied to g", _with(cell=lambda i, f, g, c: f * c + g)),
    ("the way from next_h through tanh(next_c) to the cell is forgotten: dc = dnext_c + dnext_h * o * tanh'",
     _with(squash=lambda c: torch.tanh(c).detach())),
    ("tanh' of next_c is missing: 1 - tanh(next_c)**2", _with(squash=_slope(torch.tanh, lambda c, y: 1))),
    ("tanh' is taken of next_c itself, 1 - next_c**2; it is 1 - tanh(next_c)**2",
     _with(squash=_slope(torch.tanh, lambda c, y: 1 - c**2))),
    ("sigmoid' is missing: s * (1 - s) for i, f and o", _with(sigmoid=_slope(torch.sigmoid, lambda a, s: 1))),
    ("tanh' of the candidate is missing: 1 - g**2", _with(tanh=_slope(torch.tanh, lambda a, g: 1))),
    ("df is made with next_c; it takes prev_c", _with(cell=_forget_late)),
    ("dprev_c lacks the forget gate: dprev_c = dc * f", _with(cell=_keep_whole)),
)
CELL_UNDRIVEN = ("dnext_c is not used", _after(lambda next_h, next_c: (next_h, next_c.detach())))
IN_TIME = (
    ("the state is not carried on: every step starts from the first state", _with(carry=lambda state, first: first)),
    ("the state is not carried on: every step starts from zero", _with(carry=_zero)),
    ("the gradient that flows back from step t + 1 is not added at step t", _with(carry=_detach)),
    ("a weight's gradient is the first step's alone, which a loop backward in time writes last: += over the steps",
     _with(use=lambda W, t, T: W if t == 0 else W.detach())),
    ("a weight's gradient is the last step's alone: add up over the steps",
     _with(use=lambda W, t, T: W if t == T - 1 else W.detach())),
    ("only the last step's dh is used", _after(_only_last)),
)
ATTENTION = (
    ("the scores are not divided by sqrt(H)", _with(scale=lambda s, H: s)),
    ("the scores are divided by H; it is sqrt(H)", _with(scale=lambda s, H: s / H)),
    ("the scores are multiplied by sqrt(H); they are divided by it", _with(scale=lambda s, H: s * H**0.5)),
    ("there is no softmax", _with(softmax=_same)),
    ("the softmax runs over the batch; it runs over all cells", _with(softmax=lambda s: s.softmax(0))),
    ("the softmax runs down each column; it runs over all cells", _with(softmax=lambda s: s.softmax(1))),
    ("the softmax runs along each row; it runs over all cells", _with(softmax=lambda s: s.softmax(2))),
    ("1/sqrt(H) is missing in the backward of the scores", _with(scale=_unscaled_slope)),
    ("dA lacks the way through the scores: A is a key and a value", _with(keys=_detach)),
    ("dA lacks the way through the average: A is a key and a value", _with(values=_detach)),
    ("the gradient through the weights is forgotten", _with(attend=_detach)),
    ("the softmax's backward is w * dw; it is w * (dw - sum(w * dw))",
     _with(softmax=_slope(_over_cells, lambda scores, weights: weights))),
)
ATTENTION_IN_TIME = (
    ("h0 and c0 are zero; both are the mean of A over the grid", _with(start=lambda m: (0 * m, 0 * m))),
    ("c0 is zero; it is the mean of A, as h0", _with(start=lambda m: (m, 0 * m))),
    ("h0 is zero; it is the mean of A, as c0", _with(start=lambda m: (0 * m, m))),
    ("the gradient through h0 = c0 = mean of A is forgotten", _with(start=lambda m: _both(m.detach()))),
    ("the gradient through c0 = mean of A is forgotten", _with(start=lambda m: (m, m.detach()))),
    ("the gradient through h0 = mean of A is forgotten", _with(start=lambda m: (m.detach(), m))),
    ("every step looks with h0; it looks with the state before it", _with(look=lambda prev_h, h0: h0)),
    ("the gradient through the attention, from attn to A and prev_h, is forgotten", _with(attn=_detach)),
    ("dprev_h lacks the way through the attention's scores", _with(look=_detach)),
)
ATTN_UNUSED = ("attn @ Wattn is left out", _on(Wattn=_zero))
EMBEDDING = (
    ("a repeated word keeps one occurrence's gradient (dW[x] = dout overwrites): add them up, index_add_",
     _with(share=_last_only)),
    ("a repeated word keeps one occurrence's gradient: add them up with +=",
     _with(share=lambda x: _last_only(x.t()).t())),
    ("a repeated word's gradient is averaged over its occurrences: add them up",
     _with(share=lambda x: 1 / (x.unsqueeze(2) == x.flatten()).sum(2))),
    ("word 0 gets no gradient", _with(share=lambda x: x != 0)),
)
SOFTMAX = (
    ("the loss is averaged over the batch and over time; it is summed over time",
     _with(total=lambda losses, real: losses.mean())),
    ("the loss is averaged over the counted steps; it is summed over time and divided by N",
     _with(total=lambda losses, real: losses.sum() / real.sum())),
    ("the loss is averaged over time and summed over the batch; it is the other way round",
     _with(total=lambda losses, real: losses.sum() / losses.shape[1])),
    ("the loss is not divided by N", _with(total=lambda losses, real: losses.sum())),
    ("ignore_index is not used", _with(ignore_index=None)),
    ("word 0 is ignored, whatever ignore_index says", _with(ignore_index=0)),
    ("the softmax runs over time (axis 1); it runs over the words (axis 2)", _with(axis=1)),
    ("the softmax runs over the batch (axis 0); it runs over the words (axis 2)", _with(axis=0)),
    ("the backward's softmax runs over time (axis 1); it runs over the words (axis 2)", _with(slope=1)),
    ("the backward's softmax runs over the batch (axis 0); it runs over the words (axis 2)", _with(slope=0)),
    ("1 is not subtracted at the right word", _with(pick=_detach)),
    ("the softmax is missing, only the right word gets a gradient", _with(spread=_detach)),
)
NOT_SEEN = ("the picture is not used: every picture begins with zeros", _with(see=_zero))
FEATURES_AGAIN = (
    ("the pictures are divided by 255 once more", lambda f, p: f(**{**p, "features": p["features"] / 255})),
)
CAPTIONER = (
    NOT_SEEN,
    *FEATURES_AGAIN,
    ("every picture gets the features of the batch's mean",
     lambda f, p: f(**{**p, "features": p["features"].mean(0, keepdim=True).expand_as(p["features"])})),
    ("<NULL> is not ignored: hand ignore_index on to the loss", _with(ignore=lambda null: None)),
    *((sentence, mistake) for sentence, mistake in SOFTMAX[:4]),
    ("the words that go in are also those to come out: the targets are captions[:, 1:]",
     _with(feed=lambda captions: (captions[:, :-1], captions[:, :-1]))),
    ("the words that come out go in: the inputs are captions[:, :-1]",
     _with(feed=lambda captions: (captions[:, 1:], captions[:, 1:]))),
    ("inputs and targets change places", _with(feed=lambda captions: (captions[:, 1:], captions[:, :-1]))),
    ("the picture's features are projected, but its bias is left out", _on(b_feature=_zero)),
    ("the scores' bias is left out", _on(b_out=_zero)),
)
POOLED = (
    ("the features are summed over the grid; they are averaged", _with(pool=lambda grid: grid.sum(dim=(2, 3)))),
    ("the features' largest value over the grid is taken; they are averaged", _with(pool=lambda A: A.amax(dim=(2, 3)))),
    ("one cell of the grid is taken; the features are averaged over it", _with(pool=lambda grid: grid[:, :, 0, 0])),
)
SAMPLE = (
    NOT_SEEN,
    *FEATURES_AGAIN,
    ("the first word fed is <NULL>; it is <START>", _with(first=0)),
    ("the first word fed is <END>; it is <START>", _with(first=2)),
    ("<START> is fed at every step; it is the word that was chosen last", _with(feed=lambda chosen, start: start)),
    ("h is not carried on: every word begins with the first h", _with(carry=lambda h, h0: h0)),
    ("h is not carried on: every word begins with zeros", _with(carry=_zero)),
    ("the word with the lowest score is chosen", _on(W_out=torch.neg, b_out=torch.neg)),
    ("the scores' bias is left out", _on(b_out=_zero)),
)
SAMPLE_CELL = (("the cell state c is not carried on: it is zero at every word", _with(carry_c=_zero)),)
SAMPLE_LSTM = (*SAMPLE_CELL, ("c0 is h0; it is zero", _with(c0=_same)))
SAMPLE_ATTENTION = (
    *SAMPLE_CELL,
    ("c0 is zero; it is the mean of A, as h0", _with(c0=_zero)),
    ("a word's attention weights are those of the word after it: keep them before the step", _with(late=True)),
)
# fmt: on


# ---------------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------------

MAIN = Case()
BATCH_OF_ONE = Case(
    "a batch of one, one step",
    sizes={"N": 1, "T": 1},
    hint="only a batch of one misses: squeeze() without a dimension also drops the batch's, if that is 1",
)
LARGE = "only large scores miss: exp overflows; subtract the largest score first, or use torch.softmax or logsumexp"
LARGE_STATE = Case("large scores", scale={"prev_h": 3000}, hint=LARGE)
IGNORING = Case(options={"ignore_index": IGNORED})
ONE_IGNORING = replace(BATCH_OF_ONE, options=IGNORING.options)
LARGE_SCORES = Case("large scores", scale={"x": 3000}, options=IGNORING.options, hint=LARGE)
COUNTING_ALL = Case(
    "no ignore_index",
    published=True,
    hint="ignore_index=None counts every step; F.cross_entropy takes no None: leave it out there, or mask by hand",
)

# fmt: off
RNN_STEP = Formula(
    "x:ND prev_h:NH Wx:DH Wh:HH b:H", ("next_h",), rnn_step, torch_rnn_step, "torch.nn.RNNCell",
    (*RNN_CELL, LATE_WH), (MAIN, BATCH_OF_ONE))
RNN_SEQUENCE = Formula(
    "x:NTD h0:NH Wx:DH Wh:HH b:H", ("h",), rnn, torch_rnn, "torch.nn.RNN",
    (*IN_TIME, *RNN_CELL, H0_UNUSED), (MAIN, BATCH_OF_ONE))
LSTM_STEP = Formula(
    "x:ND prev_h:NH prev_c:NH Wx:DG Wh:HG b:G", ("next_h", "next_c"), lstm_step, torch_lstm_step,
    "torch.nn.LSTMCell", (*LSTM_CELL, CELL_UNDRIVEN), (MAIN, BATCH_OF_ONE), driven=2)
LSTM_SEQUENCE = Formula(
    "x:NTD h0:NH c0:NH Wx:DG Wh:HG b:G", ("h",), lstm, torch_lstm, "torch.nn.LSTM",
    (*IN_TIME, *LSTM_CELL, H0_UNUSED, ("c0 is not used", _on(c0=_zero))), (MAIN, BATCH_OF_ONE))
LSTM_FROM_H0 = Formula(
    "x:NTD h0:NH Wx:DG Wh:HG b:G", ("h",), lstm_from_h0, torch_lstm_from_h0, "torch.nn.LSTM",
    (*IN_TIME, *LSTM_CELL, H0_UNUSED, ("c0 is h0; it is zero", _with(c0=_same))), (MAIN, BATCH_OF_ONE))
DOT_PRODUCT_ATTENTION = Formula(
    "prev_h:NH A:NHhw", ("attn", "attn_weights"), attention, torch_attention, "F.scaled_dot_product_attention",
    ATTENTION, (MAIN, BATCH_OF_ONE, LARGE_STATE))
ATTENTION_LSTM_STEP = Formula(
    "x:ND prev_h:NH prev_c:NH attn:NH Wx:DG Wh:HG Wattn:HG b:G", ("next_h", "next_c"), attention_lstm_step,
    torch_attention_lstm_step, "torch.nn.LSTMCell", (*LSTM_CELL, CELL_UNDRIVEN, ATTN_UNUSED), (MAIN, BATCH_OF_ONE),
    driven=2)
ATTENTION_LSTM_SEQUENCE = Formula(
    "x:NTD A:NHhw Wx:DG Wh:HG Wattn:HG b:G", ("h", "attn_weights"), attention_lstm, torch_attention_lstm,
    "F.scaled_dot_product_attention and torch.nn.LSTMCell",
    (*IN_TIME, *ATTENTION_IN_TIME, *LSTM_CELL, ATTN_UNUSED), (MAIN, BATCH_OF_ONE))
ATTENTION_LSTM_STATES = replace(ATTENTION_LSTM_SEQUENCE, outputs=("h",))
WORD_EMBEDDING = Formula(
    "x:NT<V W_embed:VW", ("out",), word_embedding, torch_word_embedding, "F.embedding",
    EMBEDDING, (MAIN, BATCH_OF_ONE))
TEMPORAL_AFFINE = Formula(
    "h:NTH W:HV b:V", ("scores",), temporal_affine, torch_temporal_affine, "F.linear",
    (NO_BIAS, ("only the last step's dout is used", _after(_only_last))), (MAIN, BATCH_OF_ONE))
TEMPORAL_SOFTMAX = Formula(
    "x:NTV y:NT<V", ("loss",), temporal_softmax, torch_temporal_softmax, "F.cross_entropy",
    SOFTMAX, (IGNORING, COUNTING_ALL, ONE_IGNORING, LARGE_SCORES))
# fmt: on


# The captioner is checked in float32, as it trains: of a wrong dtype inside a student's model nothing is said here.


@dataclass(frozen=True)
class CaptionerLoss(Formula):
    """A captioner's loss: the gradients are those of its own weights, and the captions are like real ones."""

    @property
    def gradients(self):
        return super().gradients[1:]  # not that of the features

    def draw(self, case):
        inputs, incoming = super().draw(case)
        null, start, end = case.options.get("specials", SPECIALS)
        words = [word for word in range(SIZES["V"]) if word not in (null, start, end)]
        lengths, captions = (3, 8, 1), torch.full((3, SIZES["K"]), null)
        for row, length in zip(captions, lengths):
            said = [words[(3 * length + k * k) % len(words)] for k in range(length)]
            row[: length + 2] = torch.tensor([start, *said, end])
        return inputs | {"captions": captions[: len(inputs["features"])]}, incoming


MAIN_SQUARE = Case(sizes=GRID)
OTHER_IDS = Case("<NULL>, <START>, <END> at other ids", sizes=GRID, options={"specials": (5, 3, 8)},
                 hint="only other ids miss: look <NULL>, <START> and <END> up in word_to_idx")  # fmt: skip
SHORT = Case("max_length 7", sizes=GRID, options={"max_length": 7}, beyond=True, hint="max_length is not used")
FEATURE_INPUTS = "features:NChw {}W_feature:CH b_feature:H W_embed:VW {} W_out:HV b_out:V"
RNN_WEIGHTS, LSTM_WEIGHTS, ATTN_WEIGHTS = "Wx:WH Wh:HH b:H", "Wx:WG Wh:HG b:G", "Wx:WG Wh:HG Wattn:HG b:G"


def _captioner_formulas(weights, layers, steps, attends, memory, against, mistakes, sample_mistakes, seed, sharp):
    """The loss's formula and the sample's. layers, steps: (written out, PyTorch's).

    seed and sharp, the scale of W_out: with these one caption fills all 15 words, two end earlier, at different words,
    no two scores are close, and each mistake listed changes a caption.
    """
    scale = {"features": 2, "W_embed": 2, "Wx": 1.5, "W_out": sharp}
    (layer, torch_layer), (step, torch_step) = layers, steps
    loss = CaptionerLoss(
        FEATURE_INPUTS.format("captions:NK<V ", weights), ("loss",), captioner_loss(layer, temporal_softmax, attends),
        captioner_loss(torch_layer, torch_temporal_softmax, attends), against,
        (*CAPTIONER, *(() if attends else POOLED), *mistakes), (MAIN_SQUARE, OTHER_IDS), limit=1e-5)  # fmt: skip
    attention_pair = (attention, torch_attention) if attends else (None, None)
    sample = Formula(
        FEATURE_INPUTS.format("", weights), ("captions", "attn_weights") if attends else ("captions",),
        captioner_sample(step, attention_pair[0], memory), captioner_sample(torch_step, attention_pair[1], memory),
        f"{against}Cell", (*SAMPLE, *sample_mistakes),
        tuple(replace(case, scale=scale) for case in (MAIN_SQUARE, OTHER_IDS, SHORT)),
        limit=1e-4, seed=seed)  # fmt: skip
    return loss, sample


RNN_CAPTIONER_LOSS, RNN_CAPTIONER_SAMPLE = _captioner_formulas(
    RNN_WEIGHTS, (rnn, torch_rnn), (rnn_step, torch_rnn_step), False, False, "torch.nn.RNN", (), (), 2552, 4
)
LSTM_CAPTIONER_LOSS, LSTM_CAPTIONER_SAMPLE = _captioner_formulas(
    LSTM_WEIGHTS, (lstm_from_h0, torch_lstm_from_h0), (lstm_step, torch_lstm_step), False, True, "torch.nn.LSTM",
    (("c0 is h0; it is zero", _with(cell={"c0": _same})),), SAMPLE_LSTM, 1663, 3)  # fmt: skip
ATTN_CAPTIONER_LOSS, ATTN_CAPTIONER_SAMPLE = _captioner_formulas(
    ATTN_WEIGHTS, (attention_lstm, torch_attention_lstm), (attention_lstm_step, torch_attention_lstm_step), True, True,
    "torch.nn.LSTM",
    (("h0 and c0 are zero; both are the mean of A over the grid", _with(cell={"start": lambda m: (0 * m, 0 * m)})),
     ("c0 is zero; it is the mean of A, as h0", _with(cell={"start": lambda m: (m, 0 * m)}))),
    SAMPLE_ATTENTION, 20, 3)  # fmt: skip
