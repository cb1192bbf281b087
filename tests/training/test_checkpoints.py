"""Checkpoints: a run that is stopped, by whatever, and taken up again is the run that was never stopped."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from support import ROOT
from support.disk import fill
from support.encoder import MeanEncoder

import helpers
from eecs598 import encoders, features
from eecs598.captioner import make_captioner
from eecs598.coco import save_data
from eecs598.training import checkpoints, solver
from eecs598.training import run as run_module
from eecs598.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    hash_tensors,
    identify_data,
    load_best,
    read_checkpoint,
)
from eecs598.training.options import NAMES, Options
from eecs598.utils import reset_seed
from rnn_lstm_captioning import CaptioningRNN

SIZES = {"num_epochs": 3, "batch_size": 4, "learning_rate": 0.1, "lr_decay": 0.9}
QUIET = Options(progress=False, plot=False)
IMAGES, CAPTIONS = torch.arange(20.0).view(10, 2).sin(), torch.arange(10)[:, None].expand(10, 2)  # 3 steps an epoch


class StopError(Exception):
    """What ends a run in the middle of an iteration."""


class Noisy(torch.nn.Module):
    """A regression whose loss takes from every random generator; in training call number `stop_at` it is stopped."""

    def __init__(self, width=2, stop_at=None):
        super().__init__()
        self.layer, self.calls, self.stop_at = torch.nn.Linear(width, 1), 0, stop_at
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images, captions):
        noise = 0
        if self.training:
            self.calls += 1
            self.seen += len(images)
            noise = torch.rand(len(images), 1) + random.gauss(0, 1) + np.random.randn()
            if self.calls == self.stop_at:
                self.stop()
        return ((self.layer(images) + noise - captions) ** 2).mean()

    def stop(self):
        raise StopError


def run(folder=None, every=None, stop_at=None, make=Noisy, data=(IMAGES, CAPTIONS), index=None, val=True, **options):
    """A model and its history, after training in a folder; the random states are seeded by `begin`, 0 if not given."""
    reset_seed(options.pop("begin", 0))
    model, val_data = make(stop_at=stop_at), (IMAGES[:5], CAPTIONS[:5]) if val else None
    kept = folder and Checkpoints(folder, identify_data(*data, index, val_data), every)
    options, how = split_options(options)
    how = {"val_data": val_data, "image_index": index, "checkpoints": kept, **SIZES, **how}
    return model, solver.train(model, *data, options=options, **how)


def split_options(given):
    """The `Options` among keyword arguments, and the other arguments."""
    chosen = {name: given.pop(name) for name in NAMES if name in given}
    return replace(QUIET, **chosen), given


def result(outcome):
    """All that must come out the same, as text, in which floats are exact; and the random numbers drawn next."""
    model, history = outcome
    following = torch.rand(2).tolist(), random.gauss(0, 1), np.random.randn()
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    return repr((state, history.losses, history.val_losses, following))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize("stop_at", range(1, 10))
def test_a_run_stopped_in_any_iteration_goes_on_to_the_same_end(tmp_path, capsys, stop_at, every):
    whole = result(run())
    with pytest.raises(StopError):
        run(tmp_path, every, stop_at)
    assert capsys.readouterr().out == ""
    assert result(run(tmp_path, every, begin=99)) == whole
    done = max(n for n in range(stop_at) if n % 3 == 0 or (every and n % every == 0))
    path = tmp_path / f"iteration-{done:08d}.pt"
    assert capsys.readouterr().out == f"resumed from {path} at epoch {done // 3 + 1}, iteration {done}\n"
    before = 8 if every else 6
    assert names(tmp_path) == ["best.pt", f"iteration-{before:08d}.pt", "iteration-00000009.pt"]


def test_stopped_again_and_again(tmp_path):
    whole = result(run())
    for attempt in range(8):
        with pytest.raises(StopError):
            run(tmp_path, every=1, stop_at=2, begin=attempt and attempt + 1)
    assert result(run(tmp_path, begin=50)) == whole


def test_keeping_checkpoints_changes_nothing(tmp_path):
    assert result(run(tmp_path, every=1)) == result(run())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_goes_on_the_same_way(tmp_path):
    class OnGPU(Noisy):
        def __init__(self, stop_at):
            super().__init__(stop_at=stop_at)
            self.cuda()

        def forward(self, images, captions):
            loss = super().forward(images, captions.cuda())
            return loss + torch.rand((), device="cuda") if self.training else loss

    def rand(*size, **where):
        return drawn(*size, **{"device": "cuda"} | where)

    drawn = torch.rand
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", rand)
        whole = result(run(make=OnGPU))
        with pytest.raises(StopError):
            run(tmp_path, 1, stop_at=5, make=OnGPU)
        assert result(run(tmp_path, 1, begin=9, make=OnGPU)) == whole


def test_a_finished_run_returns_its_history_at_once(tmp_path, capsys):
    whole = result(run(tmp_path))
    before = names(tmp_path)
    model, history = run(tmp_path, begin=3)
    assert model.calls == 0 and result((model, history)) == whole and names(tmp_path) == before
    assert "iteration-00000009.pt: all 3 epochs are done" in capsys.readouterr().out


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path):
    run(tmp_path)
    assert result(run(tmp_path, begin=3, num_epochs=5)) == result(run(num_epochs=5))
    with pytest.raises(CheckpointError, match=r"num_epochs is 3, but the run in .* is already in epoch 5"):
        run(tmp_path)


def test_a_run_killed_at_30_random_moments_ends_as_one_never_killed(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and SIGKILL")
    command = [sys.executable, ROOT / "tests" / "support" / "killed_run.py", tmp_path, "30", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    killed_in = json.loads(done.stdout)
    assert len(killed_in) == 30 and all(killed_in.count(where) >= 1 for where in "ews"), killed_in
    killed, whole = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("killed", "whole"))
    assert killed["losses"] == whole["losses"] and len(whole["losses"]) == 400
    assert killed["model"].keys() == whole["model"].keys()
    assert all(torch.equal(value, whole["model"][name]) for name, value in killed["model"].items())
    assert torch.equal(killed["next"], whole["next"])
    assert len(names(tmp_path / "checkpoints")) == 3 and len(names(tmp_path / "features")) == 2  # no half file is left


# --- what is in the folder --------------------------------------------------------------------------------


def values(part):
    if isinstance(part, dict):
        return chain(values(list(part)), values(list(part.values())))
    return chain(*map(values, part)) if isinstance(part, (list, tuple)) else [part]


def test_a_checkpoint_holds_tensors_and_plain_values(tmp_path):
    run(tmp_path, every=2)
    state = torch.load(tmp_path / "iteration-00000008.pt", weights_only=True)
    assert {type(value) for value in values(state)} <= {torch.Tensor, str, int, float, bool, type(None)}
    assert state["run"]["epoch"] == 2 and len(state["run"]["history"]["losses"]) == 8


def test_a_best_epoch_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"best\.pt does not exist; it is written at the end of the first epoch"):
        load_best(Noisy(), tmp_path / "nowhere")
    (tmp_path / "best.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be read"):
        load_best(Noisy(), tmp_path)


@pytest.mark.parametrize("val", [True, False])
def test_the_best_epoch_is_kept(tmp_path, val):
    """By the validation loss or, without validation data, by the mean training loss of the epoch."""
    weights, options = {}, {"learning_rate": 2.0, "num_epochs": 12}

    class Watched(Noisy):
        def state_dict(self, *args, **kwargs):
            state = super().state_dict(*args, **kwargs)
            weights[int(self.seen) // 10] = {name: value.clone() for name, value in state.items()}
            return state

    _, history = run(tmp_path, make=Watched, val=val, **options)
    scores = history.val_losses or [sum(history.losses[k : k + 3]) / 3 for k in range(0, 36, 3)]
    best = min(range(12), key=scores.__getitem__)
    assert 0 < best < 11 or not val
    model = Noisy()
    assert load_best(model, tmp_path) == (best + 1, scores[best])
    assert all(torch.equal(value, weights[best + 1][name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"model.layer.weight is \(1, 2\) .* in .*, \(1, 3\) .* in the m"):
        load_best(Noisy(width=3), tmp_path)


def test_the_best_epoch_is_chosen_anew_when_something_else_chooses_it(tmp_path):
    """A CIDEr-D of 0.9 counts as -0.9, which no loss is below."""
    run(tmp_path, num_epochs=2, score=lambda model: {"CIDEr-D": 0.9})
    _, history = run(tmp_path)
    assert load_best(Noisy(), tmp_path) == (3, history.val_losses[2])


def test_the_precision_found_the_first_time_stays(tmp_path, monkeypatch):
    """It is found by measuring time, which may come out otherwise the next time."""
    monkeypatch.setattr(solver, "best_precision", lambda device: "bfloat16")
    with pytest.raises(StopError):
        run(tmp_path, stop_at=5, precision="auto")
    monkeypatch.setattr(solver, "best_precision", lambda device: "float32")
    assert result(run(tmp_path, precision="auto")) == result(run(precision="bfloat16"))
    with pytest.raises(CheckpointError, match="precision: bfloat16 there, float32 here"):
        run(tmp_path, precision="float32")


def test_random_states_come_back():
    reset_seed(5)
    random.gauss(0, 1), np.random.randn()  # each keeps a second number for the next call
    state = checkpoints.get_random_state()
    drawn = [(random.gauss(0, 1), random.random(), np.random.randn(), torch.rand(()).item()) for _ in range(2)]
    reset_seed(6)
    checkpoints.set_random_state(state)
    assert [(random.gauss(0, 1), random.random(), np.random.randn(), torch.rand(()).item()) for _ in range(2)] == drawn


# --- damage -----------------------------------------------------------------------------------------------


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flip":  # one bit, in the middle of a weight
        at = content.find(read_checkpoint(path)["run"]["model"]["layer.weight"].numpy().tobytes())
        assert at > 0
        content[at] ^= 1
    else:
        content = content[: {"empty": 0, "half": len(content) // 2, "short": len(content) - 1}[how]]
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "empty", "half", "short"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, how):
    with pytest.raises(StopError):
        run(tmp_path, every=2, stop_at=7)
    last = tmp_path / "iteration-00000006.pt"
    damage(last, how)
    assert result(run(tmp_path, every=2)) == result(run())
    said = capsys.readouterr()
    assert f"resumed from {tmp_path / 'iteration-00000004.pt'} at epoch 2, iteration 4\n" == said.out
    assert said.err.count("\n") == 1 and f"note: {last} is damaged" in said.err


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path):
    """Gone on from iteration 4, stopped after 5: the newest is then 5, the damaged 6 is gone."""
    with pytest.raises(StopError):
        run(tmp_path, every=2, stop_at=7)
    damage(tmp_path / "iteration-00000006.pt", "half")
    with pytest.raises(StopError):
        run(tmp_path, every=1, stop_at=2)
    assert names(tmp_path) == ["best.pt", "iteration-00000004.pt", "iteration-00000005.pt"]


def test_no_checkpoint_that_can_be_read(tmp_path):
    run(tmp_path)
    before = names(tmp_path)
    for path in tmp_path.glob("iteration-*.pt"):
        damage(path, "half")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read: choose another checkpoint_dir, or"):
        run(tmp_path)
    assert names(tmp_path) == before


def test_any_flipped_bit_is_seen_or_harmless(tmp_path):
    run(tmp_path)
    path = tmp_path / "iteration-00000009.pt"
    whole, content, seen = repr(list(values(read_checkpoint(path)))), path.read_bytes(), 0
    draw = random.Random(0)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            assert repr(list(values(read_checkpoint(path)))) == whole
        except CheckpointError:
            seen += 1
    assert seen > 100


# --- another run ------------------------------------------------------------------------------------------


class Other(Noisy):
    """Of the same shape."""


CHANGED = CAPTIONS.clone()
CHANGED[7] = 3
PICTURES = IMAGES.clone()
PICTURES[9, 1] += 1e-6


@pytest.mark.parametrize(
    "change, told",
    [
        ({"batch_size": 5}, "batch_size: 4 there, 5 here"),
        ({"learning_rate": 0.2, "lr_decay": 1.0}, "learning_rate: 0.1 there, 0.2 here; lr_decay: 0.9 there, 1.0 here"),
        ({"index": torch.arange(10)}, r"image_index: none there, \(10,\) int64 hash \w{12} here"),
        ({"seed": 7}, "seed: 0 there, 7 here"),
        ({"data": (IMAGES, CHANGED)}, r"captions: \(10, 2\) int64 hash \w{12} there, \(10, 2\) int64 hash \w{12} here"),
        ({"data": (PICTURES, CAPTIONS)}, r"images: \(10, 2\) float32 hash \w{12} there, \(10, 2\) float32 hash"),
        ({"data": (IMAGES[:9], CAPTIONS[:9])}, r"images: \(10, 2\) .* there, \(9, 2\) .* here; captions: "),
        ({"val": False}, r"val_images: \(5, 2\) float32 hash \w{12} there, none here"),
        ({"make": Other}, "model: Noisy there, Other here"),
        ({"make": lambda stop_at: Noisy(3)}, r"model.layer.weight: \(1, 2\) float32 there, \(1, 3\) float32 here"),
        ({"make": lambda stop_at: Noisy().double()}, r"model.layer.bias: \(1,\) float32 there, \(1,\) float64 here"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path, change, told):
    run(tmp_path, num_epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=told) as caught:
        run(tmp_path, **change)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("choose another checkpoint_dir, or delete that one to start over")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 0)
        run(tmp_path, num_epochs=1)
    with pytest.raises(CheckpointError, match=f"format: 0 there, {checkpoints.FORMAT} here"):
        run(tmp_path, num_epochs=2)


def test_other_parts_of_a_batch_are_the_same_run(tmp_path):
    """So that one that ran out of memory can go on."""
    with pytest.raises(StopError):
        run(tmp_path, stop_at=5)
    model, history = run(tmp_path, accumulate=2)
    assert len(history.losses) == 9 and model.calls == 12  # in two parts each, of the six that were left


def test_no_value_is_left_out_of_a_tensors_hash(tmp_path):
    """One byte among 300 MB, as many as the course's file has; also mapped from a file."""
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (8000, 3, 112, 112))
    hashes = {hash_tensors([torch.from_numpy(images)])}
    for place in ((0, 0, 0, 0), (4711, 1, 17, 3), (7999, 2, 111, 111)):
        images[place] += 1
        images.flush()
        hashes |= {hash_tensors([torch.from_numpy(images)])}
    assert len(hashes) == 4
    assert hash_tensors([torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))]) in hashes


