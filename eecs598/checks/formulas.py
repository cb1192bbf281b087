"""The formulas of each part of the assignment, written out and with PyTorch's own functions.

Learners are compared with PyTorch. Formulas that are written out can be changed by common mistakes; see `mistakes`.
"""

import torch
import torch.nn.functional as F

SPECIALS = (0, 1, 2)  # the ids of <NULL>, <START> and <END> in every file of the published assignment


# ---------------------------------------------------------------------------------------------------------
# The formulas. Keyword arguments are the places for mistakes.
# ---------------------------------------------------------------------------------------------------------


def identity(value, *_):
    return value


def zero(value, *_):
    return 0 * value


def rnn_step(x, prev_h, Wx, Wh, b, tanh=torch.tanh, recur=torch.matmul):
    return (tanh(x @ Wx + recur(prev_h, Wh) + b),)


def next_cell(i, f, g, prev_c):
    return f * prev_c + i * g


# fmt: off
def lstm_step(x, prev_h, prev_c, Wx, Wh, b, cut="ifog", join="ifog",
              sigmoid=torch.sigmoid, tanh=torch.tanh, cell=next_cell, show=identity, squash=torch.tanh):
    """cut, join: the order in which the forward splits the columns into gates, and the backward concatenates them."""
    columns = (x @ Wx + prev_h @ Wh + b).chunk(4, dim=1)
    a = dict(zip(cut, columns))
    if join != "ifog":
        a = {gate: a[gate].detach() + column - column.detach() for gate, column in zip(join, columns)}
    i, f, o, g = sigmoid(a["i"]), sigmoid(a["f"]), sigmoid(a["o"]), tanh(a["g"])
    next_c = cell(i, f, g, prev_c)
    return o * squash(show(next_c, prev_c)), next_c
# fmt: on


def attention_lstm_step(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b, **mistake):
    return lstm_step(torch.cat([x, attn], 1), prev_h, prev_c, torch.cat([Wx, Wattn]), Wh, b, **mistake)


def _unroll(step, x, start, weights, carry=identity, use=identity, **mistake):
    """carry: a function of the previous state; use: a function of each weight at step t of T."""
    state, h, T = start, [], x.shape[1]
    for t in range(T):
        if t > 0:
            state = [carry(s, s0) for s, s0 in zip(state, start)]
        state = step(x[:, t], *state, *(use(weight, t, T) for weight in weights), **mistake)
        h.append(state[0])
    return torch.stack(h, 1)


def rnn(x, h0, Wx, Wh, b, **mistake):
    return (_unroll(rnn_step, x, (h0,), (Wx, Wh, b), **mistake),)


def lstm(x, h0, c0, Wx, Wh, b, **mistake):
    return (_unroll(lstm_step, x, (h0, c0), (Wx, Wh, b), **mistake),)


def lstm_from_h0(x, h0, Wx, Wh, b, c0=zero, **mistake):
    return lstm(x, h0, c0(h0), Wx, Wh, b, **mistake)


def scaled(scores, H):
    return scores / H**0.5


def over_cells(scores):
    return scores.flatten(1).softmax(1).view_as(scores)


def attention(prev_h, A, scale=scaled, softmax=over_cells, keys=identity, values=identity, attend=identity):
    weights = softmax(scale(torch.einsum("nh,nhij->nij", prev_h, keys(A)), A.shape[1]))
    return torch.einsum("nij,nhij->nh", attend(weights), values(A)), weights


def both(mean):
    return mean, mean


def attention_lstm(x, A, Wx, Wh, Wattn, b, start=both, look=identity, attn=identity, **mistake):
    first, maps = start(A.mean(dim=(2, 3))), []

    def step(x, prev_h, prev_c, *weights, **mistake):
        seen, attn_weights = attention(look(prev_h, first[0]), A)
        maps.append(attn_weights)
        return attention_lstm_step(x, prev_h, prev_c, attn(seen), *weights, **mistake)

    return _unroll(step, x, first, (Wx, Wh, Wattn, b), **mistake), torch.stack(maps, 1)


def word_embedding(x, W_embed, share=torch.ones_like):
    """share: the fraction of its gradient that each word of x adds to its row."""
    out, part = W_embed[x], share(x).to(W_embed).unsqueeze(2)
    return (part * out + ((1 - part) * out).detach(),)


def temporal_affine(h, W, b):
    return (h @ W + b,)


def _per_caption(losses, mask):
    return losses.sum() / len(losses)


