"""Inputs of the sequence functions, and each sequence from its definition, a step at a time, for autograd."""

import math

import torch


def randn(*sizes):
    return torch.randn(*sizes, dtype=torch.float64)


def rnn_inputs(N, T, D, H, step=False):
    x = randn(N, D) if step else randn(N, T, D)
    return x, randn(N, H), randn(D, H), randn(H, H), randn(H)


def lstm_inputs(N, T, D, H, step=False):
    x = randn(N, D) if step else randn(N, T, D)
    return x, randn(N, H), randn(N, H), randn(D, 4 * H), randn(H, 4 * H), randn(4 * H)


def attention_inputs(N, T, D, H, grid):
    return randn(N, T, D), randn(N, H, *grid), randn(D, 4 * H), randn(H, 4 * H), randn(H, 4 * H), randn(4 * H)


def loop_rnn(x, h0, Wx, Wh, b):
    """The definition, a step at a time, for autograd to differentiate."""
    states, h = [], h0
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ Wx + h @ Wh + b)
        states.append(h)
    return torch.stack(states, 1)


def loop_lstm(x, h0, c0, Wx, Wh, b):
    states, h, c = [], h0, c0
    for t in range(x.shape[1]):
        i, f, o, g = (x[:, t] @ Wx + h @ Wh + b).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states, 1)


def look(h, A):
    """Softmax attention one picture at a time, from the definition."""
    seen, maps = [], []
    for state, grid in zip(h, A):
        scores = (state[:, None, None] * grid).sum(0) / math.sqrt(len(state))
        weights = torch.exp(scores - scores.max()) / torch.exp(scores - scores.max()).sum()
        seen.append((weights * grid).sum(dim=(1, 2)))
        maps.append(weights)
    return torch.stack(seen), torch.stack(maps)


def loop_attention(x, A, Wx, Wh, Wattn, b):
    h = c = A.mean(dim=(2, 3))
    states = []
    for t in range(x.shape[1]):
        attn, _ = look(h, A)
        i, f, o, g = (x[:, t] @ Wx + h @ Wh + attn @ Wattn + b).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states, 1)
