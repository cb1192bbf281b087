"""Two processes under torchrun train as one does; one that is killed ends the run with a word and a checkpoint."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from support import ROOT, several_processes
from support.encoder import MeanEncoder

from eecs598.scenes.__main__ import main as make_scenes
from eecs598.training import checkpoints, processes
from eecs598.training.options import PRECISIONS

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without distributed")


def launch(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.run([*LAUNCH, *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          cwd=ROOT, env=environment)  # fmt: skip


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder that two processes left, and the second half of a run whose first half one process made."""
    folder = tmp_path_factory.mktemp("launched")
    several_processes.train("lstm", 2, kept=checkpoints.Checkpoints(folder / "other_half", {}))
    (folder / "other_half" / "iteration-99999999.pt").write_bytes(b"damaged")
    for rank in (0, 1):
        several_processes.train("lstm", 1 + rank, kept=checkpoints.Checkpoints(folder / f"divided/{rank}", {}))
    several_processes.train_on_features(folder / "finished", 1, MeanEncoder(), folder / "finished" / "kept-0")
    done = launch("tests/support/several_processes.py", folder, "same", "half", "other_half", "divided", "features",
                  "finished", "precision", "masks", "stopped")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.mark.parametrize("cell_type", several_processes.CELL_TYPES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_train_as_one(launched, cell_type, accumulate):
    one = several_processes.train(cell_type, accumulate=accumulate)
    for rank in (0, 1):
        two = torch.load(launched[0] / f"same-{rank}.pt")[f"{cell_type} {accumulate}"]
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10)


def test_two_processes_train_as_one_in_float32(launched):
    one, two = several_processes.train("attn", dtype=torch.float32), torch.load(launched[0] / "same-0.pt")["float32"]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(launched, first, capsys):
    folder, whole = launched[0], several_processes.train("lstm")
    if first == 2:
        rest = several_processes.train("lstm", kept=checkpoints.Checkpoints(folder / "half", {}))
        assert "resumed" in capsys.readouterr().out
    else:
        rest = torch.load(folder / "other_half-1.pt")
        assert "resumed from" in launched[1]
    torch.testing.assert_close(rest, whole, rtol=1e-10, atol=1e-10)


def test_only_the_first_prints_and_writes(launched):
    assert "process 0" in launched[1] and "process 1" not in launched[1]
    assert launched[1].count("resumed from") == launched[2].count("is damaged") == 1
    assert [path.name for path in launched[0].glob("written-*")] == ["written-0"]


def test_all_processes_train_in_the_precision_that_the_first_finds_to_be_the_faster(launched):
    assert [(launched[0] / f"precision-{rank}").read_text() for rank in (0, 1)] == [PRECISIONS[0]] * 2


def test_machines_that_share_no_disk_are_refused(launched):
    assert sorted(path.name for path in launched[0].glob("divided-*")) == ["divided-0", "divided-1"]


def test_a_run_that_is_done_in_one_process_alone_is_refused_in_all(launched):
    """None waits for another, such as for image features that the other doesn't need any more."""
    assert all((launched[0] / "finished" / f"told-{rank}").exists() for rank in (0, 1))


def test_features_are_computed_once(launched):
    assert (launched[0] / "encoded").read_text().split() == ["0"] * several_processes.EXAMPLES
    losses = [torch.load(launched[0] / f"features-{rank}.pt") for rank in (0, 1)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_a_killed_process_ends_the_run_with_a_word_and_a_checkpoint(tmp_path, capsys):
    done = launch("tests/support/several_processes.py", tmp_path, "killed")
    assert done.returncode != 0
    assert re.search(r"^error: (another process of the run has ended|stopped by SIGTERM).*the same command resumes "
                     r"from the last checkpoint", done.stderr, re.MULTILINE), done.stderr  # fmt: skip
    model = several_processes.make_model("lstm", model_class=several_processes.Killed)
    rest = several_processes.train("lstm", model=model, kept=checkpoints.Checkpoints(tmp_path / "killed", {}, 1))
    assert re.search("at epoch 3, iteration [67]", capsys.readouterr().out)  # the 7th may not be written yet
    torch.testing.assert_close(rest, several_processes.train("lstm"), rtol=1e-10, atol=1e-10)


def test_each_process_draws_its_own_random_numbers(launched):
    one, two = (torch.load(launched[0] / f"masks-{rank}.pt") for rank in (0, 1))
    assert len(one) > 1 and (one[:2] != two[:2]).all()  # of the first two batches, of which both have a share


def test_all_processes_stop_where_one_is_interrupted(launched):
    """None waits for it, and the checkpoint is that of the same iteration."""
    (one, two), kept = ((launched[0] / f"stopped-{rank}").read_text() for rank in (0, 1)), launched[0] / "stopped"
    assert one == two and "stopped at iteration 2" in one and (kept / "iteration-00000002.pt").exists()


def test_three_processes_on_two_machines_go_on_where_two_were(launched, tmp_path):
    """Two launches, as on machines that share a disk; the image features are computed by one process of one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    shutil.copytree(launched[0] / "half", tmp_path / "other_half")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    machines = [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", count, "--rdzv-backend",
         "c10d", "--rdzv-endpoint", place, "tests/support/several_processes.py", tmp_path, "other_half", "features"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) for count in ("2", "1")]  # fmt: skip
    told = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    whole = several_processes.train("lstm")
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"other_half-{rank}.pt"), whole, rtol=1e-10, atol=1e-10)
    assert len((tmp_path / "encoded").read_text().split()) == several_processes.EXAMPLES
    losses = torch.load(launched[0] / "features-0.pt")
    torch.testing.assert_close(torch.load(tmp_path / "features-2.pt"), losses, rtol=1e-6, atol=1e-6)


def test_the_command_under_torchrun(tmp_path):
    assert make_scenes([str(tmp_path / "scenes.pt"), "--train", "40", "--val", "8"]) == 0
    done = launch(
        "helpers.py", "train", "--data", tmp_path / "scenes.pt", "--out", tmp_path / "out", "--cell", "attn",
        "--epochs", 1, "--batch-size", 16, "--hidden", 8, "--wordvec", 8, "--show", 1, "--precision", "float32",
        "--checkpoint-dir", tmp_path / "kept",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 epochs on 2 processes, the first on cpu") == done.stdout.count("val picture 0") == 1
    assert (tmp_path / "out/attn.pt").exists() and len(list((tmp_path / "kept/attn").glob("iteration-*.pt"))) == 2


# --- without torchrun -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_shares_are_the_whole(count, rows):
    batch = torch.randperm(rows)
    shares = [processes.Processes(rank, count).share(batch) for rank in range(count)]
    assert all(len(mine) > 0 for mine, _ in shares), "each process takes part in every step"
    counted = torch.cat([mine for mine, weight in shares if weight])
    assert sorted(counted.tolist()) == list(range(rows))
    assert sum(len(mine) * weight for mine, weight in shares) == pytest.approx(1)


def test_alone_nothing_happens():
    model, everyone = torch.nn.Linear(1, 1), processes.current()
    assert everyone.together(model) is model and everyone.first and everyone.sum(0.1, "cpu") == 0.1
    before = signal.getsignal(signal.SIGTERM)
    with processes.joined(torch.device("cpu")) as device:
        assert device == torch.device("cpu") and signal.getsignal(signal.SIGTERM) is before


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    wanted = "a machine with 1 GPUs; lower --nproc-per-node to 1, or pass --device cpu"
    with pytest.raises(ValueError, match=wanted), processes.joined(torch.device("cuda")):
        pass
