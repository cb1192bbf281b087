"""A student's file for the published assignment runs in the place of ours, and ours offers all that theirs does."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import ROOT

import helpers
import rnn_lstm_captioning as ours
from eecs598 import encoders, features, grad, utils
from eecs598.checks import CHECKS, published
from eecs598.coco import save_data
from eecs598.grad import rel_error

STUDENT = ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py"
QUIET = helpers.Options(progress=False, plot=False)
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])

# The names, argument order and defaults that the project's design fixes.
PUBLISHED = """
rnn_step_forward(x, prev_h, Wx, Wh, b)
rnn_step_backward(dnext_h, cache)
rnn_forward(x, h0, Wx, Wh, b)
rnn_backward(dh, cache)
RNN(input_dim, hidden_dim)
RNN.forward(self, x, h0)
RNN.step_forward(self, x, prev_h)
WordEmbedding(vocab_size, embed_size)
WordEmbedding.forward(self, x)
temporal_softmax_loss(x, y, ignore_index=None)
ImageEncoder(pretrained=True, verbose=True)
ImageEncoder.forward(self, images)
CaptioningRNN(word_to_idx, input_dim=512, wordvec_dim=128, hidden_dim=128, cell_type="rnn", \
image_encoder_pretrained=True, ignore_index=None)
CaptioningRNN.forward(self, images, captions)
CaptioningRNN.sample(self, images, max_length=15)
LSTM(input_dim, hidden_dim)
LSTM.step_forward(self, x, prev_h, prev_c)
LSTM.forward(self, x, h0)
dot_product_attention(prev_h, A)
AttentionLSTM(input_dim, hidden_dim)
AttentionLSTM.step_forward(self, x, prev_h, prev_c, attn)
AttentionLSTM.forward(self, x, A)
"""
NEW = """
lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b)
lstm_step_backward(dnext_h, dnext_c, cache)
lstm_forward(x, h0, c0, Wx, Wh, b)
lstm_backward(dh, cache)
dot_product_attention_backward(dattn, prev_h, A, attn_weights)
attention_lstm_step_forward(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b)
attention_lstm_step_backward(dnext_h, dnext_c, cache)
attention_lstm_forward(x, A, Wx, Wh, Wattn, b)
attention_lstm_backward(dh, cache)
word_embedding_forward(x, W_embed)
word_embedding_backward(dout, cache)
temporal_affine_forward(h, W, b)
temporal_affine_backward(dout, cache)
temporal_softmax_backward(x, y, ignore_index=None)
"""
LIBRARY = {
    "load_coco_captions(path)": helpers,
    "train_captioner(model, image_data, caption_data, num_epochs, batch_size, learning_rate, "
    "lr_decay=1, device)": helpers,
    "decode_captions(captions, idx_to_word)": helpers,
    "compute_numeric_gradient(f, x, dLdf, h)": grad,
    "rel_error(x, y, eps)": grad,
    "reset_seed(n)": utils,
    "attention_visualizer(img, attn_weights, token)": utils,
}
PUBLISHED_CHECKS = [
    "rnn_step_forward", "rnn_step_backward", "rnn_forward", "rnn_backward", "rnn_module", "word_embedding_module",
    "temporal_softmax_loss", "rnn_captioner_loss", "rnn_captioner_sample", "lstm_module", "lstm_captioner_loss",
    "lstm_captioner_sample", "dot_product_attention", "attention_lstm_module", "attn_captioner_loss",
    "attn_captioner_sample",
]  # fmt: skip


class ColourEncoder(torch.nn.Module):
    """The mean colour of each cell of a 4 x 4 grid: the published starter code's sample() has room for that one."""

    out_channels, image_size = 3, None

    def forward(self, images):
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return torch.nn.functional.adaptive_avg_pool2d(images, 4)


