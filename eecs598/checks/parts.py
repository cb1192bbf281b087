"""The parts of the assignment: the formula of each, its test inputs, and common mistakes.

A `Formula` combines what `formulas` and `mistakes` have for a part with the test cases of its check.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from eecs598.checks import formulas, mistakes
from eecs598.checks.formulas import SPECIALS
from eecs598.checks.seeds import current_seed, drawn_from, mixed
from eecs598.grad import TIGHT

# All different, so that a wrong axis never fits by chance; G = 4H, for the LSTM's gates.
SIZES = {"N": 3, "T": 4, "D": 6, "H": 5, "G": 20, "V": 11, "W": 8, "C": 9, "K": 10, "h": 2, "w": 7}
SEED = 601  # chosen such that words repeat in a batch, and word 0 and IGNORED occur
IGNORED = 5  # not word 0, so that a function that always ignores 0 is wrong
GRID = {"h": 4, "w": 4}  # that of the published assignment


@dataclass(frozen=True)
class Case:
    """One test case of a check. The main case has no label and a row for each output; others have one row.

    sizes and scale (input name -> factor) override the default ones; options are further arguments; hint is shown if
    this case fails and those before it pass. beyond: not part of the lesson. strided: the inputs are not contiguous.
    single: they are float32.
    """

    label: str = ""
    sizes: dict = field(default_factory=dict)
    scale: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    hint: str = ""
    beyond: bool = False
    strided: bool = False
    single: bool = False


def _repeats(words, axis):
    """Whether a word occurs twice along this axis, if it has more than one."""
    return words.shape[axis] == 1 or bool((words.sort(axis).values.diff(dim=axis) == 0).any())


@dataclass(frozen=True)
class Formula:
    """The definition of one part of the assignment.

    inputs: names with their dimensions, such as "x:NTD y:NT<V", where "<V" means integers below V. outputs: names.
    compute: the formula, compute(**inputs, **options) -> outputs. reference: the same with PyTorch; against: its name
    there. mistakes: pairs of a sentence that follows "what comes out when", and a function of `compute` and its
    arguments. driven: number of outputs with an upstream gradient. limit: error limit of the outputs. published: the
    cases of the published notebook's cells, if they have this part.
    """

    inputs: str
    outputs: tuple[str, ...]
    compute: Callable
    reference: Callable
    against: str
    mistakes: tuple
    cases: tuple[Case, ...]
    driven: int = 1
    limit: float = TIGHT
    seed: int = SEED
    published: tuple[Case, ...] = ()

    @property
    def gradients(self):
        """Names of the gradients: a d before each input that is not a tensor of integers."""
        return tuple("d" + part.split(":")[0] for part in self.inputs.split() if "<" not in part)

    def draw(self, case):
        """The inputs of a case, by name, and the upstream gradients, one for each driven output."""
        for attempt in range(100):
            generator = torch.Generator().manual_seed(mixed(self.seed, attempt))
            inputs = self._draw_inputs(case, generator)
            if current_seed() is None or self._has_telling_words(inputs, SIZES | case.sizes):
                break
        driven = self.reference(**inputs, **case.options)[: self.driven]
        if driven[0].dim() == 0:  # a loss, whose upstream gradient is 1
            return inputs, [torch.ones_like(driven[0])]
        return inputs, [torch.randn(output.shape, generator=generator).to(output) for output in driven]

    def _draw_inputs(self, case, generator):
        sizes, inputs = SIZES | case.sizes, {}
        for part in self.inputs.split():
            name, dims, bound = re.fullmatch(r"(\w+):(\w+)<?(\w*)", part).groups()
            shape = [sizes[dim] for dim in dims]
            if bound:
                inputs[name] = torch.randint(sizes[bound], shape, generator=generator)
            else:
                spread = 0.7 * case.scale.get(name, 1)  # below 1, so that tanh and sigmoid are not flat
                values = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
                inputs[name] = values.float() if case.single else values
        return inputs

    def _has_telling_words(self, inputs, sizes):
        """Whether word 0 and IGNORED occur in each batch of words, and words are repeated in it, as with its seed."""
        for part in self.inputs.split():
            name, _, bound = re.fullmatch(r"(\w+):(\w+)<?(\w*)", part).groups()
            if bound and inputs[name].numel() >= 8:
                wanted = [word for word in (0, IGNORED) if word < sizes[bound]]
                repeated = [_repeats(inputs[name], axis) for axis in (0, 1)]
                if not all(repeated) or not all((inputs[name] == word).any() for word in wanted):
                    return False
        return True

    def values(self, compute, inputs, incoming, options):
        """The outputs of `compute`, by name."""
        return dict(zip(self.outputs, compute(**inputs, **options)))

    def derivatives(self, compute, inputs, incoming, options):
        """Autograd's gradients of `compute`, by name."""
        leaves = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in inputs.items()}
        outputs = compute(**leaves, **options)
        loss = sum((output * d).sum() for output, d in zip(outputs, incoming))
        wrt = [leaves[name[1:]] for name in self.gradients]
        grads = torch.autograd.grad(loss, wrt, allow_unused=True, materialize_grads=True)
        return dict(zip(self.gradients, grads))


