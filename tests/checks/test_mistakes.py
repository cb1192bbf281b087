"""Every mistake that is listed is caught and named, and so is a slip made in a student's own text."""

from collections import Counter

import pytest
import torch
from support.checking import hints, student

import rnn_lstm_captioning as rlc
from eecs598.checks import CHECKS, PUBLISHED, at_level, parts
from eecs598.checks.parts import Formula
from eecs598.grad import CheckError

FORMULAS = {name: f for name, f in vars(parts).items() if isinstance(f, Formula)}


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
SAME_GRADIENT = {("RNN_STEP", "tanh is left out"): "tanh' is missing; it must be da = dnext_h * (1 - next_h**2)"}


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
        assert "the backward pass is right" not in str(error)
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


# Mistakes made in a student's own text.

SLIPS = {  # part: text, its replacement, what a hint must say
    "rnn_step_forward": [
        ("prev_h.mm(Wh) + b)", "prev_h.mm(Wh))", "next_h: this is what comes out when the bias b"),
        ("torch.tanh(x.mm(Wx)", "torch.sigmoid(x.mm(Wx)", "sigmoid is used instead of tanh"),
        ("prev_h.mm(Wh)", "prev_h.mm(Wh.T)", "Wh is transposed"),
    ],
    "rnn_step_backward": [
        ("dnext_h * (1 - next_h * next_h)", "dnext_h", "tanh' is missing"),
        ("(1 - next_h * next_h)", "(1 - next_h)", "tanh' is 1 - next_h;"),
        ("(da.T @ prev_h).T", "(da.T @ next_h).T", "dWh: this is what comes out when dWh is computed from next_h"),
        ("(da.T @ prev_h).T", "da.T @ prev_h", "dWh is transposed"),
        ("(da.T @ x).T,", "da.T @ x,", "dWx has shape (5, 6), wanted (6, 5): it is transposed"),
        ("da.sum(dim=0)]", "da]", "db has shape (3, 5), wanted (5,): it is not summed"),
        ("da.sum(dim=0)]", "da.mean(dim=0)]", "averaged over the batch"),
        ("da.sum(dim=0)]", "-da.sum(dim=0)]", "db is -1 times the right value: the sign"),
        ("da.sum(dim=0)]", "2 * da.sum(dim=0)]", "db is 2 times the right value: something"),
        ("da.sum(dim=0)]", "7 * da.sum(dim=0)]", "db is 7 times the right value"),
        ("da.sum(dim=0)]", "0 * da.sum(dim=0)]", "db is all zeros"),
        ("da @ Wx.T,", "da.cumsum(0) @ Wx.T,", "dx matches no known mistake; the largest"),
        ("da @ Wx.T,", "(da.float() @ Wx.float().T).double(),", "dx is right in single precision"),
        ("da @ Wx.T,", "da @ Wx,", "line 20 of <string>"),
        ("da @ Wx.T,", "da @ Wx,", "here N = 3, D = 6, H = 5"),
    ],
    "rnn_forward": [
        ("rnn_step_forward(x[:, t], prev_h,", "rnn_step_forward(x[:, t], h0,", "starts from the initial state"),
        ("prev_h = [], [], h0\n", "prev_h = [], [], 0 * h0\n", "h0 is not used"),
        ("[], [], h0\n", "[h0], [], h0\n", "it begins with the initial state"),
        (".transpose(0, 1), caches", ", caches", "h has shape (4, 3, 5), wanted (3, 4, 5): it is transposed"),
        ("torch.stack(hs).", "torch.stack(hs[:-1] + hs[:1]).", "of the steps 0 to 3 these are wrong: 3"),
    ],
    "rnn_backward": [
        ("dh[:, t] + dprev_h\n", "dh[:, t]\n", "flows back from step t + 1 is not added"),
        ("dWx = dWx + dWx_t",
         "dWx = dWx_t", "dWx: this is what comes out when a weight's gradient is only that of step 0"),
        ("return dx, dh0, dWx",
         "return dx, dh0, dWx / T", "dWx is 0.25 times the right value: averaged over time"),
        ("dh_t = dh[:, t] + dprev_h", "dh[:, t] += dprev_h; dh_t = dh[:, t]", "changed in place: dh;"),
        ("db = db + db_t", "db = db + db_t if t < 2 else db", "db matches no known mistake; the"),
        ("dx[:, t] = dx_t", "dx[:, t] = dx_t * (t != 1)", "of the steps 0 to 3 these are wrong: 1"),
        ("dx = torch.zeros(N, T, D).to(dh)",
         "dx = torch.zeros(N, T, D)", "dx is torch.float32, wanted torch.float64: a tensor created inside"),
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
        ("class RNN(nn.Module)", "class RNN", "RNN is not a torch.nn.Module"),
    ],
    "word_embedding_forward": [
        ("return W_embed[x], (", "return W_embed[x - 1], (", "out matches no known mistake"),
    ],
    "word_embedding_backward": [
        ("dW[x[n, t]] += dout", "dW[x[n, t]] = dout", "a repeated word keeps the gradient of one"),
        ("            dW[x[n, t]] += dout[n, t]",
         "            pass\n    dW[x] += dout", "a repeated word keeps the gradient of one"),
        ("            dW[x[n, t]] += dout[n, t]",
         "            dW[x[:, t]] = dout[:, t]", "a repeated word keeps the gradient of its last step"),
        ("            dW[x[n, t]] += dout[n, t]",
         "            dW[x[:, t]] += dout[:, t] / x.shape[0]", "repeated within a step counts once there"),
        ("        for t in range(x.shape[1]):\n            dW[x[n, t]] += dout[n, t]",
         "        dW[x[n]] += dout[n]", "repeated within a caption counts once there"),
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
        ("    x = x - x.max(dim=2, keepdim=True).values\n", "", "only large scores fail: exp"),
        ("(losses * mask).sum() / N",
         "((losses * mask).sum() / N).item()", "returned a float for loss, wanted a tensor"),
        ("(losses * mask).sum() / N", "((losses * mask).sum() / N).detach()", "no gradient flows"),
    ],
    "temporal_softmax_backward": [
        ("dx * mask[:, :, None] / N", "dx / N", "ignore_index is not used"),
        ("dx * mask[:, :, None] / N", "dx * mask[:, :, None]", "not divided by N"),
        ("dx * mask[:, :, None] / N", "dx * (mask[:, :, None] + 1e-15) / N", "is exactly 0"),
        ("torch.softmax(x, dim=2)", "torch.softmax(x, dim=1)", "is over time (axis 1)"),
        ("y] -= 1", "y] -= 0", "1 is not subtracted at the target word"),
        ("torch.softmax(x, dim=2)", "x.exp() / x.exp().sum(2, keepdim=True)", "only large"),
    ],
    "lstm_step_forward": [
        ("o, g = sigmoid(a[:, 2 * H : 3 * H]), torch.tanh(a[:, 3 * H :])",
         "o, g = sigmoid(a[:, 3 * H :]), torch.tanh(a[:, 2 * H : 3 * H])", "split in the order i, f, g, o;"),
        ("next_h = o * torch.tanh(next_c)", "next_h = o * torch.tanh(prev_c)", "computed from prev_c"),
        ("next_h = o * torch.tanh(next_c)", "next_h = o * next_c", "it must be o * tanh(next_c)"),
        ("next_c = f * prev_c + i * g\n    next_h",
         "next_c = prev_c.mul_(f) + i * g\n    next_h", "changed in place: prev_c"),
    ],
    "lstm_step_backward": [
        ("dc = dnext_c + dnext_h * o * (1 - tanh_c**2)", "dc = dnext_c", "through tanh(next_c)"),
        ("dc = dnext_c + dnext_h", "dc = dnext_h", "dnext_c is not used"),
        ("(1 - tanh_c**2)", "1", "tanh' of next_c is missing"),
        ("(1 - tanh_c**2)", "(1 - next_c**2)", "tanh' is computed from next_c"),
        ("dc * prev_c * f * (1 - f)", "dc * next_c * f * (1 - f)", "df is computed from next_c"),
        ("dprev_c = dc * f", "dprev_c = dc", "dprev_c: this is what comes out when dprev_c lacks"),
        ("dc * i * (1 - g**2)", "dc * i", "tanh' of the candidate is missing"),
        ("(da_i, da_f, da_o, da_g)", "(da_i, da_f, da_g, da_o)", "concatenated in the order i, f, g, o"),
    ],
    "lstm_forward": [
        ("h0, c0\n", "h0, 0 * c0\n", "c0 is not used"),
    ],
    "lstm_backward": [
        ("(dh[:, t] + dprev_h, dprev_c, cache", "(dh[:, t], 0 * dprev_c, cache", "flows back from step"),
        ("dW = [total + part", "dW = [part", "that of step 0"),
    ],
    "lstm_module": [
        ("c0 = torch.zeros_like(h0)", "c0 = h0", "c0 is h0; it must be zero"),
        ("i, f, o, g = a.split", "i, f, g, o = a.split", "split in the order i, f, g, o;"),
        (").to(h0)", ")", "h is torch.float32, wanted torch.float64"),
        ("hn[:, t] = prev_h", "hn[:, t] = prev_c", "h matches no known mistake"),
    ],
    "dot_product_attention": [
        (" / math.sqrt(H)\n    weights", "\n    weights", "not divided by sqrt(H)"),
        ("torch.softmax(scores, dim=1)", "torch.softmax(scores, dim=0)", "is over the batch"),
        ("torch.softmax(scores, dim=1)",
         "scores.exp() / scores.exp().sum(1, keepdim=True)", "only large scores fail"),
        ("weights.reshape(N, h, w)", "weights.reshape(N, w, h)", "a reshape is missing"),
        ("weights.reshape(N, h, w)", "weights.reshape(N, w, h).transpose(1, 2)", "attn_weights matches"),
        ("h * w, H)", "h * h, H)", "it is right on a 4 x 4 grid"),
        ("scores = torch.bmm(cells, prev_h[:, :, None])",
         "scores = (cells @ prev_h[:, :, None]).squeeze()[..., None]",
         "only the batch of one fails: squeeze()"),
    ],
    "dot_product_attention_backward": [
        (" / math.sqrt(H)\n    dA_value", "\n    dA_value", "missing in the backward"),
        ("dA_value + dA_key", "dA_value", "lacks the path through the scores"),
        ("dA_value + dA_key", "dA_key", "lacks the path through the average"),
        ("(dw - (dw * attn_weights).sum(dim=(1, 2), keepdim=True))", "dw", "gradient through the softmax is w * dw"),
    ],
    "attention_lstm_step_forward": [
        ("attn @ Wattn + b)", "b)", "attn @ Wattn is left out"),
    ],
    "attention_lstm_step_backward": [
        ("da @ Wattn.T, dWx", "da @ Wattn.T * 2, dWx", "dattn is 2 times"),
    ],
    "attention_lstm_forward": [
        ("    prev_c = prev_h\n", "    prev_c = 0 * prev_h\n", "c0 is zero; it must be the mean of A"),
    ],
    "attention_lstm_backward": [
        ("dprev_h = dprev_h + dlooked", "pass", "dprev_h lacks the path through the attention scores"),
        ("dstart = dprev_h + dprev_c", "dstart = dprev_h", "through c0 = mean of A is missing"),
    ],
    "attention_lstm_module": [
        ("dot_product_attention(prev_h, A)\n            prev_h",
         "dot_product_attention(h0, A)\n            prev_h", "every step attends with h0"),
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
    assert "the backward pass is right for your own forward pass: fix temporal_affine_forward" in hints(
        "temporal_affine_backward", names
    )

    def with_right_cache(h, W, b):
        return forward(2 * h, W, b)[0], (h, W)

    names |= {"temporal_affine_forward": with_right_cache, "temporal_affine_backward": backward}
    told = hints("temporal_affine_backward", names)
    assert "the backward pass is right, but temporal_affine_forward computes" in told


def test_a_ratio_is_explained_by_the_sizes_of_the_case():
    """The published sizes are N = 4 in a step, where there is no time, and N = 2 in a sequence."""

    def averaged(d, cache):
        *others, db = rlc.rnn_step_backward(d, cache)
        return *others, db / len(d)

    def averaged_sequence(dh, cache):
        *others, db = rlc.rnn_backward(dh, cache)
        return *others, db / len(dh)

    for part, function, ratio in (("rnn_step", averaged, 0.25), ("rnn", averaged_sequence, 0.5)):
        forward = getattr(rlc, f"{part}_forward")
        with at_level(PUBLISHED), pytest.raises(CheckError, match=f"db is {ratio} times .*: averaged over the batch"):
            CHECKS[f"{part}_backward"].run(forward, function)


def test_what_the_mistakes_give_is_computed_once(monkeypatch):
    """A class has the same mistakes again and again; the hints stay the same."""
    calls, derivatives = [], Formula.derivatives
    monkeypatch.setattr(Formula, "derivatives", lambda *given: calls.append(1) or derivatives(*given))
    monkeypatch.setattr("eecs598.checks.hints._kept", {})

    def wrong_backward(dnext_h, cache):
        *gradients, db = rlc.rnn_step_backward(dnext_h, cache)
        return *gradients, db / len(dnext_h)

    found = []
    for _ in range(2):
        calls.clear()
        with pytest.raises(CheckError) as caught:
            CHECKS["rnn_step_backward"].run(rlc.rnn_step_forward, wrong_backward)
        found.append((str(caught.value), len(calls)))
    (first, computed), (second, again) = found
    assert first == second and 0 < again < computed
