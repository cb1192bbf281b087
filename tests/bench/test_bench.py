"""The bench: that both sides of a pair do the same, that they run in turns, and that its commands behave."""

import itertools
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from support import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

import rnn_lstm_captioning as rlc
from eecs598 import bench, choosing, fast, features, vis
from eecs598.bench import command, measuring, memory, pairs, waiting
from eecs598.fast import arithmetic
from eecs598.training import solver
from eecs598.training.objective import Objective
from eecs598.training.options import PRECISIONS, Options

SMALL = bench.Sizes(N=5, T=4, W=3, H=6, V=13, C=7, grid=2)


@pytest.fixture(autouse=True)
def _the_lesson_stays_the_same_module(monkeypatch):
    """`load_module` puts what it loads in its place; the tests after these need their own."""
    monkeypatch.setitem(sys.modules, "rnn_lstm_captioning", rlc)


def copy_weights(plain, ours):
    """The captioner's weights into the plain one's places."""
    cell = dict(ours.cell.named_parameters())
    places = {
        plain.feature_projection.weight: ours.feature_projection.weight,
        plain.feature_projection.bias: ours.feature_projection.bias,
        plain.word_embedding.weight: ours.word_embedding.W_embed,
        plain.output_projection.weight: ours.output_projection.weight,
        plain.output_projection.bias: ours.output_projection.bias,
        **dict(zip(plain.weights, [cell[name] for name in ("Wx", "Wh", "Wattn") if name in cell])),
        plain.bias: ours.cell.b,
    }
    assert len(places) == len(list(plain.parameters()))
    with torch.no_grad():
        for place, value in places.items():
            place.copy_(value)
    return places


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
def test_the_plain_captioner_is_the_same_captioner(cell_type):
    ours, plain, batch = bench.captioner_and_data(rlc, SMALL, cell_type, padding=0.3)
    places = copy_weights(plain, ours)
    assert (batch[1] == 0).any()
    losses = ours(*batch), plain(*batch)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for theirs, mine in places.items():
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


LAYERS = ["LSTM", "RNN", "attention LSTM", "attention LSTM"]
ROWS = {
    "layers": [row for name in LAYERS for row in (name, f"{name}, its products alone")],
    "plain": [f"plain {name}" for name in LAYERS] + 5 * ["plain training step"],
    "growth": [f"LSTM, H={H}" for H in (64, 128, 256, 512)] + [f"LSTM, T={T}" for T in (4, 8, 16, 32)],
}  # fmt: skip


@pytest.mark.parametrize("group", list(ROWS))
def test_the_rows_of_a_group_and_that_both_sides_run(group):
    found = list(bench.PAIRS[group](rlc, SMALL, "cpu"))
    for pair in found[:2]:
        pair.ours()
        pair.other()
    names = [re.sub("step, .*", "step", pair.name) for pair in found]
    assert names == ROWS[group]


def test_a_beam_for_a_batch_finds_what_it_finds_for_each_picture():
    for pair in bench.PAIRS["beam"](rlc, SMALL, "cpu", pictures=3):
        together, alone = pair.ours(), pair.other()
        assert torch.equal(together.words, torch.cat([each.words for each in alone]))


