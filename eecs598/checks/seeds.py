"""Where the inputs of the checks come from: the lesson's own seeds, or seeds mixed from that of a run of the grader."""

import hashlib
from contextlib import contextmanager

_run = None


@contextmanager
def drawn_from(seed):
    """Inside, inputs are drawn anew from `seed`, the same for whoever has the same one. None: those of the lesson."""
    global _run
    before, _run = _run, seed
    try:
        yield
    finally:
        _run = before


def current_seed():
    return _run


def mixed(own, attempt=0):
    """The seed to use for a check's `own`: in the lesson `own` itself, in a grading run one that nobody can predict."""
    if _run is None:
        return own
    return int.from_bytes(hashlib.sha256(f"{_run} {own} {attempt}".encode()).digest()[:7], "big")
