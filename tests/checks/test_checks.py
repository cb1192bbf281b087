"""The checks pass what is right, catch what is wrong, and name the mistake."""

import inspect
import math
from collections import Counter

import pytest
import torch
from torch import nn

import rnn_lstm_captioning as ours
from eecs598.checks import CHECKS, formulas, parts
from eecs598.checks.hints import describe_sizes
from eecs598.checks.parts import MAIN, Case, Formula
from eecs598.grad import NUMERIC, CheckError, CheckTable, rel_error

CAPTIONER = [part for part in CHECKS if "captioner" in part]  # of a whole model, in float32
FUNCTIONS = [part for part in CHECKS if part not in CAPTIONER]
FORMULAS = {name: f for name, f in vars(parts).items() if isinstance(f, Formula)}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# A student's file in a student's style: loops, other caches, other products, results that are not contiguous.
STUDENT = """
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
    i, f = sigmoid(a[:, :H]), sigmoid(a[:, H:2 * H])
    o, g = sigmoid(a[:, 2 * H:3 * H]), torch.tanh(a[:, 3 * H:])
    next_c = f * prev_c + i * g
    next_h = o * torch.tanh(next_c)
    return next_h, next_c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)

def lstm_step_backward(dnext_h, dnext_c, cache):
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c = cache
    tanh_c = torch.tanh(next_c)
    dc = dnext_c + dnext_h * o * (1 - tanh_c ** 2)
    dprev_c = dc * f
    da_i = dc * g * i * (1 - i)
    da_f = dc * prev_c * f * (1 - f)
    da_o = dnext_h * tanh_c * o * (1 - o)
    da_g = dc * i * (1 - g ** 2)
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
    x, prev_h = cache[0], cache[1]
    Wx = cache[3]
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
"""


def student(old="", new=""):
    """The names of the student's file, after one replacement in its text."""
    assert not old or old in STUDENT, old
    names = {}
    exec(STUDENT.replace(old, new) if old else STUDENT, names)
    return names


def run(part, names):
    return CHECKS[part].run(*(names[need] for need in CHECKS[part].needs))


def hints(part, names):
    """The hints with which a check misses."""
    with pytest.raises(CheckError) as caught:
        run(part, names)
    table = caught.value.table
    assert not table.passed and table.hints and str(table) in str(caught.value)
    return " | ".join(table.hints)


# ------------------------------------------------------------------------------------------ what is right


@pytest.mark.parametrize("names", [vars(ours), student()], ids=["ours", "a student's"])
@pytest.mark.parametrize("part", FUNCTIONS)
def test_right_functions_pass(part, names):
    table = run(part, names)
    assert isinstance(table, CheckTable) and table.passed and not table.hints
    for row in table.rows:
        assert row.error < (NUMERIC if row.quantity.startswith("numeric") else 1e-12), str(table)


@pytest.mark.parametrize("part", CAPTIONER)
def test_our_captioner_passes(part):
    table = run(part, vars(ours))
    assert table.passed and not table.hints


class Blind(ours.CaptioningRNN):
    def encode(self, images):
        return super().encode(0 * images)


class Averaged(ours.CaptioningRNN):
    def forward(self, images, captions):
        return super().forward(images, captions) / (captions.shape[1] - 1)


class CountsPadding(ours.CaptioningRNN):
    def forward(self, images, captions):
        self.ignore_index = None
        return super().forward(images, captions)


class Forgetful(ours.CaptioningRNN):
    def step(self, words, state):
        scores, state, weights = super().step(words, state)
        return scores, state._replace(h=torch.zeros_like(state.h)), weights


class StartsAnywhere(ours.CaptioningRNN):
    def sample(self, images, max_length=15):
        self.start = self.end
        return super().sample(images, max_length)


@pytest.mark.parametrize("part", CAPTIONER)
def test_a_captioner_that_is_wrong_misses(part):
    wrong = (Blind, Averaged, CountsPadding) if part.endswith("loss") else (Blind, Forgetful, StartsAnywhere)
    for captioner in wrong:
        with pytest.raises(CheckError):
            run(part, {"CaptioningRNN": captioner})


