"""`python helpers.py train`, `evaluate` and `caption`: what they write, what they print, and their errors."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from support import ROOT
from support.second_device import a_second_device

import helpers
from eecs598 import captioner, cli, commands, encoders, features, metrics
from eecs598.captioner import CELL_TYPES
from eecs598.cli.train import _print_time_left, _read_options
from eecs598.coco import build_data, build_vocabulary, encode_captions, save_data
from eecs598.metrics import meteor
from eecs598.training import solver
from eecs598.training.options import NAMES, Options
from eecs598.training.recipes import RECIPES
from eecs598.training.selfcritical import SelfCritical
from eecs598.utils import reset_seed
from rnn_lstm_captioning import CaptioningRNN

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
SIZES = ["--hidden", "64", "--wordvec", "16", "--batch-size", "4", "--learning-rate", "0.003", "--lr-decay", "1"]


@pytest.fixture(scope="module", autouse=True)
def _exact_features():
    """In float32: of a plain picture's features bfloat16 loses a third, measured; of a photograph's a twentieth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "fast_dtype", lambda device: torch.float32)
        yield


@pytest.fixture(autouse=True)
def _no_java(request, monkeypatch):
    """Java takes 15 s to start: only tests that use the fixture `java` start it."""
    if "java" not in request.fixturenames:

        def fail():
            raise metrics.MeteorError("no Java in this test")

        monkeypatch.setattr(meteor, "find_java", fail)


@pytest.fixture
def java():
    """For tests that start the METEOR program."""


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """Plain pictures in four colours, and which colour it is."""
    path = tmp_path_factory.mktemp("data") / "colours.pt"
    texts = [f"a {colour} picture" for colour in COLOURS]
    vocab = build_vocabulary([text.split() for text in texts])
    pictures = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[:, :, None, None].repeat(1, 1, 40, 40)
    captions = encode_captions([text.split() for text in texts], vocab)
    references = [[text, f"{text} picture"] for text in texts]
    data = {"vocab": vocab, "preprocessing": {"image_size": 40, "fit": "crop"}}
    for split in ("train", "val"):
        data |= {
            f"{split}_images": pictures,
            f"{split}_captions": captions,
            f"{split}_references": references,
        }
    save_data(data, path)
    return path


@pytest.fixture(scope="module")
def trained(data_file, tmp_path_factory):
    """The folder that `train` wrote, with a captioner of each kind that knows the colours."""
    out = tmp_path_factory.mktemp("trained") / "new" / "folder"
    command = ["train", "--data", str(data_file), "--out", str(out), "--epochs", "150", "--cosine", *SIZES]
    assert helpers.main(command) == 0
    return out


def run(capsys, *arguments):
    """A command's exit status, and the lines that it printed on standard output and on standard error."""
    try:
        status = helpers.main([str(argument) for argument in arguments])
    except SystemExit as exited:  # argparse
        status = exited.code
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err.splitlines()


def train(capsys, data_file, out, *options):
    return run(capsys, "train", "--data", data_file, "--out", out, *SIZES, "--epochs", 1, *options)


def assert_one_error(status, errors, *told):
    """Exit status 1, 2 for options, and a line that says what is wrong; before it there may be a progress bar."""
    assert status in (1, 2) and errors[-1].startswith("error: ")
    assert [line for line in errors[:-1] if line.strip() and "%|" not in line] == []
    assert all(str(words) in errors[-1] for words in told)


# --- train ------------------------------------------------------------------------------------------------


def test_train_writes_a_checkpoint_a_cell_and_the_curves(trained):
    assert {path.name for path in trained.iterdir()} == {"rnn.pt", "lstm.pt", "attn.pt", "losses.png"}
    with Image.open(trained / "losses.png") as figure:
        assert figure.format == "PNG" and min(figure.size) > 100


def test_train_prints_captions_next_to_peoples(data_file, tmp_path, capsys):
    status, said, _ = train(capsys, data_file, tmp_path, "--cell", "lstm", "rnn", "--show", 3, "--captions", "all")
    assert status == 0
    assert "image encoder: EfficientNet-Lite0" in "\n".join(said)
    assert [line for line in said if "8 captions, 1 epochs on" in line]
    starts = [line.split(":")[0].strip() for line in said[said.index("val picture 0") :] if line]
    assert starts == [line for i in range(3) for line in (f"val picture {i}", "lstm", "rnn", "person", "person")]
    assert {path.name for path in tmp_path.iterdir()} == {"lstm.pt", "rnn.pt", "losses.png"}


def test_train_ends_with_a_table_of_scores(data_file, tmp_path, capsys):
    status, said, _ = train(capsys, data_file, tmp_path, "--cell", "lstm", "rnn")
    table = said.index("4 validation pictures, greedy captions against all references") + 1
    data = helpers.load_coco_captions(data_file)
    models = {cell: helpers.load_captioner(tmp_path / f"{cell}.pt")[0] for cell in ("lstm", "rnn")}
    scores = {cell: helpers.score_captioner(model, data)[1].scores for cell, model in models.items()}
    assert status == 0 and said[table : table + 3] == metrics.format_scores(scores).splitlines()


def test_train_takes_a_file_without_references(data_file, tmp_path, capsys):
    data = torch.load(data_file, weights_only=True)
    for key in ("train_references", "val_references", "preprocessing"):
        del data[key]
    save_data(data, tmp_path / "plain.pt")
    status, said, _ = train(capsys, tmp_path / "plain.pt", tmp_path / "out", "--cell", "rnn", "--captions", "all")
    assert status == 0 and said[-1] == "  person: a grey picture"
    assert helpers.load_captioner(tmp_path / "out" / "rnn.pt")[2] == {"image_size": 40, "fit": "stretch"}


class ColourEncoder(torch.nn.Module):
    """An encoder of next to no cost: the mean colour, times a number that can be trained."""

    out_channels, image_size = 3, None

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1 / 255))

    def forward(self, images):
        return images.float().mean(dim=(2, 3), keepdim=True) * self.scale


def test_each_cell_begins_with_the_same_encoder(data_file, tmp_path, monkeypatch, capsys):
    """Also where it is trained end to end, as on a GPU: the second captioner must not inherit the first one's."""
    begun, train_captioner = [], cli.train.train_captioner

    def train_and_note(model, *args, **options):
        begun.append(model.image_encoder.scale.item())
        return train_captioner(model, *args, **options)

    monkeypatch.setattr(encoders, "encoder_for", lambda data, name: ColourEncoder())
    monkeypatch.setattr(cli.train, "train_captioner", train_and_note)
    assert train(capsys, data_file, tmp_path, "--no-freeze-encoder")[0] == 0
    assert len(begun) == 3 and len(set(begun)) == 1
    ended = [torch.load(tmp_path / f"{cell_type}.pt", weights_only=True)["state"] for cell_type in CELL_TYPES]
    assert all(state["image_encoder.scale"].item() != begun[0] for state in ended)


