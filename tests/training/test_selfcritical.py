"""Self-critical training: CIDEr-D of single captions, and a loss that prefers the better of a model's own."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from support.captioner import CELLS
from support.encoder import MeanEncoder

from eecs598 import progress
from eecs598.captioner import make_captioner
from eecs598.encoders import get_encoder
from eecs598.metrics.bleu import Bleu
from eecs598.metrics.cider import CiderD
from eecs598.training import selfcritical, solver
from eecs598.training.checkpoints import CheckpointError
from eecs598.training.objective import Objective
from eecs598.training.options import Options
from eecs598.training.run import train_captioner
from eecs598.training.selfcritical import SelfCritical
from rnn_lstm_captioning import CaptioningRNN

QUIET = Options(progress=False, plot=False)
WORDS = st.lists(st.sampled_from(["a", "dog", "red", "ball", "runs", "on"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_bleu_is_the_mean_of_the_fields_scorers_precisions(words, texts):
    assume(any(texts))
    found = Bleu([[["b"]], texts]).score(1, words)
    scorer = BleuScorer(" ".join(words), [" ".join(text) for text in texts])
    (counts,) = scorer.ctest
    precisions = [right / max(1, guessed) for right, guessed in zip(counts["correct"], counts["guess"])]
    bleu_1 = scorer.compute_score(option="closest")[0][0]  # the first precision, less if the caption is short
    wanted = bleu_1 / precisions[0] * sum(precisions) / 4 if precisions[0] else 0.0
    assert found == pytest.approx(wanted, abs=1e-6)


def make(data, cell_type="attn", seed=0):
    torch.manual_seed(seed)
    return make_captioner(CaptioningRNN, data, cell_type, MeanEncoder(), 32, 16)


def critical(model, data, options=Options(), **how):
    """The loss of self-critical training of a model, in training mode."""
    references = [[text.split() for text in texts] for texts in data["train_references"]]
    return SelfCritical(Objective(model, options), references, data["vocab"], **how).train()


def noted_samples(monkeypatch):
    """A list that gets the captions that are sampled from now on."""
    drawn, sample = [], selfcritical.decoding.sample_captions

    def sample_and_note(*args, **how):
        drawn.append(sample(*args, **how))
        return drawn[-1]

    monkeypatch.setattr(selfcritical.decoding, "sample_captions", sample_and_note)
    return drawn


@torch.no_grad()
def log_prob(model, data, picture, caption):
    """The log-probability of drawing a caption, where <NULL>, <START> and <UNK> are never drawn."""
    state, before, total = model.begin(data["train_images"][picture][None]), model.start, 0.0
    for word in caption[: caption.index(model.end) + 1] if model.end in caption else caption:
        scores, state, _ = model.step(torch.tensor([before]), state)
        scores[:, [model.null, model.start, model.unk]] = -torch.inf
        total += scores.log_softmax(1)[0, word].item()
        before = word
    return total


@pytest.mark.parametrize("cell_type, bleu", [("rnn", 0.0), ("lstm", 0.0), ("attn", 0.0), ("lstm", 2.0)])
def test_the_loss_weighs_each_caption_by_its_advantage(tiny_data, cell_type, bleu, monkeypatch):
    model = make(tiny_data, cell_type)
    loss_of = critical(model, tiny_data, samples=3, max_length=6, bleu=bleu)
    drawn, pictures = noted_samples(monkeypatch), torch.tensor([2, 0])
    loss = loss_of(tiny_data["train_images"][pictures], pictures)
    names, end = tiny_data["vocab"]["idx_to_token"], tiny_data["vocab"]["token_to_idx"]["<END>"]
    references = [[[*text.split(), "<END>"] for text in texts] for texts in tiny_data["train_references"]]
    cider, precision = CiderD(references), Bleu(references)
    wanted, all_scores = 0.0, []
    for picture, captions in zip(pictures.tolist(), drawn[0].words.tolist()):
        log_probs = [log_prob(model, tiny_data, picture, caption) for caption in captions]
        said = [c[: c.index(end) + 1] if end in c else c for c in captions]
        said = [[names[i] for i in words] for words in said]
        scores = [cider.score(picture, words) + bleu * precision.score(picture, words) for words in said]
        all_scores += scores
        for i, score in enumerate(scores):
            others = [other for j, other in enumerate(scores) if j != i]
            wanted -= (score - sum(others) / 2) * log_probs[i] / 6
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    assert loss_of.rewards == [pytest.approx(sum(all_scores) / 6, rel=1e-5)] and model.training


def test_pictures_are_encoded_once_for_the_samples_and_the_loss(tiny_data):
    model, pictures, encoded = make(tiny_data), torch.arange(4), []
    get_encoder(model).register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    images = tiny_data["train_images"][pictures].float().requires_grad_()
    critical(model, tiny_data)(images, pictures).backward()
    assert encoded == [4] and (images.grad != 0).any()  # so it can be trained


def test_a_weight_that_is_no_weight_is_refused(tiny_data):
    with pytest.raises(ValueError, match="bleu is -1; it must be finite and at least 0"):
        critical(make(tiny_data), tiny_data, bleu=-1)


def test_a_caption_must_end(tiny_data):
    loss_of, ids = critical(make(tiny_data), tiny_data), tiny_data["vocab"]["token_to_idx"]
    whole = [ids[word] for word in ("a", "red", "picture", "<END>", "<NULL>", "<NULL>")]
    assert loss_of.score(0, whole) == loss_of.score(0, whole[:4])
    assert loss_of.score(0, whole[:3]) == loss_of.score(0, [*whole[:3], ids["<NULL>"]])
    assert loss_of.score(0, whole) > 1.2 * loss_of.score(0, whole[:3]) > 0


def test_in_evaluation_mode_it_is_the_loss_of_peoples_captions(tiny_data):
    model = make(tiny_data)
    pictures = tiny_data["val_images"], tiny_data["val_captions"]
    assert critical(model, tiny_data).eval()(*pictures).item() == pytest.approx(model(*pictures).item(), rel=1e-6)


@CELLS
def test_it_learns_captions_that_score(tiny_data, cell_type):
    model, images = make(tiny_data, cell_type), tiny_data["train_images"]
    loss_of, how = critical(model, tiny_data), {"batch_size": 4, "learning_rate": 1e-2, "options": QUIET}
    solver.train(model, images, tiny_data["train_captions"], num_epochs=8, **how)  # it knows some words
    history = solver.train(model, images, torch.arange(len(images)), num_epochs=60, loss=loss_of, **how)
    first, last = sum(history.rewards[:5]) / 5, sum(history.rewards[-5:]) / 5
    assert last > 1.5 * first and last > 2
    assert history.rewards == pytest.approx(loss_of.rewards)


def test_the_reward_of_an_accumulated_batch_is_the_mean_over_its_parts(tiny_data):
    """Each part counts by its number of pictures: here two and one."""
    loss_of, images = critical(model := make(tiny_data), tiny_data), tiny_data["train_images"][:3]
    history = solver.train(
        model, images, torch.arange(len(images)), num_epochs=1, batch_size=len(images), learning_rate=1e-3,
        loss=loss_of, options=replace(QUIET, accumulate=2),
    )  # fmt: skip
    two, one = loss_of.rewards
    assert history.rewards == pytest.approx([(2 * two + one) / 3]) and two != one


class NormalizedEncoder(MeanEncoder):
    """An encoder with running statistics, which change in training mode."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(super().forward(images))


