"""The kinds of check: of a forward, of a backward, of a module. Each one adds its check to `CHECKS`."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch

from eecs598.checks.comparing import add_numeric, comparable, compare, compare_gradients, guard
from eecs598.checks.parts import MAIN
from eecs598.checks.running import backward_run, forward_run, module_run
from eecs598.grad import CheckTable


class Check(NamedTuple):
    """A check, and the names of the functions or classes that it takes, in order."""

    run: Callable[..., CheckTable]
    needs: tuple[str, ...]


CHECKS: dict[str, Check] = {}


@contextmanager
def _one_thread():
    """A context with one thread: for small tensors, more threads took 30 times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def register(part, needs, check, about):
    """Add a check to `CHECKS`."""
    check = _one_thread()(check)
    check.__name__ = check.__qualname__ = f"check_{part}"
    check.__doc__ = f"check_{part}({', '.join(needs)}): {about}. Returns a `CheckTable` or raises `CheckError`."
    CHECKS[part] = Check(check, needs)


def add_forward_check(name, formula, add=None, spare=("cache",)):
    """Add the check of a function that computes a value. add: a property to check, too."""

    def check(function):
        table = CheckTable(f"{name} against {formula.against}")
        run = forward_run(name, function, formula, spare)
        values = compare(table, formula, run, formula.values)
        if add and comparable(table, values):
            guard(table, add, table, run, values)
        return table.raise_on_miss()

    register(name, (name,), check, f"{', '.join(formula.outputs)} against {formula.against}")


def _incoming_and_cache(inputs, incoming, values):
    return *incoming, values["cache"]


def add_backward_check(forward_name, name, formula, add=None, spare=("cache",), arguments=_incoming_and_cache):
    """Add the check of a gradient, against autograd and against finite differences of the learner's own forward."""

    def check(forward, backward):
        table = CheckTable(f"{name} against autograd through {formula.against}")
        run_forward = forward_run(forward_name, forward, formula, spare)
        run = backward_run(name, run_forward, backward, formula, arguments)
        gradients = compare(table, formula, run, formula.derivatives)
        if comparable(table, gradients):
            guard(table, add_numeric, table, formula, forward_name, run_forward, gradients)
            if add:
                guard(table, add, table, run, gradients)
        return table.raise_on_miss()

    about = f"{', '.join(formula.gradients)} against autograd through {formula.against}, and finite differences"
    register(name, (forward_name, name), check, about)


def add_module_check(part, name, formula, step=None):
    """Add the check of a module: values, then gradients if the values are right, then the step that sampling uses."""

    def check(module_class):
        table = CheckTable(f"{name} against {formula.against}")
        run = module_run(name, module_class, formula)
        compare_gradients(name, formula)(table, run, compare(table, formula, run, formula.values))
        if step:
            run_step = module_run(name, module_class, step, "step_forward")
            compare(table, step, run_step, step.values, [MAIN])
        return table.raise_on_miss()

    about = f"values, and gradients through the module, against {formula.against}" + ("; its step" if step else "")
    register(part, (name,), check, about)
