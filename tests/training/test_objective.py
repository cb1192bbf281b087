"""The objective: the model's own loss, computed fast; each option as it is defined; and wrong captioners refused."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from support.captioner import CELLS, NULL, START, VOCABULARY, WORDS, batch, make_model, reference_loss

import rnn_lstm_captioning as rlc
from eecs598.fast import dropout
from eecs598.grad import rel_error
from eecs598.training import objective
from eecs598.training.objective import Objective, ObjectiveError, PartsError, choose_fast, find_parts, plain_loss
from eecs598.training.options import Options

UNK = VOCABULARY["<UNK>"]


def make_objective(cell_type, sizes=None, **options):
    """An objective in training mode, of a small captioner."""
    return Objective(make_model(cell_type, **(sizes or {})), Options(**options)).train()


def assert_same_gradients(model, found, wanted, limit=1e-10):
    parameters = list(model.parameters())
    gradients = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters))
    assert all(rel_error(a, b) < limit for a, b in gradients)


# --- without options ----------------------------------------------------------------------------------------


@CELLS
@pytest.mark.parametrize("ignore_index", [NULL, None, 4])
@pytest.mark.parametrize("n, grid", [(4, (2, 3)), (1, (1, 1)), (3, (3, 5))])
def test_the_fast_loss_is_the_models_own(cell_type, ignore_index, n, grid):
    model = make_model(cell_type, ignore_index, grid)
    loss, plain = Objective(model)(*batch(n)), model(*batch(n))
    assert rel_error(loss.detach(), plain.detach()) < 1e-12
    assert_same_gradients(model, loss, plain)


@CELLS
def test_without_fast_the_models_own_forward_trains(cell_type, monkeypatch):
    model, calls = make_model(cell_type), []
    monkeypatch.setattr(model, "forward", lambda images, captions: calls.append(len(captions)) or torch.zeros(()))
    images, captions = batch(12)
    slow = Objective(model, fast=False)
    slow(images, captions)
    slow(images[:4], captions.view(4, 3, -1))
    assert calls == [12, 12]


def test_without_fast_there_are_no_options():
    with pytest.raises(ObjectiveError, match=r"dropout, label_smoothing: .* fast=True"):
        Objective(make_model("rnn"), Options(dropout=0.1, label_smoothing=0.1, cosine=True), fast=False)


def test_without_fast_there_are_no_weights():
    with pytest.raises(ObjectiveError, match=r"for captions sampled from the model, need fast=True"):
        Objective(make_model("rnn"), fast=False)(*batch(), torch.ones(4))


def test_an_edition_without_fast_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "eecs598.fast", None)
    with pytest.raises(ObjectiveError, match="no eecs598/fast; with fast=False, a model trains by its own forward"):
        Objective(make_model("rnn"))
    assert Objective(make_model("rnn"), fast=False)(*batch()).isfinite()


@CELLS
def test_nothing_is_drawn_and_training_changes_nothing(cell_type):
    loss_of, (images, captions) = make_objective(cell_type), batch()
    before = torch.get_rng_state()
    loss = loss_of(images, captions)
    assert torch.equal(torch.get_rng_state(), before) and loss.item() == loss_of.eval()(images, captions).item()


@CELLS
def test_several_captions_of_a_picture_are_as_many_pairs(cell_type):
    loss_of, (images, captions) = make_objective(cell_type), batch(12)
    together, pairs = loss_of(images[:4], captions.view(4, 3, -1)), plain_loss(loss_of.model, images[:4],
                                                                               captions.view(4, 3, -1))  # fmt: skip
    assert together.item() == pytest.approx(pairs.item(), rel=1e-12)
    assert pairs.item() == loss_of.model(images[:4].repeat_interleave(3, dim=0), captions).item()
    assert_same_gradients(loss_of.model, together, pairs)


@CELLS
def test_no_scores_for_padding(cell_type, monkeypatch):
    from eecs598.fast import loss

    rows, product = [], loss.product
    monkeypatch.setattr(loss, "product", lambda a, b, *c: rows.append((len(a), b.shape[1])) or product(a, b, *c))
    images, captions = batch(9)
    make_objective(cell_type).eval()(images, captions)
    assert sum(n for n, columns in rows if columns == len(WORDS)) == (captions[:, 1:] != NULL).sum()


@CELLS
def test_training_under_autocast(cell_type):
    loss_of = Objective(make_model(cell_type).float()).train()
    images, captions = batch()
    exact = loss_of(images.float(), captions)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(images.float(), captions)
    loss.backward()
    assert loss.dtype == torch.float32 and 0 < rel_error(loss.detach(), exact.detach()) < 0.02
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in loss_of.parameters())


# --- the comparison on the first batch ----------------------------------------------------------------------


def wrong_forward(self, images, captions):
    return 1.001 * right_forward(self, images, captions)


right_forward = rlc.CaptioningRNN.forward


def wrong_rnn_backward(dh, cache):
    dx, dh0, dWx, dWh, db = rlc.original_rnn_backward(dh, cache)
    return dx, dh0, dWx, 2 * dWh, db


def wrong_temporal_softmax_backward(x, y, ignore_index=None):
    return rlc.original_softmax_backward(x, y, ignore_index) / y.shape[1]


@pytest.fixture
def originals(monkeypatch):
    monkeypatch.setattr(rlc, "original_rnn_backward", rlc.rnn_backward, raising=False)
    monkeypatch.setattr(rlc, "original_softmax_backward", rlc.temporal_softmax_backward, raising=False)


@pytest.mark.parametrize("place, name, wrong, blamed", [
    (rlc.CaptioningRNN, "forward", wrong_forward, "the loss by the model's own"),
    (rlc, "rnn_backward", wrong_rnn_backward, "the gradient of cell.Wh by the model's own"),
    (rlc, "temporal_softmax_backward", wrong_temporal_softmax_backward, "the gradient of feature_projection.weight"),
])  # fmt: skip
def test_a_wrong_captioner_is_refused_on_the_first_batch(originals, monkeypatch, place, name, wrong, blamed):
    loss_of = make_objective("rnn", dropout=0.5)  # options do not hide it
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(ObjectiveError, match=f"{blamed}.* wanted at most 0.0001") as caught:
        loss_of(*batch())
    assert "\n" not in str(caught.value)


def test_it_is_compared_once_on_a_few_pictures_and_in_evaluation_mode(monkeypatch):
    loss_of, seen = make_objective("lstm", dropout=0.5), []
    forward = loss_of.model.forward
    monkeypatch.setattr(loss_of.model, "forward",
                        lambda *given: seen.append((len(given[0]), loss_of.model.training)) or forward(*given))
    for _ in range(3):
        loss_of(*batch(20))
    assert seen == [(objective.COMPARED, False)] and loss_of.training and loss_of.model.training


def test_the_comparison_leaves_no_gradient_behind():
    loss_of = make_objective("attn")
    loss_of(*batch())
    assert all(parameter.grad is None for parameter in loss_of.parameters())


# --- options ------------------------------------------------------------------------------------------------


def losses_of(model, images, captions):
    """The model's loss of each caption by itself."""
    return torch.stack([model(images[i : i + 1], captions[i : i + 1]) for i in range(len(captions))])


