"""The hand-written mathematics: against autograd, numeric gradients and torch.nn, at every awkward shape."""

import pytest
import torch
import torch.nn.functional as F
from support.sequences import (
    attention_inputs,
    look,
    loop_attention,
    loop_lstm,
    loop_rnn,
    lstm_inputs,
    randn,
    rnn_inputs,
)

import rnn_lstm_captioning as rlc
from eecs598.grad import compute_numeric_gradient, rel_error

# N, T, D, H, grid: each dimension alone at 1, all different, square and not.
SHAPES = [
    (3, 4, 5, 6, (3, 5)),
    (1, 4, 5, 6, (2, 3)),
    (3, 1, 5, 6, (4, 4)),
    (3, 4, 1, 6, (1, 7)),
    (3, 4, 5, 1, (5, 3)),
    (1, 1, 1, 1, (1, 1)),
    (2, 7, 3, 4, (7, 7)),
]
EXACT, NUMERIC = 1e-10, 1e-7


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    torch.manual_seed(hash(request.param) % 2**31)
    return request.param


def check_gradients(function, inputs, douts, gradients):
    """`gradients` of function(*inputs) given douts: against autograd and against finite differences."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    expected = torch.autograd.grad(outputs, leaves, douts)
    assert len(gradients) == len(inputs)
    for k, (ours, theirs) in enumerate(zip(gradients, expected)):
        assert ours.shape == theirs.shape and ours.dtype == torch.float64
        assert rel_error(ours, theirs) < EXACT

        def with_input(value, k=k):
            outs = function(*inputs[:k], value, *inputs[k + 1 :])
            return sum((out * dout).sum() for out, dout in zip(outs, douts))

        numeric = compute_numeric_gradient(with_input, inputs[k].clone(), torch.ones((), dtype=torch.float64))
        assert rel_error(ours, numeric, eps=1e-3) < NUMERIC


# --- steps ------------------------------------------------------------------------------------------------


def test_rnn_step(shape):
    inputs = rnn_inputs(*shape[:4], step=True)
    x, prev_h, Wx, Wh, b = inputs
    next_h, cache = rlc.rnn_step_forward(*inputs)
    torch.testing.assert_close(next_h, torch.tanh(x @ Wx + prev_h @ Wh + b), rtol=0, atol=1e-14)
    dnext_h = torch.randn_like(next_h)
    gradients = rlc.rnn_step_backward(dnext_h, cache)
    check_gradients(lambda *i: [torch.tanh(i[0] @ i[2] + i[1] @ i[3] + i[4])], inputs, [dnext_h], gradients)


def test_lstm_step(shape):
    inputs = lstm_inputs(*shape[:4], step=True)
    next_h, next_c, cache = rlc.lstm_step_forward(*inputs)
    dnext_h, dnext_c = torch.randn_like(next_h), torch.randn_like(next_c)
    x, prev_h, prev_c, Wx, Wh, b = inputs

    def step(x, prev_h, prev_c, Wx, Wh, b):
        i, f, o, g = (x @ Wx + prev_h @ Wh + b).chunk(4, 1)
        c = f.sigmoid() * prev_c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    for ours, theirs in zip((next_h, next_c), step(*inputs)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    check_gradients(step, inputs, [dnext_h, dnext_c], rlc.lstm_step_backward(dnext_h, dnext_c, cache))


def test_attention_lstm_step(shape):
    N, T, D, H, _ = shape
    inputs = randn(N, D), randn(N, H), randn(N, H), randn(N, H), *lstm_inputs(N, T, D, H)[3:5], randn(H, 4 * H)
    inputs = *inputs, randn(4 * H)

    def step(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
        i, f, o, g = (x @ Wx + prev_h @ Wh + attn @ Wattn + b).chunk(4, 1)
        c = f.sigmoid() * prev_c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    *outputs, cache = rlc.attention_lstm_step_forward(*inputs)
    for ours, theirs in zip(outputs, step(*inputs)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    douts = [torch.randn_like(out) for out in outputs]
    check_gradients(step, inputs, douts, rlc.attention_lstm_step_backward(*douts, cache))


def test_dot_product_attention(shape):
    N, _, _, H, grid = shape
    prev_h, A = randn(N, H), randn(N, H, *grid)
    attn, weights = rlc.dot_product_attention(prev_h, A)
    assert attn.shape == (N, H) and weights.shape == (N, *grid)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(N, dtype=torch.float64))
    for ours, theirs in zip((attn, weights), look(prev_h, A)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    dattn = torch.randn_like(attn)
    gradients = rlc.dot_product_attention_backward(dattn, prev_h, A, weights)
    check_gradients(lambda h, A: [look(h, A)[0]], (prev_h, A), [dattn], gradients)


def test_attention_follows_its_cells():
    """Permuting the grid's cells permutes the weights and leaves what is seen as it was."""
    prev_h, A = randn(2, 4), randn(2, 4, 3, 5)
    order = torch.randperm(15)
    attn, weights = rlc.dot_product_attention(prev_h, A)
    attn2, weights2 = rlc.dot_product_attention(prev_h, A.flatten(2)[:, :, order].unflatten(2, (3, 5)))
    torch.testing.assert_close(attn2, attn)
    torch.testing.assert_close(weights2.flatten(1), weights.flatten(1)[:, order])


