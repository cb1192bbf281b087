"""The notebook with a student's file for the published assignment in the place of ours."""

import re
import types

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from support import ROOT
from support.captioner import PoolingEncoder
from traitlets.config import Config

import helpers
import rnn_lstm_captioning as ours
from eecs598 import captioner, coco, encoders, features, notebook
from eecs598.bench import Sizes
from eecs598.bench import run as run_bench
from eecs598.captioner import CELL_TYPES, caption_pictures, fit_encoder
from eecs598.checks import published
from eecs598.cli.command import main
from eecs598.grad import CheckError, CheckTable

SOURCE = (ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
ANY_GRID = ("images.new(N, max_length, 4, 4).float()", "images.new(N, max_length, *self.cnn(images).shape[2:]).float()")
FROM_400 = (("nn.Conv2d(input_dim, ", "nn.Conv2d(400, "), ("nn.Linear(input_dim, ", "nn.Linear(400, "))
FLATTENED = (
    ("self.affine = nn.Linear(input_dim, ", "self.affine = nn.Linear(input_dim * 16, "),
    ("            features = features.mean(dim=(2, 3))\n", "            features = features.flatten(1)\n"),
    ("self.affine(features.mean(dim=(2, 3)))", "self.affine(features.flatten(1))"),
)
POOLED = (
    ("features = features.mean(dim=(2, 3))\n", "features = nn.AvgPool2d(4)(features).flatten(1)\n"),
    ("self.affine(features.mean(dim=(2, 3)))", "self.affine(nn.AvgPool2d(4)(features).flatten(1))"),
)
DOWNLOADS = ("weights = torchvision.models", "raise URLError('no network')\n        weights = torchvision.models")


def load(tmp_path, *changes, name="rnn_lstm_captioning"):
    """The student's file with pieces replaced, (old, new), as a module."""
    source = SOURCE
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    path = tmp_path / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    module = types.ModuleType(name)
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


@pytest.fixture
def student(tmp_path):
    return load(tmp_path)


# --- what a cell needs and the file lacks -----------------------------------------------------------------


class Session:
    """An IPython session in which `rlc` is a module; session.run(cell) -> what it printed, its value, its error."""

    def __init__(self, module):
        config = Config()
        config.HistoryManager.enabled = False
        self.shell = InteractiveShell.instance(config=config)
        self.shell.user_ns |= {"rlc": module, "helpers": helpers, "torch": torch}
        self.shell.ast_transformers.clear()

    def run(self, cell):
        with capture_output() as captured:
            result = self.shell.run_cell(cell, store_history=True)
        return captured.stdout, result.result, result.error_before_exec or result.error_in_exec

    def begin(self):
        """As the notebook does after its imports."""
        assert self.run("helpers.leave_out_missing(rlc)") == ("", None, None)


@pytest.fixture
def session(student):
    yield Session(student)
    InteractiveShell.clear_instance()


def left_out(why):
    return f"{why}: this cell is left out\n", None, None


def test_of_a_whole_file_no_error_is_left_out(session):
    session.shell.user_ns["rlc"] = ours
    session.begin()
    assert notebook.find_missing(ours) == []
    assert isinstance(session.run("rlc.lstm_froward")[2], AttributeError)
    assert isinstance(session.run("rlc.CaptioningRNN.begn")[2], AttributeError)
    assert isinstance(session.run("no_such_name")[2], NameError)


def test_a_line_says_which_argument_has_the_wrong_shape(session):
    session.shell.user_ns["rlc"] = ours
    session.begin()
    session.run("x, prev_h, *weights = (torch.ones(size) for size in ((2, 3), (2, 5), (3, 4), (4, 4), (4,)))")
    text, _, error = session.run("rlc.rnn_step_forward(x, prev_h, *weights)")
    assert text.startswith("rnn_step_forward: prev_h is (2, 5), wanted (N, H) = (2, 4)\n")
    assert isinstance(error, RuntimeError) and "mat1 and mat2" in str(error)


def test_without_photographs_their_cells_are_left_out_whatever_the_file(session, monkeypatch):
    monkeypatch.setenv("EECS598_PHOTOS", "none")
    session.shell.user_ns["rlc"] = ours
    session.begin()
    text, _, error = session.run("photos = helpers.open_photographs()\nwords = photos['vocab']")
    why = "EECS598_PHOTOS=none: photographs are skipped\nthere are no photographs"
    assert (text, error) == (f"{why}: this cell is left out\n", None)
    for name in ("photos", "words"):
        assert session.run(f"len({name})") == left_out(f"{name} would come from a cell that was left out")


def test_the_set_up_can_run_again_with_another_file(session):
    for module in (session.shell.user_ns["rlc"], ours, session.shell.user_ns["rlc"]):
        session.shell.user_ns["rlc"] = module
        session.begin()
        assert len(session.shell.ast_transformers) == 1
    assert session.run("rlc.lstm_forward") == left_out("lstm_forward is not in this file")


def test_what_a_published_file_lacks(student):
    missing = notebook.find_missing(student)
    assert {"lstm_forward", "captioning_gradients", "CaptioningRNN.begin", "CaptioningRNN.step"} <= set(missing)
    assert not [name for name in missing if hasattr(student, name)]


def test_a_cell_that_needs_what_the_file_lacks_is_left_out(session):
    session.begin()
    assert session.run("helpers.show_source(rlc.lstm_forward)") == left_out("lstm_forward is not in this file")
    assert session.run("def f():\n    return rlc.lstm_backward") == ("", None, None)
    assert session.run("f()") == left_out("lstm_backward is not in this file")
    begin = "rlc.CaptioningRNN.begin\nprint('never')"
    assert session.run(begin) == left_out("CaptioningRNN.begin is not in this file")


def test_a_cell_that_needs_the_captioners_steps_is_left_out(session, tiny_data):
    session.begin()
    make = "helpers.make_captioner(rlc.CaptioningRNN, data, 'attn', encoder, 8, 4)"
    session.shell.user_ns |= {"data": tiny_data, "encoder": PoolingEncoder((4, 4))}
    assert session.run(f"model = {make}") == ("", None, None)
    assert session.run("model.cell.Wx") == left_out("CaptioningRNN.cell is not in this file")
    text, _, error = session.run("helpers.decode_pictures(model, data['val_images'], beam_size=3)")
    assert error is None and "has no begin and no step" in text and text.endswith(": this cell is left out\n")
    assert text.count("\n") == 1


def test_a_cell_that_needs_a_name_of_one_left_out_is_left_out(session):
    session.begin()
    session.run("import os.path as p\nx, (y, *z) = 1, rlc.lstm_forward\ndef g():\n    inner = 2\nfor i in x: pass")
    session.run("rlc.lstm_forward\nimport json.decoder, csv as c\nfrom math import pi")
    for name in ("y", "z", "g", "i", "json", "c", "pi"):
        assert session.run(f"1 + {name}") == left_out(f"{name} would come from a cell that was left out")
    session.run("class K:\n    a = rlc.lstm_forward\nwith open('f') as w: pass")
    assert session.run("w.read()") == left_out("w would come from a cell that was left out")
    assert session.run("p.sep")[1:] == ("/", None)  # that much of it ran
    for name in ("inner", "typo"):
        assert isinstance(session.run(name)[2], NameError)


def test_other_errors_stay_what_they_are(session, tiny_data):
    """Also those of the student's own code, whatever it lacks."""
    session.begin()
    assert isinstance(session.run("1 / 0")[2], ZeroDivisionError)
    assert isinstance(session.run("torch.no_such_name")[2], AttributeError)
    assert isinstance(session.run("1 +")[2], SyntaxError)
    assert isinstance(session.run("raise ValueError('own')")[2], ValueError)
    session.shell.user_ns |= {"data": tiny_data, "encoder": PoolingEncoder((4, 4))}
    session.run("model = helpers.make_captioner(rlc.CaptioningRNN, data, 'rnn', encoder, 8, 4)\ndel model.temporal")
    text, _, error = session.run("print('here')\nmodel(data['train_images'] / 255, data['train_captions'])\n")
    assert isinstance(error, AttributeError) and error.obj is session.shell.user_ns["model"]
    assert "this cell is left out" not in text
    assert "-> 2 model(data" in re.sub(r"\x1b\[[\d;]*m", "", text)  # the cell's own line


def test_a_cells_last_value_is_shown_and_nothing_else(session):
    session.begin()
    assert session.run("x = 5\nx + 1") == ("Out[2]: 6\n", 6, None)
    assert session.run("x + 2;")[0] == ""
    for quiet in ("x = 7", "", "# only a comment", "None", "for i in range(3): i", "if x: x"):
        assert session.run(quiet)[:2] == ("", None), quiet
    assert session.run("print('a')\n'b'")[1] == "b"
    assert session.run("from __future__ import annotations\nx + 3")[1:] == (10, None)
    assert session.run("rlc.lstm_forward") == left_out("lstm_forward is not in this file")  # no value of another cell


# --- checks -----------------------------------------------------------------------------------------------


def test_a_check_passes_by_the_published_measure_and_tells_what_more_is_asked(tmp_path, capsys):
    fixed = load(tmp_path, ("weights.reshape(N, D_a, D_b)", "weights.view(N, 4, 4)"))
    assert helpers.check("dot_product_attention", fixed).passed
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dot_product_attention: right by the published assignment's check; this project's ")


def test_a_check_of_what_is_wrong_by_any_measure_raises(tmp_path, capsys):
    unscaled = load(tmp_path, (".div(math.sqrt(H))\n    weights", "\n    weights"))
    with pytest.raises(CheckError, match="sqrt"):
        helpers.check("dot_product_attention", unscaled)
    assert capsys.readouterr().out == ""


def test_a_whole_file_is_held_to_this_projects_measure(monkeypatch):
    def on_4_x_4(prev_h, A):
        assert A.shape[2:] == (4, 4)
        return right(prev_h, A)

    right = ours.dot_product_attention
    monkeypatch.setattr(ours, "dot_product_attention", on_4_x_4)
    with pytest.raises(CheckError):
        helpers.check("dot_product_attention", ours)


# --- the features that a file takes -----------------------------------------------------------------------


@pytest.mark.parametrize("changes, channels", [
    ([ANY_GRID], "as it is"), ([], None), ([ANY_GRID, *FLATTENED], None), ([ANY_GRID, *POOLED], None),
    ([ANY_GRID, *FROM_400], 400), (FROM_400, 400), ([*FLATTENED, ("input_dim * 16", "400 * 16"), FROM_400[0]], 400),
])  # fmt: skip
def test_a_file_gets_the_features_that_it_takes(tmp_path, capsys, changes, channels):
    student, encoder, images = load(tmp_path, *changes), PoolingEncoder((5, 7)), torch.rand(3, 3, 20, 21)
    fitted, printed = fit_encoder(student.CaptioningRNN, encoder, images), capsys.readouterr().out
    if channels == "as it is":
        assert fitted is encoder and printed == ""
        return
    assert fitted.encoder is encoder and fitted.out_channels == (channels or 3)
    assert fitted(images).shape == (3, channels or 3, 4, 4)
    said = "only takes 400 channels on a 4 x 4 grid" if channels else "only takes features on a 4 x 4 grid"
    (line,) = printed.splitlines()
    assert said in line and "3 channels on 5 x 7" in line


def test_the_command_trains_such_a_file_too(tmp_path, tiny_data, capsys):
    """tiny_data has a grid of 2 x 2; what is saved is loaded with features on the same 4 x 4."""
    student = load(tmp_path, *FLATTENED)
    coco.save_data(tiny_data, tmp_path / "data.pt")
    options = ["--epochs", "1", "--hidden", "8", "--wordvec", "4", "--cell", "rnn", "--show", "0"]
    command = ["train", "--data", str(tmp_path / "data.pt"), "--out", str(tmp_path / "out"), *options]
    status = main(command, lambda: student.CaptioningRNN)
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "only takes features on a 4 x 4 grid" in said.out
    model, *_ = captioner.load_captioner(tmp_path / "out" / "rnn.pt", student.CaptioningRNN)
    assert isinstance(encoders.get_encoder(model), encoders.PublishedForm)


def test_our_captioner_and_one_that_takes_nothing_get_the_encoder_as_it_is(tmp_path, capsys):
    """The error of the second is the student's to see, where the notebook comes to it."""
    encoder, images = PoolingEncoder((5, 7)), torch.rand(3, 3, 20, 21)
    helpless = load(tmp_path, ("        features = self.cnn(images)\n", "        raise NotImplementedError\n"))
    before = torch.get_rng_state()
    for module in (ours, helpless):
        assert fit_encoder(module.CaptioningRNN, encoder, images) is encoder
    assert capsys.readouterr().out == "" and torch.equal(torch.get_rng_state(), before) and encoder.training


@pytest.mark.parametrize("channels", [3, 400, 1000])
def test_the_published_form_keeps_what_the_features_tell(channels):
    """Averages of cells, and distances between them."""
    encoder = PoolingEncoder((8, 8))
    encoder.forward = lambda images: images
    encoder.out_channels = channels
    seen = torch.randn(5, channels, 8, 8)
    form = encoders.PublishedForm(encoder, 400)(seen)
    means = seen.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    assert form.shape == (5, 400, 4, 4)
    if channels <= 400:
        torch.testing.assert_close(form[:, :channels], means)
        assert not form[:, channels:].any()
        return
    again = encoders.PublishedForm(encoder, 400)
    torch.testing.assert_close(form, again(seen), rtol=0, atol=0)  # the same directions each time
    torch.testing.assert_close(again.projection[:, :, 0, 0] @ again.projection[:, :, 0, 0].t(), torch.eye(400),
                               rtol=0, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("channels", [None, 400])
@pytest.mark.parametrize("stride", [16, 32])  # 112 channels, filled up; 1280, projected
def test_a_captioner_with_brought_features_is_saved_and_loaded(student, tiny_data, tmp_path, stride, channels):
    encoder = encoders.EfficientNetLite0(stride, 96).calibrate(tiny_data["train_images"])
    form = encoders.PublishedForm(encoder, channels).requires_grad_(False)
    model = helpers.make_captioner(student.CaptioningRNN, tiny_data, "attn", form, 8, 4)
    helpers.save_captioner(model, tmp_path / "attn.pt", tiny_data, 8, 4)
    loaded, names, _ = captioner.load_captioner(tmp_path / "attn.pt", student.CaptioningRNN)
    assert type(encoders.get_encoder(loaded).encoder) is encoders.EfficientNetLite0
    assert encoders.is_frozen(encoders.get_encoder(loaded))
    for left, right in zip(caption_pictures(model, tiny_data["val_images"], names),
                           caption_pictures(loaded, tiny_data["val_images"], names)):  # fmt: skip
        assert left == right if isinstance(left, list) else torch.equal(left, right)


def test_brought_features_are_computed_as_fast_as_others():
    """The normalization inside is folded; the file that keeps them has another name."""
    encoder = encoders.EfficientNetLite0(16)
    forms = [encoder, encoders.PublishedForm(encoder), encoders.PublishedForm(encoder, 400)]
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    assert len({features._features_key(form, images, "cpu") for form in forms}) == 3
    folded = encoders.fold_normalization(forms[2])
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), forms[2].eval()(images), rtol=1e-3, atol=1e-3)


