"""The parts of the assignment: which function's body is an answer, and what a student is told in its place.

An answer is the body of a function after its docstring. The table says nothing about shapes, nor about a formula that
stands in the docstring: these the box takes from there.
"""

from typing import NamedTuple

from eecs598.checks import CHECKS


class HandoutError(ValueError):
    """The edition cannot be made. The message says why, in one line."""


class Answer(NamedTuple):
    """A function whose body is an answer, as LSTM.forward, and what its box says.

    task and formula, where empty, are those of the docstring. A sentence that quotes a `name` which an edition lacks is
    not in that edition. given: the body up to the statement that assigns self.NAME is given.
    """

    name: str
    hint: str
    formula: str = ""
    task: str = ""
    given: str = ""


class Part(NamedTuple):
    """What is left to the student, or given, as one. published: the published assignment has it.

    checks: the names of those that it must pass. serving: a class that goes with the part where the part is left out.
    """

    name: str
    group: str
    published: bool
    checks: tuple[str, ...]
    answers: tuple[Answer, ...]
    serving: str = ""


def _function(group, name, hint, formula="", published=False):
    """A part that is one function, checked under its own name."""
    return Part(name, group, published, (name,), (Answer(name, hint, formula),))


def _published(group, name, hint, formula=""):
    return _function(group, name, hint, formula, published=True)


def _module(group, name, *answers):
    return Part(name, group, True, (name,), answers)


def _checks(end):
    return tuple(name for name in CHECKS if name.endswith(end))


LOSSES, SAMPLES = _checks("_captioner_loss"), _checks("_captioner_sample")
GIVEN = ("rnn_module",)  # checked, and given, as in the published assignment: it shows how a module is made

