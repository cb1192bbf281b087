"""The checks of the assignment, which compare each hand-written function with PyTorch's own in float64.

A check takes the learner's functions or classes, as in `CHECKS["rnn_step_backward"].run(rnn_step_forward,
rnn_step_backward)`, runs them on fixed inputs whose dimensions are all different, and returns a `CheckTable` or raises
`CheckError` with the table and hints. Whatever the functions raise or return becomes a row and a hint. A wrong output
is compared with the results of common mistakes, so a hint is not a guess: the learner's numbers are those of the
mistake.

    formulas    the correct formulas, written out and with PyTorch's functions
    mistakes    common mistakes: a sentence, and the formula with the mistake
    parts       for each part its formula, mistakes and test cases
    levels      how strict the checks are
    published   the published notebook's checks of a captioner
    seeds       where the inputs come from
    running     running code that may fail in any way
    comparing, properties, hints    rows of the table, and hints
    kinds, captioner    the kinds of check
    lesson      the checks, in the order of the lesson

`CHECKS` lists them in that order: part name -> check, with the names of its arguments.
"""

from eecs598.checks import lesson  # noqa: F401, fills CHECKS
from eecs598.checks.kinds import CHECKS, Check
from eecs598.checks.levels import BEYOND, LESSON, PUBLISHED, at_level
from eecs598.checks.running import OutputError
from eecs598.checks.seeds import drawn_from

__all__ = ["BEYOND", "CHECKS", "LESSON", "PUBLISHED", "Check", "OutputError", "at_level", "drawn_from"]
