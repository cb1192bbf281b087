"""Hints: which known mistake gives the learner's numbers, or how they differ from the correct ones."""

import itertools
import math
import re

import torch

from eecs598.checks.levels import SINGLE, limit_at_level
from eecs598.checks.parts import SIZES
from eecs598.checks.running import OWN_DTYPE
from eecs598.checks.seeds import current_seed
from eecs598.grad import rel_error

_kept = {}  # cached results of `_mistaken_values`
SAME = 1e-6  # relative error up to which a wrong output is attributed to a mistake


def explain(table, formula, value, case, missed, got, want):
    """Add hints: as few known mistakes as possible that explain the wrong outputs, or else how they differ.

    value: `formula.values` or `formula.derivatives`.
    """
    found, same = [], max(SAME, limit_at_level(formula))
    mistaken = _mistaken_values(formula, value, case)
    matches = {name: _alike_each([wrong[name] for wrong in mistaken], got[name], same) for name in want}
    for i, (sentence, _) in enumerate(formula.mistakes):
        alike = {name for name in want if i in matches[name]}
        # Zeros say little: they count only if the mistake explains all other outputs too.
        telling = {name for name in alike if got[name].any() or len(alike) == len(want)}
        names = {name for name in telling if not _alike(mistaken[i][name], want[name], same)}
        found.append((sentence, names, len(alike)))
    left = set(missed)
    while left:
        sentence, names, _ = max(found, key=lambda entry: (len(entry[1] & left), entry[2]))
        if not names & left:
            table.known_mistakes = []
            break
        table.known_mistakes.append(sentence)
        hit = [name for name in missed if name in names & left]
        table.hint(f"{', '.join(hit)}: {'this is' if len(hit) == 1 else 'these are'} what comes out when {sentence}")
        left -= names
    for name in (name for name in missed if name in left):
        table.hint(f"{name} {_difference(got[name], want[name], sizes_of(formula, case))}")
        if got[name].shape != want[name].shape:
            table.hint(describe_sizes(formula, case))


def _mistaken_values(formula, value, case):
    """The results of each of the formula's mistakes in a case. They never change, so they are cached."""
    key = id(formula), value.__name__, repr(case), current_seed()
    if key not in _kept:
        inputs, incoming = formula.draw(case)
        wrong = [value(lambda mistake=mistake, **p: mistake(formula.compute, p), inputs, incoming, case.options)
                 for _, mistake in formula.mistakes]  # fmt: skip
        _kept[key] = formula, wrong  # with the formula, so that its id is not reused
    return _kept[key][1]


def _alike(got, wrong, same=SAME):
    return got.shape == wrong.shape and rel_error(got, wrong) < same


def _alike_each(values, got, same):
    """The indices of those values that `_alike` would call alike, all compared at once."""
    indices = [i for i, value in enumerate(values) if value.shape == got.shape]
    if not indices or not got.numel() or got.is_complex():
        return {i for i in indices if _alike(values[i], got, same)}
    stacked = torch.stack([values[i] for i in indices]).reshape(len(indices), -1).double()
    got = got.reshape(1, -1).double()
    errors = (stacked - got).abs().amax(1) / (stacked.abs() + got.abs()).amax(1).clamp(min=1e-10)
    return {i for i, error in zip(indices, errors.tolist()) if error < same}


def sizes_of(formula, case):
    """The sizes of the dimensions that the formula's inputs have, by name."""
    sizes = SIZES | case.sizes
    return {dim: sizes[dim] for dim in "".join(re.findall(r":(\w+)", formula.inputs))}


def describe_sizes(formula, case):
    """The sizes of the dimensions, as text."""
    return f"here {', '.join(f'{dim} = {size}' for dim, size in sizes_of(formula, case).items()).replace('G', '4H')}"


def _ratios(sizes):
    """What it may mean if an output is this many times the right one: (ratio, meaning), the likeliest meaning first."""
    N, T, H = (sizes.get(dim, math.nan) for dim in "NTH")
    return (
        (-1, "the sign is wrong"),
        (1 / N, "averaged over the batch, or divided by N once too often"),
        (1 / T, "averaged over time, not summed"),
        (1 / (N * T), "averaged over the batch and over time, not summed"),
        (2, "something is counted twice"),
        (1 / 2, "a factor of 2 is missing"),
        (N, "summed over the batch, or not divided by N"),
        (T, "summed over time once too often"),
        (math.sqrt(H), "1/sqrt(H) is missing"),
        (1 / math.sqrt(H), "1/sqrt(H) is applied once too often"),
    )


def _difference(got, want, sizes):
    """A clause that describes how a wrong output differs from the correct one."""
    if got.shape != want.shape:
        return f"has shape {tuple(got.shape)}, wanted {tuple(want.shape)}{_shape_mistake(got, want)}"
    if got.dtype != want.dtype:
        return f"is {got.dtype}, wanted {want.dtype}: {OWN_DTYPE}"
    if not got.isfinite().all():
        return "holds nan or inf"
    if not got.any():
        return "is all zeros"
    if got.dim() == 2 and got.shape[0] == got.shape[1] and _alike(got.t(), want):
        return "is transposed"
    if rel_error(got, want) < SINGLE:
        return f"is right in single precision only: {OWN_DTYPE}"
    ratio = ((got * want).sum() / (want * want).sum()).item()
    if _alike(got, ratio * want):
        meaning = next((f": {text}" for known, text in _ratios(sizes) if math.isclose(ratio, known, rel_tol=SAME)), "")
        return f"is {ratio:.6g} times the right value{meaning}"
    return f"matches no known mistake; {_place_of_difference(got, want, sizes)}"


def _shape_mistake(got, want):
    """The reason for a wrong shape, if the values reveal it."""
    reshaped = ": the numbers are right, a reshape is missing"
    if got.dim() != want.dim() and got.numel() == want.numel() and _alike(got.flatten(), want.flatten()):
        return reshaped
    if got.dim() > want.dim() and _alike(got.sum(dim=tuple(range(got.dim() - want.dim()))), want):
        return ": it is not summed over the leading dimensions (the batch, the steps)"
    if got.dim() == want.dim():
        for axes in itertools.permutations(range(got.dim())):
            if _alike(got.permute(axes), want):
                return f": it is transposed, permute{axes} puts it right"
    if got.dim() > 1 and _alike(got[:, 1:], want):
        return ": it begins with the initial state, which is not one of the outputs"
    return reshaped if _alike(got.flatten(), want.flatten()) else ""


def _place_of_difference(got, want, sizes):
    """Which steps of a sequence (N, T, ...) are wrong or, if that is not informative, the largest difference."""
    difference = (got - want).abs().double()
    if got.dim() == 3 and got.shape[1] == sizes.get("T"):
        wrong = difference.transpose(0, 1).flatten(1).amax(1) > SAME * want.abs().max()
        if not wrong.all():
            steps = ", ".join(str(t) for t in wrong.nonzero().flatten().tolist())
            return f"of the steps 0 to {sizes['T'] - 1} these are wrong: {steps}"
    place = tuple(index.item() for index in torch.unravel_index(difference.argmax(), got.shape))
    return f"the largest difference is at {list(place)}: {got[place]:.6g}, wanted {want[place]:.6g}"
