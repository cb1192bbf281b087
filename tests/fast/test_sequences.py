"""eecs598/fast against the plain file: equal for any shapes and lengths, and nothing comes from padding."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import attention_inputs, lstm_inputs, randn, rnn_inputs

import rnn_lstm_captioning as rlc
from eecs598 import fast
from eecs598.bridge import by_hand
from eecs598.fast import attention, layers, loss, lstm, packing, rnn

FORWARD = {"rnn": rnn.rnn_forward, "lstm": lstm.lstm_forward, "attn": attention.attention_lstm_forward}
BACKWARD = {"rnn": rnn.rnn_backward, "lstm": lstm.lstm_backward, "attn": attention.attention_lstm_backward}
PLAIN = {
    "rnn": (rlc.rnn_forward, rlc.rnn_backward), "lstm": (rlc.lstm_forward, rlc.lstm_backward),
    "attn": (rlc.attention_lstm_forward, rlc.attention_lstm_backward),
}  # fmt: skip
CELLS = pytest.mark.parametrize("cell_type", list(PLAIN))


def make_inputs(cell_type, N, T, D, H, grid=(2, 3)):
    if cell_type == "attn":
        return attention_inputs(N, T, D, H, grid)
    return {"rnn": rnn_inputs, "lstm": lstm_inputs}[cell_type](N, T, D, H)


def assert_same(found, wanted):
    """Equal to 1e-12, relative to the largest number."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-12 * max(1.0, wanted.abs().max())


@CELLS
@settings(max_examples=30, deadline=None)
@given(N=st.integers(1, 4), T=st.integers(1, 6), D=st.integers(1, 4), H=st.integers(1, 5), data=st.data())
def test_sequences_equal_the_plain_ones_and_skip_padding(cell_type, N, T, D, H, data):
    lengths = torch.tensor(sorted(data.draw(st.lists(st.integers(0, T), min_size=N, max_size=N)), reverse=True))
    mask = (torch.arange(T) < lengths[:, None]).double().unsqueeze(2)
    grid = data.draw(st.sampled_from([(1, 1), (2, 3), (4, 2)]))
    inputs, dh = make_inputs(cell_type, N, T, D, H, grid), randn(N, T, H)
    forward, backward = PLAIN[cell_type]
    plain_h, *plain_weights, plain_cache = forward(*inputs)
    with pytest.MonkeyPatch.context() as patch:  # few rows: many blocks, the last one short
        patch.setattr(packing, "BLOCK", 4 * H * data.draw(st.sampled_from([1, 2, 5, 9, 512])))
        h, *weights, cache = FORWARD[cell_type](*inputs, lengths)
        gradients = BACKWARD[cell_type](dh, cache)
    assert_same(h, plain_h * mask)
    for maps, plain_maps in zip(weights, plain_weights):
        assert_same(maps, plain_maps * mask.unsqueeze(3))
    for found, wanted in zip(gradients, backward(dh * mask, plain_cache)):
        assert_same(found, wanted)
    assert (gradients[0] * (1 - mask) == 0).all()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 3), K=st.integers(1, 3), T=st.integers(1, 5), H=st.integers(1, 4), data=st.data())
