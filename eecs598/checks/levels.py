"""How strict the checks are: as in the lesson, as in the published assignment, or beyond both."""

import re
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps

from eecs598.checks.parts import GRID

LESSON, PUBLISHED, BEYOND = "lesson", "published", "beyond"
_level = LESSON
SINGLE = 1e-5  # errors below this can be float32 rounding


@contextmanager
def at_level(level):
    """A context in which checks have this level.

    LESSON: everything that a learner should know. PUBLISHED: only what the cells of the published notebook check: their
    sizes and grid, values and gradients in single precision, in any floating-point dtype, and inputs may be modified;
    for parts that are not in the published assignment, the main case with the same precision. BEYOND: only edge cases
    of shapes, with a row each.
    """
    global _level
    before, _level = _level, level
    try:
        yield
    finally:
        _level = before


def current_level():
    return _level


def lesson_only(add):
    """Decorator for a function that adds rows only at the level LESSON."""

    @wraps(add)
    def add_in_lesson(*args):
        return add(*args) if _level == LESSON else None

    return add_in_lesson


def cases_at_level(formula, cases=None):
    """The cases of a formula, or of `cases`, at the current level."""
    cases = formula.cases if cases is None else cases
    if _level == LESSON:
        return [case for case in cases if not case.beyond]
    square = {"sizes": {**cases[0].sizes, **(GRID if "hw" in formula.inputs else {})}}
    if _level == PUBLISHED:
        return formula.published or [replace(cases[0], **square)]
    return _edge_cases(formula, cases, square)


def _edge_cases(formula, cases, square):
    """Beyond the lesson: each dimension of size 1, other grids, and inputs that are not contiguous."""
    dims = "N" if "W_feature" in formula.inputs else "NTDHW"  # a captioner takes long to build for every size
    edges = {f"{dim} = 1": {dim: 1} for dim in dims if re.search(rf":\w*{dim}", formula.inputs)}
    edges = {label: sizes | ({"G": 4} if "H" in sizes else {}) for label, sizes in edges.items()}
    if "hw" in formula.inputs:
        edges |= {"a 3 x 5 grid": {"h": 3, "w": 5}, "a 1 x 6 grid": {"h": 1, "w": 6}}
    first = replace(cases[0], hint="")
    shaped = [replace(first, label=label, sizes=first.sizes | sizes) for label, sizes in edges.items()]
    others = [case for case in cases[1:] if "N" not in case.sizes]
    return [*shaped, replace(first, **square, label="inputs that are not contiguous", strided=True), *others]


def limit_at_level(formula):
    """The error limit for outputs of the formula at the current level."""
    return max(formula.limit, SINGLE if _level == PUBLISHED else 0)


def dtype_fits(got, want):
    """Whether an output's dtype is accepted at the current level."""
    return got.dtype == want.dtype or (_level == PUBLISHED and got.is_floating_point())
