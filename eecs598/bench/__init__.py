"""Benchmarks of the hand-written code against PyTorch's, on this machine.

    python -m eecs598.bench [--rows NAME...] [--rounds N] [--json FILE] [--png FILE]      see --help for all options
    python -m eecs598.bench.step_time      computation and communication in a training step

Every row times two implementations. They run alternately, so that fluctuations of the machine affect both, and the
result is the median of the ratios of consecutive runs, ours to the other, with quartiles. Below 1, ours is faster.
"""

from eecs598.bench.command import main, run
from eecs598.bench.measuring import Pair, Row, compare, describe_machine, seconds, table
from eecs598.bench.pairs import PAIRS, Sizes, captioner_and_data, load_module

__all__ = ["PAIRS", "Pair", "Row", "Sizes", "captioner_and_data", "compare", "describe_machine", "load_module", "main",
           "run", "seconds", "table"]  # fmt: skip
