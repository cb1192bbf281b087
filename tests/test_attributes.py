"""Attributes: the regression by its definition, the encoder that has them, in training, in the commands."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.encoder import OtherEncoder, SidedEncoder

import rnn_lstm_captioning as rlc
from eecs598 import attributes, captioner, coco, decoding, encoders, features
from eecs598.attributes import RIDGE, add_attributes, fit
from eecs598.cli.command import main
from eecs598.encoders import WithAttributes, append_channels, describe_grids, join, normalize_described
from eecs598.reranking import Reranker, reorder
from eecs598.training.options import Options
from eecs598.training.run import train_captioner

SPECIAL = (0, 1, 2, 3)
QUIET = {"progress": False, "plot": False}


def random_data(n, M, C, K=3, T=6, vocabulary=9):
    torch.manual_seed(0)
    return torch.randn(n, M, C), torch.randint(0, vocabulary, (n, K, T))


def standardized_shares(captions, words):
    """The share of each picture's captions with each word, standardized, in plain Python."""
    shares = [[sum(word in text for text in texts) / len(texts) for word in words] for texts in captions.tolist()]
    shares = np.array(shares)
    return (shares - shares.mean(0)) / shares.std(0, ddof=1).clip(1e-6)


# --- the regression ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, M, C", [(7, 2, 3), (2, 1, 1), (5, 4, 6), (40, 2, 5)])
def test_each_training_picture_is_predicted_by_a_fit_to_the_others(n, M, C):
    described, captions = random_data(n, M, C)
    found = fit(described, captions, SPECIAL, 3)
    X = normalize_described(described, described.mean(0)).double().numpy()
    Y = standardized_shares(captions, found.words.tolist())

    def solve(rows):
        return np.linalg.solve(X[rows].T @ X[rows] + RIDGE * np.eye(M * C), X[rows].T @ Y[rows])

    every = np.arange(n)
    held_out = np.stack([X[i] @ solve(every[every != i]) for i in every])
    scale = held_out.std(ddof=1)
    np.testing.assert_allclose(found.held_out, held_out / scale, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.weight, solve(every) / scale, rtol=1e-3, atol=1e-4)
    assert found.explained == pytest.approx(1 - ((held_out - Y) ** 2).sum() / (Y**2).sum(), abs=1e-4)
    assert torch.equal(found.center, described.mean(0))


def test_the_words_are_those_of_the_most_captions():
    """A word counts once a caption, however often it occurs there; special tokens do not count."""
    captions = torch.tensor([[[1, 7, 7, 7, 2, 0], [1, 5, 6, 2, 0, 0]], [[1, 6, 5, 2, 0, 0], [1, 6, 3, 3, 2, 0]]])
    described = torch.randn(2, 1, 4)
    assert fit(described, captions, SPECIAL, 2).words.tolist() == [6, 5]
    found = fit(described, captions, SPECIAL, 9)
    assert found.words.tolist() == [6, 5, 7]  # no more occur
    assert found.weight.shape == (4, 3) and found.held_out.shape == (2, 3)


def test_a_word_that_all_pictures_share_says_nothing():
    captions = torch.tensor([[[1, 5, 6, 2]], [[1, 5, 7, 2]], [[1, 5, 6, 2]]])
    found = fit(torch.randn(3, 2, 4), captions, SPECIAL, 3)
    assert found.words.tolist()[0] == 5 and found.held_out[:, 0].abs().max() == 0
    assert all(part.isfinite().all() for part in found[1:4]) and math.isfinite(found.explained)


@pytest.mark.parametrize("pictures, captioned", [(1, 1), (3, 2)])
def test_what_it_cannot_be_fitted_to_is_refused(pictures, captioned):
    said = f"at least 2 pictures, with captions of each; seen {pictures} pictures and captions of {captioned}"
    with pytest.raises(ValueError, match=said):
        fit(torch.randn(pictures, 2, 3), torch.ones(captioned, 1, 4, dtype=torch.int64), SPECIAL, 2)


