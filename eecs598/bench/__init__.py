"""How fast is the hand-written code? Ours and the other side by side, in turns, on this machine.

    python -m eecs598.bench [--rows NAME...] [--rounds 15] [--module FILE] [--json FILE] [--png FILE]
    python -m eecs598.bench.step_time      computing and communication in a training step

Every row times two ways of doing the same: they run in turns, so that a machine that slows down slows both, and the
figure is the median of the ratios of neighbours, ours to the other, with the quartiles beside it. Below 1 ours is
the faster.
"""

from eecs598.bench.command import main, run
from eecs598.bench.measuring import Pair, Row, compare, describe_machine, seconds, table
from eecs598.bench.pairs import PAIRS, Sizes, captioner_and_data, load_module

__all__ = ["PAIRS", "Pair", "Row", "Sizes", "captioner_and_data", "compare", "describe_machine", "load_module", "main",
           "run", "seconds", "table"]  # fmt: skip