class Multiplications(TorchDispatchMode):
    """Inside, counts the multiplications of matrix products."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("mm.default", "addmm.default", "addmm_.default", "bmm.default", "baddbmm_.default"):
            a, b = args[-2:]
            self.count += a.numel() * b.shape[-1]
        return function(*args, **(kwargs or {}))


def test_captions_share_a_grid_and_are_the_same_without():
    training, sampling = bench.PAIRS["shared"](rlc, SMALL._replace(N=16, H=8), "cpu")
    found = []
    for run in (sampling.ours, sampling.other):
        torch.manual_seed(0)
        found.append(run())
    shared, copied = (captions.words.flatten(0, 1) for captions in found)
    assert torch.equal(shared, copied) and (shared == 0).any()
    torch.testing.assert_close(found[0].log_probs.flatten(), found[1].log_probs.flatten())
    counts = []
    for run in (training.ours, training.other):
        run()  # also compares the first batch
        with Multiplications() as seen:
            run()
        counts.append(seen.count)
    assert counts[0] < counts[1]  # as each picture's features are projected once


def test_the_products_alone_are_those_of_the_layer(monkeypatch):
    for what in ("product", "added-product"):
        monkeypatch.setitem(choosing.fixed_choices(), what, "torch")
    N, T, W, H = SMALL[:4]
    wanted = {("LSTM", str(SMALL)): (W + H) * 4 * H, ("RNN", str(SMALL)): (W + H) * H}
    for grid in (4, 7):
        wanted["attention LSTM", f"{SMALL} {grid}x{grid}"] = (W + 2 * H) * 4 * H + 2 * H * grid**2
    for pair in bench.PAIRS["layers"](rlc, SMALL, "cpu"):
        with Multiplications() as seen:
            pair.ours()
        products = wanted[pair.name.removesuffix(", its products alone"), pair.size]
        assert seen.count == 3 * N * T * products, pair.name  # forward, and back to both factors


def test_plain_rows_are_the_modules_and_the_others_eecs598_fasts(monkeypatch):
    ran = []
    for name, layers in (("plain", rlc), ("fast", fast)):
        forward = layers.LSTM.forward
        monkeypatch.setattr(layers.LSTM, "forward",
                            lambda *given, name=name, forward=forward: ran.append(name) or forward(*given))
    next(bench.PAIRS["plain"](rlc, SMALL, "cpu")).ours()
    next(bench.PAIRS["layers"](rlc, SMALL, "cpu")).ours()
    assert ran == ["plain", "fast"]
    steps = []
    monkeypatch.setattr(pairs, "training_step", lambda loss_of, batch, *precision: steps.append(type(loss_of).__name__))
    list(bench.PAIRS["training"](rlc, SMALL, "cpu"))
    assert steps == ["Objective", "PlainCaptioner"] * 5


def test_a_machine_whose_lstm_does_not_run_in_bfloat16_is_measured_without_it(monkeypatch, capsys):
    with monkeypatch.context() as anywhere:
        anywhere.setattr(pairs, "_in_bfloat16", lambda step, where: step)
        found = [pair.name for pair in bench.PAIRS["precision"](rlc, SMALL, "cpu")]
    assert found == ["LSTM, bfloat16", "bfloat16"] and not capsys.readouterr().err

    def refuse(*_):
        raise RuntimeError("could not create a primitive descriptor. Run workload with more")

    monkeypatch.setattr(torch.nn.LSTM, "forward", refuse)
    assert [pair.name for pair in bench.PAIRS["precision"](rlc, SMALL, "cpu")] == ["bfloat16"]
    reason = "could not create a primitive descriptor"
    said = capsys.readouterr().err
    assert said == f"note: torch.nn.LSTM does not run in bfloat16 here ({reason}): its row is left out\n"


def test_both_sides_of_the_features_are_the_same_features(monkeypatch):
    monkeypatch.setattr(features, "fast_dtype", lambda device: torch.float32)
    (pair,) = pairs.feature_pairs(rlc, SMALL, "cpu", pictures=3)
    ours, plain = pair.ours(), pair.other()
    assert ours.shape == plain.shape and len(ours) == 3
    torch.testing.assert_close(ours, plain, rtol=0.01, atol=0.01)


def test_an_epoch_on_features_against_one_through_the_encoder(monkeypatch):
    steps = []
    monkeypatch.setattr(pairs, "fast_training_step", lambda model, batch: steps.append((model, batch)))
    list(pairs.epoch_pairs(rlc, SMALL, "cpu", pictures=128))
    *published, (cached, (features, captions)) = steps
    assert torch.cat([texts for _, (_, texts) in published]).equal(captions) and features.shape == (256, 400, 4, 4)
    assert all(photos.shape == (128, 3, 112, 112) for _, (photos, _) in published)
    assert not list(cached.image_encoder.parameters())
    assert all(p.requires_grad for p in published[0][0].image_encoder.parameters())
    assert sum(p.numel() for p in published[0][0].image_encoder.parameters()) > 4e6


def test_gradients_begin_anew():
    x = torch.ones(3, requires_grad=True)
    step = pairs._step(lambda: (2 * x).sum(), [x])
    step()
    step()
    assert x.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize("padding", [0.1, 0.28, 0.42, 0.6])
def test_lengths_have_the_share_of_padding_asked_for(padding):
    lengths = pairs.draw_lengths(500, 16, padding, torch.Generator().manual_seed(0))
    assert lengths.min() >= 3 and lengths.max() <= 16 and len(lengths.unique()) > 5
    assert 1 - lengths.float().mean() / 16 == pytest.approx(padding, abs=0.005)


def test_a_pair_runs_in_turns_and_the_first_round_does_not_count(monkeypatch):
    clock, ran = [0.0], []
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    seconds = {"ours": iter([99, 2, 3, 1, 2]), "other": iter([99, 4, 4, 4, 8])}

    def side(name):
        def run():
            ran.append(name)
            clock[0] += next(seconds[name])
        return run

    row = bench.compare(bench.Pair("a", "b", "c", side("ours"), side("other")), rounds=4)
    assert ran == ["other", "ours"] * 5
    assert (row.ours, row.other) == (2000, 4000)  # medians of 2 3 1 2 and 4 4 4 8, in ms
    assert row.ratio == pytest.approx(0.375)  # median of 1/2 3/4 1/4 1/4: not the ratio of the medians
    assert row.low <= row.ratio <= row.high


def test_the_rows_of_arithmetic_time_ours_against_pytorchs(monkeypatch):
    ran = []
    for name in ("product", "add_product_", "tanh"):
        ours = getattr(arithmetic, name)
        monkeypatch.setattr(arithmetic, name, lambda *a, name=name, ours=ours, **b: ran.append(name) or ours(*a, **b))
    for pair in pairs.arithmetic_pairs(rlc, SMALL, "cpu"):
        pair.other()
        assert not ran
        pair.ours()
        kind = pair.name.partition(",")[0]
        assert ran == ["add_product_" if kind == "added product" else kind] * SMALL.T
        ran.clear()


def test_a_process_of_its_own_has_the_variables_that_it_is_given(monkeypatch):
    monkeypatch.setenv("EECS598_A", "mine")
    seen = measuring.in_new_process(os.getenv, "EECS598_A", environment={"EECS598_A": "its own"})
    assert seen == "its own" and os.environ["EECS598_A"] == "mine"


def test_waiting_is_measured_alone_and_beside_other_work(monkeypatch):
    seen, busy = [], []
    monkeypatch.setattr(waiting, "ROUNDS", 3)
    monkeypatch.setattr(waiting, "in_new_process", lambda *args, environment: seen.append(environment) or len(seen))
    monkeypatch.setattr(waiting.subprocess, "Popen", lambda command: busy.append(len(seen)) or SimpleNamespace(
        kill=lambda: busy.append(len(seen)), wait=lambda: None))
    alone, beside = waiting.waiting_rows(rlc, SMALL, "cpu")
    assert seen == [waiting.SHORT, waiting.LONG] * 2 * waiting.ROUNDS and busy == [len(seen) // 2, len(seen)]
    assert (alone.ours, alone.other, alone.ratio) == (3000, 4000, 3 / 4) and beside.ratio == 9 / 10


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_training_step_takes_less_memory_than_the_plain_one():
    row = next(memory.memory_rows(bench.load_module(pairs.MODULE), bench.Sizes(N=128, H=256), "cpu"))
    assert row.name == "peak memory, attn" and row.unit == "MB"
    assert 1 < row.ours < 0.8 * row.other


def test_memory_is_not_measured_on_a_gpu(capsys):
    assert list(memory.memory_rows(rlc, SMALL, "cuda")) == []
    assert "measured on the CPU only, not on cuda" in capsys.readouterr().err


def test_bfloat16_trains_as_float32_does():
    """The same epochs in both precisions begin within 1 % of each other's loss and end within 5 %, far below it."""
    begun, final = {}, {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        sizes = bench.Sizes(64, 8, 16, 48, 40, 12, 3)
        ours, _, (features, captions) = bench.captioner_and_data(rlc, sizes, "attn", 0.3)
        history = solver.train(
            ours, features, captions, num_epochs=25, batch_size=16, learning_rate=5e-3, loss=Objective(ours),
            options=Options(precision=precision, progress=False),
        )  # fmt: skip
        assert ours.cell.Wx.dtype == ours.cell.Wx.grad.dtype == torch.float32
        begun[precision], final[precision] = (sum(losses) / 4 for losses in (history.losses[:4], history.losses[-4:]))
    assert final["bfloat16"] != final["float32"]  # or it was float32 twice
    assert begun["bfloat16"] == pytest.approx(begun["float32"], rel=0.01)
    assert final["bfloat16"] == pytest.approx(final["float32"], rel=0.05)
    assert final["bfloat16"] < begun["bfloat16"] / 2


@pytest.mark.parametrize(("bfloat16", "taken"), [(0.95, "float32"), (0.5, "bfloat16")])
def test_auto_takes_the_faster_precision(monkeypatch, bfloat16, taken):
    seconds = itertools.cycle([1.0, bfloat16])  # in turns
    monkeypatch.setattr(choosing, "_chosen", {})
    monkeypatch.setattr(choosing, "_time", lambda way: next(seconds))
    assert solver.best_precision("cpu") == taken


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'half'; it must be auto or one of float32, bfloat16"):
        solver.autocast("cpu", "half")


def some_rows():
    """Rows as `bench.run` gives them: two with a ratio of their own, others whose names begin like those of growth."""
    ratios = [("LSTM", 0.9), ("beam 3", 0.05)]
    others = "LSTM, its products alone", "LSTM, bfloat16", "LSTM, one graph", *ROWS["growth"]
    ratios += [(name, 1.1) for name in others]
    return [bench.Row(name, "N=2", "torch.nn.LSTM", 10 * k, 10.0, k, k - 0.01, k + 0.01) for name, k in ratios]


def test_the_command_prints_a_table_and_writes_what_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda *args: some_rows())
    monkeypatch.setattr(choosing, "_chosen", {("tanh", (512,)): "torch", ("product", (8, 9)): "onednn"})
    bench.main(["--json", str(tmp_path / "b.json"), "--png", str(tmp_path / "b.png")])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["against", "ours", "other", "ratio", "quartiles"]
    assert printed[1].split()[0] == "LSTM" and "0.90" in printed[1] and "0.89 to 0.91" in printed[1]
    *rows, machine, choices, plotted = printed
    assert len({len(line) for line in rows}) == 1 and "threads, torch" in machine
    assert choices == "implementations chosen, with the number of sizes: tanh: torch 1; product: onednn 1"
    assert plotted == f"plotted: {tmp_path / 'b.png'} {tmp_path / 'b-growth.png'}"
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["machine"] == machine and found["rows"][1]["ratio"] == 0.05
    sizes = [Image.open(tmp_path / name).size for name in ("b.png", "b-growth.png")]
    assert min(map(min, sizes)) > 200 and len(list(tmp_path.iterdir())) == 3


