"""Image captioning with recurrent networks: every forward and backward step by hand.

Symbols, used everywhere in this file:

    N   captions in a batch             D   size of a step's input x
    T   steps (words) of a caption      H   size of the hidden state h and of the cell state c
    V   words in the vocabulary         W   size of a word vector
    C   channels of the image features  h, w  rows and columns of the image grid, L = h * w cells
    A   projected image features, an H-vector for each cell of the grid, (N, H, h, w)
    a   pre-activations: a step's values before the nonlinearity

The gradient of the loss with respect to q is called dq and has the shape of q. The LSTM's gates are stored side
by side in the order i, f, o, g (input, forget, output, candidate), so its weights are (D, 4H) and (H, 4H).

A backward function follows its forward function. The models train with exactly these functions:
`by_hand(forward, backward, ...)` makes a pair of them one node of autograd's graph.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eecs598.bridge import by_hand
from eecs598.encoders import ImageEncoder

# ---------------------------------------------------------------------------------------------------------
# Vanilla RNN (Elman, "Finding structure in time", 1990)
# ---------------------------------------------------------------------------------------------------------


class RNNStepCache(NamedTuple):
    x: Tensor
    prev_h: Tensor
    Wx: Tensor
    Wh: Tensor
    next_h: Tensor


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    """One step of a vanilla RNN: next_h = tanh(x Wx + prev_h Wh + b).

    x (N, D), prev_h (N, H), Wx (D, H), Wh (H, H), b (H,). Returns next_h (N, H) and a cache.
    """
    next_h = torch.tanh(x @ Wx + prev_h @ Wh + b)
    return next_h, RNNStepCache(x, prev_h, Wx, Wh, next_h)


def rnn_step_backward(dnext_h, cache):
    """Gradient of one RNN step. dnext_h (N, H). Returns dx (N, D), dprev_h (N, H), dWx, dWh, db."""
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h**2)  # tanh'(a) = 1 - tanh(a)^2
    dx = da @ Wx.t()  # (N, H) @ (H, D) -> (N, D)
    dprev_h = da @ Wh.t()
    dWx = x.t() @ da  # (D, N) @ (N, H) -> (D, H)
    dWh = prev_h.t() @ da
    db = da.sum(0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b):
    """A vanilla RNN over a whole sequence.

    x (N, T, D), h0 (N, H), Wx (D, H), Wh (H, H), b (H,). Returns the state after each step, h (N, T, H), and
    a cache, the list of the steps' caches.
    """
    h, caches, state = [], [], h0
    for t in range(x.shape[1]):
        state, cache = rnn_step_forward(x[:, t], state, Wx, Wh, b)
        h.append(state)
        caches.append(cache)
    return torch.stack(h, dim=1), caches


def rnn_backward(dh, cache):
    """Gradient of `rnn_forward`: backpropagation through time.

    dh (N, T, H): the gradient of each state from outside the RNN, such as from the loss. The gradient from the
    following step is added here. Returns dx (N, T, D), dh0 (N, H), dWx, dWh, db.
    """
    dx, dprev_h, dweights = [], torch.zeros_like(dh[:, 0]), (0, 0, 0)
    for t in reversed(range(dh.shape[1])):
        dh_t = dh[:, t] + dprev_h  # from outside, and from step t + 1
        dx_t, dprev_h, *step = rnn_step_backward(dh_t, cache[t])
        dx.insert(0, dx_t)
        dweights = [total + part for total, part in zip(dweights, step)]  # all steps share the weights
    return torch.stack(dx, dim=1), dprev_h, *dweights


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


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    """One step of an LSTM.

        a = x Wx + prev_h Wh + b;  i, f, o = sigmoid(a_i, a_f, a_o);  g = tanh(a_g)
        next_c = f * prev_c + i * g;  next_h = o * tanh(next_c)

    x (N, D), prev_h and prev_c (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,). Returns next_h, next_c (N, H), a cache.
    """
    a = x @ Wx + prev_h @ Wh + b
    a_i, a_f, a_o, a_g = a.chunk(4, dim=1)  # (N, 4H) -> 4 x (N, H)
    i, f, o, g = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.sigmoid(a_o), torch.tanh(a_g)
    next_c = f * prev_c + i * g
    next_h = o * torch.tanh(next_c)
    return next_h, next_c, LSTMStepCache(x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)


def lstm_step_backward(dnext_h, dnext_c, cache):
    """Gradient of one LSTM step. dnext_h, dnext_c (N, H). Returns dx, dprev_h, dprev_c, dWx, dWh, db."""
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c = cache
    # 1. next_h = o * tanh(next_c). The loss depends on next_c twice: through step t + 1 and through next_h.
    tanh_c = torch.tanh(next_c)
    do = dnext_h * tanh_c
    dc = dnext_c + dnext_h * o * (1 - tanh_c**2)
    # 2. next_c = f * prev_c + i * g. The gradient of a factor is dc times the other factor.
    di, df, dg, dprev_c = dc * g, dc * prev_c, dc * i, dc * f
    # 3. Through the nonlinearities: sigmoid' = s (1 - s), tanh' = 1 - tanh^2.
    da = torch.cat([di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dg * (1 - g**2)], dim=1)  # (N, 4H)
    # 4. a = x Wx + prev_h Wh + b, as in the RNN.
    dx = da @ Wx.t()
    dprev_h = da @ Wh.t()
    dWx = x.t() @ da
    dWh = prev_h.t() @ da
    db = da.sum(0)
    return dx, dprev_h, dprev_c, dWx, dWh, db


def lstm_forward(x, h0, c0, Wx, Wh, b):
    """An LSTM over a whole sequence.

    x (N, T, D), h0 and c0 (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,). Returns h (N, T, H) and a cache.
    """
    h, caches, state, cell = [], [], h0, c0
    for t in range(x.shape[1]):
        state, cell, cache = lstm_step_forward(x[:, t], state, cell, Wx, Wh, b)
        h.append(state)
        caches.append(cache)
    return torch.stack(h, dim=1), caches


def lstm_backward(dh, cache):
    """Gradient of `lstm_forward`. dh (N, T, H), as for `rnn_backward`. Returns dx, dh0, dc0, dWx, dWh, db."""
    dx, dweights = [], (0, 0, 0)
    dprev_h = dprev_c = torch.zeros_like(dh[:, 0])
    for t in reversed(range(dh.shape[1])):
        dh_t = dh[:, t] + dprev_h  # from outside, and from step t + 1
        dx_t, dprev_h, dprev_c, *step = lstm_step_backward(dh_t, dprev_c, cache[t])
        dx.insert(0, dx_t)
        dweights = [total + part for total, part in zip(dweights, step)]
    return torch.stack(dx, dim=1), dprev_h, dprev_c, *dweights


# ---------------------------------------------------------------------------------------------------------
# Attention over an image grid (Xu et al., "Show, attend and tell", 2015), with the scaled dot product of Vaswani et
# al., "Attention is all you need", 2017, equation 1, in place of Xu's small network
# ---------------------------------------------------------------------------------------------------------


def dot_product_attention(prev_h, A):
    """Attend to an image grid: score each cell by its dot product with the state, and average the cells.

        weights = softmax(prev_h . A / sqrt(H)) over the cells;  attn = sum over the cells of weights * A

    prev_h (N, H), A (N, H, h, w). Returns attn (N, H) and attn_weights (N, h, w), which sum to 1 over
    each grid.
    """
    H = A.shape[1]
    cells = A.flatten(2)  # (N, H, h, w) -> (N, H, L)
    scores = torch.einsum("nh,nhl->nl", prev_h, cells) / math.sqrt(H)
    weights = torch.softmax(scores, dim=1)
    attn = torch.einsum("nl,nhl->nh", weights, cells)
    return attn, weights.unflatten(1, A.shape[2:])


def dot_product_attention_backward(dattn, prev_h, A, attn_weights):
    """Gradient of `dot_product_attention`. dattn (N, H). Returns dprev_h (N, H), dA (N, H, h, w)."""
    H = A.shape[1]
    cells, weights = A.flatten(2), attn_weights.flatten(1)
    dweights = torch.einsum("nh,nhl->nl", dattn, cells)
    dscores = weights * (dweights - (weights * dweights).sum(1, keepdim=True))  # the softmax's Jacobian
    dprev_h = torch.einsum("nl,nhl->nh", dscores, cells) / math.sqrt(H)
    # Each cell is used in two ways: as a value in the average, and as a key in the scores.
    dvalues = torch.einsum("nh,nl->nhl", dattn, weights)
    dkeys = torch.einsum("nh,nl->nhl", prev_h, dscores) / math.sqrt(H)
    return dprev_h, (dvalues + dkeys).unflatten(2, A.shape[2:])


# ---------------------------------------------------------------------------------------------------------
# Attention LSTM: before each step it attends to the image, and the result is one more input of the step
# ---------------------------------------------------------------------------------------------------------


def attention_lstm_step_forward(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    """One step of an attention LSTM: a = x Wx + prev_h Wh + attn Wattn + b, then as in an LSTM.

    This is an LSTM step with the input [x, attn] and the weight Wx stacked on Wattn. x (N, D); prev_h, prev_c
    and attn (N, H); Wx (D, 4H); Wh and Wattn (H, 4H); b (4H,). Returns next_h, next_c (N, H) and a cache.
    """
    z = torch.cat([x, attn], dim=1)  # (N, D + H)
    return lstm_step_forward(z, prev_h, prev_c, torch.cat([Wx, Wattn]), Wh, b)


def attention_lstm_step_backward(dnext_h, dnext_c, cache):
    """Gradient of `attention_lstm_step_forward`. Returns dx, dprev_h, dprev_c, dattn, dWx, dWh, dWattn, db."""
    dz, dprev_h, dprev_c, dW, dWh, db = lstm_step_backward(dnext_h, dnext_c, cache)
    D = dz.shape[1] - dnext_h.shape[1]
    dx, dattn = dz[:, :D], dz[:, D:]  # split what the forward step concatenated
    dWx, dWattn = dW[:D], dW[D:]
    return dx, dprev_h, dprev_c, dattn, dWx, dWh, dWattn, db


class AttentionLSTMCache(NamedTuple):
    A: Tensor
    states: list[Tensor]  # h0, then the state after each step: T + 1 of (N, H)
    weights: list[Tensor]  # where each step looked: T of (N, h, w)
    steps: list[LSTMStepCache]


def attention_lstm_forward(x, A, Wx, Wh, Wattn, b):
    """An attention LSTM over a whole sequence; each step attends with the state of the previous step.

    x (N, T, D), A (N, H, h, w), Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,); h0 = c0 = mean of A over the grid.
    Returns h (N, T, H), attn_weights (N, T, h, w) and a cache.
    """
    states, weights, steps = [A.mean(dim=(2, 3))], [], []
    cell = states[0]
    for t in range(x.shape[1]):
        attn, weights_t = dot_product_attention(states[t], A)
        state, cell, step = attention_lstm_step_forward(x[:, t], states[t], cell, attn, Wx, Wh, Wattn, b)
        weights.append(weights_t)
        states.append(state)
        steps.append(step)
    cache = AttentionLSTMCache(A, states, weights, steps)
    return torch.stack(states[1:], dim=1), torch.stack(weights, dim=1), cache


def attention_lstm_backward(dh, cache):
    """Gradient of `attention_lstm_forward`. dh (N, T, H). Returns dx, dA, dWx, dWh, dWattn, db."""
    A, states, weights, steps = cache
    dx, dA, dweights = [], torch.zeros_like(A), (0, 0, 0, 0)
    dprev_h = dprev_c = torch.zeros_like(dh[:, 0])
    for t in reversed(range(dh.shape[1])):
        dh_t = dh[:, t] + dprev_h  # from outside, and from step t + 1
        dx_t, dprev_h, dprev_c, dattn, *step = attention_lstm_step_backward(dh_t, dprev_c, steps[t])
        dlook, dA_t = dot_product_attention_backward(dattn, states[t], A, weights[t])
        dprev_h, dA = dprev_h + dlook, dA + dA_t  # the state is used twice: in the step, and to look
        dx.insert(0, dx_t)
        dweights = [total + part for total, part in zip(dweights, step)]
    L = A.shape[2] * A.shape[3]
    dA = dA + (dprev_h + dprev_c)[:, :, None, None] / L  # through h0 = c0 = mean of A
    return torch.stack(dx, dim=1), dA, *dweights


# ---------------------------------------------------------------------------------------------------------
# Words in, words out: embedding, scores, loss
# ---------------------------------------------------------------------------------------------------------


def word_embedding_forward(x, W_embed):
    """Look up word vectors. x (N, T) int64 ids, W_embed (V, W). Returns out (N, T, W) and a cache."""
    return W_embed[x], (x, len(W_embed))


def word_embedding_backward(dout, cache):
    """Gradient of the look-up: a row accumulates the gradients of its word's occurrences. Returns dW_embed (V, W)."""
    x, V = cache
    dW_embed = dout.new_zeros(V, dout.shape[-1])
    return dW_embed.index_add_(0, x.flatten(), dout.flatten(0, -2))  # words repeat, so add


