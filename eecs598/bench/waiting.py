"""The time of a training step on an idle and on a busy machine, for two ways in which OpenMP's threads can wait."""

import contextlib
import statistics
import subprocess
import sys

from eecs598 import SPINS
from eecs598.bench.measuring import Row, in_new_process, seconds
from eecs598.bench.pairs import captioner_and_data, fast_training_step, load_module

# For GNU's OpenMP, what the project sets; for LLVM's and Intel's, which it leaves alone, 1 ms. Then their defaults.
SHORT = {"GOMP_SPINCOUNT": SPINS, "KMP_BLOCKTIME": "1"}
LONG = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}
ROUNDS, STEPS = 5, 7


def waiting_rows(module, sizes, where):
    """Training steps with N=128 and threads that sleep early while they wait, against OpenMP's default."""
    sizes = sizes._replace(N=128)
    for busy in (False, True):
        with _other_work() if busy else contextlib.nullcontext():
            rounds = [[in_new_process(_time_steps, module.__file__, sizes, where, environment=variables)
                       for variables in (SHORT, LONG)] for _ in range(ROUNDS)]  # fmt: skip
        low, ratio, high = statistics.quantiles([ours / other for ours, other in rounds], n=4)
        ours, other = (1e3 * statistics.median(side) for side in zip(*rounds))
        name = f"training step, {'beside a busy loop' if busy else 'alone'}"
        yield Row(name, f"N={sizes.N} {sizes.grid}x{sizes.grid}", "threads that spin for long",
                  ours, other, ratio, low, high)  # fmt: skip


def _time_steps(module_file, sizes, where):
    """The median time of a step in seconds."""
    ours, _, batch = captioner_and_data(load_module(module_file), sizes, "attn", 0.42, where)
    step = fast_training_step(ours, batch)
    step()
    return statistics.median(seconds(step, where) for _ in range(STEPS))


@contextlib.contextmanager
def _other_work():
    """A context in which another process keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
