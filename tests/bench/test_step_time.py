"""How a step's time splits: what is measured is the step of training, and what is estimated is the arithmetic."""

import math
import subprocess

import pytest
import torch

import rnn_lstm_captioning
from eecs598 import bench
from eecs598.bench import step_time
from eecs598.training import processes, solver


def test_the_command_prints_a_row_for_each_number_of_processes(capsys):
    step_time.main(["--processes", "2", "--rounds", "1", "--batch-size", "4", "--cell", "rnn"])
    heading, row, machine = capsys.readouterr().out.splitlines()
    assert heading.split() == ["processes", "step", "computation", "communication", "all-reduce", "alone"]
    count, step, computation, _, alone = map(float, row.replace(" ms", "").split())
    assert count == 2 and step > 0 and computation > 0 and alone > 0
    model = bench.captioner_and_data(rnn_lstm_captioning, bench.Sizes(N=4), "rnn", 0.42)[0]
    size = 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert machine.startswith(f"gradients: {size:.1f} MB; ")


def test_one_process_sends_nothing():
    lines = step_time.measured_table({1: {"step": 30.0, "computation": 28.0, "all-reduce": 0.3}})
    assert lines[1].replace(" ms", "").split() == ["1", "30", "28", "2", "0.0"]


def test_computing_alone_is_the_step_without_the_sum():
    """In one process, where there is no sum, both make the same update."""
    images, captions = torch.rand(6, 2), torch.rand(6, 1)
    weights = []
    for action in (solver.Run.step, step_time._compute):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        run = solver.Run(model, 6, batch_size=6, learning_rate=0.1)
        action(run, torch.arange(6), lambda model, rows: (model(images[rows]) - captions[rows]).square().mean())
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights) and processes.current().count == 1


@pytest.mark.parametrize("gpus", [1, 2, 7, 64])
def test_an_estimate_is_that_of_a_ring_message_by_message(gpus):
    """In p - 1 rounds of sums and p - 1 of copies each GPU passes on a p-th of the gradients."""
    found = step_time.estimate(gpus, 250, 700, 6e7, 1e9, 1e-5, 118_000)
    rounds = sum(6e7 / gpus / 1e9 + 1e-5 for _ in range(gpus - 1)) * 2
    assert found.step == pytest.approx(250 / 700 + rounds)
    assert found.communication == pytest.approx(rounds / found.step)
    assert found.epoch == pytest.approx(math.ceil(118_000 / (250 * gpus)) * found.step)


def test_the_estimate_is_printed_for_1_to_64_gpus(capsys):
    step_time.main(["--estimate"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16", "32", "64"]
    assert rows[0][1:6] == ["362", "ms", "0.0%", "171.1", "s"]  # 14.5 s for 10,000 pictures, times 11.8


def test_a_launch_that_fails_says_why(monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "long\nerror: why\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(RuntimeError, match="2 processes: error: why"):
        step_time.launch(2, [])
    assert step_time.main(["--processes", "2"]) == 1
    assert capsys.readouterr() == ("", "error: 2 processes: error: why\n")


def test_a_relative_module_is_the_callers_whatever_folder_the_processes_run_in(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    given = []

    def launch(count, arguments):
        given.extend(arguments)
        raise RuntimeError("not run")

    monkeypatch.setattr(step_time, "launch", launch)
    assert step_time.main(["--processes", "1", "--module", "mine.py"]) == 1
    assert given[-2:] == ["--module", str(tmp_path / "mine.py")]