# ---------------------------------------------------------------------------------------------------------
# Cells, sequences, and the other layers
# ---------------------------------------------------------------------------------------------------------

MAIN = Case()
BATCH_OF_ONE = Case(
    "a batch of one, one step",
    sizes={"N": 1, "T": 1},
    hint="only the batch of one fails: squeeze() without an argument also removes the batch dimension, if that is 1",
)
LARGE = "only large scores fail: exp overflows; subtract the largest score first, or use torch.softmax or logsumexp"
LARGE_STATE = Case("large scores", scale={"prev_h": 3000}, hint=LARGE)
IGNORING = Case(options={"ignore_index": IGNORED})
ONE_IGNORING = replace(BATCH_OF_ONE, options=IGNORING.options)
LARGE_SCORES = Case("large scores", scale={"x": 3000}, options=IGNORING.options, hint=LARGE)
COUNTING_ALL = Case(
    "no ignore_index",
    hint="ignore_index=None counts every step; F.cross_entropy takes no None: leave it out there, or mask by hand",
)

# fmt: off
RNN_STEP = Formula(
    "x:ND prev_h:NH Wx:DH Wh:HH b:H", ("next_h",), formulas.rnn_step, formulas.torch_rnn_step, "torch.nn.RNNCell",
    mistakes.RNN_STEP, (MAIN, BATCH_OF_ONE))
RNN_SEQUENCE = Formula(
    "x:NTD h0:NH Wx:DH Wh:HH b:H", ("h",), formulas.rnn, formulas.torch_rnn, "torch.nn.RNN",
    mistakes.RNN_SEQUENCE, (MAIN, BATCH_OF_ONE))
LSTM_STEP = Formula(
    "x:ND prev_h:NH prev_c:NH Wx:DG Wh:HG b:G", ("next_h", "next_c"), formulas.lstm_step, formulas.torch_lstm_step,
    "torch.nn.LSTMCell", mistakes.LSTM_STEP, (MAIN, BATCH_OF_ONE), driven=2)
LSTM_SEQUENCE = Formula(
    "x:NTD h0:NH c0:NH Wx:DG Wh:HG b:G", ("h",), formulas.lstm, formulas.torch_lstm, "torch.nn.LSTM",
    mistakes.LSTM_SEQUENCE, (MAIN, BATCH_OF_ONE))
LSTM_FROM_H0 = Formula(
    "x:NTD h0:NH Wx:DG Wh:HG b:G", ("h",), formulas.lstm_from_h0, formulas.torch_lstm_from_h0, "torch.nn.LSTM",
    mistakes.LSTM_FROM_H0, (MAIN, BATCH_OF_ONE))
DOT_PRODUCT_ATTENTION = Formula(
    "prev_h:NH A:NHhw", ("attn", "attn_weights"), formulas.attention, formulas.torch_attention,
    "F.scaled_dot_product_attention", mistakes.DOT_PRODUCT_ATTENTION, (MAIN, BATCH_OF_ONE, LARGE_STATE))
ATTENTION_LSTM_STEP = Formula(
    "x:ND prev_h:NH prev_c:NH attn:NH Wx:DG Wh:HG Wattn:HG b:G", ("next_h", "next_c"), formulas.attention_lstm_step,
    formulas.torch_attention_lstm_step, "torch.nn.LSTMCell", mistakes.ATTENTION_LSTM_STEP, (MAIN, BATCH_OF_ONE),
    driven=2)
ATTENTION_LSTM_SEQUENCE = Formula(
    "x:NTD A:NHhw Wx:DG Wh:HG Wattn:HG b:G", ("h", "attn_weights"), formulas.attention_lstm,
    formulas.torch_attention_lstm, "F.scaled_dot_product_attention and torch.nn.LSTMCell",
    mistakes.ATTENTION_LSTM_SEQUENCE, (MAIN, BATCH_OF_ONE))