# fmt: off
_RNN = (
    _published("rnn", "rnn_step_forward",
        "keep in the cache what the backward step needs, as a tuple, a list or a dict."),
    _published("rnn", "rnn_step_backward",
        "a gradient has its quantity's shape.",
        "da = dnext_h * (1 - next_h^2); dx = da Wx^T; dWx = x^T da; db = da, summed over the batch."),
    _published("rnn", "rnn_forward",
        "loop over rnn_step_forward, and keep each step's cache.",
        "h_t = tanh(x_t Wx + h_(t-1) Wh + b)."),
    _published("rnn", "rnn_backward",
        "loop over rnn_step_backward from the last step to the first.",
        "dh_t = dh[:, t] + dprev_h of step t + 1; dWx, dWh, db are sums over the steps."),
)
_WORDS = (
    _function("words", "word_embedding_forward",
        "a tensor of ids is an index. The cache needs no more of W_embed than its number of rows.",
        "out[n, t] = W_embed[x[n, t]]."),
    _function("words", "word_embedding_backward",
        "words repeat, so add up (index_add_).",
        "dW_embed[v] = sum of dout[n, t] where x[n, t] = v."),
    _module("words", "word_embedding_module",
        Answer("WordEmbedding.forward",
            "indexing looks words up, and autograd knows its gradient. Or `by_hand` joins `word_embedding_forward` to "
            "its backward: ids have the gradient None.",
            "out[n, t] = W_embed[x[n, t]].", task="Look words up.")),
    _function("words", "temporal_affine_forward",
        "a matrix product takes any dimensions before the last."),
    _function("words", "temporal_affine_backward",
        "flatten to (N * T, D).",
        "dh = dout W^T; dW = h^T dout and db = dout, summed over batch and steps."),
    _published("words", "temporal_softmax_loss",
        "log_softmax is safe for large scores; autograd may differentiate PyTorch's own functions here."),
    _function("words", "temporal_softmax_backward",
        "from softmax(x) take 1 at each right word; then the mask, then 1 / N."),
)
_LSTM = (
    _function("lstm", "lstm_step_forward",
        "chunk a into four gates, in the order i, f, o, g."),
    _function("lstm", "lstm_step_backward",
        "then through the nonlinearities to da, whose parts lie as a's do; from there as in the RNN.",
        "dc = dnext_c + dnext_h o tanh'(next_c); do = dnext_h tanh(next_c); di = dc g; df = dc prev_c; dg = dc i; "
        "dprev_c = dc f."),
    _function("lstm", "lstm_forward",
        "loop over lstm_step_forward, and keep each step's cache.",
        "h_t, c_t = lstm_step_forward(x_t, h_(t-1), c_(t-1), Wx, Wh, b)."),
    _function("lstm", "lstm_backward",
        "loop over lstm_step_backward from the last step to the first; both states go back.",
        "dh_t = dh[:, t] + dprev_h of step t + 1; dc_t = dprev_c of step t + 1; dWx, dWh, db are sums."),
    _module("lstm", "lstm_module",
        Answer("LSTM.forward",
            "loop over step_forward, under autograd. `lstm_forward` and its backward go together as in RNN.forward.",
            "c_0 = 0; h_t, c_t = a step from h_(t-1), c_(t-1).", task="The whole sequence."),
        Answer("LSTM.step_forward",
            "the weights are self.Wx, self.Wh, self.b.",
            "a = x Wx + prev_h Wh + b; i, f, o = sigmoid(a_i, a_f, a_o); g = tanh(a_g); next_c = f * prev_c + i * g; "
            "next_h = o * tanh(next_c).", task="One step.")),
)
_ATTENTION = (
    _published("attention", "dot_product_attention",
        "flatten the grid to (N, H, L), it need not be square; give the weights its shape at the end."),
    _function("attention", "dot_product_attention_backward",
        "s are the scores, w the weights, the sums go over the cells.",
        "dw = dattn . A; ds = w (dw - sum of w dw); dprev_h = sum of ds A / sqrt(H); "
        "dA = w dattn + ds prev_h / sqrt(H)."),
    _function("attention", "attention_lstm_step_forward",
        "x and attn side by side are one input of lstm_step_forward, and Wx above Wattn is its weight."),
    _function("attention", "attention_lstm_step_backward",
        "what the forward step put side by side comes apart again.",
        "as in an LSTM; dattn = da Wattn^T; dWattn = attn^T da."),
    _function("attention", "attention_lstm_forward",
        "loop over the steps; keep each step's cache, the state that it looked with, and its weights.",
        "attn_t = dot_product_attention(h_(t-1), A); h_t, c_t = the step with x_t, attn_t."),
    _function("attention", "attention_lstm_backward",
        "loop over the two backward functions above, from the last step.",
        "dh_(t-1) comes from the step and from where it looked; dA is the sum of all steps', and (dh0 + dc0) / L in "
        "each cell."),
    _module("attention", "attention_lstm_module",
        Answer("AttentionLSTM.forward",
            "loop over step_forward, under autograd. `attention_lstm_forward` and its backward go together as in "
            "RNN.forward.",
            "h_0 = c_0 = mean of A; attn_t = dot_product_attention(h_(t-1), A); h_t, c_t = a step from h_(t-1), "
            "c_(t-1), attn_t.", task="The whole sequence."),
        Answer("AttentionLSTM.step_forward",
            "the caller has looked already.",
            "a = x Wx + prev_h Wh + attn Wattn + b, then the gates as in the LSTM.", task="One step.")),
)
_CAPTIONER = (
    Part("captioner_init", "captioner", True, LOSSES, (
        Answer("CaptioningRNN.__init__",
            "set them as self.NAME, with these names. The maps are nn.Linear. `Affine` is one, differentiated by hand.",
            "feature_projection (C to H), word_embedding, cell, output_projection (H to V).",
            task="The decoder's layers.", given="image_encoder"),)),
    Part("captioner_forward", "captioner", True, LOSSES, (
        Answer("CaptioningRNN.encode",
            "a map takes the last dimension: bring the channels there, and for attn back.",
            "h0 = feature_projection(mean of the features over the grid); for attn A = feature_projection of every "
            "cell.",
            task="From the pictures to what the decoder begins with."),
        Answer("CaptioningRNN.forward",
            "captions[:, :-1] go in, captions[:, 1:] should come out; the loss needs ignore_index.",
            "encode -> h0, for attn the grid A -> states -> scores -> loss.", task="The captioning loss."))),
    Part("captioner_step", "captioner", False, SAMPLES, (
        Answer("CaptioningRNN.begin",
            "return a DecoderState.",
            "h = encode(images), c = 0; for attn A = encode(images), h = c = mean of A."),
        Answer("CaptioningRNN.step",
            "for attn, look with the state before.",
            "h (and c) = cell.step_forward; scores = output_projection(h).", task="One word on.")), "DecoderState"),
    Part("captioner_sample", "captioner", True, SAMPLES, (
        Answer("CaptioningRNN.sample",
            "carry every state on, c too. `DecoderState` holds them.",
            "word_0 = <START>; word_t = argmax of the scores after word_(t-1)."),)),
)
# fmt: on

PARTS = {part.name: part for part in (*_RNN, *_WORDS, *_LSTM, *_ATTENTION, *_CAPTIONER)}
GROUPS = tuple(dict.fromkeys(part.group for part in PARTS.values()))


def answers():
    """Function name -> its part and its answer."""
    return {answer.name: (part, answer) for part in PARTS.values() for answer in part.answers}


def published_checks():
    """The names of the checks of the published assignment's parts, in the order of the lesson."""
    wanted = {*GIVEN, *(name for part in PARTS.values() if part.published for name in part.checks)}
    return [name for name in CHECKS if name in wanted]


def choose_parts(names):
    """The parts that names of parts and of groups name, in the table's order. Raises HandoutError."""
    for name in names:
        if name not in PARTS and name not in GROUPS:
            known = f"groups are {', '.join(GROUPS)}; parts are {', '.join(PARTS)}"
            raise HandoutError(f"no part is named {name!r}; {known}")
    return [name for name, part in PARTS.items() if name in names or part.group in names]
