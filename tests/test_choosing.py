"""The fastest of several ways: found by trying, once, and PyTorch's own in case of doubt."""

import subprocess
import sys
import time

import pytest
from support import ROOT

from eecs598 import choosing
from eecs598.choosing import choose


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(choosing, "_chosen", {})
    monkeypatch.setattr(choosing, "DECIDED", {})


@pytest.fixture
def clock(monkeypatch):
    """Time that moves only by what the ways of `ways` take."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def ways(clock, **seconds):
    """Functions that take so long; a list: each call in turn."""
    def way(name):
        times = seconds[name]

        def run():
            runs.append(name)
            clock[0] += times[min(runs.count(name), len(times)) - 1] if isinstance(times, list) else times

        return run

    runs = []
    return lambda: {name: way(name) for name in seconds}, runs


@pytest.mark.parametrize(("other", "wanted"), [(0.5, "other"), (0.89, "other"), (0.95, "own"), (1.5, "own")])
def test_another_way_is_taken_where_it_is_faster_beyond_noise(clock, other, wanted):
    assert choose("it", ways(clock, own=1.0, other=other)[0]) == wanted


def test_the_fastest_of_three(clock):
    assert choose("it", ways(clock, own=1e-3, b=7e-4, c=6e-4)[0]) == "c"


def test_a_first_call_and_an_interruption_decide_nothing(clock):
    both, _ = ways(clock, own=[5e-3, 1e-3, 9e-3, 1e-3], other=[1e-3, 2e-3, 2e-3, 2e-3])
    assert choose("it", both) == "own"


def test_it_is_measured_in_turns_once_for_each_size(clock):
    both, runs = ways(clock, own=1e-4, other=1e-5)
    assert choose("it", both, 3, 4) == choose("it", both, 3, 4) == "other"
    assert runs == ["own", "other"] * (choosing.ROUNDS + 1)
    choose("it", both, 3, 5)
    assert len(runs) == 4 * (choosing.ROUNDS + 1)
    assert choosing.chosen() == ["it: other 2"]


def test_what_takes_long_is_tried_once_after_its_first_call(clock):
    both, runs = ways(clock, own=1.0, other=30.0)
    assert choose("it", both) == "own" and runs == ["own", "other"] * 2


def test_it_may_be_decided_beforehand(clock, monkeypatch):
    both, runs = ways(clock, own=1.0, other=0.1)
    monkeypatch.setitem(choosing.DECIDED, "it", "own")
    assert choose("it", both) == "own" and not runs and not choosing.chosen()


def test_an_environment_variable_decides_beforehand(monkeypatch):
    monkeypatch.setenv("EECS598_CHOICES", "product=torch tanh=sigmoid")
    program = "from eecs598 import choosing; print(choosing.DECIDED)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "{'product': 'torch', 'tanh': 'sigmoid'}", done.stderr