@CELLS
def test_weights_are_factors_of_each_captions_loss(cell_type):
    loss_of = make_objective(
        cell_type, label_smoothing=0.3, doubly_stochastic=2.0, attention_entropy=2.0, scheduled_sampling=0.5)
    model, (images, captions) = loss_of.model, batch(6)
    captions[captions == UNK] = 4
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0], dtype=torch.float64)
    with torch.no_grad():  # words that the loss is to ban, the model must not say anyway
        model.output_projection.bias[[NULL, START, UNK]] = -math.inf
    wanted = (losses_of(model.eval(), images, captions) * weights).mean()
    with torch.no_grad():
        model.output_projection.bias[[NULL, START, UNK]] = 5.0
    assert loss_of.train()(images, captions, weights).item() == pytest.approx(wanted.item(), rel=1e-12)
    shaped = loss_of(images[:2], captions.view(2, 3, -1), weights.view(2, 3))
    pairs = loss_of(images[:2].repeat_interleave(3, dim=0), captions, weights)
    assert shaped.item() == pytest.approx(pairs.item(), rel=1e-12)


@CELLS
def test_dropout_of_features_words_and_states_in_training_alone(cell_type, monkeypatch):
    loss_of, (images, captions), dropped = make_objective(cell_type, dropout=0.5), batch(), []
    draw = dropout.dropout

    def note(x, p):
        dropped.append((x, draw(x, p)))
        return dropped[-1][1]

    loss_of(images, captions)  # compared
    monkeypatch.setattr(dropout, "dropout", note)
    assert loss_of.eval()(images, captions).item() == pytest.approx(loss_of.model(images, captions).item(), rel=1e-12)
    dropped.clear()
    loss_of.train()(images, captions)
    sizes = [tuple(before.shape) for before, _ in dropped]
    steps = int((captions[:, 1:] != NULL).sum())
    assert sizes == [(4, 2, 3, 7) if cell_type == "attn" else (4, 7), (4, 6, 5), (steps, 7)]
    for before, after in dropped:
        kept = after != 0
        assert torch.allclose(after[kept], 2 * before[kept]) and 0.2 < kept.double().mean() < 0.8