def temporal_affine_forward(h, W, b):
    """Scores for every step: h W + b. h (..., D), W (D, M), b (M,). Returns scores (..., M) and a cache."""
    return h @ W + b, (h, W)


def temporal_affine_backward(dout, cache):
    """Gradient of `temporal_affine_forward`. dout (..., M). Returns dh (..., D), dW (D, M), db (M,)."""
    h, W = cache
    rows, drows = h.flatten(0, -2), dout.flatten(0, -2)  # (N, T, D) -> (N * T, D)
    return dout @ W.t(), rows.t() @ drows, drows.sum(0)


def temporal_softmax_loss(x, y, ignore_index=None):
    """Cross-entropy of the words, summed over time and averaged over the batch.

        loss = - (1 / N) sum over n, t of log softmax(x[n, t])[y[n, t]]

    x (N, T, V) scores, y (N, T) int64 ids. Steps where y is ignore_index are ignored. Returns a scalar,
    in float32 or better.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return by_hand(_softmax_loss, _softmax_loss_backward, x, y, ignore_index)


def temporal_softmax_backward(x, y, ignore_index=None):
    """Gradient of `temporal_softmax_loss`: (softmax(x) - one-hot(y)) / N, zero where y is ignore_index.

    Returns dx (N, T, V).
    """
    target, mask = _target_and_mask(y, ignore_index)
    dx = torch.softmax(x, dim=2)
    dx.scatter_add_(2, target, -torch.ones_like(target, dtype=x.dtype))  # subtract 1 at each correct word
    return dx * mask / len(x)


def _softmax_loss(x, y, ignore_index):
    target, mask = _target_and_mask(y, ignore_index)
    log_probs = x.gather(2, target) - torch.logsumexp(x, dim=2, keepdim=True)  # (N, T, 1)
    return -log_probs.where(mask, 0).sum() / len(x), (x, y, ignore_index)


def _softmax_loss_backward(dloss, cache):
    return dloss * temporal_softmax_backward(*cache)


def _target_and_mask(y, ignore_index):
    """Return y as an index (N, T, 1), 0 where it is ignored, and a mask (N, T, 1) that is true where it counts."""
    y = y.unsqueeze(2)
    mask = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    return y.where(mask, 0), mask


# ---------------------------------------------------------------------------------------------------------
# Modules: they hold the weights, and `by_hand` lets autograd call the functions above
# ---------------------------------------------------------------------------------------------------------


def _weight(rows, columns):
    """Return a random matrix whose product with an input of unit variance has unit variance."""
    return nn.Parameter(torch.randn(rows, columns) / math.sqrt(rows))


class RNN(nn.Module):
    """A vanilla RNN layer with parameters Wx (D, H), Wh (H, H), b (H,)."""

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = _weight(input_dim, hidden_dim)
        self.Wh = _weight(hidden_dim, hidden_dim)
        self.b = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, x, h0):
        """x (N, T, D), h0 (N, H). Returns the states h (N, T, H)."""
        return by_hand(rnn_forward, rnn_backward, x, h0, self.Wx, self.Wh, self.b)

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

    def forward(self, x, h0):
        """x (N, T, D), h0 (N, H); c0 is zero. Returns the states h (N, T, H)."""
        return by_hand(lstm_forward, lstm_backward, x, h0, torch.zeros_like(h0), self.Wx, self.Wh, self.b)

    def step_forward(self, x, prev_h, prev_c):
        """x (N, D), prev_h and prev_c (N, H). Returns next_h and next_c (N, H)."""
        return lstm_step_forward(x, prev_h, prev_c, self.Wx, self.Wh, self.b)[:2]


class AttentionLSTM(nn.Module):
    """An LSTM layer that attends to an image grid, with parameters Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,)."""

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = _weight(input_dim, 4 * hidden_dim)
        self.Wh = _weight(hidden_dim, 4 * hidden_dim)
        self.Wattn = _weight(hidden_dim, 4 * hidden_dim)
        self.b = nn.Parameter(torch.zeros(4 * hidden_dim))

    def forward(self, x, A):
        """x (N, T, D), A (N, H, h, w); h0 = c0 = mean of A. Returns h (N, T, H)."""
        weights = self.Wx, self.Wh, self.Wattn, self.b
        return by_hand(attention_lstm_forward, attention_lstm_backward, x, A, *weights)

    def step_forward(self, x, prev_h, prev_c, attn):
        """x (N, D), prev_h, prev_c and attn (N, H). Returns next_h and next_c (N, H)."""
        weights = self.Wx, self.Wh, self.Wattn, self.b
        return attention_lstm_step_forward(x, prev_h, prev_c, attn, *weights)[:2]


class WordEmbedding(nn.Module):
    """A trainable vector for each word of the vocabulary: parameter W_embed (V, W)."""

    def __init__(self, vocab_size, embed_size):
        super().__init__()
        self.W_embed = _weight(vocab_size, embed_size)  # as published: of standard deviation 1 / sqrt(V)

    def forward(self, x):
        """x (N, T) or (N,) int64 ids. Returns the word vectors, (N, T, W) or (N, W)."""
        return by_hand(word_embedding_forward, _word_embedding_gradients, x, self.W_embed)


def _word_embedding_gradients(dout, cache):
    return None, word_embedding_backward(dout, cache)  # ids have no gradient


class Affine(nn.Linear):
    """An affine map of the last dimension, h W + b: PyTorch's nn.Linear (weight W^T), with a gradient by hand."""

    def forward(self, h):
        """h (..., D). Returns (..., M)."""
        return by_hand(temporal_affine_forward, temporal_affine_backward, h, self.weight.t(), self.bias)