def test_a_hash_is_of_the_values_wherever_they_lie():
    images = torch.rand(600, 3, 8)
    assert hash_tensors([images.transpose(1, 2)]) == hash_tensors([images.transpose(1, 2).contiguous()])
    assert hash_tensors([images[:, 0]]) != hash_tensors([images[:, 0].t()[:0]])
    assert hash_tensors([images[0, 0, 0]]) == hash_tensors([images[0, 0, :1].clone()])


def test_a_data_file_changed_since_by_one_pixel(tiny_data, tmp_path):
    train_captioner(tiny_data, tmp_path, 1, checkpoint_dir=tmp_path / "kept")
    before = {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    save_data(tiny_data, tmp_path / "data.pt")
    content = bytearray((tmp_path / "data.pt").read_bytes())
    content[content.find(tiny_data["train_images"].numpy().tobytes())] ^= 1
    (tmp_path / "data.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"belongs to another run \(images: .* hash \w+ there, .* \w+ here\)"):
        train_captioner(helpers.load_coco_captions(tmp_path / "data.pt"), tmp_path, checkpoint_dir=tmp_path / "kept")
    assert {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_every_how_many_iterations(tmp_path, every):
    with pytest.raises(ValueError, match=rf"checkpoint_every is {re.escape(str(every))}; it must be a whole number"):
        Checkpoints(tmp_path, {}, every)


# --- a disk that fails ------------------------------------------------------------------------------------


def fail(monkeypatch, name, failing, code=errno.ENOSPC):
    """Let calls of os.replace or os.fsync fail: those whose number, from 1, is in `failing`."""
    call, calls = getattr(os, name), []

    def sometimes(*args):
        calls.append(args)
        if len(calls) in failing:
            raise OSError(code, os.strerror(code))
        return call(*args)

    monkeypatch.setattr(os, name, sometimes)


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("failing", [{2}, {3}, {4, 5, 6}, set(range(2, 99))])
def test_a_full_disk_costs_a_warning_and_nothing_else(tmp_path, capsys, monkeypatch, name, failing):
    whole = result(run())
    with monkeypatch.context() as context:
        fail(context, name, failing)
        assert result(run(tmp_path, every=1)) == whole
    said = capsys.readouterr().err.splitlines()
    assert said and all(re.match(r"warning: no checkpoint of iteration \d could be written \(.*No space left", line)
                        for line in said)  # fmt: skip
    for path in tmp_path.iterdir():
        read_checkpoint(path)  # nothing is half written
    assert result(run(tmp_path, begin=8)) == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_stops_a_new_run_before_it_trains(tmp_path, monkeypatch, code):
    for name in ("replace", "fsync"):
        with monkeypatch.context() as context, pytest.raises(CheckpointError) as caught:
            fail(context, name, {1}, code)
            run(tmp_path / "new", stop_at=1)
        assert os.strerror(code) in str(caught.value) and str(tmp_path) in str(caught.value)
        assert "choose another checkpoint_dir; training has not started" in str(caught.value)
        assert names(tmp_path / "new") == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(CheckpointError, match=r"no checkpoint can be written .*choose another checkpoint_dir"):
            run(folder, stop_at=1)


def test_a_folder_that_became_read_only(tmp_path, capsys, monkeypatch):
    with pytest.raises(StopError):
        run(tmp_path, every=2, stop_at=6)
    before = names(tmp_path)
    with monkeypatch.context() as context:
        for name in ("replace", "fsync", "unlink"):
            fail(context, name, range(1, 99), errno.EROFS)
        assert result(run(tmp_path)) == result(run())
    assert names(tmp_path) == before or len(before) + 1 == len(names(tmp_path))  # a half file that cannot be removed
    assert "iteration-00000004.pt is still there" in capsys.readouterr().err


@pytest.mark.parametrize("stop_at", [4, 5])
def test_a_disk_that_really_fills_up(small_disk, capsys, stop_at):
    """As above, without an imitation; training goes on to the same end, and from what is left, with more room, too."""
    disk, whole, filler = small_disk[0], result(run()), []

    class Filling(Noisy):
        def stop(self):
            filler.append(fill(disk))

    assert result(run(disk / "kept", 1, stop_at, make=Filling)) == whole
    said = capsys.readouterr().err
    last = disk / "kept" / f"iteration-{stop_at - 1:08d}.pt"
    assert "No space left on device" in said and f"{last.name} is still there" in said and last.exists()
    for path in (disk / "kept").iterdir():
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"No space left on device.*training has not started"):
        run(disk / "new", stop_at=1)
    filler[0].unlink()
    assert result(run(disk / "kept", begin=9, make=Filling)) == whole
    assert f"resumed from {last}" in capsys.readouterr().out


def test_a_disk_that_is_really_read_only(small_disk, capsys):
    (disk, mount), whole = small_disk, result(run())

    class Locking(Noisy):
        def stop(self):
            assert mount("-o", "remount,ro")

    assert result(run(disk / "kept", 1, 5, make=Locking)) == whole
    assert "Read-only file system" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"Read-only file system.*training has not started"):
        run(disk / "new", stop_at=1)
    assert names(disk / "kept") == ["best.pt", "iteration-00000003.pt", "iteration-00000004.pt"]
    assert mount("-o", "remount,rw") and result(run(disk / "kept", begin=9, make=Locking)) == whole


# --- interrupts -------------------------------------------------------------------------------------------


class Interrupted(Noisy):
    def stop(self):
        os.kill(os.getpid(), signal.SIGINT)


class InterruptedTwice(Interrupted):
    def stop(self):
        super().stop()
        super().stop()


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("stop_at", [1, 2, 3, 9])
def test_an_interrupt_waits_for_the_iteration_and_leaves_a_checkpoint(tmp_path, stop_at):
    handler = signal.getsignal(signal.SIGINT)
    message = rf"stopped at iteration {stop_at}; to resume from .*-0*{stop_at}.pt, train again"
    with pytest.raises(KeyboardInterrupt, match=message):
        run(tmp_path, stop_at=stop_at, make=Interrupted)
    assert signal.getsignal(signal.SIGINT) is handler
    assert result(run(tmp_path, begin=4, make=Interrupted)) == result(run())


@pytest.mark.usefixtures("heard")
def test_an_interrupt_after_the_last_checkpoint_is_not_forgotten(tmp_path):
    """Otherwise the next phase of training would begin."""

    def interrupt(history, images):
        if len(history.val_losses) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped; .*-0*9\.pt has all epochs"):
        run(tmp_path, after_epoch=interrupt)
    assert result(run(tmp_path)) == result(run())


def test_training_outside_the_main_thread(tmp_path):
    """There no handler of signals can be set."""
    with ThreadPoolExecutor(1) as other:
        trained = other.submit(run, tmp_path).result()
    assert len(trained[1].losses) == 9 and "iteration-00000009.pt" in names(tmp_path)


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, history = run(tmp_path, stop_at=4, make=Interrupted)
        assert len(history.losses) == 9 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_a_second_interrupt_does_not_wait(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, stop_at=5, make=InterruptedTwice)
    assert str(caught.value) == "" and signal.getsignal(signal.SIGINT) is handler
    assert "iteration-00000003.pt" in names(tmp_path) and "iteration-00000005.pt" not in names(tmp_path)


@pytest.mark.usefixtures("heard")
def test_without_checkpoints_an_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt) as caught:
        run(stop_at=5, make=Interrupted)
    assert str(caught.value) == ""