ATTENTION_LSTM_STATES = replace(ATTENTION_LSTM_SEQUENCE, outputs=("h",))
WORD_EMBEDDING = Formula(
    "x:NT<V W_embed:VW", ("out",), formulas.word_embedding, formulas.torch_word_embedding, "F.embedding",
    mistakes.WORD_EMBEDDING, (MAIN, BATCH_OF_ONE), seed=612)  # words are repeated within a step and within a caption
TEMPORAL_AFFINE = Formula(
    "h:NTH W:HV b:V", ("scores",), formulas.temporal_affine, formulas.torch_temporal_affine, "F.linear",
    mistakes.TEMPORAL_AFFINE, (MAIN, BATCH_OF_ONE))
TEMPORAL_SOFTMAX = Formula(
    "x:NTV y:NT<V", ("loss",), formulas.temporal_softmax, formulas.torch_temporal_softmax, "F.cross_entropy",
    mistakes.TEMPORAL_SOFTMAX, (IGNORING, COUNTING_ALL, ONE_IGNORING, LARGE_SCORES))
PUBLISHED_SOFTMAX = replace(TEMPORAL_SOFTMAX, published=(
    Case(sizes={"N": 1000, "T": 10, "V": 10}, options={"ignore_index": 0}, single=True),
    Case("one step", sizes={"N": 1000, "T": 1, "V": 10}, options={"ignore_index": 0}, single=True)))
# fmt: on


def as_published(formula, single=True, **sizes):
    """The formula with the case of the published notebook's cell: its sizes, and float32 if `single`."""
    sizes |= {"G": 4 * sizes["H"]} if "H" in sizes else {}
    sizes |= GRID if "hw" in formula.inputs else {}
    return replace(formula, published=(Case(sizes=sizes, single=single),))


# ---------------------------------------------------------------------------------------------------------
# The captioner. It is checked in float32, in which it trains, regardless of dtypes inside a student's model.
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionerLoss(Formula):
    """A captioner's loss, with the gradients of its own weights, and realistic captions."""

    @property
    def gradients(self):
        return super().gradients[1:]  # not that of the features

    def draw(self, case):
        inputs, incoming = super().draw(case)
        null, start, end = case.options.get("specials", SPECIALS)
        words = [word for word in range(SIZES["V"]) if word not in (null, start, end)]
        lengths, captions = (3, 8, 1), torch.full((3, SIZES["K"]), null)
        for row, length in zip(captions, lengths):
            said = [words[(3 * length + k * k) % len(words)] for k in range(length)]
            row[: length + 2] = torch.tensor([start, *said, end])
        return inputs | {"captions": captions[: len(inputs["features"])]}, incoming


