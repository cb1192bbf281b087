"""What the notebook calls: captions as text, training, captioning, checkpoints."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import helpers
from eecs598 import captioner, decoding, encoders, features
from eecs598.captioner import CELL_TYPES
from eecs598.coco import DataError, load_data, save_data
from eecs598.coco.captions import SPECIAL_TOKENS
from eecs598.metrics import evaluate_captions
from eecs598.notebook import PhotographsError
from eecs598.training import processes, run
from eecs598.training.examples import captions_together, with_mirror_images
from eecs598.training.solver import TrainingError
from rnn_lstm_captioning import CaptioningRNN

CELLS = pytest.mark.parametrize("cell_type", CELL_TYPES)
WORDS = ["<END>", "a", "<NULL>", "cat", "<START>", "<UNK>"]  # ids are looked up, never assumed
QUIET = {"device": "cpu", "options": helpers.Options(progress=False, plot=False)}


def make(data, encoder, cell_type="lstm", seed=0):
    torch.manual_seed(seed)
    return helpers.make_captioner(CaptioningRNN, data, cell_type, encoder, hidden_dim=32, wordvec_dim=16)


class ConvEncoder(torch.nn.Module):
    """A small encoder with a normalization, whose statistics move where it trains."""

    out_channels, image_size = 5, None

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8, stride=8), torch.nn.BatchNorm2d(5))

    def forward(self, images):
        return self.layers(images.to(self.layers[0].weight.dtype) / 255)


def pairs(data):
    return data["train_images"], data["train_captions"]


# --- captions as text -------------------------------------------------------------------------------------


def published_decode(captions, idx_to_word):
    """As the published notebook's function does it: word by word."""
    decoded = []
    for row in captions:
        words = []
        for i in row.tolist():
            if idx_to_word[i] != "<NULL>":
                words.append(idx_to_word[i])
            if idx_to_word[i] == "<END>":
                break
        decoded.append(" ".join(words))
    return decoded


ROWS = st.integers(1, 6).flatmap(
    lambda T: st.lists(st.lists(st.integers(0, len(WORDS) - 1), min_size=T, max_size=T), min_size=1, max_size=4)
)


@given(ROWS)
def test_captions_are_decoded_as_published(rows):
    captions = torch.tensor(rows)
    decoded = helpers.decode_captions(captions, WORDS)
    assert decoded == published_decode(captions, WORDS)
    assert decoded == helpers.decode_captions(captions, dict(enumerate(WORDS)))
    assert decoded == [helpers.decode_captions(row, WORDS) for row in captions]
    plain = helpers.decode_captions(captions, WORDS, specials=False)
    assert [text.split() for text in plain] == [
        [word for word in text.split() if word not in ("<START>", "<END>")] for text in decoded
    ]


def test_a_caption_keeps_its_end_and_nothing_after():
    ids = torch.tensor([4, 2, 1, 3, 5, 0, 1, 0, 2])
    assert helpers.decode_captions(ids, WORDS) == "<START> a cat <UNK> <END>"
    assert helpers.decode_captions(ids, WORDS, specials=False) == "a cat <UNK>"
    assert helpers.decode_captions(ids.numpy(), WORDS) == "<START> a cat <UNK> <END>"


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_captions_of_every_picture(tiny_data, split):
    tiny_data[f"{split}_references"][2] = ["a blue picture"]
    captions, index = helpers.all_captions(tiny_data, split)
    texts = helpers.decode_captions(captions, tiny_data["vocab"]["idx_to_token"], specials=False)
    assert index.tolist() == [0, 0, 1, 1, 2, 3, 3] and captions.shape == (7, 17)
    for text, row, known in zip(texts, index.tolist(), [0, 1, 0, 1, 0, 0, 1]):
        reference = tiny_data[f"{split}_references"][row][known]
        assert text == reference.replace("all over", "<UNK> <UNK>")


def test_a_file_without_references_has_one_caption_a_picture(tiny_data):
    del tiny_data["train_references"]
    captions, index = helpers.all_captions(tiny_data)
    assert torch.equal(captions, tiny_data["train_captions"]) and index.tolist() == [0, 1, 2, 3]