# ---------------------------------------------------------------------------------------------------------
# The captioner (Vinyals et al., "Show and tell", 2015; Xu et al., "Show, attend and tell", 2015)
# ---------------------------------------------------------------------------------------------------------


class DecoderState(NamedTuple):
    """A captioner's state between two words: h (N, H); for LSTMs also c (N, H); for attention also A (N, H, h, w)."""

    h: Tensor
    c: Tensor | None = None
    A: Tensor | None = None


class CaptioningRNN(nn.Module):
    """An image encoder, and a recurrent decoder that generates a caption one word at a time.

    The image features become the initial hidden state (rnn, lstm) or the grid to attend to (attn). Each step
    reads the previous word and scores every word of the vocabulary as the next one.

    word_to_idx: dict from word to id, with <NULL>, <START> and <END>. input_dim: channels of the encoder's
    features, C. ignore_index: the target id that the loss ignores, usually that of <NULL>.
    """

    def __init__(
        self, word_to_idx, input_dim=512, wordvec_dim=128, hidden_dim=128, cell_type="rnn",
        image_encoder_pretrained=True, ignore_index=None,
    ):  # fmt: skip
        super().__init__()
        cells = {"rnn": RNN, "lstm": LSTM, "attn": AttentionLSTM}
        if cell_type not in cells:
            raise ValueError(f"cell_type is {cell_type!r}; it must be one of {', '.join(cells)}")
        self.cell_type, self.ignore_index = cell_type, ignore_index
        self.null, self.start, self.end, self.unk = map(word_to_idx.get, ("<NULL>", "<START>", "<END>", "<UNK>"))
        self.image_encoder = ImageEncoder(pretrained=image_encoder_pretrained)
        self.feature_projection = Affine(input_dim, hidden_dim)
        self.word_embedding = WordEmbedding(len(word_to_idx), wordvec_dim)
        self.cell = cells[cell_type](wordvec_dim, hidden_dim)
        self.output_projection = Affine(hidden_dim, len(word_to_idx))

    def encode(self, images):
        """Return the decoder's initial state h0 (N, H), or for attn the grid A (N, H, h, w)."""
        features = self.image_encoder(images).to(self.feature_projection.weight.dtype)  # (N, C, h, w)
        if self.cell_type == "attn":
            return self.feature_projection(features.movedim(1, -1)).movedim(-1, 1)  # each cell separately
        return self.feature_projection(features.mean(dim=(2, 3)))

    def forward(self, images, captions):
        """The captioning loss, `temporal_softmax_loss`: summed over the words of a caption, averaged over the batch.

        images (N, 3, height, width), uint8 or float in [0, 1]; captions (N, T + 1) int64, each <START> words
        <END> <NULL>... The first T tokens are the inputs, the last T the targets.
        """
        inputs, targets = captions[:, :-1], captions[:, 1:]
        x = self.word_embedding(inputs)  # (N, T, W)
        h = self.cell(x, self.encode(images))  # (N, T, H)
        scores = self.output_projection(h)  # (N, T, V)
        return temporal_softmax_loss(scores, targets, self.ignore_index)

    def begin(self, images):
        """Return the decoder's state before the first word of each picture's caption."""
        start = self.encode(images)
        if self.cell_type == "attn":
            mean = start.mean(dim=(2, 3))
            return DecoderState(mean, mean, start)
        return DecoderState(start, torch.zeros_like(start) if self.cell_type == "lstm" else None)

    def step(self, words, state):
        """Advance by one word. words (N,) int64: the previous words.

        Returns the scores of the next word (N, V), the next state, and attn_weights (N, h, w) or None.
        """
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
    def sample(self, images, max_length=15):
        """Generate captions greedily: at each step, take the word with the highest score.

        images (N, 3, height, width). Returns captions (N, max_length) int64, <NULL> after <END>; for attn also the
        weights (N, max_length, h, w) on the CPU, zero after <END>.
        """
        captions = torch.full((len(images), max_length), self.null, device=images.device)
        words = torch.full((len(images),), self.start, device=images.device)
        ended, maps = torch.zeros_like(words, dtype=torch.bool), []
        state = self.begin(images)
        for t in range(max_length):
            scores, state, weights = self.step(words, state)
            words = scores.argmax(dim=1).masked_fill(ended, self.null)
            captions[:, t] = words
            if weights is not None:
                maps.append(weights.masked_fill(ended[:, None, None], 0))
            ended |= words == self.end
        return captions if self.cell_type != "attn" else (captions, torch.stack(maps, dim=1).cpu())