# --- by the captioner's own call, and as a command ----------------------------------------------------------


class CountingEncoder(MeanEncoder):
    """It counts the pictures that it is shown, and after the first `last` of them it raises StopError."""

    shown, last = 0, 10**9

    def forward(self, images):
        CountingEncoder.shown += len(images)
        if CountingEncoder.shown > CountingEncoder.last:
            raise StopError
        return super().forward(images)


def train_captioner(data, folder, epochs=4, encoder=None, freeze=True, **options):
    reset_seed(0)
    model = make_captioner(CaptioningRNN, data, "attn", encoder or MeanEncoder(), hidden_dim=8, wordvec_dim=4)
    options, how = split_options(options)
    val_data = data["val_images"], data["val_captions"]
    pairs = data["train_images"], data["train_captions"]
    history = run_module.train_captioner(
        model, *pairs, epochs, 3, 1e-2, device="cpu", val_data=val_data, freeze_encoder=freeze, options=options,
        features_folder=folder / "features", **how,
    )  # fmt: skip
    return model, history.losses


@pytest.mark.parametrize("freeze", [True, False])
def test_a_captioner_goes_on_from_its_checkpoint_dir(tiny_data, tmp_path, freeze):
    model, losses = train_captioner(tiny_data, tmp_path, freeze=freeze, checkpoint_dir=tmp_path / "whole")
    kept = {"checkpoint_dir": tmp_path / "kept", "freeze": freeze}
    for epochs in (1, 3, 4):
        again, losses_again = train_captioner(tiny_data, tmp_path, epochs, **kept)
    assert losses_again == losses and len(losses) == 8
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert load_best(again, tmp_path / "kept") == load_best(again, tmp_path / "whole")
    state = read_checkpoint(tmp_path / "kept" / "best.pt")["run"]["model"]
    assert ("image_encoder.scale" in state) is not freeze