def test_a_seed_repeats_the_training(data_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoders, "encoder_for", lambda data, name: ColourEncoder())
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(capsys, data_file, tmp_path / name, "--cell", "rnn", "--seed", seed, "--epochs", 3)[0] == 0
        weights.append(torch.load(tmp_path / name / "rnn.pt", weights_only=True)["state"]["cell.Wx"])
    assert torch.equal(weights[0], weights[1]) and (weights[0] - weights[2]).std() > 0.1


def parsed(*options):
    return cli.parse(["train", "--data", "a.pt", "--out", "b", *options])


def test_a_recipe_stands_in_for_the_defaults_and_yields_to_what_is_given():
    plain, recipe = parsed(), parsed("--recipe", "flickr8k")
    new = ("dropout", "label_smoothing", "averaging", "clip_norm", "warmup", "cosine", "self_critical",
           "self_critical_bleu")  # fmt: skip
    assert all(not getattr(plain, name) for name in new)
    assert all(getattr(recipe, name) == value for name, value in RECIPES["flickr8k"].items())
    assert set(RECIPES["flickr8k"]) <= set(vars(plain)) and recipe.seed == plain.seed
    changed = parsed("--dropout", "0.2", "--recipe", "flickr8k", "--epochs", "10", "--no-cosine", "--no-freeze-encoder")
    assert (changed.cosine, changed.freeze_encoder, plain.freeze_encoder) == (False, False, None)
    assert (changed.dropout, changed.epochs, changed.label_smoothing) == (0.2, 10, recipe.label_smoothing)


def test_each_option_of_a_run_can_be_given_on_the_command_line():
    assert {name for name in NAMES if not hasattr(parsed(), name)} == {"progress", "plot"}
    assert _read_options(parsed()) == Options(precision="auto", plot=False)
    read = _read_options(parsed("--attention-entropy", "0.1", "--encoder-rate", "0.5", "--precision", "float32"))
    assert read == Options(attention_entropy=0.1, encoder_rate=0.5, plot=False)


def test_without_the_fast_functions_there_is_no_regularization(data_file, tmp_path, capsys):
    status, _, errors = train(capsys, data_file, tmp_path, "--cell", "rnn", "--no-fast", "--dropout", 0.1)
    assert_one_error(status, errors, "dropout: not supported by the model's own forward")


def test_self_critical_training_needs_the_fast_functions(data_file, tmp_path, capsys):
    status, _, errors = train(capsys, data_file, tmp_path, "--cell", "rnn", "--no-fast", "--self-critical", 1)
    assert_one_error(status, errors, "--self-critical needs eecs598.fast, but --no-fast is given")


@pytest.mark.parametrize("options, told", [
    (["--checkpoint-every", "200"], "--checkpoint-every does nothing without --checkpoint-dir: add --checkpoint-dir"),
    (["--checkpoint-every", "200", "--recipe", "flickr8k"], "without --checkpoint-dir"),
    (["--reranker-encoders", "lite0"], "--reranker-encoders does nothing without --reranker"),
    (["--finetune-blocks", "1"], "--finetune-blocks does nothing without --self-critical"),
    (["--sharpen", "0.5"], "--sharpen does nothing without --self-critical"),
    (["--kept-samples", "2"], "--kept-samples does nothing without --self-critical"),
])  # fmt: skip
def test_an_option_that_would_do_nothing_is_told(options, told, capsys):
    with pytest.raises(SystemExit):
        parsed(*options)
    assert told in capsys.readouterr().err


def test_what_is_left_of_a_recipe_without_a_part_of_it_is_no_error():
    off = parsed("--recipe", "flickr8k", "--self-critical", "0", "--self-critical-batch", "64", "--no-reranker")
    assert (off.self_critical, off.finetune_blocks, off.reranker) == (0, 1, False)