@pytest.fixture
def student(monkeypatch):
    """The student's file, imported under our file's name and in its place."""
    encoders.import_torchvision()
    spec = importlib.util.spec_from_file_location("rnn_lstm_captioning", STUDENT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rnn_lstm_captioning", module)
    spec.loader.exec_module(module)
    return module


def describe(model, data, images):
    """The model's captions, without attention weights."""
    captions = helpers.caption_pictures(model, images, data["vocab"]["idx_to_token"])
    return captions[0] if isinstance(captions, tuple) else captions


def make_student(student, data, cell_type, encoder):
    """The student's captioner with `encoder` in it."""
    torch.manual_seed(0)
    return helpers.make_captioner(student.CaptioningRNN, data, cell_type, encoder, hidden_dim=48, wordvec_dim=16)


def lines(table):
    return table.split("\n")[1:-1]


# --- names ------------------------------------------------------------------------------------------------


def assert_offers(module, signature):
    """`module` has that name with those arguments first, those defaults, and defaults for any argument beyond."""
    name, arguments = re.fullmatch(r"([\w.]+)\((.*)\)", signature).groups()
    seen = list(inspect.signature(attrgetter(name)(module)).parameters.values())
    wanted = [argument.split("=") for argument in arguments.split(", ")]
    assert [parameter.name for parameter in seen[: len(wanted)]] == [argument[0] for argument in wanted]
    for parameter, (_, *default) in zip(seen, wanted):
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert not default or repr(parameter.default) == default[0].replace('"', "'")
    assert all(parameter.default is not parameter.empty for parameter in seen[len(wanted) :])


@pytest.mark.parametrize("signature", lines(PUBLISHED) + lines(NEW))
def test_our_file_offers_the_names_of_the_design(signature):
    assert_offers(ours, signature)


@pytest.mark.parametrize("signature", lines(PUBLISHED))
def test_the_students_file_is_one_of_the_published_assignment(student, signature):
    assert_offers(student, signature)


def test_the_students_file_has_nothing_of_ours(student):
    assert not [line for line in lines(NEW) if hasattr(student, line.split("(")[0])]
    assert "eecs598" not in re.findall(r"^(?:from|import) (\w+)", STUDENT.read_text(), re.MULTILINE)


@pytest.mark.parametrize("signature", list(LIBRARY))
def test_the_library_offers_the_published_names(signature):
    name, arguments = signature.split("(", 1)
    if name == "reset_seed":  # called with one positional argument wherever the notebook does
        assert len(inspect.signature(utils.reset_seed).parameters) == 1
    else:
        assert_offers(LIBRARY[signature], signature)


NOTEBOOK = "import helpers, rnn_lstm_captioning; print(rnn_lstm_captioning.__file__)"
COMMAND = f"""
import inspect, runpy
captioner_class = runpy.run_path({str(ROOT / "helpers.py")!r})["_captioner_class"]()
print(inspect.getfile(captioner_class))
"""


@pytest.mark.parametrize("program", [NOTEBOOK, COMMAND], ids=["notebook", "command"])
def test_the_students_file_is_imported_with_its_torchvision(program):
    """In a fresh interpreter, from a folder with the student's file in it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=STUDENT.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == STUDENT


# --- the same mathematics ---------------------------------------------------------------------------------


def test_the_published_checks_are_those_that_the_students_file_can_take(student):
    taken = [name for name, check in CHECKS.items() if all(hasattr(student, need) for need in check.needs)]
    assert taken == PUBLISHED_CHECKS


@pytest.mark.parametrize("part", PUBLISHED_CHECKS)
def test_the_students_file_passes_the_published_checks(student, part):
    assert CHECKS[part].run(*(getattr(student, name) for name in CHECKS[part].needs)).passed


@pytest.mark.parametrize("name", ["RNN", "LSTM", "AttentionLSTM"])
def test_modules_exchange_weights_and_give_the_same(student, name):
    torch.manual_seed(0)
    our_cell, their_cell = getattr(ours, name)(4, 6).double(), getattr(student, name)(4, 6).double()
    their_cell.load_state_dict(our_cell.state_dict())
    start = torch.randn(3, 6, 2, 5) if name == "AttentionLSTM" else torch.randn(3, 6)
    x, start = torch.randn(3, 7, 4).double(), start.double()
    assert rel_error(our_cell(x, start), their_cell(x, start)) < 1e-12


@CELLS
def test_captioners_exchange_weights_and_give_the_same(student, cell_type, tiny_data):
    images, captions = tiny_data["train_images"].double() / 255, tiny_data["train_captions"]
    model, theirs = (
        helpers.make_captioner(module.CaptioningRNN, tiny_data, cell_type, ColourEncoder(), 12, 5).double()
        for module in (ours, student)
    )
    names = {
        "affine": "feature_projection",
        "embed": "word_embedding",
        "rnn": "cell",
        "temporal": "output_projection",
    }
    for part, our_part in names.items():
        for name, parameter in getattr(theirs, part).named_parameters():
            parameter.data = getattr(model, our_part).get_parameter(name).data.view_as(parameter).clone()
    assert rel_error(model(images, captions), theirs(images, captions)) < 1e-12
    assert describe(model, tiny_data, images) == describe(theirs, tiny_data, images)


@CELLS
def test_our_captioner_has_the_losses_of_the_published_cells(cell_type):
    """Their pictures go from -3 to 3, their vocabulary has no <START>, and their captions are not sentences."""
    model = ours.CaptioningRNN(
        {"<NULL>": 0, "cat": 2, "dog": 3}, input_dim=400, wordvec_dim=30, hidden_dim=40, cell_type=cell_type,
        image_encoder_pretrained=False, ignore_index=0,
    )  # fmt: skip
    for value in model.parameters():
        value.data.copy_(torch.linspace(-1.4, 1.3, value.numel()).view_as(value))
    images = torch.linspace(-3.0, 3.0, 10 * 3 * 112 * 112).view(10, 3, 112, 112)
    captions = (torch.arange(10 * 13) % 3).view(10, 13)
    assert rel_error(model(images, captions).item(), published.LOSSES[cell_type]) < published.LOSS_LIMIT


# --- training ---------------------------------------------------------------------------------------------


@CELLS
def test_it_trains_on_features_and_captions(student, cell_type, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FEATURES_FOLDER", tmp_path)
    encoder = ColourEncoder()
    model = make_student(student, tiny_data, cell_type, encoder)
    images = tiny_data["train_images"]
    model, losses = helpers.train_captioner(
        model, images, tiny_data["train_captions"], 80, 4, 2e-2, 1, "cpu",
        freeze_encoder=True, options=QUIET,
    )  # fmt: skip
    assert len(losses) == 80 and losses[-1] < 0.5 < losses[0]
    assert len(list(tmp_path.glob("*.npy"))) == 1 and model.cnn is encoder
    assert describe(model, tiny_data, images) == [texts[0] for texts in tiny_data["train_references"]]


@CELLS
def test_it_trains_from_end_to_end_with_its_own_encoder(student, cell_type, tiny_data):
    encoder = student.ImageEncoder(pretrained=False, verbose=False)
    model = make_student(student, tiny_data, cell_type, encoder)
    before = [parameter.clone() for parameter in encoder.parameters()]
    model, losses = helpers.train_captioner(
        model, tiny_data["train_images"], tiny_data["train_captions"], 8, 4, 1e-2,
        freeze_encoder=False, options=QUIET,
    )  # fmt: skip
    assert losses[-1] < 0.85 * losses[0]
    assert not any(torch.equal(old, new) for old, new in zip(before, encoder.backbone.parameters()))


def test_it_serves_the_commands(student, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "FEATURES_FOLDER", tmp_path / "features")
    save_data(tiny_data, tmp_path / "tiny.pt")
    assert helpers.main(
        ["train", "--data", str(tmp_path / "tiny.pt"), "--out", str(tmp_path), "--cell", "lstm", "--epochs", "2"]
    ) == 0  # fmt: skip
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photo.png")
    capsys.readouterr()
    assert helpers.main(["caption", "--checkpoint", str(tmp_path / "lstm.pt"), str(tmp_path / "photo.png")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{tmp_path / 'photo.png'}: ")


def test_attention_on_its_hard_coded_grid(student, tiny_data):
    """Pictures of 128 x 128 give the 4 x 4 grid that the published starter code has in its sample()."""
    images = tiny_data["train_images"][:, :, :1, :1].repeat(1, 1, 128, 128)
    model = make_student(student, tiny_data, "attn", student.ImageEncoder(pretrained=False, verbose=False))
    captions, weights = helpers.caption_pictures(model, images, tiny_data["vocab"]["idx_to_token"], max_length=3)
    assert len(captions) == 4 and weights.shape == (4, 3, 4, 4) and not weights.requires_grad
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(4, 3))


def test_captioning_leaves_the_students_encoder_alone(student, tiny_data):
    """A student's sample() does not mind the mode; still no picture may depend on its batch, nor any statistic move."""
    torch.manual_seed(0)
    images, names = (
        torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8),
        tiny_data["vocab"]["idx_to_token"],
    )
    model = make_student(student, tiny_data, "attn", student.ImageEncoder(pretrained=False, verbose=False)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = helpers.caption_pictures(model, images, names, 1)[1]
    single = torch.cat([helpers.caption_pictures(model, image[None], names, 1)[1] for image in images])
    torch.testing.assert_close(weights, single)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_than_greedy_decoding_says_what_the_students_captioner_lacks(student, tiny_data):
    model, names = make_student(student, tiny_data, "attn", ColourEncoder()), tiny_data["vocab"]["idx_to_token"]
    for decode in (helpers.decode_pictures, lambda *args, **options: helpers.caption_pictures(*args, names, **options)):
        with pytest.raises(ValueError, match=r"has no begin and no step method, .* leave out the options"):
            decode(model, tiny_data["val_images"], beam_size=3)
