"""What the tests of the grader have to confine submissions with on this machine."""

import functools

import pytest

from eecs598.grading.jail import ConfinementError, Jail, find_confinement


@functools.cache
def best():
    return find_confinement(2048, unconfined=True)


@functools.cache
def why_not():
    """Why nothing confines a submission here, an empty string where something does."""
    try:
        find_confinement(2048)
    except ConfinementError as error:
        return str(error)
    return ""


def open_jail(memory=2048):
    """A jail, or where there is none to be had a process that is not confined: the sources of these tests are known."""
    return Jail(best(), memory)


def required():
    """Skip the test that calls this where nothing confines."""
    if why_not():
        pytest.skip(why_not())