# --- its image encoder ------------------------------------------------------------------------------------


def test_a_students_image_encoder_is_not_asked_for_its_weights(tmp_path, tiny_data):
    student = load(tmp_path, DOWNLOADS, ("import math", "import math\nfrom urllib.error import URLError"))
    own, encoder = student.ImageEncoder, PoolingEncoder((4, 4))
    with pytest.raises(student.URLError):
        own(pretrained=False)
    for cell_type in CELL_TYPES:
        model = helpers.make_captioner(student.CaptioningRNN, tiny_data, cell_type, encoder, 8, 4)
        assert model.cnn is encoder and student.ImageEncoder is own
    del student.LSTM
    with pytest.raises(NameError):
        helpers.make_captioner(student.CaptioningRNN, tiny_data, "lstm", encoder, 8, 4)
    assert student.ImageEncoder is own


def test_a_file_without_an_image_encoder_by_that_name_makes_its_own(tmp_path, tiny_data):
    student = load(tmp_path, ("ImageEncoder", "RegNet"))
    encoder = PoolingEncoder((4, 4))
    model = helpers.make_captioner(student.CaptioningRNN, tiny_data, "rnn", encoder, 8, 4)
    assert model.cnn is encoder and not hasattr(student, "ImageEncoder")


# --- training, captions, speed ----------------------------------------------------------------------------