@CELLS
def test_label_smoothing_spreads_the_target_in_training_alone(cell_type):
    loss_of, (images, captions) = make_objective(cell_type, label_smoothing=0.2), batch()
    state, total = loss_of.model.begin(images), 0
    for words, targets in zip(captions[:, :-1].unbind(1), captions[:, 1:].unbind(1)):
        scores, state, _ = loss_of.model.step(words, state)
        wanted = 0.8 * F.one_hot(targets, len(WORDS)).double() + 0.2 / len(WORDS)
        total = total - ((wanted * scores.log_softmax(1)).sum(1) * (targets != NULL)).sum()
    assert loss_of(images, captions).item() == pytest.approx(total.item() / 4, rel=1e-12)
    plain = loss_of.model(images, captions).item()
    assert loss_of.eval()(images, captions).item() == pytest.approx(plain, rel=1e-12)


@CELLS
def test_tied_embeddings_are_one_weight_that_learns_from_both_ends(cell_type):
    loss_of, (images, captions) = make_objective(cell_type, {"wordvec_dim": 7}, tie_embeddings=True), batch()
    model = loss_of.model
    assert model.output_projection.weight is model.word_embedding.W_embed
    loss_of(images, captions).backward()
    untied = make_model(cell_type, wordvec_dim=7)
    untied.load_state_dict(model.state_dict())
    untied(images, captions).backward()
    both = untied.word_embedding.W_embed.grad + untied.output_projection.weight.grad
    assert rel_error(model.word_embedding.W_embed.grad, both) < 1e-12


def test_tied_embeddings_take_word_vectors_as_long_as_the_state():
    with pytest.raises(ValueError, match=r"tie_embeddings needs .* wordvec_dim is 5 and hidden_dim 7"):
        make_objective("attn", tie_embeddings=True)


def equation_14(maps, mask):
    """Xu et al.'s penalty on weights (N, T, h, w), from its definition."""
    return ((1 - (maps * mask[:, :, None, None]).sum(1)) ** 2).sum((1, 2)).mean()


def entropy(maps, mask):
    return (-torch.special.xlogy(maps, maps).sum((2, 3)) * mask).sum(1).mean()