def test_every_hand_written_function_and_module_has_a_check():
    needed = {need for check in CHECKS.values() for need in check.needs}
    modules = {"RNN", "LSTM", "AttentionLSTM", "WordEmbedding", "CaptioningRNN"}
    functions = {name for name, f in inspect.getmembers(ours, inspect.isfunction) if f.__module__ == ours.__name__}
    by_hand = {n for n in functions if n.endswith(("_forward", "_backward", "_loss", "attention")) and n[0] != "_"}
    assert by_hand | modules == needed


def test_checks_are_importable_by_name_and_say_what_they_take():
    from eecs598 import checks

    for part, check in CHECKS.items():
        assert getattr(checks, f"check_{part}") is check.run
        assert check.run.__name__ == f"check_{part}" and ", ".join(check.needs) in check.run.__doc__


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_equals_reference(name):
    """The mistakes are made in the formula, the learner is compared with the reference: one mathematics."""
    formula = FORMULAS[name]
    for case in formula.cases:
        inputs, incoming = formula.draw(case)
        compared = (formula.values,) if name.endswith("SAMPLE") else (formula.values, formula.derivatives)
        for value in compared:  # sampled words have no gradient
            written = value(formula.compute, inputs, incoming, case.options)
            torchs = value(formula.reference, inputs, incoming, case.options)
            assert written.keys() == torchs.keys()
            assert all(rel_error(written[key], torchs[key]) < 1e-12 for key in written)


def test_reference_is_the_torch_module():
    x, h0, c0 = draw(3, 4, 6), draw(3, 5, seed=1), draw(3, 5, seed=2)
    for module, columns, reference, state in (
        (nn.RNN(6, 5, batch_first=True), 5, formulas.torch_rnn, (h0,)),
        (nn.LSTM(6, 5, batch_first=True), 20, formulas.torch_lstm, (h0, c0)),
    ):
        Wx, Wh, b = draw(6, columns, seed=3), draw(5, columns, seed=4), draw(columns, seed=5)
        for parameter, value in zip(module.double().parameters(), formulas.torch_weights(Wx, Wh, b)):
            parameter.data.copy_(value)
        first = tuple(s[None] for s in state)
        (h,) = reference(x, *state, Wx, Wh, b)
        assert rel_error(module(x, first if len(first) == 2 else first[0])[0], h) < 1e-14


def test_draws_are_fixed_and_telling():
    """All dimensions differ; words repeat; word 0 occurs; captions differ in their number of ignored words."""
    assert len(set(parts.SIZES.values())) == len(parts.SIZES)
    first, again = (parts.LSTM_STEP.draw(MAIN) for _ in range(2))
    assert all(torch.equal(first[0][key], again[0][key]) for key in first[0])
    x, y = parts.WORD_EMBEDDING.draw(MAIN)[0]["x"], parts.TEMPORAL_SOFTMAX.draw(MAIN)[0]["y"]
    assert len(x.unique()) < x.numel() and (x == 0).any() and (y == 0).any()
    assert len((y == parts.IGNORED).sum(1).unique()) > 1 and parts.IGNORED != 0


# ------------------------------------------------------------------------------- every mistake that is listed


def forward_mutant(formula, mistake, cached):
    def forward(*inputs, **options):
        values = mistake(formula.compute, dict(zip(names_of(formula), inputs)) | options)
        return (*values, (inputs, options)) if cached else values if len(values) > 1 else values[0]

    return forward


def backward_mutant(formula, mistake):
    """A backward that makes the mistake; its cache is that of a right forward."""

    def gradients(inputs, incoming, options):
        inputs = dict(zip(names_of(formula), inputs))
        grads = formula.derivatives(lambda **p: mistake(formula.compute, p), inputs, incoming, options)
        return tuple(grads.values()) if len(grads) > 1 else grads["d" + formula.gradients[0][1:]]

    if formula is parts.TEMPORAL_SOFTMAX:
        return lambda x, y, **options: gradients((x, y), [torch.ones((), dtype=x.dtype)], options)
    if formula is parts.DOT_PRODUCT_ATTENTION:
        return lambda dattn, prev_h, A, attn_weights: gradients((prev_h, A), [dattn], {})
    return lambda *incoming_and_cache: gradients(incoming_and_cache[-1][0], incoming_and_cache[:-1], {})