def test_the_best_averaged_weights_fit_a_captioner_whose_encoder_was_frozen(tiny_data, tmp_path):
    """A new captioner's encoder is not frozen; its weights are not among those that were averaged."""
    trained, _ = train_captioner(tiny_data, tmp_path, 1, averaging=0.9, checkpoint_dir=tmp_path / "kept")
    again = make_captioner(CaptioningRNN, tiny_data, "attn", MeanEncoder(), hidden_dim=8, wordvec_dim=4)
    assert next(iter(dict(again.named_parameters()))).startswith("image_encoder")
    assert load_best(again, tmp_path / "kept")[0] == 1
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())


def test_the_best_epoch_is_loaded_into_the_captioner_it_was_frozen_in_afterwards(tiny_data, tmp_path):
    """Its encoder's last blocks were trained, and are frozen for use, as training leaves them."""
    trained, _ = train_captioner(tiny_data, tmp_path, 1, freeze=False, checkpoint_dir=tmp_path / "kept")
    weights = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.image_encoder.requires_grad_(False)
    assert load_best(trained, tmp_path / "kept")[0] == 1
    assert all(torch.equal(value, weights[name]) for name, value in trained.state_dict().items())


def test_a_finished_captioner_computes_no_features(tiny_data, tmp_path, monkeypatch):
    """They may have gone with the machine that computed them."""
    kept = {"checkpoint_dir": tmp_path / "kept", "encoder": CountingEncoder()}
    _, losses = train_captioner(tiny_data, tmp_path, **kept)
    monkeypatch.setattr(CountingEncoder, "shown", 0)
    model, again = train_captioner(tiny_data, tmp_path / "elsewhere", **kept)
    assert again == losses and CountingEncoder.shown == 0 and not (tmp_path / "elsewhere").exists()
    assert isinstance(encoders.get_encoder(model), CountingEncoder)