def test_attention_with_huge_scores_is_finite():
    attn, weights = rlc.dot_product_attention(1e6 * randn(2, 4), randn(2, 4, 3, 5))
    assert attn.isfinite().all() and weights.isfinite().all()


# --- sequences --------------------------------------------------------------------------------------------


def test_rnn_sequence(shape):
    inputs = rnn_inputs(*shape[:4])
    h, cache = rlc.rnn_forward(*inputs)
    torch.testing.assert_close(h, loop_rnn(*inputs), rtol=0, atol=1e-12)
    dh = torch.randn_like(h)
    check_gradients(lambda *i: [loop_rnn(*i)], inputs, [dh], rlc.rnn_backward(dh, cache))


def test_rnn_forward_is_differentiable_by_autograd():
    inputs = [x.requires_grad_() for x in rnn_inputs(3, 4, 5, 6)]
    h, cache = rlc.rnn_forward(*inputs)
    dh = torch.randn_like(h)
    ours = rlc.rnn_backward(dh, cache)
    for a, b in zip(torch.autograd.grad(h, inputs, dh), ours):
        assert rel_error(a, b) < EXACT


def test_lstm_sequence(shape):
    inputs = lstm_inputs(*shape[:4])
    h, cache = rlc.lstm_forward(*inputs)
    torch.testing.assert_close(h, loop_lstm(*inputs), rtol=0, atol=1e-12)
    dh = torch.randn_like(h)
    check_gradients(lambda *i: [loop_lstm(*i)], inputs, [dh], rlc.lstm_backward(dh, cache))


def test_attention_lstm_sequence(shape):
    inputs = attention_inputs(*shape)
    h, weights, cache = rlc.attention_lstm_forward(*inputs)
    torch.testing.assert_close(h, loop_attention(*inputs), rtol=0, atol=1e-12)
    assert weights.shape == (shape[0], shape[1], *shape[4])
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(shape[:2], dtype=torch.float64))
    dh = torch.randn_like(h)
    check_gradients(lambda *i: [loop_attention(*i)], inputs, [dh], rlc.attention_lstm_backward(dh, cache))


def test_inputs_may_be_strided_and_stay_as_they_are():
    x, h0, c0, Wx, Wh, b = lstm_inputs(3, 4, 5, 6)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1), h0.t().contiguous().t(), c0]
    strided += [Wx.t().contiguous().t(), Wh.t().contiguous().t(), b]
    copies = [s.clone() for s in strided]
    h, cache = rlc.lstm_forward(*strided)
    dh = torch.randn(4, 3, 6, dtype=torch.float64).transpose(0, 1)
    gradients = rlc.lstm_backward(dh, cache)
    h2, cache2 = rlc.lstm_forward(x, h0, c0, Wx, Wh, b)
    torch.testing.assert_close(h, h2)
    for a, b2 in zip(gradients, rlc.lstm_backward(dh.contiguous(), cache2)):
        torch.testing.assert_close(a, b2)
    assert all(torch.equal(a, b2) for a, b2 in zip(strided, copies))


