"""Autotuning: choose the fastest of several implementations by timing them, once for each process and size.

Which implementation is fastest depends on the processor and on the sizes, so all are timed at the sizes in use, for up
to 0.1 seconds, instead of being looked up in a table.

The environment variable EECS598_CHOICES, such as "product=torch added-product=torch tanh=torch precision=float32",
fixes choices without timing. This is for tests, and for runs that must agree to the last bit, as before and after an
interruption.
"""

import functools
import os
import time
from collections import Counter

MARGIN = 0.97  # another implementation must take less than this fraction of PyTorch's time; less of a gain may be noise
CHOICES = ("product", "added-product", "tanh", "precision")  # all that is chosen
ROUNDS, BUDGET = 7, 0.1  # at most this many rounds; no new round after this many seconds

_chosen, _valid = {}, set()


@functools.cache
def fixed_choices():
    """The choices that EECS598_CHOICES fixes: {what: name}. Raises ValueError."""
    choices = {}
    for entry in os.environ.get("EECS598_CHOICES", "").split():
        what, _, name = entry.partition("=")
        if not what or not name or "=" in name:
            raise ValueError(f"EECS598_CHOICES has the entry {entry!r}; it must be like product=torch, with spaces "
                             "between entries")  # fmt: skip
        if what not in CHOICES:
            raise ValueError(f"EECS598_CHOICES sets {what!r}; it may set {', '.join(CHOICES)}")
        choices[what] = name
    return choices


def choose(what, candidates, *sizes, margin=MARGIN):
    """The name of the fastest implementation of `what` at these sizes. Raises ValueError, see `fixed_choices`.

    what: one of CHOICES. candidates(): {name: function without arguments}, PyTorch's own first. A function must return
    only when its result is complete. margin: another one must take less than this fraction of the time of PyTorch's.
    """
    if what in fixed_choices():
        return _check_fixed(what, candidates)
    if (what, sizes) not in _chosen:
        _chosen[what, sizes] = _measure(candidates(), margin)
    return _chosen[what, sizes]


def _check_fixed(what, candidates):
    name = fixed_choices()[what]
    if (what, name) not in _valid:
        if name not in (names := candidates()):
            raise ValueError(f"EECS598_CHOICES sets {what} to {name!r}; it must be {' or '.join(names)}")
        _valid.add((what, name))
    return name


def chosen():
    """The choices this process has made by timing, and at how many sizes: ["product: torch 7, onednn 2", ...]."""
    counts = {}
    for (what, _), name in _chosen.items():
        counts.setdefault(what, Counter())[name] += 1
    return [f"{what}: {', '.join(f'{name} {n}' for name, n in names.most_common())}" for what, names in counts.items()]


def _measure(candidates, margin):
    """The fastest by its minimum time. Rounds alternate, so that a busy moment of the machine slows all of them."""
    for run in candidates.values():  # warm-up: the first call of a kernel does more than later ones
        run()
    began, rounds = time.perf_counter(), []
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - began < BUDGET):
        rounds.append({name: _time(run) for name, run in candidates.items()})
    seconds = {name: min(round[name] for round in rounds) for name in candidates}
    default = next(iter(candidates))
    fastest = min(seconds, key=seconds.get)
    return fastest if seconds[fastest] < margin * seconds[default] else default


def _time(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