def names_of(formula):
    return [part.split(":")[0] for part in formula.inputs.split()]


# In one step the gradient without tanh is the gradient with tanh' forgotten.
SAME_GRADIENT = {("RNN_STEP", "tanh is left out"): "tanh' is missing: da = dnext_h * (1 - next_h**2)"}


def right(f, p):
    return f(**p)


PARTS = {
    "RNN_STEP": "rnn_step",
    "RNN_SEQUENCE": "rnn",
    "LSTM_STEP": "lstm_step",
    "LSTM_SEQUENCE": "lstm",
    "DOT_PRODUCT_ATTENTION": "dot_product_attention",
    "ATTENTION_LSTM_STEP": "attention_lstm_step",
    "ATTENTION_LSTM_SEQUENCE": "attention_lstm",
    "WORD_EMBEDDING": "word_embedding",
    "TEMPORAL_AFFINE": "temporal_affine",
    "TEMPORAL_SOFTMAX": "temporal_softmax",
}


def named_checks(part):
    """The check of a part's forward and that of its backward."""
    forward = {"temporal_softmax": "temporal_softmax_loss", "dot_product_attention": "dot_product_attention"}
    return CHECKS[forward.get(part, f"{part}_forward")], CHECKS[f"{part}_backward"]


def misses(check, sentence, *functions):
    """Whether the check misses; where it does, it must say the sentence."""
    try:
        check.run(*functions)
    except CheckError as error:
        said = [hint for hint in error.table.hints if hint.endswith(sentence)]
        assert len(said) == 1 == sum("what comes out when" in hint for hint in error.table.hints), str(error)
        assert "the backward is right" not in str(error)
        return True
    return False


def listed():
    """Each mistake in the first two formulas that list it; the 46 wrong orders of the gates in the first alone."""
    seen = Counter()
    for name in PARTS:
        for k, (sentence, _) in enumerate(FORMULAS[name].mistakes):
            if seen[sentence] < (1 if "in the order" in sentence else 2):
                yield pytest.param(name, k, id=f"{name}: {sentence[:60]}")
            seen[sentence] += 1


@pytest.mark.parametrize(("name", "k"), list(listed()))
def test_listed_mistakes_are_caught_and_named(name, k):
    formula, (forward_check, backward_check) = FORMULAS[name], named_checks(PARTS[name])
    sentence, mistake = formula.mistakes[k]
    cached = formula not in (parts.TEMPORAL_SOFTMAX, parts.DOT_PRODUCT_ATTENTION)
    in_forward = misses(forward_check, sentence, forward_mutant(formula, mistake, cached))
    functions = forward_mutant(formula, right, cached), backward_mutant(formula, mistake)
    in_backward = misses(backward_check, SAME_GRADIENT.get((name, sentence), sentence), *functions)
    assert in_forward or in_backward


def test_the_sentences_of_a_formula_differ():
    for formula in FORMULAS.values():
        sentences = [sentence for sentence, _ in formula.mistakes]
        assert len(set(sentences)) == len(sentences)


# -------------------------------------------------------------------- mistakes made in a student's own text