def temporal_softmax(x, y, ignore_index=None, axis=2, slope=2, pick=identity, spread=identity, total=_per_caption):
    """axis, slope: the axis of the softmax in the loss, and in its gradient."""
    mask = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    right = x.gather(2, y.unsqueeze(2))
    normalizer = x.logsumexp(axis, keepdim=True).expand_as(x).gather(2, y.unsqueeze(2))
    if slope != 2:
        tangent = (x.softmax(slope).detach() * x).sum(2, keepdim=True)
        normalizer = normalizer.detach() + tangent - tangent.detach()
    return (total((spread(normalizer) - pick(right)).squeeze(2) * mask, mask),)


def _features_to_grid(features, W_feature, b_feature):
    """The affine map of the image features, cell by cell: (N, C, h, w) -> (N, H, h, w)."""
    return torch.einsum("nchw,cd->ndhw", features, W_feature) + b_feature[:, None, None]


def _average(grid):
    return grid.mean(dim=(2, 3))


def _shifted(captions):
    """The input words, and the target words."""
    return captions[:, :-1], captions[:, 1:]


def captioner_loss(layer, loss, attends):
    """The captioning loss from layer(words, initial state or grid, weights), loss(scores, targets, ignore_index)."""

    def compute(features, captions, W_feature, b_feature, W_embed, W_out, b_out, specials=SPECIALS, ignore=identity,
                see=identity, pool=_average, feed=_shifted, cell=None, total=None, **weights):  # fmt: skip
        grid = see(_features_to_grid(features, W_feature, b_feature))
        words, targets = feed(captions)
        h = layer(W_embed[words], grid if attends else pool(grid), **weights, **(cell or {}))[0]
        return loss(h @ W_out + b_out, targets, ignore(specials[0]), **({"total": total} if total else {}))

    return compute


def captioner_sample(step, attend, memory):
    """Greedy captions. step: a step of the cell; attend: attention or None; memory: whether there is a cell state c."""

    def compute(features, W_feature, b_feature, W_embed, W_out, b_out, specials=SPECIALS, max_length=15,
                first=1, see=identity, carry=identity, carry_c=identity, c0=None, feed=identity, late=False,
                **weights):  # fmt: skip
        grid = see(_features_to_grid(features, W_feature, b_feature))
        h = _average(grid)
        state = (h, (c0 or (identity if attend else zero))(h)) if memory else (h,)
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
    """Captions (N, L) with <NULL> after the first <END> of each, and maps (N, L, ...) or None with zeros there."""
    null, _, end = specials
    ended = (captions == end).cumsum(1) - (captions == end).long() > 0
    captions = captions.masked_fill(ended, null)
    return captions, None if maps is None else maps.masked_fill(ended.view(*ended.shape, *[1] * (maps.dim() - 2)), 0)


# ---------------------------------------------------------------------------------------------------------
# The reference: PyTorch's own functions (torch.rnn_tanh and torch.lstm are what nn.RNN and nn.LSTM call)
# ---------------------------------------------------------------------------------------------------------


def torch_weights(Wx, Wh, b):
    """Our weights in PyTorch's layout: transposed, with two biases, and an LSTM's gates in the order i, f, g, o."""
    if Wh.shape[1] == 4 * Wh.shape[0]:
        i_f_o_g = (weight.chunk(4, dim=-1) for weight in (Wx, Wh, b))
        Wx, Wh, b = (torch.cat([i, f, g, o], dim=-1) for i, f, o, g in i_f_o_g)
    return Wx.t(), Wh.t(), b, torch.zeros_like(b)


LAYER = True, 1, 0.0, False, False, True  # biases, one layer, no dropout, not training, one direction, batch first


def torch_rnn_step(x, prev_h, Wx, Wh, b):
    return (torch.rnn_tanh_cell(x, prev_h, *torch_weights(Wx, Wh, b)),)


def torch_rnn(x, h0, Wx, Wh, b):
    return (torch.rnn_tanh(x, h0[None], torch_weights(Wx, Wh, b), *LAYER)[0],)


def torch_lstm_step(x, prev_h, prev_c, Wx, Wh, b):
    return torch.lstm_cell(x, (prev_h, prev_c), *torch_weights(Wx, Wh, b))


def torch_lstm(x, h0, c0, Wx, Wh, b):
    return (torch.lstm(x, (h0[None], c0[None]), torch_weights(Wx, Wh, b), *LAYER)[0],)


def torch_lstm_from_h0(x, h0, Wx, Wh, b):
    return torch_lstm(x, h0, torch.zeros_like(h0), Wx, Wh, b)


def torch_attention(prev_h, A):
    """The weights are the output of attention with one-hot values."""
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