@pytest.mark.parametrize("option, definition", [("doubly_stochastic", equation_14), ("attention_entropy", entropy)])
def test_attention_penalties_add_what_they_are_defined_as(option, definition):
    loss_of, (images, captions) = make_objective("attn", **{option: 0.3}), batch()
    model = loss_of.model
    state, maps = model.begin(images), []
    for words in captions[:, :-1].unbind(1):
        _, state, weights = model.step(words, state)
        maps.append(weights)
    mask = torch.stack([(captions[:, later:] != NULL).any(1) for later in range(1, captions.shape[1])], 1)
    assert not mask.all()  # some captions end early
    wanted = reference_loss(model, images, captions, NULL) + 0.3 * definition(torch.stack(maps, 1), mask)
    loss = loss_of(images, captions)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert_same_gradients(model, loss, wanted, 1e-9)
    assert loss_of.eval()(images, captions).item() == pytest.approx(model(images, captions).item(), rel=1e-12)


@CELLS
def test_scheduled_sampling_puts_the_models_words_before(cell_type):
    loss_of, (images, captions), before = make_objective(cell_type, scheduled_sampling=0.25), batch(64), []
    with torch.no_grad():
        loss_of.model.output_projection.bias[8] = 100.0  # it would always say "grass"
    loss_of(images, captions)  # compared
    loss_of.model.word_embedding.register_forward_hook(lambda module, inputs, output: before.append(inputs[0]))
    loss_of(images, captions)
    given, mixed = before
    assert (mixed[:, 0] == START).all()
    replaced = mixed[:, 1:] != given[:, 1:]
    assert (mixed[:, 1:][replaced] == 8).all() and 0.1 < replaced[given[:, 1:] != NULL].double().mean() < 0.4
    before.clear()
    loss_of.eval()(images, captions)
    assert len(before) == 1


@pytest.mark.parametrize("options, message", [
    ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1"), ({"scheduled_sampling": 1}, "scheduled_sampling is 1"),
    ({"averaging": 1}, "averaging is 1"), ({"warmup": -1}, "warmup is -1"), ({"accumulate": 0}, "accumulate is 0"),
    ({"doubly_stochastic": -1}, "doubly_stochastic is -1; it must be finite and at least 0"),
    ({"seed": "x"}, "seed is 'x'; it must be a whole number, at least 0"),
    ({"seed": -1}, "seed is -1; it must be a whole number, at least 0"),
    ({"checkpoint_every": 0}, "checkpoint_every is 0; it must be a whole number, at least 1"),
    ({"attention_entropy": math.inf}, "attention_entropy is inf; it must be finite and at least 0"),
    ({"precision": "float16"}, "precision is 'float16'; it must be auto, float32 or bfloat16"),
])  # fmt: skip
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


# --- any captioner with the published parameters, and bad input ---------------------------------------------


class Renamed(torch.nn.Module):
    """A captioner whose modules have other names, and whose W_embed sits in a module of its own."""

    def __init__(self, model):
        super().__init__()
        self.eye, self.to_state = model.image_encoder, torch.nn.Linear(3, 7).double()
        self.words, self.recurrent, self.to_words = model.word_embedding, model.cell, torch.nn.Linear(7, 9).double()
        self.to_state.load_state_dict(model.feature_projection.state_dict())
        self.to_words.load_state_dict(model.output_projection.state_dict())
        self.ignore_index, self._null = NULL, NULL  # the names of the published assignment's file

    def forward(self, images, captions):
        h = self.recurrent(self.words(captions[:, :-1]), self.to_state(self.eye(images).mean((2, 3))))
        return rlc.temporal_softmax_loss(self.to_words(h), captions[:, 1:], NULL)


def test_parameters_are_found_under_any_name():
    model = make_model("lstm")
    renamed = Renamed(model)
    loss = Objective(renamed).train()(*batch())
    assert loss.item() == pytest.approx(model(*batch()).item(), rel=1e-12)
    renamed = Renamed(make_model("lstm", wordvec_dim=7))
    Objective(renamed, Options(tie_embeddings=True))
    assert renamed.to_words.weight is renamed.words.W_embed


