"""The parts of the assignment: which function bodies are answers, and what the student finds in their place.

An answer is the body of a function after its docstring. The box that replaces it takes the task, the shapes and the
formula from the docstring, so the table has only what the docstring does not say.
"""

from typing import NamedTuple

from eecs598.checks import CHECKS


class HandoutError(ValueError):
    """The student edition cannot be made. The message says why, in one line."""


class Answer(NamedTuple):
    """A function whose body is an answer, such as LSTM.forward, and what its box says.

    task, formula: if empty, those of the docstring. An edition that lacks a `name` also lacks the sentences that quote
    it. given: the body up to the assignment to self.NAME is given to the student.
    """

    name: str
    hint: str
    formula: str = ""
    task: str = ""
    given: str = ""


class Part(NamedTuple):
    """A unit that is either left to the student or given. published: it is a part of the published assignment.

    checks: the names of the checks that it must pass. serving: a class that is removed together with the part.
    """

    name: str
    group: str
    published: bool
    checks: tuple[str, ...]
    answers: tuple[Answer, ...]
    serving: str = ""


def _function(group, name, hint, formula="", published=False):
    """A part that consists of one function, with the check of the same name."""
    return Part(name, group, published, (name,), (Answer(name, hint, formula),))


def _published(group, name, hint, formula=""):
    return _function(group, name, hint, formula, published=True)


def _module(group, name, *answers):
    return Part(name, group, True, (name,), answers)


def _checks(end):
    return tuple(name for name in CHECKS if name.endswith(end))


LOSSES, SAMPLES = _checks("_captioner_loss"), _checks("_captioner_sample")
GIVEN = ("rnn_module",)  # given, as in the published assignment, as an example of a module; checked all the same

