"""Comparing a learner's values and gradients with the reference, as rows of a table."""

import math

import torch

from eecs598.checks.hints import describe_sizes, explain
from eecs598.checks.levels import BEYOND, cases_at_level, current_level, dtype_fits, lesson_only, limit_at_level
from eecs598.checks.parts import Case
from eecs598.checks.running import OutputError, autograd_run, driven_sum
from eecs598.grad import NUMERIC, CheckTable, compute_numeric_gradient, rel_error

UNCHANGED = "inputs unchanged"


def compare(table, formula, run, value, cases=None, label=""):
    """Add rows to `table` that compare the results of `run` in each case with the formula's reference.

    value: `formula.values` or `formula.derivatives`. cases: instead of the formula's. label: one row of this name
    instead of one for each output. Returns the results of the first case, or None if they cannot be compared.
    """
    first = None
    for case in cases_at_level(formula, cases):
        inputs, incoming = formula.draw(case)
        want = value(formula.reference, inputs, incoming, case.options)
        copy = _strided_copy if case.strided else torch.clone
        copies = {name: copy(v) for name, v in inputs.items()}, [copy(d) for d in incoming]
        news = not table.hints
        try:
            got = run(*copies, case.options)
        except OutputError as error:
            table.add(label or case.label or ", ".join(want), math.inf)
            if news or not case.label:
                table.hint(f"{case.label}: {error}" if case.label else str(error))
                table.hint(describe_sizes(formula, case))
                table.hint(case.hint)
            if case.label:
                continue
            _try_square_grid(table, formula, run, value)
            return None
        missed = _add_rows(table, label or case.label, got, want, limit_at_level(formula))
        if missed and news:
            table.hint(case.hint)
            explain(table, formula, value, case, missed, got, want)
        if first is None:
            first = got
            _add_unchanged(table, formula, inputs, incoming, *copies)
    return None if current_level() == BEYOND else first


def _strided_copy(value):
    """An equal tensor that is not contiguous."""
    return torch.stack([value, value], dim=-1)[..., 0]


def _add_rows(table, label, got, want, limit):
    """Add a row for each output, or one row `label` with the largest error. Returns the outputs that miss."""
    errors = {}
    for name in want:
        fits = got[name].shape == want[name].shape and dtype_fits(got[name], want[name])
        errors[name] = rel_error(got[name], want[name]) if fits else math.inf
    for name, error in ({label: max(errors.values())} if label else errors).items():
        table.add(name, error, limit)
    return [name for name, error in errors.items() if error > limit]


@lesson_only
def _add_unchanged(table, formula, inputs, incoming, inputs_after, incoming_after):
    names = [*inputs, *(f"d{name}" for name in formula.outputs[: len(incoming)])]
    before, after = [*inputs.values(), *incoming], [*inputs_after.values(), *incoming_after]
    changed = [name for name, old, new in zip(names, before, after) if not torch.equal(old, new)]
    if changed or all(row.quantity != UNCHANGED for row in table.rows):
        table.add(UNCHANGED, math.inf if changed else 0.0, limit=0)
    if changed:
        table.hint(f"changed in place: {', '.join(changed)}; make a new tensor (a = a + b), not a += b")


@lesson_only
def _try_square_grid(table, formula, run, value):
    """After an error, test whether the result is right for a square grid, as in the published assignment."""
    if "hw" in formula.inputs:
        square = CheckTable("")
        compare(square, formula, run, value, [Case("square", sizes={"h": 4, "w": 4})])
        if square.passed:
            table.hint("it is right on a 4 x 4 grid: take h and w from A.shape[2:], the grid need not be square")


@lesson_only
def add_numeric(table, formula, forward_name, run_forward, gradients):
    """Add a row that compares the gradients with finite differences of the learner's own forward.

    Each input is varied along one random direction, which detects a mistake in any element with two runs instead of
    two for each element.
    """
    (inputs, incoming), options = formula.draw(formula.cases[0]), formula.cases[0].options
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for name, gradient in ((name[1:], gradient) for name, gradient in gradients.items()):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()

        def loss(step, name=name, direction=direction):
            values = run_forward(inputs | {name: inputs[name] + step * direction}, incoming, options)
            return driven_sum(forward_name, values, formula, incoming)

        slope = compute_numeric_gradient(loss, torch.zeros((), dtype=torch.float64))
        usual = gradient.norm().item() / gradient.numel() ** 0.5  # a slope far below it tells of rounding alone
        worst = max(worst, rel_error((gradient * direction).sum(), slope, eps=max(usual / 10, 1e-10)))
    exact = max(row.error for row in table.rows if row.quantity in gradients)
    numeric = table.add("numeric, along random directions", worst, NUMERIC)
    if numeric.passed and exact > NUMERIC:
        table.hints.insert(0, f"the backward pass is right for your own forward pass: fix {forward_name} first")
    if not numeric.passed and exact <= formula.limit:
        table.hint(f"the backward pass is right, but {forward_name} computes something else: fix it")


def guard(table, add, *args):
    """Add rows, or one failing row with a hint why they cannot be computed."""
    try:
        add(*args)
    except (OutputError, ValueError) as error:  # ValueError: `rel_error` of different shapes
        table.add("further rows", math.inf)
        table.hint(str(error))


def compare_gradients(name, formula, then=None, **how):
    """Check autograd's gradients through the forward, if its values are right. then: a property of the gradients."""

    def add(table, run, values):
        if table.passed and values is not None:
            by_autograd = autograd_run(name, run, formula)
            gradients = compare(table, formula, by_autograd, formula.derivatives, formula.cases[:1], **how)
            if then and comparable(table, gradients):
                then(table, by_autograd, gradients)

    return add


def comparable(table, values):
    """Whether there are values, with the right shapes and finite."""
    return values is not None and all(math.isfinite(row.error) for row in table.rows if row.quantity in values)