# --- an encoder with attributes ---------------------------------------------------------------------------


def pictures(n):
    return torch.rand(n, 3, 32, 48).mul(255).to(torch.uint8)


@pytest.fixture(scope="module")
def lite():
    return encoders.EfficientNetLite0().calibrate(torch.rand(2, 3, 64, 64)).requires_grad_(False)


@pytest.fixture
def encoder():
    """An encoder of 3 channels and 5 attributes, which come from encoders of 4 and 3 channels."""
    torch.manual_seed(1)
    others = [OtherEncoder(image_size=24), SidedEncoder()]
    return WithAttributes(SidedEncoder().requires_grad_(False), others, torch.randn(4, 4), torch.randn(16, 5))


def test_the_attributes_follow_the_grid(encoder):
    images = pictures(3)
    found = encoder(images)
    assert found.shape == (3, 8, 2, 3) and encoder.out_channels == 8
    torch.testing.assert_close(found[:, :3], SidedEncoder()(images))
    described = features.describe_pictures(encoder.others, images)
    wanted = normalize_described(described, encoder.center) @ encoder.weight
    torch.testing.assert_close(found[:, 3:], wanted[:, :, None, None].expand(-1, -1, 2, 3), rtol=0.01, atol=0.01)
    assert encoders.is_frozen(encoder)


def test_features_in_a_file_are_the_same(tmp_path):
    grids = torch.randn(300, 3, 2, 3).half()  # more than one part
    given = torch.arange(600.0).view(300, 2) / 8
    found = features.with_attributes(grids, given, tmp_path)
    assert torch.equal(found[:, :3], grids) and torch.equal(found[:, 3:, 1, 2].float(), given)
    assert found.dtype == torch.float16 and not any(tmp_path.iterdir())  # nothing is left there


def test_where_no_file_can_be_written_features_are_kept_in_memory(tmp_path, small_disk, capsys):
    """Where there is no folder, and on a disk that is too small."""
    (tmp_path / "file").touch()
    grids, given = torch.randn(300, 300, 2, 3).half(), torch.randn(300, 2)
    for folder in (tmp_path / "file", small_disk[0]):
        found = features.with_attributes(grids, given, folder)
        assert torch.equal(found, append_channels(grids, given))
        said = f"warning: image features with attributes are kept in memory, as {folder} cannot be written ("
        assert capsys.readouterr().err.startswith(said)


def test_normalization_is_folded_in_every_part():
    lite = encoders.EfficientNetLite0()
    whole = WithAttributes(lite, [encoders.EfficientNetLite0()], torch.zeros(2, 1280), torch.randn(2560, 2)).eval()
    folded = features.fold_normalization(whole)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in whole.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d)
                   for module in features.fold_normalization(encoders.Described(lite)).modules())  # fmt: skip
    images = pictures(2)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), whole(images), rtol=1e-2, atol=1e-3)


def test_a_tail_passes_attributes_on(lite, tiny_data, tmp_path):
    whole = WithAttributes(lite, [SidedEncoder()], torch.zeros(2, 3), torch.randn(6, 2))
    model = captioner.make_captioner(rlc.CaptioningRNN, tiny_data, "attn", whole, 8, 4)
    (front, tail), images = lite.split(1), pictures(2)
    with torch.no_grad(), features.fed_with_features(model, tail):
        described = features.describe_pictures(whole.others, images)
        given = features.with_attributes(front(images).half(), whole.predict(described), tmp_path)
        found = encoders.get_encoder(model)(given)
        torch.testing.assert_close(found, whole(images), rtol=0.02, atol=0.02)
        assert encoders.get_encoder(model).out_channels == 1282 and found[:, 1280:].abs().max() > 0.1


def test_it_is_rebuilt_from_its_description(encoder, known_encoder):
    names = {"SidedEncoder": "known", "OtherEncoder": "other"}
    assert set(names.values()) <= encoders.ENCODERS.keys()
    again = encoders.rebuild_encoder(encoders.describe_encoder(encoder))
    again.load_state_dict(encoder.state_dict())
    images = pictures(2)
    assert torch.equal(again(images), encoder(images)) and encoders.is_frozen(again)
    assert again.others[0].image_size == 24