# fmt: off
_RNN = (
    _published("rnn", "rnn_step_forward",
        "the cache holds whatever the backward step needs: a tuple, a list or a dict."),
    _published("rnn", "rnn_step_backward",
        "each gradient has the shape of its quantity.",
        "da = dnext_h * (1 - next_h^2); dx = da Wx^T; dWx = x^T da; db = da, summed over the batch."),
    _published("rnn", "rnn_forward",
        "loop over rnn_step_forward, and keep the cache of each step.",
        "h_t = tanh(x_t Wx + h_(t-1) Wh + b)."),
    _published("rnn", "rnn_backward",
        "loop over rnn_step_backward from the last step to the first.",
        "dh_t = dh[:, t] + dprev_h of step t + 1; dWx, dWh, db are sums over the steps."),
)
_WORDS = (
    _function("words", "word_embedding_forward",
        "a tensor of ids can be used as an index. Of W_embed, the cache only needs the number of rows.",
        "out[n, t] = W_embed[x[n, t]]."),
    _function("words", "word_embedding_backward",
        "a word may occur several times, so accumulate (index_add_).",
        "dW_embed[v] = sum of dout[n, t] where x[n, t] = v."),
    _module("words", "word_embedding_module",
        Answer("WordEmbedding.forward",
            "join `word_embedding_forward` and its backward with `by_hand`, so that training uses your backward; the "
            "gradient of the ids is None. Indexing, whose gradient autograd knows, passes the check.",
            "out[n, t] = W_embed[x[n, t]].", task="Look up word vectors.")),
    _function("words", "temporal_affine_forward",
        "a matrix product works with any number of leading dimensions."),
    _function("words", "temporal_affine_backward",
        "flatten the leading dimensions first: (N * T, D).",
        "dh = dout W^T; dW = h^T dout and db = dout, summed over batch and steps."),
    _published("words", "temporal_softmax_loss",
        "log_softmax is stable for large scores; here autograd may differentiate PyTorch's own functions."),
    _function("words", "temporal_softmax_backward",
        "subtract 1 from softmax(x) at each correct word; then apply the mask, then divide by N."),
)
_LSTM = (
    _function("lstm", "lstm_step_forward",
        "split a into the four gates with chunk, in the order i, f, o, g."),
    _function("lstm", "lstm_step_backward",
        "then go through the nonlinearities to da, in the order of a's parts; from there, as in the RNN.",
        "dc = dnext_c + dnext_h * o * (1 - tanh(next_c)^2); do = dnext_h * tanh(next_c); di = dc * g; "
        "df = dc * prev_c; dg = dc * i; dprev_c = dc * f."),
    _function("lstm", "lstm_forward",
        "loop over lstm_step_forward, and keep the cache of each step.",
        "h_t, c_t = lstm_step_forward(x_t, h_(t-1), c_(t-1), Wx, Wh, b)."),
    _function("lstm", "lstm_backward",
        "loop over lstm_step_backward from the last step to the first; both states carry a gradient back.",
        "dh_t = dh[:, t] + dprev_h of step t + 1; dc_t = dprev_c of step t + 1; dWx, dWh, db are sums."),
    _module("lstm", "lstm_module",
        Answer("LSTM.forward",
            "join `lstm_forward` and its backward as in RNN.forward, so that training uses your backward. A loop over "
            "step_forward, differentiated by autograd, passes the check.",
            "c_0 = 0; h_t, c_t = a step from h_(t-1), c_(t-1).", task="The whole sequence."),
        Answer("LSTM.step_forward",
            "the weights are self.Wx, self.Wh, self.b.",
            "a = x Wx + prev_h Wh + b; i, f, o = sigmoid(a_i, a_f, a_o); g = tanh(a_g); next_c = f * prev_c + i * g; "
            "next_h = o * tanh(next_c).", task="One step.")),
)
_ATTENTION = (
    _published("attention", "dot_product_attention",
        "flatten the grid to (N, H, L); it need not be square. Finally, reshape the weights to the grid."),
    _function("attention", "dot_product_attention_backward",
        "s are the scores, w the weights; the sums are over the cells.",
        "dw = dattn . A; ds = w (dw - sum of w dw); dprev_h = sum of ds A / sqrt(H); "
        "dA = w dattn + ds prev_h / sqrt(H)."),
    _function("attention", "attention_lstm_step_forward",
        "concatenate x and attn, stack Wx on Wattn, and call lstm_step_forward."),
    _function("attention", "attention_lstm_step_backward",
        "split what the forward step concatenated.",
        "as in an LSTM; dattn = da Wattn^T; dWattn = attn^T da."),
    _function("attention", "attention_lstm_forward",
        "loop over the steps; keep the cache of each, the state that it attended with, and its weights.",
        "attn_t = dot_product_attention(h_(t-1), A); h_t, c_t = the step with x_t, attn_t."),
    _function("attention", "attention_lstm_backward",
        "loop over the two backward functions above, from the last step.",
        "dh_t = dh[:, t] + dprev_h of step t + 1, where dprev_h is the sum of what comes through the step and through "
        "the attention; dc_t = dprev_c of step t + 1; dA is the sum over all steps, plus (dprev_h + dprev_c of the "
        "first step) / L in each cell; dWx, dWh, dWattn, db are sums."),
    _module("attention", "attention_lstm_module",
        Answer("AttentionLSTM.forward",
            "join `attention_lstm_forward` and its backward as in RNN.forward, so that training uses your backward. A "
            "loop over step_forward, differentiated by autograd, passes the check.",
            "h_0 = c_0 = mean of A; attn_t = dot_product_attention(h_(t-1), A); h_t, c_t = a step from h_(t-1), "
            "c_(t-1), attn_t.", task="The whole sequence."),
        Answer("AttentionLSTM.step_forward",
            "the caller has already computed attn.",
            "a = x Wx + prev_h Wh + attn Wattn + b, then the gates as in the LSTM.", task="One step.")),
)
_CAPTIONER = (
    Part("captioner_init", "captioner", True, LOSSES, (
        Answer("CaptioningRNN.__init__",
            "assign them to self.NAME, with these names. The projections are nn.Linear. `Affine` is one, with its "
            "gradient by hand.",
            "feature_projection (C to H), word_embedding, cell, output_projection (H to V).",
            task="The decoder's layers.", given="image_encoder"),)),
    Part("captioner_forward", "captioner", True, LOSSES, (
        Answer("CaptioningRNN.encode",
            "rnn and lstm: average over the grid first. attn: a projection maps the last dimension, so move the "
            "channels there and back.",
            "h0 = feature_projection(mean of the features over the grid); for attn A = feature_projection of every "
            "cell.",
            task="From the images to the decoder's initial state."),
        Answer("CaptioningRNN.forward",
            "captions[:, :-1] are the inputs, captions[:, 1:] the targets; pass ignore_index to the loss.",
            "encode -> h0, for attn the grid A -> states -> scores -> loss."))),
    Part("captioner_step", "captioner", False, SAMPLES, (
        Answer("CaptioningRNN.begin",
            "return a DecoderState.",
            "h = encode(images), c = 0; for attn A = encode(images), h = c = mean of A."),
        Answer("CaptioningRNN.step",
            "for attn, attend with the previous state.",
            "h (and c) = cell.step_forward; scores = output_projection(h).")), "DecoderState"),
    Part("captioner_sample", "captioner", True, SAMPLES, (
        Answer("CaptioningRNN.sample",
            "carry all states from word to word, c too. `DecoderState` holds them.",
            "word_0 = <START>; word_t = argmax of the scores after word_(t-1)."),)),
)
# fmt: on

PARTS = {part.name: part for part in (*_RNN, *_WORDS, *_LSTM, *_ATTENTION, *_CAPTIONER)}
GROUPS = tuple(dict.fromkeys(part.group for part in PARTS.values()))


def answers():
    """Return a dict from the name of a function to its part and its answer."""
    return {answer.name: (part, answer) for part in PARTS.values() for answer in part.answers}


def published_checks():
    """Return the names of the checks of the published assignment's parts, in the order of the lesson."""
    wanted = {*GIVEN, *(name for part in PARTS.values() if part.published for name in part.checks)}
    return [name for name in CHECKS if name in wanted]


def choose_parts(names):
    """Return the parts that are named, or whose group is, in the table's order. Raises HandoutError."""
    for name in names:
        if name not in PARTS and name not in GROUPS:
            known = f"groups are {', '.join(GROUPS)}; parts are {', '.join(PARTS)}"
            raise HandoutError(f"there is no part {name!r}; {known}")
    return [name for name, part in PARTS.items() if name in names or part.group in names]