@pytest.mark.parametrize("command", [
    ["train", "--data", "nowhere.pt", "--out", "out"],
    ["evaluate", "--checkpoint", "nowhere.pt", "--images", "none", "--captions", "none.json"],
])  # fmt: skip
def test_without_the_scorers_no_work_begins(command, tmp_path, monkeypatch, capsys):
    """Scores come last, after hours; pycocoevalcap is not among Colab's packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.rouge.rouge", None)
    assert_one_error(*run(capsys, *command)[::2], "captions cannot be scored", "try `pip install pycocoevalcap`")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [SyntaxError("invalid syntax", ("rnn_lstm_captioning.py", 12, 1, "def", 12, 4)),
                                   ImportError("cannot import name 'CaptioningRNN' from 'rnn_lstm_captioning'")])
def test_a_students_file_that_cannot_be_imported_is_one_line(error, monkeypatch, capsys, tmp_path):
    def broken():
        raise error

    monkeypatch.setattr(helpers, "_captioner_class", broken)
    assert_one_error(*run(capsys, "train", "--data", tmp_path, "--out", tmp_path)[::2], "rnn_lstm_captioning")
    status, said, _ = run(capsys, "train", "--help")
    assert status == 0 and said[0].startswith("usage: ")


def test_an_output_may_be_a_device(monkeypatch):
    """Although nobody but root can make files beside it."""
    monkeypatch.setattr(commands, "make_folder", lambda folder: pytest.fail("nothing is made"))
    commands.check_output("/dev/null" if os.name == "posix" else "nul")


def test_an_impossible_value_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--data", "nowhere.pt", "--out", "out", "--dropout", "1.5"]
    assert_one_error(*run(capsys, *command)[::2], "'1.5', wanted a number, at least 0 and below 1")
    assert not list(tmp_path.iterdir())


def test_train_with_all_its_options(data_file, tmp_path, capsys):
    options = ["--recipe", "flickr8k", "--self-critical", 1, "--self-critical-batch", 2, "--wordvec", 64, "--epochs", 1,
               "--score", "--sharpen", 1, "--tie-embeddings", "--doubly-stochastic", 0.5, "--scheduled-sampling", 0.1,
               "--weight-decay", 0.01, "--checkpoint-dir", tmp_path / "kept"]  # fmt: skip
    status, said, _ = train(capsys, data_file, tmp_path, *options)
    assert status == 0 and "self-critical: 8 pictures, 5 samples each (3 kept), 1 epochs" in said  # 4, and mirrored
    assert len([line for line in said if line.startswith("val, greedy: ")]) == 2  # once a phase
    (left,) = [line for line in said if "min left" in line]
    assert left == "epoch 1/1 is done; about 1 min left: 0 of cross-entropy, 0 of self-critical training"
    assert {path.name for path in tmp_path.glob("*.png")} == {"losses.png", "rewards.png"}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"attn", "attn-self-critical"}
    model, _, _ = helpers.load_captioner(tmp_path / "attn.pt")
    assert torch.equal(model.word_embedding.W_embed, model.output_projection.weight)
    status, _, errors = train(capsys, data_file, tmp_path, *options, "--averaging", 0.5)
    assert_one_error(status, errors, "averaging: 0.99 there, 0.5 here")
    status, _, errors = train(capsys, data_file, tmp_path, *options, "--kept-samples", 2)
    assert_one_error(status, errors, "kept: 3 there, 2 here")


def test_all_commands_keep_to_the_device_they_are_given(data_file, captioned, photos, tmp_path, capsys):
    """With all options, so that tensors made on the CPU for a GPU are found on machines without one."""
    images, captions = captioned
    options = ["--recipe", "flickr8k", "--self-critical", 1, "--self-critical-batch", 2, "--wordvec", 64, "--epochs", 1,
               "--score", "--doubly-stochastic", 0.5, "--attention-entropy", 0.1, "--scheduled-sampling", 0.1,
               "--accumulate", 2, "--checkpoint-dir", tmp_path / "kept"]  # fmt: skip
    with a_second_device() as device:
        assert train(capsys, data_file, tmp_path, *options, "--device", device)[0] == 0
        command = ["--checkpoint", tmp_path / "attn.pt", "--device", device]
        scored = ["--images", images, "--captions", captions, "--rerank", 10, "--beam", 3, "--mirror"]
        assert run(capsys, "evaluate", *command, *scored)[0] == 0
        assert run(capsys, "caption", *command, "--out", tmp_path, *photos)[0] == 0


def test_the_options_of_training_reach_both_of_its_phases(data_file, tmp_path, monkeypatch, capsys):
    calls, train_captioner = [], cli.train.train_captioner

    def train_and_note(model, images, captions, *given, **options):
        calls.append((captions.ndim, given, options))
        return train_captioner(model, images, captions, *given, **options)

    monkeypatch.setattr(cli.train, "train_captioner", train_and_note)
    options = ["--cell", "attn", "--captions", "together", "--batch-size", 4, "--learning-rate", 0.01,
               "--lr-decay", 0.5, "--self-critical", 2, "--self-critical-batch", 3, "--self-critical-rate", 0.002,
               "--samples", 3, "--self-critical-bleu", 1.5, "--finetune-blocks", 1]  # fmt: skip
    status, _, errors = train(capsys, data_file, tmp_path, *options)
    assert status == 0, errors
    (dimensions, given, first), (rows, then, second) = calls
    assert (dimensions, rows) == (3, 1) and given == (1, 4, 0.01, 0.5) and then == (2, 3, 0.002)
    assert [weight for weight, _ in second["loss"].scorers] == [1.0, 1.5] and second["loss"].samples == 3
    assert first["finetune_blocks"] == second["finetune_blocks"] == 1
    assert not first["finetune"] and second.get("finetune", True)


@pytest.mark.parametrize("option, value, told", [
    ("--dropout", 1, "'1', wanted a number, at least 0 and below 1"), ("--averaging", 2, "'2', wanted a number"),
    ("--label-smoothing", "nan", "'nan', wanted a number, at least 0 and below 1"),
    ("--samples", 1, "'1', wanted a whole number, at least 2"), ("--kept-samples", 0, "'0', wanted a whole number"),
    ("--sharpen", 0, "'0', wanted a positive number"),
    ("--self-critical", -1, "'-1', wanted a whole number, at least 0"), ("--clip-norm", "nan", "'nan', wanted"),
    ("--self-critical-rate", "nan", "'nan', wanted a positive number"), ("--show", -1, "'-1', wanted a whole number"),
    ("--self-critical-bleu", "nan", "'nan', wanted a number, at least 0"), ("--encoder", "vgg", "choice: 'vgg'"),
    ("--scheduled-sampling", 2, "'2', wanted a number"), ("--seed", 2**70, "is too large, wanted at most 9,223,"),
    ("--weight-decay", "inf", "'inf', wanted a number"), ("--warmup", -1, "'-1', wanted a whole number, at least 0"),
    ("--batch-size", 2**70, "is too large"),
])  # fmt: skip
def test_new_options_that_make_no_sense(data_file, tmp_path, monkeypatch, capsys, option, value, told):
    """Told before anything long, as training on people's captions or the pictures' features, is begun."""
    monkeypatch.setattr(features, "cached_features", None)
    options = ["--cell", "rnn", "--self-critical", 1, option, value]
    status, _, errors = train(capsys, data_file, tmp_path, *options)
    assert_one_error(status, errors, told)


def test_sizes_that_do_not_fit_in_memory(data_file, tmp_path, monkeypatch, capsys):
    """As PyTorch says it; whether the system itself refuses is a matter of its settings."""
    def allocate(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(captioner, "make_captioner", allocate)
    status, _, errors = train(capsys, data_file, tmp_path, "--cell", "rnn", "--hidden", 10**9)
    assert_one_error(status, errors, "out of memory: lower --hidden (")


def test_the_time_left_is_that_of_both_phases(monkeypatch, capsys):
    timed = []
    monkeypatch.setattr(SelfCritical, "time_step", lambda self, images, size, precision: timed.append(size) or 1.5)
    options = parsed("--epochs", "4", "--self-critical", "5", "--self-critical-batch", "32", "--accumulate", "2")
    history = solver.History(iterations_per_epoch=10, losses=[1.0] * 20, seconds=600)
    _print_time_left(SelfCritical.__new__(SelfCritical), options, history, torch.zeros(100, 1))
    assert capsys.readouterr().out == (
        "epoch 2/4 is done; about 11 min left: 10 of cross-entropy, 1 of self-critical training\n"
    )  # two epochs of 300 s; five epochs of four batches of 3 s, in two parts
    assert timed == [16]


def test_options_of_which_one_rules_out_the_other(data_file, tmp_path, capsys):
    options = ["--self-critical", 1, "--tie-embeddings", "--wordvec", 64, "--sharpen", 0.5]
    status, _, errors = train(capsys, data_file, tmp_path, *options)
    assert_one_error(status, errors, "--sharpen", "--tie-embeddings")
    status, _, errors = train(capsys, data_file, tmp_path, "--self-critical", 1, "--samples", 2, "--kept-samples", 3)
    assert_one_error(status, errors, "--kept-samples 3 is more than --samples 2: give --kept-samples 2")
    status, _, errors = train(capsys, data_file, tmp_path, "--tie-embeddings", "--wordvec", 8, "--hidden", 6)
    assert_one_error(status, errors, "--tie-embeddings needs --wordvec equal to --hidden; they are 8 and 6")


def test_errors_name_the_options_and_not_the_arguments_that_they_become(data_file, tmp_path, monkeypatch, capsys):
    options = ["--cell", "rnn", "--hidden", 8, "--wordvec", 4, "--checkpoint-dir", tmp_path / "kept"]
    assert train(capsys, data_file, tmp_path, *options, "--epochs", 2)[0] == 0
    status, _, errors = train(capsys, data_file, tmp_path, *options, "--epochs", 1)
    assert_one_error(status, errors, "--epochs is 1, but the run in", "raise --epochs", "another --checkpoint-dir")
    status, _, errors = train(capsys, data_file, tmp_path, "--cell", "rnn", "--no-fast", "--dropout", 0.1)
    assert_one_error(status, errors, "dropout: not supported by the model's own forward; train with --fast")

    def fill(*_, **options):
        raise solver.TrainingError("batch_size 64: lower batch_size" if "loss" in options else "batch_size is fine")

    monkeypatch.setattr(cli.train, "train_captioner", fill)
    status, _, errors = train(capsys, data_file, tmp_path, "--cell", "rnn", "--batch-size", 2)
    assert_one_error(status, errors, "error: --batch-size is fine")
    options = SimpleNamespace(sharpen=1, kept_samples=None, samples=2, self_critical=1, self_critical_batch=64,
                              self_critical_rate=0.1)  # fmt: skip
    with pytest.raises(ValueError, match="--self-critical-batch 64: lower --self-critical-batch"):
        cli.train._train_self_critically(None, object(), {"train_images": [0]}, options, {})


def test_options_in_an_error():
    names = {"batch_size": "--batch-size", "mirror": "--mirror", "fast": "--fast"}
    assert commands.in_options("batch_size 3; a mirror, or fast=True, not fast=False", names) == (
        "--batch-size 3; a mirror, or --fast, not --no-fast")  # fmt: skip
    unchanged = "/tmp/batch_size/a.pt: mirror; other_size is 3; batch_size.pt; my-batch_size; batch_size=3"
    assert commands.in_options(unchanged, names) == unchanged


def test_a_beam_of_no_captions_is_refused_with_the_least_that_will_do(capsys):
    status, _, errors = run(capsys, "caption", "--beam", 0, "photo.jpg")
    assert status == 2 and errors == ["error: argument --beam: '0', wanted a whole number, at least 1; see --help"]


def test_train_without_a_data_file(tmp_path, capsys):
    status, _, errors = train(capsys, tmp_path / "none.pt", tmp_path / "out")
    assert_one_error(status, errors, tmp_path / "none.pt", "no such file", "eecs598")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 truncated"])
def test_train_on_what_is_no_data_file(tmp_path, capsys, content):
    (tmp_path / "data.pt").write_bytes(content)
    status, _, errors = train(capsys, tmp_path / "data.pt", tmp_path / "out")
    assert_one_error(status, errors, tmp_path / "data.pt")


BAD_OPTIONS = [
    ("--epochs", "0"), ("--epochs", "-3"), ("--batch-size", "0"), ("--learning-rate", "0"), ("--learning-rate", "nan"),
    ("--lr-decay", "-1"), ("--hidden", "0"), ("--wordvec", "-2"), ("--device", "toaster"), ("--device", "cuda:99"),
]  # fmt: skip


@pytest.mark.parametrize("option, value", BAD_OPTIONS)
def test_option_values_that_make_no_sense(data_file, tmp_path, capsys, option, value):
    status, _, errors = train(capsys, data_file, tmp_path / "out", "--cell", "rnn", option, value)
    assert_one_error(status, errors, value)
    assert not list(tmp_path.glob("out/*"))


def test_no_examples_to_show(data_file, tmp_path, capsys):
    status, said, _ = train(capsys, data_file, tmp_path, "--cell", "attn", "--show", 0)
    assert status == 0 and not [line for line in said if line.startswith("val picture")]


def test_a_place_that_cannot_be_written(data_file, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    status, said, errors = train(capsys, data_file, tmp_path / "file", "--cell", "rnn")
    assert_one_error(status, errors, tmp_path / "file")
    assert not [line for line in said if "epochs" in line]  # told before the long work, not after it


MISUSED = [
    ["--help-me"], [], ["fly"], ["train"], ["train", "--data", "a.pt", "--out", "b", "--cell", "gru"],
    ["train", "--data", "a.pt", "--out", "b", "--epochs", "many"], ["caption", "--checkpoint", "a.pt"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", MISUSED, ids=" ".join)
def test_misuse_is_one_line_too(arguments, capsys):
    status, said, errors = run(capsys, *arguments)
    assert status == 2 and said == [] and len(errors) == 1 and errors[0].startswith("error: ")


# --- evaluate ---------------------------------------------------------------------------------------------


@pytest.fixture
def captioned(photos, tmp_path):
    """A folder of photographs, and a captions file in which two people say of each what it shows, last id first."""
    entries = [{"id": 49 - 7 * i, "file_name": photo.name} for i, photo in enumerate(photos)]
    said = [(entry["id"], text) for entry, colour in zip(entries, photos.values())
            for text in (f"A {colour} picture.", f"It's a {colour} one, isn't it?")]  # fmt: skip
    path = tmp_path / "captions.json"
    notes = [{"id": i, "image_id": number, "caption": text} for i, (number, text) in enumerate(said)]
    path.write_text(json.dumps({"images": entries, "annotations": notes}))
    return next(iter(photos)).parent, path


def evaluate(capsys, checkpoint, captioned, *options):
    images, captions = captioned
    return run(capsys, "evaluate", "--checkpoint", checkpoint, "--images", images, "--captions", captions, *options)


@pytest.mark.parametrize("options, how", [
    ([], "greedy"), (["--beam", 2, "--no-repeat", 3], "beam_size 2, no_repeat_ngram 3"),
    (["--beam", 2, "--length-penalty", 1, "--beam-temperature", 1.5],
     "beam_size 2, length_penalty 1.0, beam_temperature 1.5"),
    (["--top-k", 1], "top_k 1, seed 0"), (["--top-p", 1e-3], "top_p 0.001, seed 0"),
    (["--beam", 2, "--mirror"], "beam_size 2, mirror True"),
])  # fmt: skip
def test_evaluate_scores_against_all_references(
    trained, photos, captioned, tmp_path, monkeypatch, capsys, options, how
):  # fmt: skip
    monkeypatch.setattr(cli.evaluate, "BATCH_SIZE", 3)  # so that there is more than one batch
    report = tmp_path / "scores.json"
    status, said, errors = evaluate(capsys, trained / "rnn.pt", captioned, "--json", report, *options)
    captions = [f"a {colour} picture" for colour in photos.values()]
    references = [[f"A {colour} picture.", f"It's a {colour} one, isn't it?"] for colour in photos.values()]
    wanted = metrics.evaluate_captions(captions, references)
    assert status == 0 and said[0] == f"8 pictures, 16 reference captions; decoding: {how}"
    assert said[1:3] == metrics.format_scores({"rnn": wanted.scores}).splitlines()
    written = json.loads(report.read_text())
    assert written["scores"] == pytest.approx(wanted.scores) and wanted.scores["BLEU-1"] == pytest.approx(1)
    assert [picture["caption"] for picture in written["pictures"]] == captions[::-1]  # by id
    assert [picture["image_id"] for picture in written["pictures"]] == [7 * i for i in range(8)]
    assert [picture["CIDEr-D"] for picture in written["pictures"]][::-1] == pytest.approx(wanted.pictures["CIDEr-D"])


def test_evaluate_reports_meteor_where_there_is_java(java, fake_java, trained, captioned, tmp_path, capsys):
    """A program that answers as METEOR's does; the real one, which takes 15 s to start, is tested in tests/metrics."""
    statistics, scores = " ".join("1" * meteor.STATISTICS), r"0.5\n" * 8 + "0.75"
    fake_java(f"while read line; do case $line in SCORE*) echo {statistics};; *) printf '{scores}\\n';; esac; done")
    status, said, _ = evaluate(capsys, trained / "rnn.pt", captioned, "--json", tmp_path / "scores.json", "--show", 0)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert status == 0 and len(said) == 4 and said[1].split()[-1] == "METEOR" and said[2].split()[-1] == "75.0"
    assert written["scores"]["METEOR"] == 0.75
    assert [picture["METEOR"] for picture in written["pictures"]] == [0.5] * 8