def test_maps_of_the_same_shape_are_told_apart_by_their_order():
    model = make_model("rnn", input_dim=9, wordvec_dim=5, hidden_dim=9)
    model.image_encoder.out_channels = 9
    parts = find_parts(model)
    assert parts.feature[0] is model.feature_projection.weight and parts.output is model.output_projection


@pytest.mark.parametrize("part, missing", [
    ("cell", "a cell with parameters Wx, Wh and b"), ("word_embedding", "a word embedding with a parameter W_embed"),
    ("output_projection", "an nn.Linear from 7 to the 9 words"),
    ("feature_projection", "an nn.Linear from the 3 image features to 7"),
])  # fmt: skip
def test_a_part_that_is_missing_is_named(part, missing):
    model = make_model("rnn")
    setattr(model, part, torch.nn.Identity())
    with pytest.raises(PartsError, match=f"fast training needs {missing}, which the captioner lacks"):
        find_parts(model)


def test_parts_without_a_bias_are_no_parts():
    model = make_model("rnn")
    model.output_projection = torch.nn.Linear(7, len(VOCABULARY), bias=False)
    with pytest.raises(PartsError, match=r"an nn\.Linear from 7 to the 9 words"):
        find_parts(model)
    model = make_model("lstm")
    del model.cell.b
    with pytest.raises(PartsError, match="a cell with parameters Wx, Wh and b"):
        find_parts(model)


def test_features_that_are_flattened_are_not_computed_fast():
    model = make_model("rnn")
    model.feature_projection = torch.nn.Linear(3 * 6, 7)
    with pytest.raises(PartsError, match="from the 3 image features to 7"):
        find_parts(model)


def test_what_cannot_be_computed_fast_trains_by_its_own_forward_and_without_options_of_the_loss(capsys):
    model = make_model("attn")
    options = Options(cosine=True, attention_entropy=0.15, tie_embeddings=True, seed=3)
    assert choose_fast(model, options) == (True, options) and capsys.readouterr().out == ""
    model.word_embedding = torch.nn.Embedding(9, 5)
    assert choose_fast(model, options) == (False, Options(cosine=True, seed=3))
    (line,) = capsys.readouterr().out.splitlines()
    assert "the captioner's own forward and backward, without tie_embeddings, attention_entropy (fast" in line
    assert "a word embedding with a parameter W_embed, which the captioner lacks" in line


def test_an_edition_without_the_fast_room_trains_by_the_captioners_own_forward(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "eecs598.fast", None)  # as if it were not there
    assert choose_fast(make_model("attn"), Options(dropout=0.3, seed=3)) == (False, Options(seed=3))
    assert "without dropout (this edition has no eecs598/fast" in capsys.readouterr().out


def test_bad_input_is_named():
    images, captions = batch()
    for fast in (True, False):
        loss_of = Objective(make_model("lstm"), fast=fast)
        with pytest.raises(ValueError, match="ids from 0 to 9; the vocabulary has ids 0 to 8"):
            loss_of(images, captions.where(captions != 2, 9))
        with pytest.raises(TypeError, match=r"torch.float32; they must be torch.int64"):
            loss_of(images, captions.float())
        with pytest.raises(ValueError, match=r"captions are \(3, 7\); for 4 pictures"):
            loss_of(images, captions[:3])
        with pytest.raises(ValueError, match="captions are on meta, but the model is on cpu"):
            loss_of(images, captions.to("meta"))
    promising = make_model("rnn", input_dim=400)
    promising.image_encoder.out_channels = 400
    with pytest.raises(ObjectiveError, match=r"returns features \(4, 3, 2, 3\); .* takes \(N, 400, h, w\)"):
        Objective(promising)(images, captions)