def test_a_data_file_is_opened_and_described(tiny_data, tmp_path, capsys):
    save_data(tiny_data, tmp_path / "tiny.pt")
    data = helpers.load_coco_captions(str(tmp_path / "tiny.pt"))
    assert torch.equal(data["train_images"], tiny_data["train_images"]) and data["vocab"] == tiny_data["vocab"]
    said = capsys.readouterr().out
    assert "train: 4 pictures (3, 32, 48), captions (4, 17)" in said and "vocabulary: 10 words" in said
    with pytest.raises(DataError, match=r"none\.pt: no such file"):
        helpers.load_coco_captions(tmp_path / "none.pt")


# --- training ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _features_beside_the_test(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FEATURES_FOLDER", tmp_path / "features")


def test_the_published_call(tiny_data, mean_encoder):
    """By position; the model that goes in comes out, with a loss for each iteration."""
    model = make(tiny_data, mean_encoder)
    trained, losses = helpers.train_captioner(model, *pairs(tiny_data), 3, 3, 1e-3, 0.9, torch.device("cpu"))
    assert trained is model and model.image_encoder is mean_encoder
    assert len(losses) == 3 * 2 and all(isinstance(loss, float) for loss in losses)


def test_the_model_is_moved_to_the_device(tiny_data, mean_encoder, monkeypatch):
    model, devices = make(tiny_data, mean_encoder), []
    move = model.to
    monkeypatch.setattr(model, "to", lambda device: devices.append(device) or move(device))
    options = {"options": QUIET["options"]}
    helpers.train_captioner(model, *pairs(tiny_data), 1, 4, 1e-3, device="cpu", **options)
    helpers.train_captioner(model, *pairs(tiny_data), 1, 4, 1e-3, **options)
    assert devices == [torch.device("cpu"), helpers.default_device()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@CELLS
def test_on_a_gpu_the_default_is_end_to_end(tiny_data, mean_encoder, cell_type):
    for freeze, moved in ((None, True), (False, True), (True, False)):
        encoder = copy.deepcopy(mean_encoder)
        model, losses = helpers.train_captioner(
            make(tiny_data, encoder, cell_type), *pairs(tiny_data), 3, 4, 1e-3,
            freeze_encoder=freeze, options=QUIET["options"],
        )  # fmt: skip
        assert next(model.parameters()).is_cuda and losses[-1] < losses[0]
        assert moved == (encoder.scale.cpu() != mean_encoder.scale)


def test_on_a_cpu_the_encoder_is_frozen_unless_told_otherwise(tiny_data):
    """Bit by bit, the statistics of its normalization included."""
    encoder = ConvEncoder()
    before = copy.deepcopy(encoder.state_dict())
    for options, frozen in (({}, True), ({"freeze_encoder": False}, False)):
        model = make(tiny_data, encoder)
        helpers.train_captioner(model, *pairs(tiny_data), 2, 4, 1e-2, **QUIET, **options)
        same = [torch.equal(value, before[name]) for name, value in encoder.state_dict().items()]
        assert same == [frozen] * len(before)
        assert model.image_encoder is encoder and encoder.training


def test_the_encoder_is_put_back_when_training_fails(tiny_data, mean_encoder):
    model = make(tiny_data, mean_encoder)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        helpers.train_captioner(model, *pairs(tiny_data), 5, 4, 1e38, **QUIET)
    assert model.image_encoder is mean_encoder
    with pytest.raises(ValueError, match="num_epochs is 0"):
        helpers.train_captioner(model, *pairs(tiny_data), 0, 4, 1e-3, **QUIET)
    assert model.image_encoder is mean_encoder


@CELLS
def test_frozen_or_not_the_loss_begins_the_same(tiny_data, mean_encoder, cell_type):
    """In training and in validation; features have bfloat16's precision where that is fast."""
    histories = []
    black = torch.zeros_like(tiny_data["train_images"]), tiny_data["train_captions"]
    for images, freeze in (
        (tiny_data["train_images"], True),
        (tiny_data["train_images"], False),
        (black[0], True),
    ):
        model = make(tiny_data, mean_encoder, cell_type, seed=2)
        model.feature_projection.weight.data *= 100  # the picture matters
        model.output_projection.weight.data *= 10
        histories.append(run.train_captioner(
            model, images, tiny_data["train_captions"], 1, 4, 1e-9, **QUIET, freeze_encoder=freeze, val_data=black))
    frozen, unfrozen, other = [history.losses + history.val_losses for history in histories]
    assert frozen == pytest.approx(unfrozen, rel=0.01)
    assert len(frozen) == 2 and abs(frozen[0] - other[0]) > 0.05 * other[0] and frozen[1] == pytest.approx(other[0])


def test_features_are_computed_once_over_several_calls(tiny_data, mean_encoder, monkeypatch):
    encoded = []
    encode = features.encode_in_batches
    monkeypatch.setattr(features, "encode_in_batches", lambda *args: encoded.append(len(args[1])) or encode(*args))
    val_data = tiny_data["val_images"][:3], tiny_data["val_captions"][:3]
    options = QUIET | {"val_data": val_data}
    for cell_type in CELL_TYPES:
        helpers.train_captioner(make(tiny_data, mean_encoder, cell_type), *pairs(tiny_data), 1, 4, 1e-3, **options)
    assert encoded == [4, 3]


def test_captions_share_pictures_by_image_index(tiny_data, mean_encoder):
    captions, index = helpers.all_captions(tiny_data)
    model, images = make(tiny_data, mean_encoder), tiny_data["train_images"]
    _, losses = helpers.train_captioner(model, images, captions, 2, 3, 1e-3, image_index=index, **QUIET)
    assert len(losses) == 2 * 3
    with pytest.raises(ValueError, match="4 images but 8 captions"):
        helpers.train_captioner(model, images, captions, 2, 3, 1e-3, **QUIET)


@CELLS
@pytest.mark.parametrize("fast", [False, True])
def test_it_memorizes_and_captions_right(tiny_data, mean_encoder, cell_type, fast):
    model, losses = helpers.train_captioner(
        make(tiny_data, mean_encoder, cell_type),
        *pairs(tiny_data),
        80,
        4,
        2e-2,
        **QUIET,
        fast=fast,
    )
    assert losses[-1] < 0.5 < losses[0]
    captions = caption(model, tiny_data, tiny_data["val_images"])[0]
    assert captions == [f"a {colour} picture" for colour in ("red", "green", "blue", "grey")]


# --- captioning -------------------------------------------------------------------------------------------


def caption(model, data, images, **options):
    """Captions and, for attention, the weights; for other cells None."""
    captioned = helpers.caption_pictures(model, images, data["vocab"]["idx_to_token"], **options)
    return captioned if isinstance(captioned, tuple) else (captioned, None)


def spread(model):
    """Make an untrained model say something else of each picture."""
    model.feature_projection.weight.data *= 20
    model.output_projection.weight.data *= 20
    return model


@CELLS
def test_batches_are_captioned_like_single_pictures(tiny_data, mean_encoder, cell_type):
    model = spread(make(tiny_data, mean_encoder, cell_type))
    images = torch.randint(0, 256, (7, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:4] = tiny_data["train_images"]
    captions, weights = caption(model, tiny_data, images)
    assert len(captions) == 7 and len(set(captions)) > 1
    assert not any(special in text for text in captions for special in SPECIAL_TOKENS[:3])
    for size in (1, 3):
        again, weights_again = caption(model, tiny_data, images, batch_size=size)
        assert again == captions
        if cell_type == "attn":
            torch.testing.assert_close(weights_again, weights)
    if cell_type == "attn":
        assert weights.shape == (7, 16, 2, 3)
    assert all(len(text.split()) <= 5 for text in caption(model, tiny_data, images, max_length=5)[0])


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_several_captions_of_each_picture(tiny_data, mean_encoder, cell_type):
    model, names = make(tiny_data, mean_encoder, cell_type), tiny_data["vocab"]["idx_to_token"]
    spread(model)
    found = helpers.decode_pictures(model, tiny_data["val_images"], 9, batch_size=3, beam_size=3)
    assert found.words.shape == (4, 3, 9) and found.log_probs.shape == (4, 3)
    best = helpers.caption_pictures(model, tiny_data["val_images"], names, 9, batch_size=3, beam_size=3)
    best = best[0] if isinstance(best, tuple) else best
    assert best == [helpers.decode_captions(words[0], names, specials=False) for words in found.words]


def test_no_pictures_to_decode(tiny_data, mean_encoder):
    with pytest.raises(ValueError, match="images is empty; pass at least one picture"):
        helpers.decode_pictures(make(tiny_data, mean_encoder), tiny_data["val_images"][:0])


def test_captioning_changes_nothing_in_the_model(tiny_data):
    model = make(tiny_data, ConvEncoder()).train()
    before = copy.deepcopy(model.state_dict())
    together = caption(model, tiny_data, tiny_data["val_images"])[0]
    assert together == [caption(model, tiny_data, image[None])[0][0] for image in tiny_data["val_images"]]
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- checkpoints ------------------------------------------------------------------------------------------


@CELLS
def test_a_checkpoint_gives_identical_captions(tiny_data, tmp_path, cell_type):
    encoder = encoders.EfficientNetLite0(16, 64).calibrate(tiny_data["train_images"])
    model = spread(make(tiny_data, encoder, cell_type)).eval()
    model.image_encoder.stem[1].running_mean += 0.1  # an encoder that was trained on, too
    helpers.save_captioner(model, tmp_path / "new" / "model.pt", tiny_data, 32, 16)
    loaded, names, preparation = helpers.load_captioner(tmp_path / "new" / "model.pt")
    assert names == tiny_data["vocab"]["idx_to_token"] and not loaded.training
    assert preparation == {"image_size": 48, "fit": "stretch"}
    captions, weights = caption(model, tiny_data, tiny_data["val_images"])
    captions_again, weights_again = caption(loaded, tiny_data, tiny_data["val_images"])
    assert captions == captions_again and len(set(captions)) > 1
    if cell_type == "attn":
        assert weights.shape == (4, 16, 4, 4) and torch.equal(weights, weights_again)


def test_a_checkpoint_of_regnet(tiny_data, tmp_path):
    encoder = encoders.ImageEncoder(pretrained=False)
    model = make(tiny_data, encoder, "attn").eval()
    tiny_data["preprocessing"] = {"image_size": 60, "fit": "crop"}
    helpers.save_captioner(model, tmp_path / "model.pt", tiny_data, 32, 16)
    loaded, _, preparation = helpers.load_captioner(tmp_path / "model.pt")
    assert preparation == tiny_data["preprocessing"]
    images = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    for value, again in zip(caption(model, tiny_data, images), caption(loaded, tiny_data, images)):
        assert torch.equal(value, again) if torch.is_tensor(value) else value == again


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint's content."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    vocab = {"idx_to_token": WORDS, "token_to_idx": {word: i for i, word in enumerate(WORDS)}}
    data = {"vocab": vocab, "train_images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}
    encoder = encoders.EfficientNetLite0(16)
    helpers.save_captioner(make(data, encoder), path, data, 32, 16)
    helpers.load_captioner(path)
    return path.read_bytes()


def assert_refused(path):
    with pytest.raises(DataError, match=r"not a captioner's checkpoint|is not available|cannot be loaded: ") as caught:
        helpers.load_captioner(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(DataError, match=r"no\.pt: no such checkpoint; `python helpers.py train"):
        helpers.load_captioner(tmp_path / "no.pt")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_prints_the_scores(rank, tiny_data, mean_encoder, monkeypatch, capsys):
    monkeypatch.setattr(processes, "current", lambda: processes.Processes(rank, 2))
    references = tiny_data["val_references"], tiny_data["vocab"]["idx_to_token"]
    scores = run._scorer(tiny_data["val_images"], *references)(make(tiny_data, mean_encoder))
    assert set(scores) >= {"BLEU-4", "CIDEr-D"} and capsys.readouterr().out.startswith("val, greedy: ") == (rank == 0)


def test_a_captioner_of_another_file_says_so(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "model.pt").write_bytes(checkpoint)

    class Other(CaptioningRNN):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.spare = torch.nn.Linear(2, 2)

    with pytest.raises(DataError, match=r"model\.pt: this captioner cannot be loaded: it has other parameters than "
                                        r"this Other, such as spare\.bias; use the rnn_lstm_captioning\.py"):
        captioner.load_captioner(tmp_path / "model.pt", Other)


def test_damaged_checkpoints(checkpoint, tmp_path):
    path = tmp_path / "model.pt"
    half = checkpoint[: len(checkpoint) // 2]
    scribbled = checkpoint[:400] + bytes(range(256)) + checkpoint[656:]
    for content in (b"", b"<html>not here</html>", b"PK\x03\x04", checkpoint[:1000], half, scribbled):
        path.write_bytes(content)
        assert_refused(path)


def test_files_that_are_no_checkpoints(tiny_data, tmp_path):
    path = tmp_path / "model.pt"
    foreign = {"model": 1, "vocab": 2, "encoder": 3}
    for content in (tiny_data, torch.zeros(3), [1, 2], {}, None, "text", CaptioningRNN, foreign):
        torch.save(content, path)
        assert_refused(path)


@pytest.mark.parametrize(
    "part, change",
    [
        ("model", {"hidden_dim": 31}), ("model", {"cell_type": "gru"}), ("model", {"depth": 2}), ("model", None),
        ("vocab", {"token_to_idx": {"a": 0}}), ("vocab", []), ("encoder", {"stride": 8}), ("encoder", {"name": "VGG"}),
        ("preprocessing", None), ("state", None), ("state", {"cell.Wx": "a word"}),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit_together(checkpoint, tmp_path, part, change):
    (tmp_path / "good.pt").write_bytes(checkpoint)
    content = torch.load(tmp_path / "good.pt", weights_only=True)
    content[part] = content[part] | change if isinstance(change, dict) else change
    torch.save(content, tmp_path / "model.pt")
    assert_refused(tmp_path / "model.pt")


# --- the data by one switch -------------------------------------------------------------------------------


def test_scenes_are_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr(helpers, "DATASETS", tmp_path)
    first = helpers.open_data("scenes", 4, 2)
    monkeypatch.setattr(helpers, "make_scenes", None)  # a second time would fail
    assert torch.equal(helpers.open_data("scenes", 4, 2)["train_images"], first["train_images"])
    assert helpers.open_data(tmp_path / "scenes-4-2.pt")["vocab"] == first["vocab"]


def test_scenes_that_a_drive_cut_short_are_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(helpers, "DATASETS", tmp_path)
    (tmp_path / "scenes-4-2.pt").write_bytes(b"")
    data = helpers.open_data("scenes", 4, 2)
    assert "note: the scenes are drawn again" in capsys.readouterr().out
    assert torch.equal(load_data(tmp_path / "scenes-4-2.pt")["train_images"], data["train_images"])


def test_in_a_folder_that_is_read_only_scenes_are_drawn_and_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(helpers, "DATASETS", tmp_path / "gone")
    data = helpers.open_data("scenes", 4, 2)
    assert len(data["train_images"]) == 4 and not (tmp_path / "gone").exists()
    note, train, *_ = capsys.readouterr().out.splitlines()
    assert note.startswith("note: the scenes cannot be saved and are drawn again") and train.startswith("train: 4")


def test_photographs_are_opened_from_the_source_that_has_them(tiny_data, tmp_path, monkeypatch, capsys):
    helpers.coco.save_data(tiny_data, tmp_path / "mine.pt")
    monkeypatch.setenv("EECS598_PHOTOS", str(tmp_path / "mine.pt"))
    assert torch.equal(helpers.open_photographs()["train_images"], tiny_data["train_images"])
    named, train, *_ = capsys.readouterr().out.splitlines()
    assert named.endswith("mine.pt: named by EECS598_PHOTOS") and train.startswith("train: 4 pictures")
    asked = []
    monkeypatch.setattr(helpers.coco, "find_photographs", lambda *wanted: asked.append(wanted))
    with pytest.raises(PhotographsError, match="there are no photographs"):
        helpers.open_photographs(tmp_path, 30, 20, minutes=2)
    assert asked == [(tmp_path, 30, 20, 2)]


# --- all captions, scores and practice ----------------------------------------------------------------------


def test_captions_together_are_all_captions_by_picture(tiny_data):
    tiny_data["train_references"][1] = ["green", "a green thing", "green all over"]
    together, (captions, index) = captions_together(tiny_data), helpers.all_captions(tiny_data)
    assert together.shape == (4, 3, 17)
    for row in range(4):
        own = captions[index == row]
        assert torch.equal(together[row], own[torch.arange(3) % len(own)])


@pytest.mark.parametrize("references", [True, False])
def test_mirror_images_come_with_their_pictures_captions(tiny_data, references):
    tiny_data["train_images"] = torch.randint(0, 256, tiny_data["train_images"].shape, dtype=torch.uint8)
    if not references:  # as coco.pt
        del tiny_data["train_references"]
    doubled = with_mirror_images(tiny_data)
    n = len(tiny_data["train_images"])
    assert torch.equal(doubled["train_images"][:n], tiny_data["train_images"])
    for y, x in ((0, 0), (3, 1)):
        assert torch.equal(doubled["train_images"][n:, :, y, x], tiny_data["train_images"][:, :, y, -1 - x])
    (captions, index), (plain, rows) = helpers.all_captions(doubled), helpers.all_captions(tiny_data)
    assert torch.equal(captions, torch.cat([plain, plain])) and torch.equal(index, torch.cat([rows, rows + n]))
    assert torch.equal(doubled["train_captions"], torch.cat([tiny_data["train_captions"]] * 2))
    assert len(tiny_data["train_images"]) == n and doubled["val_images"] is tiny_data["val_images"]


@CELLS
def test_a_captioner_is_scored_against_all_that_people_said(tiny_data, mean_encoder, cell_type):
    model = make(tiny_data, mean_encoder, cell_type)
    captions, found = helpers.score_captioner(model, tiny_data, beam_size=2)
    sampled = helpers.caption_pictures(model, tiny_data["val_images"], tiny_data["vocab"]["idx_to_token"], beam_size=2)
    assert captions == (sampled[0] if cell_type == "attn" else sampled)
    assert found == evaluate_captions(captions, tiny_data["val_references"])


@CELLS
def test_scores_while_training_are_those_of_greedy_captions(tiny_data, mean_encoder, cell_type, capsys):
    names, model = tiny_data["vocab"]["idx_to_token"], make(tiny_data, mean_encoder, cell_type)
    history = run.train_captioner(
        model, *pairs(tiny_data), 2, 2, 1e-2, freeze_encoder=False, **QUIET,
        val_data=(tiny_data["val_images"], tiny_data["val_captions"]),
        val_references=(tiny_data["val_references"], names),
    )  # fmt: skip
    scores = history.val_scores
    assert len(scores) == 2 and scores[-1] == helpers.score_captioner(model, tiny_data)[1].scores
    assert f"CIDEr-D {scores[-1]['CIDEr-D']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("frozen", [True, False])
def test_the_mirror_image_goes_beside_its_picture(tiny_data, mean_encoder, frozen, monkeypatch):
    model, seen, decode = make(tiny_data, mean_encoder.requires_grad_(not frozen)), [], decoding.decode

    def decode_and_note(model, part, **how):
        seen.append(part)
        return decode(model, part, **how)

    monkeypatch.setattr(decoding, "decode", decode_and_note)
    images = torch.randint(0, 256, tiny_data["val_images"].shape, dtype=torch.uint8)
    captions = helpers.caption_pictures(model, images, tiny_data["vocab"]["idx_to_token"], beam_size=2, mirror=True)
    (part,) = seen
    assert len(captions) == len(images) and part.shape[:2] == (len(images), 2)
    torch.testing.assert_close(part[:, 1], part[:, 0].flip(-1))  # of this encoder's features too
    wanted = mean_encoder(images) if frozen else images
    torch.testing.assert_close(part[:, 0], wanted.to(part.dtype), rtol=1e-2, atol=0)


# --- own photographs ---------------------------------------------------------------------------------------


def test_photographs_from_a_path_an_address_and_bytes(tmp_path, serve):
    path, address = tmp_path / "red.png", serve(tmp_path)
    Image.new("RGB", (90, 31), (200, 30, 30)).save(path)
    images = helpers.read_photographs([path, str(path), f"{address}/red.png", path.read_bytes()], 40, "stretch")
    assert images.shape == (4, 3, 40, 40) and images.dtype == torch.uint8
    assert (images == torch.tensor([200, 30, 30], dtype=torch.uint8).view(1, 3, 1, 1)).all()
    with pytest.raises(DataError, match=r"none.png: cannot be downloaded \(HTTPError: 404"):
        helpers.read_photographs([f"{address}/none.png"])
    with pytest.raises(DataError, match="there are no photographs to read; give at least one"):
        helpers.read_photographs([])
    for source in (b"no picture", tmp_path / "none.png"):
        with pytest.raises(DataError):
            helpers.read_photographs([source])


# --- names of runs ----------------------------------------------------------------------------------------


def test_other_code_or_other_captions_start_a_new_run(tmp_path, tiny_data):
    module = SimpleNamespace(__file__=str(tmp_path / "rnn_lstm_captioning.py"))
    names = []
    for source, captions in [("a = 1", 0), ("a = 1", 0), ("a = 2", 0), ("a = 1", 1)]:
        Path(module.__file__).write_text(source)
        names.append(helpers.fingerprint(module, {"train_captions": tiny_data["train_captions"] + captions}))
    assert names[0] == names[1] and len(set(names)) == 3 and all(re.fullmatch("[0-9a-f]{8}", name) for name in names)