@dataclass(frozen=True)
class CaptionerSample(Formula):
    """A captioner's captions. A seed whose captions tell all mistakes apart is rare: see `_sample_formula`.

    So in a run of the grader its inputs are kept and turned: the spaces of the channels and of the word vectors
    rotated, the pictures, the units of the state and the words put in another order. All that the seed was chosen for
    stays so; the numbers and the captions are others.
    """

    def draw(self, case):
        with drawn_from(None):
            inputs, incoming = super().draw(case)
        return inputs if current_seed() is None else self._turn(inputs, case), incoming

    def _turn(self, inputs, case):
        generator = torch.Generator().manual_seed(mixed(self.seed))
        (C, H), (V, W) = inputs["W_feature"].shape, inputs["W_embed"].shape
        channels, vectors = (torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0] for n in (C, W))
        pictures, units = (torch.randperm(n, generator=generator) for n in (len(inputs["features"]), H))
        columns = torch.cat([units + gate * H for gate in range(inputs["b"].numel() // H)])
        specials = case.options.get("specials", SPECIALS)
        others = torch.tensor([word for word in range(V) if word not in specials])
        words = torch.arange(V)
        words[others] = others[torch.randperm(len(others), generator=generator)]
        turned = {
            "features": torch.einsum("nchw,cd->ndhw", inputs["features"], channels)[pictures],
            "W_feature": (channels.t() @ inputs["W_feature"])[:, units], "b_feature": inputs["b_feature"][units],
            "W_embed": (inputs["W_embed"] @ vectors)[words], "Wx": (vectors.t() @ inputs["Wx"])[:, columns],
            "b": inputs["b"][columns], "W_out": inputs["W_out"][units][:, words], "b_out": inputs["b_out"][words],
        }  # fmt: skip
        turned |= {name: inputs[name][units][:, columns] for name in ("Wh", "Wattn") if name in inputs}
        return {name: turned[name].contiguous() for name in inputs}


MAIN_SQUARE = Case(sizes=GRID)
OTHER_IDS = Case("<NULL>, <START>, <END> at other ids", sizes=GRID, options={"specials": (5, 3, 8)},
                 hint="it fails only with other ids: look <NULL>, <START> and <END> up in word_to_idx")  # fmt: skip
SHORT = Case("max_length 7", sizes=GRID, options={"max_length": 7}, beyond=True, hint="max_length is not used")
FEATURE_INPUTS = "features:NChw {}W_feature:CH b_feature:H W_embed:VW {} W_out:HV b_out:V"
RNN_WEIGHTS, LSTM_WEIGHTS, ATTN_WEIGHTS = "Wx:WH Wh:HH b:H", "Wx:WG Wh:HG b:G", "Wx:WG Wh:HG Wattn:HG b:G"


def _loss_formula(weights, layers, against, mistakes, attends=False):
    """The formula of a captioner's loss. layers: the cell over a sequence, written out and PyTorch's."""
    losses = formulas.temporal_softmax, formulas.torch_temporal_softmax
    compute, reference = (formulas.captioner_loss(layer, loss, attends) for layer, loss in zip(layers, losses))
    inputs, cases = FEATURE_INPUTS.format("captions:NK<V ", weights), (MAIN_SQUARE, OTHER_IDS)
    return CaptionerLoss(inputs, ("loss",), compute, reference, against, mistakes, cases, limit=1e-5)


def _sample_formula(weights, steps, against, mistakes, seed, sharp, memory=True, attends=False):
    """The formula of a captioner's captions. steps: of the cell, written out and PyTorch's; memory: whether it has a c.

    seed and sharp (the scale of W_out) are chosen such that one caption has all 15 words, two end earlier at different
    steps, no two scores are close, and each of the mistakes changes a caption.
    """
    scale = {"features": 2, "W_embed": 2, "Wx": 1.5, "W_out": sharp}
    attentions = (formulas.attention, formulas.torch_attention) if attends else (None, None)
    compute, reference = (formulas.captioner_sample(step, attend, memory) for step, attend in zip(steps, attentions))
    inputs, outputs = FEATURE_INPUTS.format("", weights), ("captions", "attn_weights") if attends else ("captions",)
    cases = tuple(replace(case, scale=scale) for case in (MAIN_SQUARE, OTHER_IDS, SHORT))
    return CaptionerSample(inputs, outputs, compute, reference, against, mistakes, cases, limit=1e-4, seed=seed)


# fmt: off
RNN_CAPTIONER_LOSS = _loss_formula(
    RNN_WEIGHTS, (formulas.rnn, formulas.torch_rnn), "torch.nn.RNN", mistakes.RNN_CAPTIONER_LOSS)
RNN_CAPTIONER_SAMPLE = _sample_formula(
    RNN_WEIGHTS, (formulas.rnn_step, formulas.torch_rnn_step), "torch.nn.RNNCell", mistakes.RNN_CAPTIONER_SAMPLE,
    seed=2552, sharp=4, memory=False)
LSTM_CAPTIONER_LOSS = _loss_formula(
    LSTM_WEIGHTS, (formulas.lstm_from_h0, formulas.torch_lstm_from_h0), "torch.nn.LSTM", mistakes.LSTM_CAPTIONER_LOSS)
LSTM_CAPTIONER_SAMPLE = _sample_formula(
    LSTM_WEIGHTS, (formulas.lstm_step, formulas.torch_lstm_step), "torch.nn.LSTMCell", mistakes.LSTM_CAPTIONER_SAMPLE,
    seed=1663, sharp=3)
ATTN_CAPTIONER_LOSS = _loss_formula(
    ATTN_WEIGHTS, (formulas.attention_lstm, formulas.torch_attention_lstm), "torch.nn.LSTM",
    mistakes.ATTN_CAPTIONER_LOSS, attends=True)
ATTN_CAPTIONER_SAMPLE = _sample_formula(
    ATTN_WEIGHTS, (formulas.attention_lstm_step, formulas.torch_attention_lstm_step), "torch.nn.LSTMCell",
    mistakes.ATTN_CAPTIONER_SAMPLE, seed=20, sharp=3, attends=True)
# fmt: on