def test_a_backward_can_be_run_twice():
    """A backward changes nothing in its cache."""
    dh = randn(3, 4, 6)
    for forward, backward, inputs in [
        (rlc.rnn_forward, rlc.rnn_backward, rnn_inputs(3, 4, 5, 6)),
        (rlc.lstm_forward, rlc.lstm_backward, lstm_inputs(3, 4, 5, 6)),
        (rlc.attention_lstm_forward, rlc.attention_lstm_backward, attention_inputs(3, 4, 5, 6, (2, 3))),
    ]:
        cache = forward(*inputs)[-1]
        assert all(torch.equal(a, b) for a, b in zip(backward(dh, cache), backward(dh, cache)))


# --- against torch.nn -------------------------------------------------------------------------------------


def from_torch(layer):
    """Wx, Wh, b of a torch.nn.RNN or LSTM; its LSTM keeps the gates in the order i, f, g, o."""

    def reorder(w):
        if isinstance(layer, torch.nn.RNN):
            return w
        i, f, g, o = w.chunk(4, 0)
        return torch.cat([i, f, o, g])

    Wx, Wh, b = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0
    return reorder(Wx).t(), reorder(Wh).t(), reorder(b)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_modules_equal_torch_nn(kind, dtype, tolerance):
    N, T, D, H = 3, 6, 4, 5
    layer = getattr(torch.nn, kind)(D, H, batch_first=True).to(dtype)
    ours = getattr(rlc, kind)(D, H).to(dtype)
    with torch.no_grad():
        for mine, theirs in zip((ours.Wx, ours.Wh, ours.b), from_torch(layer)):
            mine.copy_(theirs)
    x, h0 = torch.randn(N, T, D, dtype=dtype), torch.randn(N, H, dtype=dtype)
    start = h0[None] if kind == "RNN" else (h0[None], torch.zeros_like(h0)[None])
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    h, expected = ours(x1, h0), layer(x2, start)[0]
    torch.testing.assert_close(h, expected, rtol=0, atol=tolerance)
    dh = torch.randn_like(h)
    h.backward(dh)
    expected.backward(dh)
    torch.testing.assert_close(x1.grad, x2.grad, rtol=0, atol=10 * tolerance)
    grads = torch.autograd.grad(from_torch(layer), list(layer.parameters()), [ours.Wx.grad, ours.Wh.grad, ours.b.grad])
    for mapped, parameter in zip(grads, layer.parameters()):
        torch.testing.assert_close(mapped, parameter.grad, rtol=1e-4, atol=100 * tolerance)


def test_modules_have_the_published_parameters():
    shapes = {name: tuple(p.shape) for name, p in rlc.AttentionLSTM(3, 5).named_parameters()}
    assert shapes == {"Wx": (3, 20), "Wh": (5, 20), "Wattn": (5, 20), "b": (20,)}
    assert {name: tuple(p.shape) for name, p in rlc.LSTM(3, 5).named_parameters()} == {
        "Wx": (3, 20), "Wh": (5, 20), "b": (20,)}
    assert {name: tuple(p.shape) for name, p in rlc.RNN(3, 5).named_parameters()} == {
        "Wx": (3, 5), "Wh": (5, 5), "b": (5,)}
    assert {name: tuple(p.shape) for name, p in rlc.WordEmbedding(7, 5).named_parameters()} == {"W_embed": (7, 5)}


def test_module_steps_are_the_sequence():
    N, T, D, H = 2, 5, 3, 4
    x, h0, A = torch.randn(N, T, D), torch.randn(N, H), torch.randn(N, H, 2, 3)
    rnn, lstm, attention = rlc.RNN(D, H), rlc.LSTM(D, H), rlc.AttentionLSTM(D, H)
    h, (h1, c1), h2 = h0, (h0, torch.zeros_like(h0)), A.mean(dim=(2, 3))
    c2 = h2
    for t in range(T):
        h = rnn.step_forward(x[:, t], h)
        h1, c1 = lstm.step_forward(x[:, t], h1, c1)
        h2, c2 = attention.step_forward(x[:, t], h2, c2, rlc.dot_product_attention(h2, A)[0])
        torch.testing.assert_close(h, rnn(x, h0)[:, t])
        torch.testing.assert_close(h1, lstm(x, h0)[:, t])
        torch.testing.assert_close(h2, attention(x, A)[:, t])