def test_captions_that_share_a_grid_are_computed_as_with_copies_of_it(n, K, T, H, data):
    order = torch.tensor(data.draw(st.permutations(range(n * K))))
    lengths = sorted(data.draw(st.lists(st.integers(0, T), min_size=n * K, max_size=n * K)), reverse=True)
    lengths = torch.tensor(lengths)
    (x, _, *weights), A, dh = attention_inputs(n * K, T, 3, H, (1, 1)), randn(n, H, 2, 3), randn(n * K, T, H)
    h, maps, cache = attention.attention_lstm_forward(x, A, *weights, lengths, order)
    copied_h, copied_maps, copied_cache = attention.attention_lstm_forward(x, A[order // K], *weights, lengths)
    assert_same(h, copied_h)
    assert_same(maps, copied_maps)
    dx, dA, *found = attention.attention_lstm_backward(dh, cache)
    wanted_dx, copied_dA, *wanted = attention.attention_lstm_backward(dh, copied_cache)
    assert_same(dA, torch.zeros_like(A).index_add_(0, order // K, copied_dA))
    for mine, theirs in zip([dx, *found], [wanted_dx, *wanted]):
        assert_same(mine, theirs)


@pytest.mark.parametrize("order, grids", [([0, 1, 2], 2), ([0, 1, 2, 3], 3), ([[0, 1], [2, 3]], 2)])
def test_a_wrong_order_is_refused(order, grids):
    x, A, *weights = attention_inputs(4, 3, 2, 5, (2, 3))
    message = rf"order is \(.*\); it must be \(4,\), and 4 captions a multiple of the {grids} grids"
    with pytest.raises(ValueError, match=message):
        attention.attention_lstm_forward(x, A[:grids], *weights, order=torch.tensor(order))


@CELLS
def test_without_lengths_every_step_is_computed(cell_type):
    inputs, dh = make_inputs(cell_type, 3, 4, 5, 6), randn(3, 4, 6)
    forward, backward = PLAIN[cell_type]
    (plain_h, *_, plain_cache), (h, *_, cache) = forward(*inputs), FORWARD[cell_type](*inputs)
    assert_same(h, plain_h)
    for found, wanted in zip(BACKWARD[cell_type](dh, cache), backward(dh, plain_cache)):
        assert_same(found, wanted)


@pytest.mark.parametrize("lengths", [[1, 2], [3], [5, 1], [2, 2, 1]])
def test_wrong_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="longest first"):
        rnn.rnn_forward(*rnn_inputs(2, 4, 3, 3), lengths=torch.tensor(lengths))


def test_a_wrong_x_is_refused():
    x, *others = lstm_inputs(2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"x is \(2, 4, 2\); it must be \(N, T, 3\)"):
        lstm.lstm_forward(x[:, :, :2], *others)


@CELLS
def test_inputs_may_be_strided_and_stay_as_they_are(cell_type):
    inputs = make_inputs(cell_type, 3, 4, 5, 6)
    strided = [torch.stack([value, value], dim=-1)[..., 0] for value in inputs]
    copies = [value.clone() for value in strided]
    dh = torch.randn(4, 3, 6, dtype=torch.float64).transpose(0, 1)
    (h, *_, cache), (wanted, *_, wanted_cache) = FORWARD[cell_type](*strided), FORWARD[cell_type](*inputs)
    assert_same(h, wanted)
    for found, gradient in zip(BACKWARD[cell_type](dh, cache), BACKWARD[cell_type](dh.contiguous(), wanted_cache)):
        assert_same(found, gradient)
    assert all(torch.equal(value, copy) for value, copy in zip(strided, copies))


@CELLS
def test_a_backward_can_be_run_twice(cell_type):
    """Sequences work in place: on their own tensors only, never on the cache."""
    dh, (*_, cache) = randn(3, 4, 6), FORWARD[cell_type](*make_inputs(cell_type, 3, 4, 5, 6))
    first, second = BACKWARD[cell_type](dh, cache), BACKWARD[cell_type](dh, cache)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "AttentionLSTM"])
def test_layers_have_the_lessons_parameters_and_state_dicts(kind):
    ours, plain = getattr(fast, kind)(3, 5).double(), getattr(rlc, kind)(3, 5).double()
    ours.load_state_dict(plain.state_dict())
    x, start = randn(2, 4, 3), randn(2, 5, 2, 2) if kind == "AttentionLSTM" else randn(2, 5)
    dh, gradients = randn(2, 4, 5), []
    for layer in (ours, plain):
        h = layer(x, start)
        gradients.append([h, *torch.autograd.grad(h, list(layer.parameters()), dh)])
    for found, wanted in zip(*gradients):
        assert_same(found, wanted)
    torch.manual_seed(0)
    first = getattr(fast, kind)(30, 50)
    for name, parameter in getattr(rlc, kind)(30, 50).named_parameters():  # of the same spread
        assert getattr(first, name).std().item() == pytest.approx(parameter.std().item(), rel=0.2), name


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "AttentionLSTM"])
def test_layers_under_autocast(kind):
    """bfloat16 products, float32 parameters and gradients, close to float32's."""
    torch.manual_seed(0)
    layer, x = getattr(fast, kind)(8, 16), torch.randn(4, 5, 8, requires_grad=True)
    start = torch.randn(4, 16, 2, 3) if kind == "AttentionLSTM" else torch.randn(4, 16)
    exact = layer(x, start)
    exact.sum().backward()
    wanted = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        h = layer(x, start)
    assert h.dtype == torch.bfloat16
    h.float().sum().backward()
    torch.testing.assert_close(h.float(), exact, rtol=0, atol=0.05)
    for name, p in layer.named_parameters():
        assert p.grad.dtype == torch.float32
        assert (p.grad - wanted[name]).norm() < 0.05 * wanted[name].norm()


