"""Every function and module by hand, in a student's style: loops, other caches, other products than ours.

Tests of the checks make slips in this text; see `support.checking`.
"""

import math

import torch
from torch import nn


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    next_h = torch.tanh(x.mm(Wx) + prev_h.mm(Wh) + b)
    return next_h, (x, prev_h, Wx, Wh, next_h)


def rnn_step_backward(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h * next_h)
    dx, dprev_h = da @ Wx.T, da @ Wh.T
    dWx, dWh = (da.T @ x).T, (da.T @ prev_h).T
    return [dx, dprev_h, dWx, dWh, da.sum(dim=0)]


def rnn_forward(x, h0, Wx, Wh, b):
    hs, caches, prev_h = [], [], h0
    for t in range(x.shape[1]):
        prev_h, cache = rnn_step_forward(x[:, t], prev_h, Wx, Wh, b)
        hs.append(prev_h)
        caches.append(cache)
    return torch.stack(hs).transpose(0, 1), caches


def rnn_backward(dh, cache):
    N, T, H = dh.shape
    D = cache[0][0].shape[1]
    dx = torch.zeros(N, T, D).to(dh)
    dprev_h = dh.new_zeros(N, H)
    dWx, dWh, db = dh.new_zeros(D, H), dh.new_zeros(H, H), dh.new_zeros(H)
    for t in reversed(range(T)):
        dh_t = dh[:, t] + dprev_h
        dx_t, dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dh_t, cache[t])
        dx[:, t] = dx_t
        dWx = dWx + dWx_t
        dWh = dWh + dWh_t
        db = db + db_t
    dh0 = dprev_h
    return dx, dh0, dWx, dWh, db


class RNN(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim))
        self.b = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, x, h0):
        return rnn_forward(x, h0, self.Wx, self.Wh, self.b)[0]

    def step_forward(self, x, prev_h):
        return rnn_step_forward(x, prev_h, self.Wx, self.Wh, self.b)[0]


def word_embedding_forward(x, W_embed):
    return W_embed[x], (x, W_embed.shape)


def word_embedding_backward(dout, cache):
    x, shape = cache
    dW = torch.zeros(shape, dtype=dout.dtype)
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            dW[x[n, t]] += dout[n, t]
    return dW


class WordEmbedding(nn.Module):
    def __init__(self, vocab_size, embed_size):
        super().__init__()
        self.W_embed = nn.Parameter(torch.randn(vocab_size, embed_size))

    def forward(self, x):
        return self.W_embed[x]


def temporal_affine_forward(h, W, b):
    N, T, H = h.shape
    return (h.reshape(N * T, H) @ W + b).reshape(N, T, -1), (h, W)


def temporal_affine_backward(dout, cache):
    h, W = cache
    dW = torch.zeros_like(W)
    for t in range(h.shape[1]):
        dW += h[:, t].T @ dout[:, t]
    return dout @ W.T, dW, dout.sum(dim=(0, 1))


def temporal_softmax_loss(x, y, ignore_index=None):
    N, T, V = x.shape
    x = x - x.max(dim=2, keepdim=True).values
    log_probs = x - x.exp().sum(dim=2, keepdim=True).log()
    losses = -log_probs.reshape(N * T, V)[torch.arange(N * T), y.flatten()]
    mask = torch.ones_like(losses) if ignore_index is None else (y.flatten() != ignore_index).to(x.dtype)
    return (losses * mask).sum() / N


def temporal_softmax_backward(x, y, ignore_index=None):
    N, T, V = x.shape
    dx = torch.softmax(x, dim=2)
    dx[torch.arange(N)[:, None], torch.arange(T), y] -= 1
    mask = torch.ones(N, T).to(x) if ignore_index is None else (y != ignore_index).to(x)
    return dx * mask[:, :, None] / N


def sigmoid(z):
    return 1 / (1 + torch.exp(-z))


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    N, H = prev_h.shape
    a = x @ Wx + prev_h @ Wh + b
    i, f = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H])
    o, g = sigmoid(a[:, 2 * H : 3 * H]), torch.tanh(a[:, 3 * H :])
    next_c = f * prev_c + i * g
    next_h = o * torch.tanh(next_c)
    return next_h, next_c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)


def lstm_step_backward(dnext_h, dnext_c, cache):
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c = cache
    tanh_c = torch.tanh(next_c)
    dc = dnext_c + dnext_h * o * (1 - tanh_c**2)
    dprev_c = dc * f
    da_i = dc * g * i * (1 - i)
    da_f = dc * prev_c * f * (1 - f)
    da_o = dnext_h * tanh_c * o * (1 - o)
    da_g = dc * i * (1 - g**2)
    da = torch.cat((da_i, da_f, da_o, da_g), dim=1)
    dWh = prev_h.T @ da
    return da @ Wx.T, da @ Wh.T, dprev_c, x.T @ da, dWh, da.sum(dim=0)


def lstm_forward(x, h0, c0, Wx, Wh, b):
    hs, caches, prev_h, prev_c = [], [], h0, c0
    for t in range(x.shape[1]):
        prev_h, prev_c, cache = lstm_step_forward(x[:, t], prev_h, prev_c, Wx, Wh, b)
        hs.append(prev_h)
        caches.append(cache)
    return torch.stack(hs, dim=1), caches


