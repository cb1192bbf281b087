"""The comparison: rows of a table, a learner's values and gradients against the reference."""

import math

import torch

from eecs598.checks.hints import describe_sizes, explain
from eecs598.checks.levels import BEYOND, cases_at_level, current_level, dtype_fits, lesson_only, limit_at_level
from eecs598.checks.parts import Case
from eecs598.checks.running import OutputError, autograd_run, driven_sum
from eecs598.grad import NUMERIC, CheckTable, compute_numeric_gradient, rel_error

UNCHANGED = "inputs unchanged"


def compare(table, formula, run, value, cases=None, label=""):
    """Add rows to `table`: what `run` gives in each case, against the formula's reference.

    value: `formula.values` or `formula.derivatives`. cases: other than the formula's. label: one row of this name
    instead of one an output. Returns what the first case gave, None where that cannot be compared.
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
    """An equal tensor whose elements do not lie side by side."""
    return torch.stack([value, value], dim=-1)[..., 0]


def _add_rows(table, label, got, want, limit):
    """Add a row an output, or one, `label`, with the worst of them. Returns the outputs that missed."""
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
    """After an error: would it be right if the grid were square, as it is in the published assignment?"""
    if "hw" in formula.inputs:
        square = CheckTable("")
        compare(square, formula, run, value, [Case("square", sizes={"h": 4, "w": 4})])
        if square.passed:
            table.hint("it is right on a 4 x 4 grid: take h and w from A.shape[2:], the grid need not be square")


@lesson_only
def add_numeric(table, formula, forward_name, run_forward, gradients):
    """Add a row: the gradients against differences of the learner's own forward, and what that tells.

    Each input moves along one random direction: that sees a mistake in any element, in two runs instead of two
    an element.
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
        table.hints.insert(0, f"the backward is right for your own forward: mend {forward_name} first")
    if not numeric.passed and exact <= formula.limit:
        table.hint(f"the backward is right, but {forward_name} computes something else: mend that")


def guard(table, add, *args):
    """Add rows, or one that says why there are none."""
    try:
        add(*args)
    except (OutputError, ValueError) as error:  # ValueError: `rel_error` of different shapes
        table.add("further rows", math.inf)
        table.hint(str(error))


def compare_gradients(name, formula, then=None, **how):
    """Autograd's gradients through the forward, once its values are right; then: a property of these."""

    def add(table, run, values):
        if table.passed and values is not None:
            by_autograd = autograd_run(name, run, formula)
            gradients = compare(table, formula, by_autograd, formula.derivatives, formula.cases[:1], **how)
            if then and comparable(table, gradients):
                then(table, by_autograd, gradients)

    return add


def comparable(table, values):
    """Whether there are values at all, in the right shapes, and finite."""
    return values is not None and all(math.isfinite(row.error) for row in table.rows if row.quantity in values)