def test_a_block_has_whole_steps_and_no_row_is_in_two():
    sizes = packing.Packing(4, 6, torch.tensor([6, 5, 2, 1]))
    assert sizes.sizes == [4, 3, 2, 2, 2, 1] and sizes.rows(1) == slice(4, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", 9 * 3 + 1)
        assert sizes.blocks(3) == [(0, 2), (2, 4), (4, 6)] and sizes.blocks(4) == [(k, k + 1) for k in range(6)]
    assert [sizes.rows(*block) for block in sizes.blocks(3)] == [slice(0, 14)]


# --- the loss -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(2, 7), st.sampled_from([0.0, 0.3]), st.booleans(), st.data())
def test_the_word_loss_in_blocks_is_that_of_all_scores_at_once(P, H, V, smoothing, sampled, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    inputs = [randn(P, H).requires_grad_(), randn(V, H).requires_grad_(), randn(V).requires_grad_()]
    banned = [0] if sampled and not smoothing else []
    y, weights = torch.randint(len(banned), V, (P,)), torch.randn(P) * (torch.rand(P) < 0.7)
    y = y.masked_fill(weights == 0, 0)  # as padding: its word may be one that is banned
    scores = F.linear(*inputs).index_fill(1, torch.tensor(banned, dtype=torch.int64), -math.inf)
    each = F.cross_entropy(scores, y, label_smoothing=smoothing, reduction="none").masked_fill(weights == 0, 0)
    wanted = (weights * each).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "BLOCK_ROWS", data.draw(st.integers(1, 10)))
        found = loss.word_loss(*inputs, y, weights, smoothing, banned)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * wanted, inputs)):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_the_scores_of_all_steps_never_exist(monkeypatch):
    shapes, product = [], loss.product
    monkeypatch.setattr(loss, "product", lambda a, b, *c: shapes.append((len(a), b.shape[1])) or product(a, b, *c))
    inputs = [torch.randn(1000, 4, requires_grad=True), torch.randn(7, 4), torch.randn(7)]
    loss.word_loss(*inputs, torch.zeros(1000, dtype=torch.int64)).backward()
    sizes = [rows for rows, columns in shapes if columns == 7]
    assert sum(sizes) == 1000 and max(sizes) <= loss.BLOCK_ROWS and inputs[0].grad.abs().min() > 0


def test_without_gradients_none_is_computed(monkeypatch):
    shapes, product = [], loss.product
    monkeypatch.setattr(loss, "product", lambda a, b, *c: shapes.append(b.shape[1]) or product(a, b, *c))
    with torch.no_grad():
        loss.word_loss(torch.randn(5, 4), torch.randn(7, 4), torch.randn(7), torch.zeros(5, dtype=torch.int64))
    assert shapes == [7]


# --- the bridge ---------------------------------------------------------------------------------------------


def test_the_bridge_takes_any_cache_and_leaves_out_gradients_at_the_end():
    def forward(x, scale, index):
        return x[index] * scale, {"kept": [scale, (index, len(x))]}

    def backward(dout, cache):
        scale, (index, rows) = cache["kept"]
        return dout.new_zeros(rows).index_add_(0, index, dout * scale)

    x, index = randn(4).requires_grad_(), torch.tensor([1, 1, 3])
    by_hand(forward, backward, x, 3.0, index).sum().backward()
    assert x.grad.tolist() == [0, 6, 0, 3]


def test_a_weight_changed_in_between_is_noticed():
    layer = fast.LSTM(3, 4)
    h = layer(torch.randn(2, 5, 3), torch.randn(2, 4))
    with torch.no_grad():
        layer.b.add_(1)  # not part of the cache
    h.sum().backward()
    x = torch.randn(2, 5, 3, requires_grad=True)
    h = layers.run_rnn(x, torch.randn(2, 4), W := torch.randn(3, 4), torch.randn(4, 4), torch.randn(4))
    W.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_autocast_around_the_backward_changes_nothing():
    layer, x, h0 = fast.RNN(8, 16), torch.randn(4, 5, 8), torch.randn(4, 16)
    gradients = []
    for enabled in (False, True):
        h = layer(x, h0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients.append(torch.autograd.grad(h.sum(), layer.Wh)[0])
    assert torch.equal(*gradients)