def test_timing_a_step_changes_nothing(tiny_data):
    model = make_captioner(CaptioningRNN, tiny_data, "attn", NormalizedEncoder(), 32, 16)
    loss_of, images = critical(model, tiny_data).eval(), tiny_data["train_images"]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    before, drawn = [p.clone() for p in model.parameters()], torch.get_rng_state()
    assert 0 < loss_of.time_step(images, 2, "auto") < 60
    assert all(torch.equal(old, new) and new.grad is None for old, new in zip(before, model.parameters()))
    assert torch.equal(torch.get_rng_state(), drawn) and not loss_of.training and loss_of.rewards == []
    assert statistics and all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_counting_the_references_has_a_bar(tiny_data, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0)
    critical(make(tiny_data), tiny_data, bleu=1.0)
    shown = capsys.readouterr().err
    assert "n-grams of the captions" in shown and "/4 [" in shown


@pytest.mark.parametrize("kept", [None, 1, 3])
def test_each_caption_is_trained_on_once_and_of_these_the_largest_advantages(tiny_data, kept, monkeypatch):
    pictures, drawn, given = torch.arange(4), noted_samples(monkeypatch), []
    loss_of = critical(make(tiny_data), tiny_data, samples=8, max_length=2, bleu=1.0, kept=kept)
    monkeypatch.setattr(loss_of.objective, "forward", lambda *args: given.append(args) or torch.zeros(()))
    for _ in range(5):
        loss_of(tiny_data["train_images"], pictures)
    repeats = omissions = 0
    for captions, (_, trained, weights) in zip(drawn, given):
        assert (trained[:, :, 0] == loss_of.start).all()
        for picture in range(4):
            words = [tuple(caption) for caption in captions.words[picture].tolist()]
            scores = [loss_of.score(picture, list(caption)) for caption in words]
            advantages = dict.fromkeys(words, 0.0)
            for caption, score in zip(words, scores):
                advantages[caption] += score - (sum(scores) - score) / 7
            rows = zip(trained[picture, :, 1:].tolist(), weights[picture].tolist())
            found = [(tuple(row), weight) for row, weight in rows if any(row)]
            assert all(weight == pytest.approx(advantages[row], abs=1e-5) for row, weight in found)
            assert len(found) == len(dict(found)) == min(kept or 8, len(advantages))
            others = [abs(advantage) for row, advantage in advantages.items() if row not in dict(found)]
            assert max(others, default=0) <= min(abs(weight) for _, weight in found) + 1e-5
            assert not weights[picture][(trained[picture, :, 1:] == loss_of.null).all(1)].any()
            repeats, omissions = repeats + 8 - len(advantages), omissions + len(others)
    assert repeats and bool(omissions) == (kept is not None)