@pytest.mark.parametrize("mirror", [False, True])
def test_captions_are_those_for_the_attributes_of_the_picture(mirror, encoder, tiny_data, monkeypatch):
    """Its mirror image has the same ones. The other encoders see a picture once, also where captions are reranked."""
    torch.manual_seed(0)
    model = captioner.make_captioner(rlc.CaptioningRNN, tiny_data, "attn", encoder, 8, 4).eval()
    captions = tiny_data["train_captions"].unsqueeze(1)
    model.reranker = Reranker(torch.randn(4, 6, 4), captions, SPECIAL[:3], ["other", "known"])
    images, seen = pictures(5), []
    with torch.no_grad():
        described = features.describe_pictures(encoder.others, images)
        grids = [features.encode_images(encoder.encoder, view)
                 for view in ([images, images.flip(-1)] if mirror else [images])]  # fmt: skip
        views = torch.stack([append_channels(grid, encoder.predict(described)) for grid in grids], dim=1)
        with features.fed_with_features(model):
            plain = decoding.decode(decoding.Mirrored(model) if mirror else model, views if mirror else views[:, 0],
                                    max_length=5, beam_size=6)  # fmt: skip
        own = torch.stack([describe_grids(grid.float()) for grid in grids]).mean(0)
        scores = model.reranker.score(join([own, described]), plain.words)
    wanted = reorder(plain, scores, (plain.words != model.null).sum(2), 100.0)
    for other in encoder.others:
        other.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    found = captioner.decode_pictures(model, images, 5, batch_size=2, beam_size=6, mirror=mirror, rerank=100.0)
    assert sum(seen) == len(encoder.others) * len(images)
    assert torch.equal(found.words, wanted.words) and not torch.equal(plain.words, wanted.words)
    again = captioner.decode_pictures(model, images, 5, beam_size=6, mirror=mirror)
    torch.testing.assert_close(again.log_probs, plain.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=1e-5, atol=1e-5)


# --- in training ------------------------------------------------------------------------------------------


def train(model, data, folder, **how):
    return train_captioner(
        model, data["train_images"], data["train_captions"], 2, 2, 1e-2, device="cpu", fast=True,
        val_data=(data["val_images"], data["val_captions"]), features_folder=folder, options=Options(**QUIET), **how,
    )  # fmt: skip