def test_a_meteor_program_that_fails_costs_only_meteor(java, fake_java, trained, captioned, tmp_path, capsys):
    fake_java("echo no room for a heap >&2; exit 1")
    status, said, _ = evaluate(capsys, trained / "rnn.pt", captioned, "--json", tmp_path / "scores.json", "--show", 0)
    assert status == 0 and said[4:] == ["METEOR is left out: the METEOR program stopped (no room for a heap)"]
    assert set(json.loads((tmp_path / "scores.json").read_text())["scores"]) == set(metrics.SCORES)
    assert said[1].split() == ["model", *metrics.SCORES]


def test_evaluate_shows_the_best_and_the_worst(trained, photos, captioned, capsys):
    content = json.loads(captioned[1].read_text())
    for note in content["annotations"][4:6]:  # of the third photograph people say something else
        note["caption"] = "two dogs on a beach"
    captioned[1].write_text(json.dumps(content))
    _, said, _ = evaluate(capsys, trained / "rnn.pt", captioned, "--show", 1)
    worst = said.index("worst by CIDEr-D")
    third = list(photos)[2].name
    assert said[worst + 1] == f" 0.000  {third}" and said[worst + 3] == "        person: two dogs on a beach"
    assert third not in "".join(said[:worst]) and "best by CIDEr-D" in said