def scaled_encoder():
    encoder = MeanEncoder()
    encoder.scale.data *= 2
    return encoder


def changed_pictures(data):
    return data | {"train_images": data["train_images"].flip(0)}


def changed_words(data):
    words = [*data["vocab"]["idx_to_token"], "word"]
    vocab = {"idx_to_token": words, "token_to_idx": {word: i for i, word in enumerate(words)}}
    return data | {"vocab": vocab}


@pytest.mark.parametrize(
    "change, options, told",
    [
        (dict, {"encoder": scaled_encoder()}, "encoder.weights: .* there, .* here"),
        (dict, {"freeze": False}, "encoder.frozen: True there, False here"),
        (changed_pictures, {}, r"\(images: \(4, 3, 32, 48\) uint8 hash .* there, \(4, 3, 32, 48\) uint8 .* here\)"),
        (changed_words, {}, r"embedding.W_embed: \(10, 4\) float32 there, \(11, 4\) float32 here"),
    ],
)
def test_another_captioner_is_refused(tiny_data, tmp_path, change, options, told):
    kept = {"checkpoint_dir": tmp_path / "kept"}
    train_captioner(tiny_data, tmp_path, 1, **kept)
    with pytest.raises(CheckpointError, match=told):
        train_captioner(change(tiny_data), tmp_path, **kept, **options)