def lstm_backward(dh, cache):
    dprev_h = dprev_c = torch.zeros_like(dh[:, 0])
    dx, dW = [], [0, 0, 0]
    for t in reversed(range(dh.shape[1])):
        dx_t, dprev_h, dprev_c, *dW_t = lstm_step_backward(dh[:, t] + dprev_h, dprev_c, cache[t])
        dx.insert(0, dx_t)
        dW = [total + part for total, part in zip(dW, dW_t)]
    return torch.stack(dx, dim=1), dprev_h, dprev_c, *dW


class LSTM(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim * 4))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4))
        self.b = nn.Parameter(torch.zeros(hidden_dim * 4))

    def step_forward(self, x, prev_h, prev_c):
        H = prev_h.shape[1]
        a = x @ self.Wx + prev_h @ self.Wh + self.b
        i, f, o, g = a.split(H, dim=1)
        next_c = torch.sigmoid(f) * prev_c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(next_c), next_c

    def forward(self, x, h0):
        c0 = torch.zeros_like(h0)
        prev_h, prev_c = h0, c0
        hn = torch.zeros(x.shape[0], x.shape[1], h0.shape[1]).to(h0)
        for t in range(x.shape[1]):
            prev_h, prev_c = self.step_forward(x[:, t], prev_h, prev_c)
            hn[:, t] = prev_h
        return hn


def dot_product_attention(prev_h, A):
    N, H, h, w = A.shape
    cells = A.permute(0, 2, 3, 1).reshape(N, h * w, H)
    scores = torch.bmm(cells, prev_h[:, :, None]) / math.sqrt(H)
    weights = torch.softmax(scores, dim=1)
    attn = (weights * cells).sum(dim=1)
    return attn, weights.reshape(N, h, w)


def dot_product_attention_backward(dattn, prev_h, A, attn_weights):
    H = A.shape[1]
    dw = (dattn[:, :, None, None] * A).sum(dim=1)
    ds = attn_weights * (dw - (dw * attn_weights).sum(dim=(1, 2), keepdim=True)) / math.sqrt(H)
    dA_value = dattn[:, :, None, None] * attn_weights[:, None]
    dA_key = prev_h[:, :, None, None] * ds[:, None]
    return (A * ds[:, None]).sum(dim=(2, 3)), dA_value + dA_key


def attention_lstm_step_forward(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    next_h, next_c, cache = lstm_step_forward(x, prev_h, prev_c, Wx, Wh, attn @ Wattn + b)
    return next_h, next_c, (cache, attn, Wattn)


def attention_lstm_step_backward(dnext_h, dnext_c, cache):
    cache, attn, Wattn = cache
    x = cache[0]
    eye = torch.eye(x.shape[0]).to(x)
    # With x and Wx the identity and da, the LSTM step hands da itself out.
    da = lstm_step_backward(dnext_h, dnext_c, (eye, *cache[1:]))[3]
    dx, dprev_h, dprev_c, dWx, dWh, db = lstm_step_backward(dnext_h, dnext_c, cache)
    return dx, dprev_h, dprev_c, da @ Wattn.T, dWx, dWh, attn.T @ da, db


def attention_lstm_forward(x, A, Wx, Wh, Wattn, b):
    prev_h = A.mean(dim=(2, 3))
    prev_c = prev_h
    hs, maps, caches = [], [], []
    for t in range(x.shape[1]):
        attn, weights = dot_product_attention(prev_h, A)
        looked = prev_h
        prev_h, prev_c, cache = attention_lstm_step_forward(x[:, t], prev_h, prev_c, attn, Wx, Wh, Wattn, b)
        hs.append(prev_h)
        maps.append(weights)
        caches.append((cache, looked, weights))
    return torch.stack(hs, 1), torch.stack(maps, 1), (caches, A)


def attention_lstm_backward(dh, cache):
    caches, A = cache
    dprev_h = dprev_c = torch.zeros_like(dh[:, 0])
    D = caches[0][0][0][0].shape[1]
    dA, dx, dW = torch.zeros_like(A), torch.zeros(*dh.shape[:2], D).to(dh), [0, 0, 0, 0]
    for t in reversed(range(dh.shape[1])):
        step, looked, weights = caches[t]
        grads = attention_lstm_step_backward(dh[:, t] + dprev_h, dprev_c, step)
        dx[:, t], dprev_h, dprev_c, dattn = grads[:4]
        dlooked, dA_t = dot_product_attention_backward(dattn, looked, A, weights)
        dprev_h = dprev_h + dlooked
        dA = dA + dA_t
        dW = [total + part for total, part in zip(dW, grads[4:])]
    dstart = dprev_h + dprev_c
    dA = dA + dstart[:, :, None, None] / (A.shape[2] * A.shape[3])
    return dx, dA, *dW


class AttentionLSTM(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim * 4))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4))
        self.Wattn = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4))
        self.b = nn.Parameter(torch.zeros(hidden_dim * 4))

    def step_forward(self, x, prev_h, prev_c, attn):
        i, f, o, g = (x @ self.Wx + prev_h @ self.Wh + attn @ self.Wattn + self.b).chunk(4, dim=1)
        next_c = f.sigmoid() * prev_c + i.sigmoid() * g.tanh()
        return o.sigmoid() * next_c.tanh(), next_c

    def forward(self, x, A):
        h0 = A.mean(dim=(2, 3))
        prev_h, prev_c, hs = h0, h0, []
        for x_t in x.unbind(dim=1):
            attn, attn_weights = dot_product_attention(prev_h, A)
            prev_h, prev_c = self.step_forward(x_t, prev_h, prev_c, attn)
            hs += [prev_h]
        return torch.stack(hs, dim=1)
