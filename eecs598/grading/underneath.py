"""Reference functions that replace a wrong part while the parts that build on it are graded.

Forward functions are the formulas of `eecs598.checks.formulas`, which students have; backward functions are autograd
through them. `source` returns this file and the formulas as text, which is sent into the submission's process and
contains nothing of the solution. Caches have the lesson's layout, as a student's backward pass may unpack them.
"""

import ast
import functools
import inspect

import torch
from torch import nn

from eecs598.checks import formulas
from eecs598.checks.formulas import (
    attention,
    attention_lstm,
    attention_lstm_step,
    lstm,
    lstm_step,
    rnn,
    rnn_step,
    temporal_affine,
    temporal_softmax,
    word_embedding,
)


@functools.cache
def source():
    """Return the text to run in the submission's process."""
    with open(__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    own = [node for node in tree.body if not getattr(node, "module", "").startswith("eecs598")]
    own = [node for node in own if getattr(node, "name", "") != "source"]
    return f"{inspect.getsource(formulas)}\n{ast.unparse(ast.Module(own, []))}\n"


class Cache(tuple):
    """The cache of a forward function; `inputs` are the arguments of its formula."""


def _cache(fields, inputs):
    cache = Cache(fields)
    cache.inputs = [value.detach() if torch.is_tensor(value) else value for value in inputs]
    return cache


def _gradients(compute, inputs, *incoming):
    """Autograd's gradients of a formula with respect to its floating-point inputs."""
    with torch.enable_grad():
        leaves = [value.detach().clone() for value in inputs]
        wrt = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
        outputs = compute(*leaves)[: len(incoming)]
        total = sum((output * d).sum() for output, d in zip(outputs, incoming))
        gradients = torch.autograd.grad(total, wrt, allow_unused=True, materialize_grads=True)
    return gradients if len(gradients) > 1 else gradients[0]


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    (next_h,) = rnn_step(x, prev_h, Wx, Wh, b)
    return next_h, _cache((x, prev_h, Wx, Wh, next_h), (x, prev_h, Wx, Wh, b))


def rnn_step_backward(dnext_h, cache):
    return _gradients(rnn_step, cache.inputs, dnext_h)


def rnn_forward(x, h0, Wx, Wh, b):
    return _unrolled(rnn_step_forward, x, (h0,), (Wx, Wh, b))


def rnn_backward(dh, cache):
    return _gradients(rnn, _inputs(cache, 1), dh)


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    gates = []

    def kept(function):
        return lambda a: gates.append(function(a)) or gates[-1]

    next_h, next_c = lstm_step(x, prev_h, prev_c, Wx, Wh, b, sigmoid=kept(torch.sigmoid), tanh=kept(torch.tanh))
    fields = (x, prev_h, prev_c, Wx, Wh, *gates, next_c)
    return next_h, next_c, _cache(fields, (x, prev_h, prev_c, Wx, Wh, b))


def lstm_step_backward(dnext_h, dnext_c, cache):
    return _gradients(lstm_step, cache.inputs, dnext_h, dnext_c)


def lstm_forward(x, h0, c0, Wx, Wh, b):
    return _unrolled(lstm_step_forward, x, (h0, c0), (Wx, Wh, b))


def lstm_backward(dh, cache):
    return _gradients(lstm, _inputs(cache, 2), dh)


def attention_lstm_step_forward(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    seen, weights = torch.cat([x, attn], 1), torch.cat([Wx, Wattn])
    next_h, next_c, cache = lstm_step_forward(seen, prev_h, prev_c, weights, Wh, b)
    return next_h, next_c, _cache(cache, (x, prev_h, prev_c, attn, Wx, Wh, Wattn, b))


def attention_lstm_step_backward(dnext_h, dnext_c, cache):
    return _gradients(attention_lstm_step, cache.inputs, dnext_h, dnext_c)


def attention_lstm_forward(x, A, Wx, Wh, Wattn, b):
    states, weights, steps = [A.mean(dim=(2, 3))], [], []
    cell = states[0]
    for t in range(x.shape[1]):
        attn, seen = attention(states[-1], A)
        state, cell, step = attention_lstm_step_forward(x[:, t], states[-1], cell, attn, Wx, Wh, Wattn, b)
        weights.append(seen)
        states.append(state)
        steps.append(step)
    cache = _cache((A, states, weights, steps), (x, A, Wx, Wh, Wattn, b))
    return torch.stack(states[1:], 1), torch.stack(weights, 1), cache


def attention_lstm_backward(dh, cache):
    return _gradients(attention_lstm, cache.inputs, dh)


def dot_product_attention(prev_h, A):
    return attention(prev_h, A)


def dot_product_attention_backward(dattn, prev_h, A, attn_weights):
    return _gradients(attention, (prev_h, A), dattn)


def word_embedding_forward(x, W_embed):
    (out,) = word_embedding(x, W_embed)
    return out, _cache((x, len(W_embed)), (x, W_embed))


def word_embedding_backward(dout, cache):
    return _gradients(word_embedding, cache.inputs, dout)


def temporal_affine_forward(h, W, b):
    (scores,) = temporal_affine(h, W, b)
    return scores, _cache((h, W), (h, W, b))


def temporal_affine_backward(dout, cache):
    return _gradients(temporal_affine, cache.inputs, dout)


def temporal_softmax_loss(x, y, ignore_index=None):
    return temporal_softmax(x, y, ignore_index)[0]


def temporal_softmax_backward(x, y, ignore_index=None):
    return _gradients(lambda x, y: temporal_softmax(x, y, ignore_index), (x, y), torch.ones((), dtype=x.dtype))


def _unrolled(step, x, states, weights):
    h, caches = [], []
    for t in range(x.shape[1]):
        *states, cache = step(x[:, t], *states, *weights)
        h.append(states[0])
        caches.append(cache)
    return torch.stack(h, 1), caches


def _inputs(caches, states):
    """A sequence's inputs, from the inputs of its steps."""
    first = caches[0].inputs
    return torch.stack([cache.inputs[0] for cache in caches], 1), *first[1 : 1 + states], *first[1 + states :]


# ---------------------------------------------------------------------------------------------------------
# Modules: underneath a captioner
# ---------------------------------------------------------------------------------------------------------


class _Cell(nn.Module):
    gates = 4

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        columns = self.gates * hidden_dim
        self.Wx = nn.Parameter(torch.zeros(input_dim, columns))
        self.Wh = nn.Parameter(torch.zeros(hidden_dim, columns))
        self.b = nn.Parameter(torch.zeros(columns))


class RNN(_Cell):
    gates = 1

    def step_forward(self, x, prev_h):
        return rnn_step(x, prev_h, self.Wx, self.Wh, self.b)[0]

    def forward(self, x, h0):
        return rnn(x, h0, self.Wx, self.Wh, self.b)[0]


class LSTM(_Cell):
    def step_forward(self, x, prev_h, prev_c):
        return lstm_step(x, prev_h, prev_c, self.Wx, self.Wh, self.b)

    def forward(self, x, h0):
        return lstm(x, h0, torch.zeros_like(h0), self.Wx, self.Wh, self.b)[0]


class AttentionLSTM(_Cell):
    def __init__(self, input_dim, hidden_dim):
        super().__init__(input_dim, hidden_dim)
        self.Wattn = nn.Parameter(torch.zeros(hidden_dim, 4 * hidden_dim))

    def step_forward(self, x, prev_h, prev_c, attn):
        return attention_lstm_step(x, prev_h, prev_c, attn, self.Wx, self.Wh, self.Wattn, self.b)

    def forward(self, x, A):
        return attention_lstm(x, A, self.Wx, self.Wh, self.Wattn, self.b)[0]


class WordEmbedding(nn.Module):
    def __init__(self, vocab_size, embed_size):
        super().__init__()
        self.W_embed = nn.Parameter(torch.zeros(vocab_size, embed_size))

    def forward(self, x):
        return word_embedding(x, self.W_embed)[0]