@pytest.mark.parametrize("wrong, told", [
    ({"learning_rate": float("nan")}, "learning_rate is nan"), ({"batch_size": 0}, "batch_size is 0"),
    ({"image_index": torch.tensor([0, 1, 2, 9])}, "from 0 to 9"),
    ({"num_epochs": 2.5}, "num_epochs is 2.5"), ({"lr_decay": -1}, "lr_decay is -1"),
])  # fmt: skip
def test_what_makes_no_sense_is_told_before_pictures_are_encoded(tiny_data, tmp_path, monkeypatch, wrong, told):
    monkeypatch.setattr(CountingEncoder, "shown", 0)
    model = make_captioner(CaptioningRNN, tiny_data, "rnn", CountingEncoder(), hidden_dim=8, wordvec_dim=4)
    how = {"num_epochs": 1, "batch_size": 2, "learning_rate": 0.1, "device": "cpu", "features_folder": tmp_path} | wrong
    with pytest.raises(ValueError, match=told):
        run_module.train_captioner(model, tiny_data["train_images"], tiny_data["train_captions"], **how)
    assert CountingEncoder.shown == 0 and names(tmp_path) == []


def test_a_run_stopped_while_it_encodes_leaves_no_half_features(tiny_data, tmp_path, monkeypatch):
    _, losses = train_captioner(tiny_data, tmp_path / "whole")
    monkeypatch.setattr(CountingEncoder, "shown", 0)
    monkeypatch.setattr(CountingEncoder, "last", 4)
    tiny_data["val_images"] = tiny_data["val_images"].flip(0)
    kept = {"checkpoint_dir": tmp_path / "kept", "encoder": CountingEncoder()}
    with pytest.raises(StopError):
        train_captioner(tiny_data, tmp_path, **kept)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 1 and not (tmp_path / "kept").exists()
    monkeypatch.setattr(CountingEncoder, "last", 99)
    assert train_captioner(tiny_data, tmp_path, **kept)[1] == losses
    assert CountingEncoder.shown == 4 + 4 + 4