# ---------------------------------------------------------------------------------------------------------
# The whole model by hand: the chain rule from the loss back to the image features, without autograd
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def captioning_gradients(model, features, captions):
    """The captioning loss, and its gradient with respect to every parameter of the decoder.

    The loss is a chain of the functions above. model: a CaptioningRNN; features (N, C, h, w);
    captions (N, T + 1). Returns the loss and a dict from each decoder parameter's name to its gradient.
    """
    inputs, targets = captions[:, :-1], captions[:, 1:]
    W_feature, W_out = model.feature_projection.weight.t(), model.output_projection.weight.t()
    # Forward: image features -> initial state or grid -> states -> scores -> loss.
    seen = features.movedim(1, -1) if model.cell_type == "attn" else features.mean(dim=(2, 3))
    start, cache_feature = temporal_affine_forward(seen, W_feature, model.feature_projection.bias)
    x, cache_embed = word_embedding_forward(inputs, model.word_embedding.W_embed)
    h, cache_cell = _cell_forward(model, x, start)
    scores, cache_out = temporal_affine_forward(h, W_out, model.output_projection.bias)
    loss = temporal_softmax_loss(scores, targets, model.ignore_index)
    # Backward: through the same functions in reverse.
    dscores = temporal_softmax_backward(scores, targets, model.ignore_index)
    dh, dW_out, db_out = temporal_affine_backward(dscores, cache_out)
    dx, dstart, dcell = _cell_backward(model, dh, cache_cell)
    dW_embed = word_embedding_backward(dx, cache_embed)
    _, dW_feature, db_feature = temporal_affine_backward(dstart, cache_feature)
    return loss, {
        "feature_projection.weight": dW_feature.t(), "feature_projection.bias": db_feature,
        "word_embedding.W_embed": dW_embed, **dcell,
        "output_projection.weight": dW_out.t(), "output_projection.bias": db_out,
    }  # fmt: skip


def _cell_forward(model, x, start):
    """Run the model's cell over x (N, T, W), from the projected features. Returns h (N, T, H) and a cache."""
    weights = model.cell.parameters()
    if model.cell_type == "rnn":
        return rnn_forward(x, start, *weights)
    if model.cell_type == "lstm":
        return lstm_forward(x, start, torch.zeros_like(start), *weights)
    h, _, cache = attention_lstm_forward(x, start.movedim(-1, 1), *weights)
    return h, cache


def _cell_backward(model, dh, cache):
    """Gradient of `_cell_forward`: dx, dstart, and a dict of the gradients of the cell's parameters."""
    if model.cell_type == "rnn":
        dx, dstart, *dweights = rnn_backward(dh, cache)
    elif model.cell_type == "lstm":
        dx, dstart, _, *dweights = lstm_backward(dh, cache)  # c0 is always zero
    else:
        dx, dA, *dweights = attention_lstm_backward(dh, cache)
        dstart = dA.movedim(1, -1)
    return dx, dstart, {f"cell.{name}": dW for (name, _), dW in zip(model.cell.named_parameters(), dweights)}