def test_evaluate_of_some_pictures(trained, captioned, tmp_path, capsys):
    """The first ones by id, which are the last ones in the file."""
    (captioned[0] / "grey.png").unlink()
    report = tmp_path / "scores.json"
    status, said, errors = evaluate(capsys, trained / "rnn.pt", captioned, "--limit", 3, "--show", 0, "--json", report)
    ids = [picture["image_id"] for picture in json.loads(report.read_text())["pictures"]]
    assert len(ids) == 3 and ids == sorted(ids) and ids[-1] <= 21
    assert status == 0 and said[0].startswith("3 pictures, 6 reference captions") and len(said) == 5
    assert any("1 of 8 pictures are not in" in line and "grey.png" in line for line in errors)


def test_evaluate_of_a_split(trained, photos, captioned, tmp_path, capsys):
    """A Karpathy split file, and a table with split lists: the pictures of the split that is named, no others."""
    splits = ["train", "restval", "val", *["test"] * 5]
    images = [{"imgid": i, "filename": photo.name, "split": split, "sentences": [{"raw": f"A {colour} picture."}]}
              for i, ((photo, colour), split) in enumerate(zip(photos.items(), splits))]  # fmt: skip
    karpathy, table = tmp_path / "dataset.json", tmp_path / "captions.txt"
    karpathy.write_text(json.dumps({"images": images}))
    table.write_text("image,caption\n" + "".join(f"{i['filename']},{i['sentences'][0]['raw']}\n" for i in images))
    (tmp_path / "test.txt").write_text("".join(f"{photo.name}\n" for photo in list(photos)[3:]))
    (tmp_path / "val.txt").write_text(f"{list(photos)[2].name}\n")
    lists = ["--split-lists", tmp_path / "test.txt", tmp_path / "val.txt"]
    for path, options, told in [(karpathy, [], "a Karpathy split file"), (table, lists, "a table separated by commas")]:
        for split, count in {"test": 5, "val": 1}.items():
            place = captioned[0], path
            status, said, errors = evaluate(capsys, trained / "rnn.pt", place, "--split", split, *options)
            assert status == 0 and said[0].startswith(f"{count} pictures, {count} reference captions")
            assert any(told in line for line in errors)
        status, said, errors = evaluate(capsys, trained / "rnn.pt", place, *options)
        assert_one_error(status, errors[-1:], "choose one (--split)")


def test_evaluate_of_what_cannot_be_scored(trained, captioned, data_file, tmp_path, capsys):
    folder, captions = captioned
    for checkpoint, place, told in [
        (data_file, captioned, data_file), (trained / "rnn.pt", (tmp_path / "none", captions), "no such folder"),
        (trained / "rnn.pt", (folder, data_file), "not a text"), (trained / "rnn.pt", (folder, folder / "x"), "read"),
    ]:  # fmt: skip
        status, said, errors = evaluate(capsys, checkpoint, place)
        assert said == []
        assert_one_error(status, errors, told)
    (folder / "grey.png").write_bytes(b"no picture")
    status, said, errors = evaluate(capsys, trained / "rnn.pt", captioned)
    assert_one_error(status, errors[1:], folder / "grey.png", "not a picture")