def test_the_command_keeps_each_cell_in_its_own_folder(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoders, "encoder_for", lambda data, name: MeanEncoder())
    monkeypatch.setattr(features, "FEATURES_FOLDER", tmp_path / "features")
    save_data(tiny_data, tmp_path / "tiny.pt")
    command = ["train", "--data", tmp_path / "tiny.pt", "--out", tmp_path / "out", "--cell", "rnn", "lstm",
               "--hidden", 8, "--wordvec", 4, "--batch-size", 2, "--device", "cpu", "--epochs"]  # fmt: skip
    kept = ["--checkpoint-dir", tmp_path / "kept", "--checkpoint-every", 3, "--accumulate", 2]

    def call(*arguments):
        status = helpers.main([str(argument) for argument in arguments])
        return status, capsys.readouterr()

    assert call(*command, 2, *kept)[0] == 0
    for cell_type in ("rnn", "lstm"):
        assert names(tmp_path / "kept" / cell_type) == ["best.pt", "iteration-00000003.pt", "iteration-00000004.pt"]
    status, said = call(*command, 3, *kept)
    assert status == 0 and said.out.count("resumed from") == 2
    weights = torch.load(tmp_path / "out" / "lstm.pt", weights_only=True)["state"]
    assert call(*command, 3, "--accumulate", 2)[0] == 0
    whole = torch.load(tmp_path / "out" / "lstm.pt", weights_only=True)["state"]
    assert all(torch.equal(value, whole[name]) for name, value in weights.items())
    status, said = call(*command, 3, *kept, "--learning-rate", 0.5)
    told = f"error: {tmp_path / 'kept' / 'rnn'} belongs to another run (--learning-rate: 0.001 there, 0.5 here): choose"
    assert status == 1 and said.err.startswith(told) and said.err.count("\n") == 1