SLIPS = {  # part: text, its replacement, what a hint must say
    "rnn_step_forward": [
        ("prev_h.mm(Wh) + b)", "prev_h.mm(Wh))", "next_h: this is what comes out when the bias b"),
        ("torch.tanh(x.mm(Wx)", "torch.sigmoid(x.mm(Wx)", "sigmoid stands in place of tanh"),
        ("prev_h.mm(Wh)", "prev_h.mm(Wh.T)", "Wh is transposed"),
    ],
    "rnn_step_backward": [
        ("dnext_h * (1 - next_h * next_h)", "dnext_h", "tanh' is missing"),
        ("(1 - next_h * next_h)", "(1 - next_h)", "tanh' is 1 - next_h;"),
        ("(da.T @ prev_h).T", "(da.T @ next_h).T", "dWh: this is what comes out when dWh is made"),
        ("(da.T @ prev_h).T", "da.T @ prev_h", "dWh is transposed"),
        ("(da.T @ x).T,", "da.T @ x,", "dWx has shape (5, 6), wanted (6, 5): it is transposed"),
        ("da.sum(dim=0)]", "da]", "db has shape (3, 5), wanted (5,): it is not summed"),
        ("da.sum(dim=0)]", "da.mean(dim=0)]", "averaged over the batch"),
        ("da.sum(dim=0)]", "-da.sum(dim=0)]", "db is -1 times the right value: the sign"),
        ("da.sum(dim=0)]", "2 * da.sum(dim=0)]", "db is 2 times the right value: something"),
        ("da.sum(dim=0)]", "7 * da.sum(dim=0)]", "db is 7 times the right value"),
        ("da.sum(dim=0)]", "0 * da.sum(dim=0)]", "db is all zeros"),
        ("da @ Wx.T,", "da.cumsum(0) @ Wx.T,", "dx comes from no mistake known here; the largest"),
        ("da @ Wx.T,", "(da.float() @ Wx.float().T).double(),", "dx is right in single precision"),
        ("da @ Wx.T,", "da @ Wx,", "line 13 of <string>"),
        ("da @ Wx.T,", "da @ Wx,", "here N = 3, D = 6, H = 5"),
    ],
    "rnn_forward": [
        ("rnn_step_forward(x[:, t], prev_h,", "rnn_step_forward(x[:, t], h0,", "starts from the first state"),
        ("prev_h = [], [], h0\n", "prev_h = [], [], 0 * h0\n", "h0 is not used"),
        ("[], [], h0\n", "[h0], [], h0\n", "the first state stands in front"),
        (".transpose(0, 1), caches", ", caches", "h has shape (4, 3, 5), wanted (3, 4, 5): it is transposed"),
        ("torch.stack(hs).", "torch.stack(hs[:-1] + hs[:1]).", "of the steps 0 to 3 these are wrong: 3"),
    ],
    "rnn_backward": [
        ("dh[:, t] + dprev_h\n", "dh[:, t]\n", "flows back from step t + 1 is not added"),
        ("dWx = dWx + dWx_t",
         "dWx = dWx_t", "dWx: this is what comes out when a weight's gradient is the first step's alone"),
        ("return dx, dh0, dWx",
         "return dx, dh0, dWx / T", "dWx is 0.25 times the right value: averaged over time"),
        ("dh_t = dh[:, t] + dprev_h", "dh[:, t] += dprev_h; dh_t = dh[:, t]", "changed in place: dh;"),
        ("db = db + db_t", "db = db + db_t if t < 2 else db", "db comes from no mistake known here; the"),
        ("dx[:, t] = dx_t", "dx[:, t] = dx_t * (t != 1)", "of the steps 0 to 3 these are wrong: 1"),
        ("dx = torch.zeros(N, T, D).to(dh)",
         "dx = torch.zeros(N, T, D)", "dx is torch.float32, wanted torch.float64: a tensor made inside"),
    ],
    "rnn_module": [
        ("rnn_forward(x, h0, self.Wx", "rnn_forward(x, 0 * h0, self.Wx", "h0 is not used"),
        ("self.Wx = nn.P", "self.W_x = nn.P", "RNN has no parameter Wx; it has W_x, Wh, b"),
        ("torch.randn(input_dim, hidden_dim)", "torch.randn(hidden_dim, input_dim)", "RNN.Wx has shape"),
        ("self.Wx, self.Wh, self.b)[0]\n\n    def step",
         "self.Wx.data, self.Wh, self.b)[0]\n\n    def step", "no gradient reaches Wx through RNN"),
        ("self.b)[0]\n\n    def step",
         "self.b)[0].detach()\n\n    def step", "no gradient flows back through RNN: no_grad"),
        ("def step_forward(self, x, prev_h):",
         "def step(self, x, prev_h):", "RNN has no method step_forward"),
        ("    def step_forward(self, x, prev_h):\n", "    def step_forward(self, x, prev_h):\n        "
         "return rnn_step_forward(x, prev_h.clone(), self.Wx, self.Wh, self.b)[0] + 0 * prev_h.zero_()\n",
         "changed in place: prev_h"),
        ("class RNN(nn.Module)", "class RNN", "RNN is no torch.nn.Module"),
    ],
    "word_embedding_forward": [
        ("return W_embed[x], (", "return W_embed[x - 1], (", "out comes from no mistake"),
    ],
    "word_embedding_backward": [
        ("dW[x[n, t]] += dout", "dW[x[n, t]] = dout", "a repeated word keeps one occurrence"),
        ("            dW[x[n, t]] += dout[n, t]",
         "            pass\n    dW[x] = dout", "a repeated word keeps one occurrence"),
    ],
    "word_embedding_module": [
        ("return self.W_embed[x]", "return self.W_embed[x].transpose(0, 1)", "it is transposed"),
    ],
    "temporal_affine_forward": [
        ("@ W + b)", "@ W)", "the bias b is left out"),
    ],
    "temporal_affine_backward": [
        ("dout.sum(dim=(0, 1))", "dout.sum(dim=0)", "db has shape (4, 11), wanted (11,): it is not summed"),
        ("dW += h", "dW = h", "only the last step's dout is used"),
    ],
    "temporal_softmax_loss": [
        ("(losses * mask).sum() / N", "(losses * mask).mean()", "averaged over the batch and over"),
        ("(losses * mask).sum() / N", "(losses * mask).sum() / mask.sum()", "the counted steps"),
        ("(losses * mask).sum() / N", "(losses * mask).sum()", "the loss is not divided by N"),
        ("(losses * mask).sum() / N", "losses.sum() / N", "ignore_index is not used"),
        ("!= ignore_index).to(x.dtype)", "!= 0).to(x.dtype)", "word 0 is ignored"),
        ("if ignore_index is None", "if False", "ignore_index=None counts every step;"),
        ("    x = x - x.max(dim=2, keepdim=True).values\n", "", "only large scores miss: exp"),
        ("(losses * mask).sum() / N",
         "((losses * mask).sum() / N).item()", "returned a float for loss, wanted a tensor"),
        ("(losses * mask).sum() / N", "((losses * mask).sum() / N).detach()", "no gradient flows"),
    ],
    "temporal_softmax_backward": [
        ("dx * mask[:, :, None] / N", "dx / N", "ignore_index is not used"),
        ("dx * mask[:, :, None] / N", "dx * mask[:, :, None]", "not divided by N"),
        ("dx * mask[:, :, None] / N", "dx * (mask[:, :, None] + 1e-15) / N", "is exactly 0"),
        ("torch.softmax(x, dim=2)", "torch.softmax(x, dim=1)", "runs over time (axis 1)"),
        ("y] -= 1", "y] -= 0", "1 is not subtracted at the right word"),
        ("torch.softmax(x, dim=2)", "x.exp() / x.exp().sum(2, keepdim=True)", "only large"),
    ],
    "lstm_step_forward": [
        ("o, g = sigmoid(a[:, 2 * H:3 * H]), torch.tanh(a[:, 3 * H:])",
         "o, g = sigmoid(a[:, 3 * H:]), torch.tanh(a[:, 2 * H:3 * H])", "cut in the order i, f, g, o;"),
        ("next_h = o * torch.tanh(next_c)", "next_h = o * torch.tanh(prev_c)", "made of prev_c"),
        ("next_h = o * torch.tanh(next_c)", "next_h = o * next_c", "it takes tanh(next_c)"),
        ("next_c = f * prev_c + i * g\n    next_h",
         "next_c = prev_c.mul_(f) + i * g\n    next_h", "changed in place: prev_c"),
    ],
    "lstm_step_backward": [
        ("dc = dnext_c + dnext_h * o * (1 - tanh_c ** 2)", "dc = dnext_c", "through tanh(next_c)"),
        ("dc = dnext_c + dnext_h", "dc = dnext_h", "dnext_c is not used"),
        ("(1 - tanh_c ** 2)", "1", "tanh' of next_c is missing"),
        ("(1 - tanh_c ** 2)", "(1 - next_c ** 2)", "tanh' is taken of next_c itself"),
        ("dc * prev_c * f * (1 - f)", "dc * next_c * f * (1 - f)", "df is made with next_c"),
        ("dprev_c = dc * f", "dprev_c = dc", "dprev_c: this is what comes out when dprev_c lacks"),
        ("dc * i * (1 - g ** 2)", "dc * i", "tanh' of the candidate is missing"),
        ("(da_i, da_f, da_o, da_g)", "(da_i, da_f, da_g, da_o)", "joined in the order i, f, g, o"),
    ],
    "lstm_forward": [
        ("h0, c0\n", "h0, 0 * c0\n", "c0 is not used"),
    ],
    "lstm_backward": [
        ("(dh[:, t] + dprev_h, dprev_c, cache", "(dh[:, t], 0 * dprev_c, cache", "flows back from step"),
        ("dW = [total + part", "dW = [part", "first step's alone"),
    ],
    "lstm_module": [
        ("c0 = torch.zeros_like(h0)", "c0 = h0", "c0 is h0; it is zero"),
        ("i, f, o, g = a.split", "i, f, g, o = a.split", "cut in the order i, f, g, o;"),
        (").to(h0)", ")", "h is torch.float32, wanted torch.float64"),
        ("hn[:, t] = prev_h", "hn[:, t] = prev_c", "h comes from no mistake known here"),
    ],
    "dot_product_attention": [
        (" / math.sqrt(H)\n    weights", "\n    weights", "not divided by sqrt(H)"),
        ("torch.softmax(scores, dim=1)", "torch.softmax(scores, dim=0)", "runs over the batch"),
        ("torch.softmax(scores, dim=1)",
         "scores.exp() / scores.exp().sum(1, keepdim=True)", "only large scores miss"),
        ("weights.reshape(N, h, w)", "weights.reshape(N, w, h)", "a reshape is missing"),
        ("weights.reshape(N, h, w)", "weights.reshape(N, w, h).transpose(1, 2)", "attn_weights comes"),
        ("h * w, H)", "h * h, H)", "it is right on a 4 x 4 grid"),
        ("scores = torch.bmm(cells, prev_h[:, :, None])",
         "scores = (cells @ prev_h[:, :, None]).squeeze()[..., None]",
         "only a batch of one misses: squeeze()"),
    ],
    "dot_product_attention_backward": [
        (" / math.sqrt(H)\n    dA_value", "\n    dA_value", "missing in the backward"),
        ("dA_value + dA_key", "dA_value", "lacks the way through the scores"),
        ("dA_value + dA_key", "dA_key", "lacks the way through the average"),
        ("(dw - (dw * attn_weights).sum(dim=(1, 2), keepdim=True))", "dw", "softmax's backward is w * dw"),
    ],
    "attention_lstm_step_forward": [
        ("attn @ Wattn + b)", "b)", "attn @ Wattn is left out"),
    ],
    "attention_lstm_step_backward": [
        ("da @ Wattn.T, dWx", "da @ Wattn.T * 2, dWx", "dattn is 2 times"),
    ],
    "attention_lstm_forward": [
        ("    prev_c = prev_h\n", "    prev_c = 0 * prev_h\n", "c0 is zero; it is the mean of A"),
    ],
    "attention_lstm_backward": [
        ("dprev_h = dprev_h + dlooked", "pass", "dprev_h lacks the way through the attention's"),
        ("dstart = dprev_h + dprev_c", "dstart = dprev_h", "through c0 = mean of A is forgotten"),
    ],
    "attention_lstm_module": [
        ("dot_product_attention(prev_h, A)\n            prev_h",
         "dot_product_attention(h0, A)\n            prev_h", "every step looks with h0"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "old", "new", "said"), [(part, *slip) for part, slips in SLIPS.items() for slip in slips]
)
def test_slips_in_a_students_text_are_named(part, old, new, said):
    assert said in hints(part, student(old, new))


def test_a_wrong_forward_with_its_own_right_backward_is_told_apart():
    names = student()
    forward, backward = names["temporal_affine_forward"], names["temporal_affine_backward"]

    def doubled(h, W, b):
        scores, cache = forward(2 * h, W, b)
        return scores, cache

    def of_doubled(dout, cache):
        dh, dW, db = backward(dout, cache)
        return 2 * dh, dW, db

    names |= {"temporal_affine_forward": doubled, "temporal_affine_backward": of_doubled}
    assert "the backward is right for your own forward: mend temporal_affine_forward" in hints(
        "temporal_affine_backward", names
    )

    def with_right_cache(h, W, b):
        return forward(2 * h, W, b)[0], (h, W)

    names |= {"temporal_affine_forward": with_right_cache, "temporal_affine_backward": backward}
    assert "the backward is right, but temporal_affine_forward computes" in hints("temporal_affine_backward", names)


# --------------------------------------------------------------------------- what cannot even be compared


def not_written(*args):
    raise NotImplementedError


FAULTS = [
    (not_written, "rnn_step_forward is not written yet: it raises NotImplementedError"),
    (lambda *args: None, "returned None, wanted next_h, cache: it is not written yet"),
    (lambda *args: (None, None), "returned None for next_h: it is not written yet"),
    (lambda x, *args: x, "returned one Tensor, wanted 2 values: next_h, cache"),
    (lambda x, *args: (x, x, x), "returned 3 values, wanted 2: next_h, cache"),
    (lambda x, *args: (x.tolist(), 0), "returned a list for next_h, wanted a tensor"),
    (lambda x, *args: (x, 0), "next_h has shape (3, 6), wanted (3, 5)"),
    (lambda x: (x, 0), "raised TypeError"),
    (lambda x, prev_h, *args: (prev_h.float(), 0), "next_h is torch.float32, wanted torch.float64"),
    (lambda x, prev_h, *args: (prev_h / 0, 0), "next_h holds nan or inf"),
    (lambda x, prev_h, *args: (0 * prev_h, 0), "next_h is all zeros"),
    (lambda x, prev_h, *args: (torch.zeros(3, 6) @ x.t(), 0), "make it with x.new_zeros(...)"),
    (lambda *args: (ours.rnn_step_forward(*args)[0] + 0j, 0), "next_h is torch.complex128, wanted torch.float64"),
    (lambda *args: 1 / 0, "raised ZeroDivisionError: division by zero; line"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "said"), FAULTS)
def test_faults_become_one_clear_sentence(function, said):
    said_of_forward = hints("rnn_step_forward", {"rnn_step_forward": function})
    assert said in said_of_forward
    with pytest.raises(CheckError) as caught:
        CHECKS["rnn_step_backward"].run(function, function)
    assert "rnn_step_forward" in str(caught.value) or "rnn_step_backward" in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("part", CHECKS)
def test_no_check_breaks_on_rubbish(part):
    """Whatever comes back, what goes up is a CheckError with a table and a hint."""
    count = len(CHECKS[part].needs)
    tensors = torch.ones(()), (torch.ones(2, 2),) * 2, (torch.ones(()),) * 8
    for rubbish in (None, 0, (), (None,) * 3, "abc", nn, *tensors):
        names = dict.fromkeys(CHECKS[part].needs, lambda *args, rubbish=rubbish, **options: rubbish)
        assert hints(part, names)
        if count == 2:  # a right forward, so that the backward is reached
            names[CHECKS[part].needs[0]] = getattr(ours, CHECKS[part].needs[0])
            assert hints(part, names)


@pytest.mark.parametrize("part", [part for part in FUNCTIONS if not part.endswith("module")])
@pytest.mark.parametrize("fails", ["raises", "gives another shape"])
def test_no_check_breaks_on_a_function_that_fails_now_and_then(part, fails):
    """Each of the runs of a check may be the one that fails."""
    needs, calls = CHECKS[part].needs, []

    def forward(*args, **options):
        calls.append(0)
        right = getattr(ours, needs[0])(*args, **options)
        if len(calls) != failing:
            return right
        if fails == "raises":
            raise RuntimeError("now and then")
        several = right if isinstance(right, tuple) else (right,)
        wrong = tuple(torch.ones(2, 9, dtype=torch.float64) if torch.is_tensor(v) else v for v in several)
        return wrong if isinstance(right, tuple) else wrong[0]

    functions = forward, *(getattr(ours, need) for need in needs[1:])
    failing = 0
    CHECKS[part].run(*functions)
    for failing in range(1, len(calls) + 1):  # noqa: B007
        calls.clear()
        try:
            CHECKS[part].run(*functions)
        except CheckError as error:
            assert error.table.hints
        else:
            assert fails == "gives another shape" and len(needs) == 2  # the backward needs the cache alone


@pytest.mark.parametrize("part", [part for part in CHECKS if part.endswith("module")])
def test_no_module_check_breaks_on_rubbish(part):
    (name,) = CHECKS[part].needs

    class Rubbish(getattr(ours, name)):
        def forward(self, *args):
            return "abc"

    class Fails(getattr(ours, name)):
        def __init__(self, *args):
            raise ValueError("no such size")

    class Idle(nn.Module):
        def __init__(self, *args):
            super().__init__()

    assert "returned a str" in hints(part, {name: Rubbish})
    assert f"{name} raised ValueError: no such size" in hints(part, {name: Fails})
    assert "it has none" in hints(part, {name: Idle})


def test_a_check_leaves_the_random_state_and_the_threads_alone():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    run("rnn_step_backward", student())
    with pytest.raises(CheckError):
        CHECKS["rnn_step_forward"].run(not_written)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_the_quoted_line_is_the_learners_not_pytorchs():
    def loss(x, y, ignore_index=None):
        return nn.functional.cross_entropy(x, y, reduction="no such")

    said = hints("temporal_softmax_loss", {"temporal_softmax_loss": loss})
    assert 'of test_checks.py: return nn.functional.cross_entropy(x, y, reduction="no such")' in said


def test_a_missing_method_is_told_also_after_wrong_values():
    class Wrong(ours.RNN):
        step_forward = None

        def forward(self, x, h0):
            return -super().forward(x, h0)

    said = hints("rnn_module", {"RNN": Wrong})
    assert "h is -1 times the right value: the sign is wrong" in said
    assert "RNN.step_forward raised TypeError: 'NoneType' object is not callable" in said


def test_a_side_case_shows_its_worst_output():
    def attention(prev_h, A):
        attn, weights = ours.dot_product_attention(prev_h, A)
        return attn, weights * (2 if len(A) == 1 else 1)

    assert "only a batch of one misses" in hints("dot_product_attention", {"dot_product_attention": attention})


def test_side_cases_are_one_row_each():
    quantities = [row.quantity for row in run("dot_product_attention", student()).rows]
    assert quantities == [
        "attn",
        "attn_weights",
        "inputs unchanged",
        "a batch of one, one step",
        "large scores",
        "weights sum to 1",
        "cells permuted, weights permuted",
    ]


def test_the_sizes_in_a_hint():
    case = Case("one", sizes={"N": 1})
    assert describe_sizes(parts.LSTM_STEP, case) == "here N = 1, D = 6, H = 5, 4H = 20"
    assert math.prod(parts.SIZES[dim] for dim in "NTV") == math.prod(parts.TEMPORAL_SOFTMAX.draw(MAIN)[0]["x"].shape)