def test_modules_train_through_the_handwritten_backward(monkeypatch):
    """With the backward function replaced by another, the module's gradients change with it."""
    backwards = {"RNN": "rnn_backward", "LSTM": "lstm_backward", "AttentionLSTM": "attention_lstm_backward"}
    for kind, name in backwards.items():
        layer, real = getattr(rlc, kind)(3, 4), getattr(rlc, name)
        start = torch.randn(2, 4, 2, 2) if kind == "AttentionLSTM" else torch.randn(2, 4)
        monkeypatch.setattr(rlc, name, lambda dh, cache, real=real: tuple(7 * g for g in real(dh, cache)))
        x = torch.randn(2, 5, 3)
        layer(x, start).sum().backward()
        changed = layer.Wx.grad.clone()
        monkeypatch.setattr(rlc, name, real)
        layer.zero_grad()
        layer(x, start).sum().backward()
        torch.testing.assert_close(changed, 7 * layer.Wx.grad)


# --- words in, words out ----------------------------------------------------------------------------------


def test_word_embedding_gathers_repeated_words():
    x, W = torch.tensor([[0, 2, 2, 4], [2, 0, 1, 2]]), randn(5, 3)
    out, cache = rlc.word_embedding_forward(x, W)
    torch.testing.assert_close(out, F.embedding(x, W), rtol=0, atol=0)
    dout = torch.randn_like(out)
    check_gradients(lambda W: [F.embedding(x, W)], [W], [dout], [rlc.word_embedding_backward(dout, cache)])
    layer = rlc.WordEmbedding(5, 3).double()
    layer(x).backward(dout)
    torch.testing.assert_close(layer.W_embed.grad, rlc.word_embedding_backward(dout, cache))


@pytest.mark.parametrize("lead", [(2, 3), (1, 1), (4,), (2, 3, 5)])
def test_temporal_affine(lead):
    h, W, b = randn(*lead, 4), randn(4, 6), randn(6)
    scores, cache = rlc.temporal_affine_forward(h, W, b)
    torch.testing.assert_close(scores, F.linear(h, W.t(), b))
    dout = torch.randn_like(scores)
    gradients = rlc.temporal_affine_backward(dout, cache)
    check_gradients(lambda h, W, b: [F.linear(h, W.t(), b)], (h, W, b), [dout], gradients)
    layer, leaf = rlc.Affine(4, 6).double(), h.clone().requires_grad_()
    layer.load_state_dict({"weight": W.t(), "bias": b})
    layer(leaf).backward(dout)
    for found, wanted in zip((leaf.grad, layer.weight.grad.t(), layer.bias.grad), gradients):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("ignore_index", [None, 0, 3, -100])
@pytest.mark.parametrize("N, T, V", [(3, 4, 6), (1, 1, 4), (1, 5, 4), (4, 1, 4)])
def test_temporal_softmax(N, T, V, ignore_index):
    x, y = 3 * randn(N, T, V), torch.randint(0, V, (N, T))
    if ignore_index == -100:
        y[0, 0] = -100

    def reference(x):
        kept = -100 if ignore_index is None else ignore_index
        return [F.cross_entropy(x.flatten(0, 1), y.flatten(), ignore_index=kept, reduction="sum") / N]

    loss = rlc.temporal_softmax_loss(x, y, ignore_index)
    torch.testing.assert_close(loss, reference(x)[0])
    dx = rlc.temporal_softmax_backward(x, y, ignore_index)
    check_gradients(reference, [x], [torch.ones((), dtype=torch.float64)], [dx])
    assert (dx[y == ignore_index] == 0).all()
    leaf = x.clone().requires_grad_()
    (5 * rlc.temporal_softmax_loss(leaf, y, ignore_index)).backward()
    torch.testing.assert_close(leaf.grad, 5 * dx)


def test_temporal_softmax_with_huge_scores_is_finite():
    x = torch.tensor([[[1000.0, -1000.0, 0.0]]])
    assert rlc.temporal_softmax_loss(x, torch.tensor([[1]])).item() == pytest.approx(2000)
    assert rlc.temporal_softmax_backward(x, torch.tensor([[1]])).isfinite().all()
