"""Running the checks on a student's functions, as they are and with a slip made in their text."""

import pytest
import torch

from eecs598.checks import CHECKS
from eecs598.grad import CheckError
from support import ROOT

STUDENT = (ROOT / "tests" / "support" / "student" / "by_hand.py").read_text()


def student(old="", new=""):
    """The names of the student's file, after one replacement in its text."""
    assert not old or old in STUDENT, old
    names = {}
    exec(STUDENT.replace(old, new) if old else STUDENT, names)
    return names


def run(part, names):
    return CHECKS[part].run(*(names[need] for need in CHECKS[part].needs))


def hints(part, names):
    """The hints with which a check misses."""
    with pytest.raises(CheckError) as caught:
        run(part, names)
    table = caught.value.table
    assert not table.passed and table.hints and str(table) in str(caught.value)
    return " | ".join(table.hints)


def draw(*shape, seed=0):
    """Random numbers of this shape, in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
