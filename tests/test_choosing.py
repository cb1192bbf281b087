"""Autotuning: the fastest implementation is found by timing, once, and PyTorch's own is the default."""

import os
import re
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
    monkeypatch.setattr(choosing, "_valid", set())
    monkeypatch.setattr(choosing, "CHOICES", (*choosing.CHOICES, "it"))
    monkeypatch.delenv("EECS598_CHOICES", raising=False)
    choosing.fixed_choices.cache_clear()
    yield
    choosing.fixed_choices.cache_clear()


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


@pytest.mark.parametrize(("other", "wanted"), [(0.5, "other"), (0.96, "other"), (0.98, "own"), (1.5, "own")])
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
    monkeypatch.setenv("EECS598_CHOICES", "product=torch  it=own")
    assert choose("it", both) == "own" and not runs and not choosing.chosen()
    assert choosing.fixed_choices() == {"product": "torch", "it": "own"}


@pytest.mark.parametrize("entry", ["it", "it=", "=own", "it=own=other", "it:own"])
def test_an_entry_that_is_no_choice_is_named(clock, monkeypatch, entry):
    monkeypatch.setenv("EECS598_CHOICES", f"product=torch {entry}")
    with pytest.raises(ValueError, match=f"EECS598_CHOICES has the entry '{entry}'; it must be like product=torch"):
        choose("it", ways(clock, own=1.0, other=0.1)[0])


def test_what_is_never_chosen_is_named_with_what_is(clock, monkeypatch):
    """As after a slip of the pen, which would otherwise fix nothing."""
    monkeypatch.setenv("EECS598_CHOICES", "products=torch")
    with pytest.raises(ValueError, match="EECS598_CHOICES sets 'products'; it may set product, added-product, tanh, "):
        choose("it", ways(clock, own=1.0, other=0.1)[0])


def test_all_that_is_chosen_can_be_fixed():
    calls = [re.findall(r'[^_]choose\("([\w-]+)"', path.read_text()) for path in ROOT.glob("eecs598/**/*.py")]
    assert {what for found in calls for what in found} == set(choosing.CHOICES) - {"it"}


def test_an_implementation_that_does_not_exist_is_named_with_those_that_do(clock, monkeypatch):
    monkeypatch.setenv("EECS598_CHOICES", "it=third")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"EECS598_CHOICES sets it to 'third'; it must be own or other$"):
            choose("it", ways(clock, own=1.0, other=0.1)[0])


def test_a_command_says_it_in_one_line():
    done = subprocess.run([sys.executable, "-m", "eecs598.bench", "--rows", "arithmetic", "--rounds", "1"], cwd=ROOT,
                          env={**os.environ, "EECS598_CHOICES": "product"}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: EECS598_CHOICES has the entry 'product'")
    assert len(done.stderr.splitlines()) == 1