# --- caption ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own to work in: `caption` writes there, and looks for a captioner there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path):
    """Photographs of odd sizes, modes and formats -> what is on them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    red, green, blue = (Image.new("RGB", (90, 31), COLOURS[name]) for name in ("red", "green", "blue"))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turned by a quarter
    saved = {
        "one pixel.png": (red.resize((1, 1)), {}, "red"),
        "palette.png": (green.quantize(4), {}, "green"),
        "cmyk.jpg": (blue.convert("CMYK"), {"quality": 95}, "blue"),
        "turned.jpg": (red, {"exif": turned}, "red"),
        "transparent.webp": (green.convert("RGBA"), {}, "green"),
        "grey.png": (Image.new("L", (3, 500), 120), {}, "grey"),
        "grey16.png": (Image.new("I;16", (41, 40), 120 * 257), {}, "grey"),
        "moving.gif": (blue, {}, "blue"),
    }
    for name, (image, options, _) in saved.items():
        image.save(folder / name, **options)
    return {folder / name: colour for name, (_, _, colour) in saved.items()}


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_caption_prints_the_best_captions_of_each_photo(trained, photos, capsys, cell_type):
    status, said, errors = run(capsys, "caption", "--checkpoint", trained / f"{cell_type}.pt", *photos)
    assert status == 0 and errors == []
    each = 5 if cell_type == "attn" else 4  # its name, three captions, and the drawing's
    assert said[::each] == [f"{photo}:" for photo in photos]
    best = [line.split(maxsplit=1)[1] for line in said[1::each]]
    assert best == [f"a {colour} picture" for colour in photos.values()]


def test_caption_takes_the_captioner_that_was_trained_last(trained, photos, tmp_path, capsys):
    photo = next(iter(photos))
    status, said, errors = run(capsys, "caption", photo)
    assert_one_error(status, errors, "no captioner in build", "`python helpers.py train --data FILE", "--checkpoint")
    assert said == []
    for cell_type, written in (("lstm", 2e9), ("rnn", 3e9), ("attn", 1e9)):
        path = tmp_path / "build" / cell_type / f"{cell_type}.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes((trained / path.name).read_bytes())
        os.utime(path, (written, written))
    (tmp_path / "build" / "features.pt").write_bytes(b"no captioner, and newer than some")
    status, said, errors = run(capsys, "caption", photo)
    assert (status, errors, said[0]) == (0, [], f"captioner: {Path('build', 'rnn', 'rnn.pt')}")
    assert said[1] == f"{photo}:" and len(said) == 5


def test_caption_takes_a_web_address(trained, tmp_path, serve, capsys):
    Image.new("RGB", (90, 31), COLOURS["red"]).save(tmp_path / "red.png")
    command, address = ["caption", "--checkpoint", trained / "rnn.pt"], serve(tmp_path)
    status, said, _ = run(capsys, *command, f"{address}/red.png")
    assert status == 0 and said[1].endswith("  a red picture")
    for wrong in (f"{address}/none.png", "http://.example.org/a.png", f"http://{'x' * 64}.org/a.png", "http://[::1/a.png"):
        status, said, errors = run(capsys, *command, wrong)
        assert status == 1 and said == [] and errors[-1].startswith(f"error: {wrong}: cannot be downloaded")


def test_photos_are_prepared_like_the_training_pictures(trained, photos, monkeypatch, capsys):
    prepared, prepare = [], captioner.prepare_image
    monkeypatch.setattr(captioner, "prepare_image", lambda photo, *how: prepared.append(how) or prepare(photo, *how))
    assert run(capsys, "caption", "--checkpoint", trained / "rnn.pt", *photos)[0] == 0
    assert prepared == [(40, "crop")] * len(photos)


def test_caption_draws_where_it_looked(trained, photos, tmp_path, capsys):
    out, photos = tmp_path / "new" / "maps", list(photos)[:3]
    status, said, _ = run(capsys, "caption", "--checkpoint", trained / "attn.pt", "--out", out, *photos)
    assert status == 0 and said[4::5] == [f"  attention maps: {out / photo.stem}.png" for photo in photos]
    assert {path.name for path in out.iterdir()} == {f"{photo.stem}.png" for photo in photos}
    for path in out.iterdir():
        with Image.open(path) as figure:
            assert figure.format == "PNG" and len(figure.convert("RGB").getcolors(1 << 24)) > 10


def test_photos_of_one_name_have_each_a_drawing(trained, tmp_path, capsys):
    photos = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.jpg"]
    for photo in photos:
        photo.parent.mkdir()
        Image.new("RGB", (20, 20), "red").save(photo)
    status, _, errors = run(capsys, "caption", "--checkpoint", trained / "attn.pt", "--out", tmp_path / "maps", *photos)
    assert status == 0 and errors == [] and len(list((tmp_path / "maps").iterdir())) == 2


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_a_beam_prints_several_captions_with_their_probabilities(trained, tmp_path, capsys, cell_type):
    photo, checkpoint = tmp_path / "red.png", trained / f"{cell_type}.pt"
    Image.new("RGB", (90, 31), COLOURS["red"]).save(photo)
    status, (name, *said), errors = run(capsys, "caption", "--checkpoint", checkpoint, "--beam", 3, photo)
    assert (status, errors, name) == (0, [], f"{photo}:")
    drawn = [f"  attention maps: {Path('build', 'captions', 'red.png')}"] if cell_type == "attn" else []
    assert said[0].endswith("  a red picture") and said[3:] == drawn
    probabilities = [float(line.split()[0]) for line in said[:3]]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1.01


def test_a_number_of_captions_is_that_of_the_best_in_the_beam(trained, tmp_path, capsys):
    photo = tmp_path / "red.png"
    Image.new("RGB", (90, 31), COLOURS["red"]).save(photo)
    command = ["caption", "--checkpoint", trained / "lstm.pt", photo, "--beam", 3]
    (_, beam, _), (status, two, errors) = run(capsys, *command), run(capsys, *command, "--number", 2)
    assert (status, errors) == (0, []) and len(beam) == 4 and two == beam[:3]
    status, _, errors = run(capsys, *command, "--number", 5)
    assert_one_error(status, errors, "5", "3")


def test_drawn_captions_are_repeated_by_the_seed(trained, tmp_path, capsys):
    photo = tmp_path / "red.png"
    Image.new("RGB", (90, 31), COLOURS["red"]).save(photo)
    command = ["caption", "--checkpoint", trained / "lstm.pt", "--temperature", 3, "--number", 4, photo, "--seed"]
    first, again, other = (run(capsys, *command, seed) for seed in (1, 1, 2))
    assert first == again != other and first[0] == 0 and len(first[1]) == 5


def test_a_captioner_without_a_reranker_is_told_from_one_with(trained, captioned, capsys):
    status, _, errors = evaluate(capsys, trained / "rnn.pt", captioned, "--beam", 3, "--rerank", 200)
    assert_one_error(status, errors[1:], "this captioner has no reranker: leave out rerank, or train with --reranker")


def test_the_encoder_is_the_one_asked_for(data_file, tmp_path, capsys):
    status, said, _ = train(capsys, data_file, tmp_path, "--cell", "rnn", "--encoder", "lite1")
    assert status == 0 and "image encoder: EfficientNet-Lite1" in "\n".join(said)


def test_a_report_of_drawn_captions_says_their_seed(trained, captioned, tmp_path, capsys):
    report = tmp_path / "scores.json"
    status, said, _ = evaluate(capsys, trained / "rnn.pt", captioned, "--json", report, "--temperature", 2, "--seed", 5)
    assert status == 0 and said[0].endswith("decoding: temperature 2.0, seed 5")
    assert json.loads(report.read_text())["decoding"] == {"temperature": 2.0, "seed": 5}


@pytest.mark.parametrize("command", ["evaluate", "caption"])
def test_captions_are_drawn_on_the_models_device(command, trained, captioned, tmp_path, monkeypatch, capsys):
    made, generator = [], torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: made.append(torch.device(device)) or generator(device))
    options = ["--checkpoint", trained / "rnn.pt", "--temperature", 1.0, "--device", "cpu"]
    if command == "evaluate":
        status, _, _ = evaluate(capsys, trained / "rnn.pt", captioned, *options[2:])
    else:
        Image.new("RGB", (90, 31), COLOURS["red"]).save(photo := tmp_path / "red.png")
        status, _, _ = run(capsys, command, *options, photo)
    assert status == 0 and made == [torch.device("cpu")]
    monkeypatch.setattr(torch, "Generator", lambda device: made.append(torch.device(device)) or generator("cpu"))
    cli.decoder.read(SimpleNamespace(temperature=1.0, seed=0), torch.device("cuda"))
    assert made[-1] == torch.device("cuda")


@pytest.mark.parametrize("option, value, wanted", [
    ("--temperature", "-1", "wanted a positive number"), ("--beam-temperature", "0", "wanted a positive number"),
    ("--top-p", "1.5", "wanted a positive number, at most 1"),
    ("--length-penalty", "-1", "wanted a number, at least 0"),
])  # fmt: skip
def test_an_impossible_decoding_option_is_told_before_anything_is_read(option, value, wanted, capsys):
    status, _, errors = run(capsys, "caption", "--checkpoint", "nowhere.pt", option, value, "photo.jpg")
    assert_one_error(status, errors, f"argument {option}: '{value}', {wanted}")


def test_options_that_do_not_go_together(trained, tmp_path, capsys):
    photo = tmp_path / "red.png"
    Image.new("RGB", (90, 31), COLOURS["red"]).save(photo)
    command = ["caption", "--checkpoint", trained / "rnn.pt", "--beam", 3, "--temperature", 1.0, photo]
    status, _, errors = run(capsys, *command)
    assert_one_error(status, errors, "cannot be combined")


def test_photos_that_are_no_pictures(trained, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (400, 400), "red").save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    for name in ("text.jpg", "half.png", "none.jpg", ""):
        status, said, errors = run(capsys, "caption", "--checkpoint", trained / "rnn.pt", tmp_path / name)
        assert_one_error(status, errors, tmp_path / name)
        assert said == []


def test_caption_without_a_checkpoint(photos, data_file, tmp_path, capsys):
    (tmp_path / "text.pt").write_text("no checkpoint")
    for path, told in ((tmp_path / "none.pt", "no such checkpoint"), (tmp_path / "text.pt", "not a captioner's"),
                       (data_file, "not a captioner's")):  # fmt: skip
        status, said, errors = run(capsys, "caption", "--checkpoint", path, *photos)
        assert_one_error(status, errors, path, told)
        assert said == []


# --- outputs, names and interrupts ------------------------------------------------------------------------


def test_what_the_terminal_cannot_show_is_escaped_and_the_scores_are_written(trained, captioned, tmp_path, monkeypatch):
    """As on Windows, where a log file is in cp1252."""
    said = json.loads(captioned[1].read_text())
    for note in said["annotations"]:
        note["caption"] += " \N{DOG FACE}"
    captioned[1].write_text(json.dumps(said))
    shown = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", shown)
    images, captions = captioned
    command = ["evaluate", "--checkpoint", trained / "rnn.pt", "--images", images, "--captions", captions]
    assert helpers.main([*map(str, command), "--json", str(tmp_path / "scores.json")]) == 0
    assert b"\\U0001f436" in shown.buffer.getvalue() and json.loads((tmp_path / "scores.json").read_text())["scores"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it needs the device /dev/full")
def test_a_full_disk_under_the_output_is_one_line(tmp_path):
    command = [sys.executable, "-m", "eecs598.scenes", tmp_path / "scenes.pt", "--train", "2", "--val", "1"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1:] == ["error: [Errno 28] No space left on device"]
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


def test_results_are_written_before_examples_are_shown(trained, captioned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.evaluate, "_print_best_and_worst", lambda *shown: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(capsys, trained / "rnn.pt", captioned, "--json", tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]


def test_an_output_that_is_an_input_or_a_folder_is_refused(trained, captioned, data_file, tmp_path, capsys):
    before = captioned[1].read_bytes()
    for out, told in ((captioned[1], "is an input of this command"), (tmp_path, "is a folder")):
        status, _, errors = evaluate(capsys, trained / "rnn.pt", captioned, "--json", out)
        assert_one_error(status, errors, out, told)
    lists = tmp_path / "val.txt"
    lists.write_text("one.jpg")
    status, _, errors = evaluate(capsys, trained / "rnn.pt", captioned, "--json", lists, "--split-lists", lists)
    assert_one_error(status, errors, lists, "is an input of this command")
    assert lists.read_text() == "one.jpg"
    (tmp_path / "data").mkdir()
    shutil.copy(data_file, tmp_path / "data" / "attn.pt")
    status, _, errors = train(capsys, tmp_path / "data" / "attn.pt", tmp_path / "data")
    assert_one_error(status, errors, tmp_path / "data" / "attn.pt", "is an input of this command")
    assert captioned[1].read_bytes() == before
    assert (tmp_path / "data" / "attn.pt").read_bytes() == data_file.read_bytes()


def test_a_place_for_the_captioner_is_checked_before_the_training(data_file, tmp_path, monkeypatch, capsys):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr(commands.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(cli.train, "train_captioner", None)
    status, _, errors = train(capsys, data_file, tmp_path)
    assert_one_error(status, errors, tmp_path, "no file can be written in this folder (Permission denied)")


def test_a_photo_that_cannot_be_read_does_not_end_the_list(trained, photos, tmp_path, capsys):
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    first, second, *_ = photos
    checkpoint = trained / "rnn.pt"
    status, said, errors = run(capsys, "caption", "--checkpoint", checkpoint, first, tmp_path / "phone.heic", second)
    assert_one_error(status, errors, "phone.heic")
    assert [line for line in said if line.endswith(":")] == [f"{first}:", f"{second}:"]


def test_a_drawing_takes_no_other_files_place(trained, tmp_path, capsys):
    photo = tmp_path / "cat.png"
    Image.new("RGB", (20, 20), "red").save(photo)
    before, command = photo.read_bytes(), ["caption", "--checkpoint", trained / "attn.pt", "--out", tmp_path, photo]
    for _ in range(2):  # its own drawing is written anew
        assert run(capsys, *command)[0] == 0
    assert photo.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {"cat.png", "cat-2.png"}


@pytest.mark.parametrize("address, name", [
    ("https://a.org/photos/dog.jpg?X-Amz-Signature=" + "a." * 300, "dog.png"), ("https://a.org/", "photo.png"),
    ("https://a.org/a%2Fb%3F.jpg", "b_.png"), ("x" * 300 + ".jpg", "x" * 80 + ".png"), ("con:a|b.jpg", "con_a_b.png"),
    ("\u00e9" * 90, "\u00e9" * 40 + ".png"),
])  # fmt: skip
def test_a_drawings_name_is_safe_on_every_system(address, name, tmp_path):
    assert cli.caption._choose_drawing(tmp_path, address, set()) == tmp_path / name


def test_a_page_in_a_pictures_place_is_named_by_its_address(trained, tmp_path, serve, capsys):
    (tmp_path / "login.jpg").write_text("<html>log in</html>")
    address = f"{serve(tmp_path)}/login.jpg"
    status, _, errors = run(capsys, "caption", "--checkpoint", trained / "rnn.pt", address)
    assert status == 1 and f"error: {address}: not a picture in a format" in errors[-1]


@pytest.mark.parametrize("options", [["--length-penalty", 1], ["--no-repeat", 2]])
def test_an_option_of_the_search_leaves_the_beam_of_three(trained, photos, capsys, options):
    status, said, _ = run(capsys, "caption", "--checkpoint", trained / "rnn.pt", *options, next(iter(photos)))
    assert status == 0 and len(said) == 1 + 3


def test_an_interrupt_is_one_line(data_file, tmp_path, monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt(*told)

    monkeypatch.setattr(cli.train, "train_captioner", stop)
    for told in ((), ("stopped at iteration 7",)):
        status, _, errors = train(capsys, data_file, tmp_path)
        assert status == 130 and errors[-1] == f"error: {told[0] if told else 'stopped'}"


def test_captions_that_are_cut_are_counted(data_file, tmp_path, capsys):
    data = helpers.load_coco_captions(data_file)
    data["train_references"][0].append("a red picture " * 6)
    save_data(data, tmp_path / "long.pt")
    _, said, _ = train(capsys, tmp_path / "long.pt", tmp_path, "--cell", "rnn", "--captions", "all")
    assert "note: 1 captions are cut to 15 words, without <END>" in said
    captions, _ = helpers.all_captions(data)
    ends = (captions == data["vocab"]["token_to_idx"]["<END>"]).sum(1)
    assert ends.tolist() == [1, 1, 0, *[1] * 6] and (captions[2] != 0).sum() == 16


def test_what_is_no_captioner_is_told_by_what_it_is(data_file, photos, tmp_path, capsys):
    train(capsys, data_file, tmp_path / "out", "--cell", "rnn", "--checkpoint-dir", tmp_path / "kept")
    kept = tmp_path / "kept" / "rnn" / "best.pt"
    for path, told in ((kept, "a checkpoint to resume training from"), (tmp_path / "out", "is a folder")):
        status, _, errors = run(capsys, "caption", "--checkpoint", path, next(iter(photos)))
        assert_one_error(status, errors, path, told)


def test_a_device_that_is_not_there_is_a_short_line(capsys):
    status, _, errors = run(capsys, "caption", "--device", "mps", "a.jpg")
    assert_one_error(status, errors, "'mps' is not available here") if not torch.backends.mps.is_available() else None
    assert len(errors[-1]) < 300


def test_as_a_program(tmp_path):
    """The exit status and the one line reach the shell."""
    arguments = [sys.executable, "helpers.py", "caption", "--checkpoint", str(tmp_path / "none.pt"), "a.jpg"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


# --- real photographs -------------------------------------------------------------------------------------


def test_the_published_overfit_run_on_real_photographs(real_data, tmp_path):
    """80 epochs on 50 photographs, 112 x 112 and so a grid of 4 x 4, to the published targets; all words are kept."""
    folder = real_data / "flickr8k"
    captions = folder / "captions_train.json", folder / "captions_val.json"
    data = build_data(folder / "images", *captions, tmp_path / "50.pt", num_train=50, num_val=1, min_count=1)
    encoder = encoders.choose_encoder(data["train_images"], 32, None)
    for cell_type, target in (("rnn", 0.5), ("lstm", 4), ("attn", 9)):
        reset_seed(0)
        model = helpers.make_captioner(CaptioningRNN, data, cell_type, encoder, hidden_dim=512, wordvec_dim=256)
        model, losses = helpers.train_captioner(
            model, data["train_images"], data["train_captions"], 80, 25, 1e-3, 1, "cpu",
            fast=cell_type != "rnn", options=helpers.Options(progress=False, plot=False),
        )  # fmt: skip
        print(f"{cell_type}: mean loss of the last epoch {sum(losses[-2:]) / 2:.3f}, target {target}")  # with -s
        assert len(losses) == 160 and losses[0] > 60
        assert sum(losses[-2:]) / 2 < target, cell_type