def test_without_a_row_there_is_no_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda *args: [])
    assert bench.main(["--rows", "memory", "--png", str(tmp_path / "b.png")]) == 1
    assert capsys.readouterr() == ("", "error: nothing could be measured of memory\n")


@pytest.mark.parametrize("arguments, said", [
    (["--json", "same", "--png", "./same"], "same is named for two results"),
    (["--rows", "speed"], "invalid choice: 'speed'"),
    (["--rounds", "0"], "wanted a whole number, at least 1"),
    (["--module", "nowhere.py"], "nowhere.py is not a .py file"),
    (["--module", str(ROOT / "README.md")], "README.md is not a .py file"),
])
def test_wrong_usage_is_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_cuda_device_without_a_number_is_the_current_one():
    """`default_device()`, which the notebook passes, has none."""
    assert bench.run(None, rows=(), where=torch.device("cuda"), progress=False) == []


@pytest.mark.parametrize("text, told", [
    ("def open(:", "invalid syntax"), ("raise NotImplementedError('TODO: LSTM.forward')", "TODO: LSTM.forward"),
])  # fmt: skip
def test_a_file_that_is_not_done_is_one_line(tmp_path, capsys, text, told):
    path = tmp_path / "rnn_lstm_captioning.py"
    path.write_text(text)
    assert bench.main(["--module", str(path), "--rows", "plain"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}: ") and told in error


def test_a_students_file_can_be_measured():
    module = bench.load_module(ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py")
    try:
        pair = next(bench.PAIRS["plain"](module, SMALL, "cpu"))
        assert bench.compare(pair, rounds=2).ours > 0
    finally:
        sys.modules["rnn_lstm_captioning"] = rlc


def test_bars_and_whiskers_show_the_ratios():
    rows = some_rows()[:2]
    axes = vis.plot_ratios(rows, "a machine").axes[-1]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.05]
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] < 0.05
    figure = vis.plot_ratios(rows)
    axes, renderer = figure.axes[-1], figure.canvas.get_renderer()
    figure.draw(renderer)
    labels = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(labels) == len(rows) and min(box.x0 for box in labels) > axes.bbox.x1  # clear of the bars
    assert max(box.x1 for box in labels) < figure.bbox.x1
    with pytest.raises(ValueError, match="got no rows"):
        vis.plot_ratios([])


def test_growth_has_a_panel_for_each_size():
    axes = vis.plot_growth(some_rows()[-len(ROWS["growth"]) :]).axes
    assert [ax.get_xlabel() for ax in axes] == ["H", "T"]
    ours, other = axes[0].lines
    assert list(ours.get_xdata()) == [64, 128, 256, 512]
    assert list(ours.get_ydata()) == 4 * [11] and list(other.get_ydata()) == 4 * [10]