@pytest.mark.parametrize("blocks", [0, 1])
def test_training_pictures_have_given_attributes_and_others_their_own(blocks, tiny_data, tmp_path, lite, monkeypatch):
    """The captioner on validation pictures is the one whose loss was recorded; it is saved with its attributes."""
    monkeypatch.setattr(features, "fast_dtype", lambda device: torch.float32)
    torch.manual_seed(0)
    captions, others = tiny_data["train_captions"].unsqueeze(1), [OtherEncoder(image_size=24), SidedEncoder()]
    encoder, found = add_attributes(lite, others, tiny_data["train_images"], captions, SPECIAL, 4)
    assert found.held_out.shape == (4, 4)
    model = captioner.make_captioner(rlc.CaptioningRNN, tiny_data, "attn", encoder, 8, 4)
    given, seen = torch.randn(4, 4), []
    history = train(model, tiny_data, tmp_path, attributes=given, finetune_blocks=blocks,
                    after_epoch=lambda _, images: seen.append(images.clone()))
    torch.testing.assert_close(seen[-1][:, -4:, 0, 0].float(), given, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        loss = model.eval()(tiny_data["val_images"], tiny_data["val_captions"])
    assert loss.item() == pytest.approx(history.val_losses[-1], rel=2e-3)  # features are kept in half precision
    assert encoders.get_encoder(model) is encoder and encoders.is_frozen(encoder)


def test_without_given_attributes_they_are_predicted(tiny_data, tmp_path, encoder):
    model = captioner.make_captioner(rlc.CaptioningRNN, tiny_data, "attn", encoder, 8, 4)
    seen = []
    train(model, tiny_data, tmp_path, after_epoch=lambda _, images: seen.append(images.clone()))
    torch.testing.assert_close(seen[-1].float(), encoder(tiny_data["train_images"]), rtol=0.01, atol=0.01)


def test_an_encoder_with_attributes_cannot_be_trained_as_a_whole(tiny_data, tmp_path, encoder):
    model = captioner.make_captioner(rlc.CaptioningRNN, tiny_data, "attn", encoder, 8, 4)
    with pytest.raises(ValueError, match="with attributes cannot be trained as a whole; give freeze_encoder=True"):
        train(model, tiny_data, tmp_path, freeze_encoder=False)
    assert encoders.is_frozen(encoder) and not any(tmp_path.iterdir())


# --- in the commands --------------------------------------------------------------------------------------


COMMAND = ["--cell", "attn", "--epochs", "60", "--learning-rate", "0.02", "--hidden", "16", "--wordvec", "8",
           "--captions", "together"]  # fmt: skip
FURTHER = ["--further-encoders", "other", "known"]


@pytest.mark.parametrize("mirror", [[], ["--mirror"]])
def test_the_commands_train_and_use_them(mirror, tmp_path, tiny_data, known_encoder, monkeypatch, capsys):
    tiny_data["train_images"][:, :, :, :16] //= 2  # so that mirror images differ
    coco.save_data(tiny_data, tmp_path / "data.pt")
    found, given = [], []
    monkeypatch.setattr(attributes, "fit", lambda *args: found.append(fit(*args)) or found[-1])
    whole = features.with_attributes
    monkeypatch.setattr(features, "with_attributes", lambda *args: given.append(args[1]) or whole(*args))
    command = ["train", "--data", str(tmp_path / "data.pt"), "--out", str(tmp_path), *COMMAND, "--attributes", "6",
               *FURTHER, "--reranker", *mirror]  # fmt: skip
    assert main(command, rlc.CaptioningRNN) == 0, capsys.readouterr().err
    said = "attributes: 6 words (a, picture, blue, green, grey, ...), predicted for pictures held out with an R^2 of "
    assert said in (out := capsys.readouterr().out), out
    (regression,) = found
    assert torch.equal(given[0], torch.cat([regression.held_out] * (2 if mirror else 1)))
    model, idx_to_token, _ = captioner.load_captioner(tmp_path / "attn.pt", rlc.CaptioningRNN)
    assert encoders.get_encoder(model).out_channels == 3 + 6
    assert model.reranker.features.shape == (4, 6, 4)  # without the attributes
    assert {idx_to_token[word] for word in regression.words} >= {"red", "green", "blue", "grey"}
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 48), "red").save(photo)
    options = {"beam_size": 8, "beam_temperature": 2.0, "rerank": 0.01}
    caption, _ = captioner.caption_pictures(model, captioner.read_photographs([photo], 32), idx_to_token, **options)
    assert main(["caption", "--checkpoint", str(tmp_path / "attn.pt"), "--out", str(tmp_path / "maps"), str(photo),
                 "--beam", "8", "--beam-temperature", "2", "--rerank", "0.01"], rlc.CaptioningRNN) == 0  # fmt: skip
    assert caption[0] and caption[0] in capsys.readouterr().out


@pytest.mark.parametrize("options, said", [
    ([], "--attributes needs --further-encoders, such as lite0 lite1, to predict them from"),
    ([*FURTHER, "--no-freeze-encoder"], "--attributes needs --freeze-encoder"),
])  # fmt: skip
def test_attributes_that_cannot_be_had_are_refused(options, said, tmp_path, tiny_data, known_encoder, capsys):
    coco.save_data(tiny_data, tmp_path / "data.pt")
    command = ["train", "--data", str(tmp_path / "data.pt"), "--out", str(tmp_path), *COMMAND, "--attributes", "5"]
    assert main([*command, *options], rlc.CaptioningRNN) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "attn.pt").exists()