def test_one_picture_goes_into_a_students_squeeze(tmp_path, tiny_data):
    student = load(tmp_path, ANY_GRID, (".squeeze(1).div", ".squeeze().div"))
    torch.manual_seed(0)
    model = helpers.make_captioner(student.CaptioningRNN, tiny_data, "attn", PoolingEncoder((2, 3)), 8, 4)
    names, images = tiny_data["vocab"]["idx_to_token"], tiny_data["val_images"] / 255
    captions, weights = caption_pictures(model, images, names)
    for n in range(len(images)):
        (caption,), (weight,) = caption_pictures(model, images[n : n + 1], names)
        assert caption == captions[n]
        torch.testing.assert_close(weight, weights[n])


def test_a_students_sample_may_stop_when_all_captions_have_ended(tiny_data):
    """So captions of two batches may differ in their number of steps."""

    class Early(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.image_encoder, self.one = PoolingEncoder((2, 3)), torch.nn.Parameter(torch.ones(1))

        def sample(self, images, max_length):
            steps = 2 if len(images) == 2 else 3
            words = torch.full((len(images), steps), 4)
            words[:, -1] = END_ID
            return words, torch.full((len(images), steps, 2, 3), 1 / 6)

    END_ID, names = tiny_data["vocab"]["token_to_idx"]["<END>"], tiny_data["vocab"]["idx_to_token"]
    captions, weights = caption_pictures(Early(), torch.rand(5, 3, 4, 6), names, max_length=6, batch_size=3)
    word = names[4]
    assert captions == [f"{word} {word}"] * 3 + [word] * 2
    assert weights.shape == (5, 6, 2, 3) and (weights.sum((2, 3)) > 0.5).sum(1).tolist() == [3, 3, 3, 2, 2]


def test_the_speed_tables_leave_out_what_a_students_layers_do_not_take(tmp_path, capsys):
    student = load(tmp_path, ("weights.reshape(N, D_a, D_b)", "weights.view(N, 4, 4)"))
    sizes = Sizes(N=4, T=3, W=6, H=8, V=20)
    rows = [row.name for row in run_bench(student, ["plain", "training"], 3, "cpu", sizes, progress=False)]
    told = capsys.readouterr().out
    assert "attention LSTM: left out, the layer takes no 7x7 (RuntimeError)" in told
    assert "training step, attn: left out, the captioner takes no 112 channels on 7x7" in told
    assert "training step, attn: left out (fast training needs an nn.Linear" in told
    assert rows.count("plain training step, attn") == 1 and "training step, lstm" in rows


@pytest.mark.parametrize(
    "reached_by", ["torchvision.models.regnet_x_400mf", "torchvision.models.regnet.regnet_x_400mf"]
)
def test_the_published_loss_downloads_nothing(tmp_path, monkeypatch, reached_by):
    """A file may always ask for trained weights; the published cell replaces all parameters."""
    models, asked = encoders.import_torchvision().models, []
    monkeypatch.setattr(models.RegNet_X_400MF_Weights, "get_state_dict", lambda *_, **__: asked.append(1) or {})
    always = ("torchvision.models.RegNet_X_400MF_Weights.IMAGENET1K_V1 if pretrained else None",
              "torchvision.models.RegNet_X_400MF_Weights.IMAGENET1K_V1")  # fmt: skip
    original = models.regnet_x_400mf
    module = load(tmp_path, always, ("torchvision.models.regnet_x_400mf(", f"{reached_by}("))
    table = CheckTable("the published loss")
    published.add_published_loss(table, module.CaptioningRNN, "rnn")
    assert table.rows[0].passed and not asked and models.regnet_x_400mf is models.regnet.regnet_x_400mf is original
