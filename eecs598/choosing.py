"""Which of several ways to compute the same takes the least time here: measured when first asked, kept for the process.

What is fast on one processor is slow on another, and what is fast for a large matrix is not for a small one: so it is
not looked up in a table of processors, but tried, for some milliseconds, at the sizes in use.

The environment variable EECS598_CHOICES, "product=torch tanh=sigmoid", decides beforehand, without measuring: for
tests, and for runs that must be equal to the last bit on several machines.
"""

import os
import time
from collections import Counter

MARGIN = 0.9  # PyTorch's own way stays unless another takes less than this part of its time: less may be noise
ROUNDS, BUDGET = 7, 0.02  # at most so many rounds, and no new one after so many seconds

DECIDED = dict(entry.split("=") for entry in os.environ.get("EECS598_CHOICES", "").split())
_chosen = {}


def choose(what, ways, *sizes):
    """The name of the fastest way to compute `what` at these sizes.

    ways(): {name: function of no arguments}, PyTorch's own way first. A function returns when its result is there.
    """
    if what in DECIDED:
        return DECIDED[what]
    if (what, sizes) not in _chosen:
        _chosen[what, sizes] = _measure(ways())
    return _chosen[what, sizes]


def chosen():
    """What this process chose so far, and at how many sizes: ["product: torch 7, onednn 2", ...]."""
    counts = {}
    for (what, _), name in _chosen.items():
        counts.setdefault(what, Counter())[name] += 1
    return [f"{what}: {', '.join(f'{name} {n}' for name, n in names.most_common())}" for what, names in counts.items()]


def _measure(ways):
    """In turns, so that what slows the machine for a while slows all of them. The least time of each counts."""
    seconds = {name: _time(way) for name, way in ways.items()}  # the first call of a kernel does more than later ones
    began, rounds = time.perf_counter(), []
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - began < BUDGET):
        rounds.append({name: _time(way) for name, way in ways.items()})
    seconds = {name: min(round[name] for round in rounds) for name in ways}
    own, *others = ways
    fastest = min(seconds, key=seconds.get)
    return fastest if seconds[fastest] < MARGIN * seconds[own] else own


def _time(way):
    began = time.perf_counter()
    way()
    return time.perf_counter() - began