@pytest.mark.parametrize("kept", [1, 5])
def test_where_all_samples_are_equal_one_is_left(tiny_data, kept, monkeypatch):
    model, drawn, given = make(tiny_data), noted_samples(monkeypatch), []
    model.output_projection.bias.data[tiny_data["vocab"]["token_to_idx"]["<END>"]] = 1e3
    loss_of = critical(model, tiny_data, samples=64, kept=kept)
    loss = loss_of(tiny_data["train_images"], torch.arange(4))
    assert (drawn[0].words == drawn[0].words[:1, :1]).all() and loss.item() == 0
    monkeypatch.setattr(loss_of.objective, "forward", lambda *args: given.append(args) or torch.zeros(()))
    loss_of(tiny_data["train_images"], torch.arange(4))
    assert ((given[0][1][:, :, 1:] != loss_of.null).any(2).sum(1) == 1).all()


@CELLS
def test_training_on_equal_samples_once_changes_no_gradient(tiny_data, cell_type, monkeypatch):
    """Of their sum of gradients. The captions left out are empty, so they take no step."""
    found = []
    for select in (selfcritical._select, lambda sampled, advantages, *others: (sampled, advantages)):
        monkeypatch.setattr(selfcritical, "_select", select)
        model, pictures = make(tiny_data, cell_type).double(), torch.arange(4)
        loss = critical(model, tiny_data, samples=8, max_length=2, bleu=1.0)(tiny_data["train_images"], pictures)
        loss.backward()
        found.append({"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    once, each = found
    assert any(value is not None and value.abs().max() > 1e-3 for value in once.values())
    for name, value in each.items():
        torch.testing.assert_close(once[name], value, rtol=1e-5, atol=1e-7)


def test_two_samples_at_least(tiny_data):
    with pytest.raises(ValueError, match="samples is 1; it must be at least 2"):
        critical(make(tiny_data), tiny_data, samples=1)
    for kept in (0, 6):
        with pytest.raises(ValueError, match=f"kept is {kept}; it must be from 1 to samples, 5, or None for all"):
            critical(make(tiny_data), tiny_data, kept=kept)


def test_it_goes_on_from_its_own_checkpoints_alone(tiny_data, tmp_path):
    def train(folder, epochs, temperature=1.0, **how):
        torch.manual_seed(7)
        selfcritical.scale_logits(model := make(tiny_data), temperature)
        images, options = tiny_data["train_images"], replace(QUIET, dropout=0.3)
        history = train_captioner(
            model, images, torch.arange(len(images)), epochs, 2, 1e-2, device="cpu", freeze_encoder=False,
            checkpoint_dir=folder, options=options, loss=critical(model, tiny_data, options, **how),
        )  # fmt: skip
        return history.losses, model.state_dict()

    whole, weights = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    parts, resumed = train(tmp_path / "parts", 4)
    assert whole == parts and all(torch.equal(weights[name], resumed[name]) for name in weights)
    with pytest.raises(CheckpointError, match="begins from: "):
        train(tmp_path / "parts", 4, temperature=0.5)
    with pytest.raises(CheckpointError, match="samples: 5 there, 4 here"):
        train(tmp_path / "parts", 4, samples=4)
    with pytest.raises(CheckpointError, match="bleu: "):
        train(tmp_path / "parts", 4, bleu=1.0)
    with pytest.raises(CheckpointError, match="kept: "):
        train(tmp_path / "parts", 4, kept=2)


def test_scaled_logits_are_those_divided_by_a_temperature(tiny_data):
    model, words = make(tiny_data), torch.tensor([4, 5])
    before, _, _ = model.step(words, model.begin(tiny_data["train_images"][:2]))
    selfcritical.scale_logits(model, 0.5)
    after, _, _ = model.step(words, model.begin(tiny_data["train_images"][:2]))
    assert torch.allclose(after, 2 * before)
    tied = make_captioner(CaptioningRNN, tiny_data, "rnn", MeanEncoder(), 16, 16)
    Objective(tied, Options(tie_embeddings=True))
    with pytest.raises(ValueError, match="tie_embeddings"):
        selfcritical.scale_logits(tied, 0.5)
