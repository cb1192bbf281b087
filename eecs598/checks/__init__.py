"""The checks of the assignment: each hand-written function against PyTorch's own, in float64.

A check takes the learner's functions or classes, as `check_rnn_step_backward(rnn_step_forward, rnn_step_backward)`,
runs them on fixed inputs whose dimensions all differ, and returns a `CheckTable`, or raises `CheckError` with that
table and hints. It trusts nothing that it is given: whatever the functions raise or return becomes a row and a
sentence. An output that misses is compared with what each usual mistake gives (see `formulas`), so a hint is not a
guess: the learner's numbers are the mistake's numbers.

`CHECKS` lists the checks in the order of the lesson: part name -> check, and the names of what it is called with.
"""

import itertools
import math
import re
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from eecs598 import encoders
from eecs598.checks import formulas
from eecs598.checks.formulas import GRID, MAIN, SIZES, SPECIALS, Case
from eecs598.grad import NUMERIC, CheckTable, compute_numeric_gradient, rel_error

SAME = 1e-6  # a wrong output within this of a mistake's value is that mistake
SINGLE = 1e-5  # an error below this is float32's rounding
PARAMETERS = ("Wx", "Wh", "Wattn", "b", "W_embed")
UNCHANGED = "inputs unchanged"
OWN_DTYPE = "a tensor made inside has another dtype than x: make it with x.new_zeros(...) or dtype=x.dtype"
RATIOS = (
    (-1, "the sign is wrong"),
    (2, "something is counted twice"),
    (1 / 2, "a half is lost"),
    (1 / SIZES["N"], "averaged over the batch, or divided by N once too often"),
    (1 / SIZES["T"], "averaged over time, not summed"),
    (1 / (SIZES["N"] * SIZES["T"]), "averaged over the batch and over time, not summed"),
    (SIZES["N"], "summed over the batch, or not divided by N"),
    (SIZES["T"], "summed over time once too often"),
    (math.sqrt(SIZES["H"]), "1/sqrt(H) is missing"),
    (1 / math.sqrt(SIZES["H"]), "1/sqrt(H) is applied once too often"),
)


# ---------------------------------------------------------------------------------------------------------
# How strict to be
# ---------------------------------------------------------------------------------------------------------

LESSON, PUBLISHED, BEYOND = "lesson", "published", "beyond"
_level = LESSON


@contextmanager
def at_level(level):
    """Inside, the checks ask what `level` asks.

    LESSON: all that a learner should know. PUBLISHED: no more than the published assignment's checks accept, that is
    the values and the gradients on a square grid, to single precision, in any floating dtype; inputs may be changed.
    BEYOND: edge shapes alone, a row each.
    """
    global _level
    before, _level = _level, level
    try:
        yield
    finally:
        _level = before


def _lesson_only(add):
    """A function that adds rows: it does so at the level LESSON alone."""

    @wraps(add)
    def add_in_lesson(*args):
        return add(*args) if _level == LESSON else None

    return add_in_lesson


def _cases(formula, cases):
    """The cases of a formula, or some of them, at this level."""
    cases = formula.cases if cases is None else cases
    if _level == LESSON:
        return [case for case in cases if not case.beyond]
    square = {"sizes": {**cases[0].sizes, **(GRID if "hw" in formula.inputs else {})}}
    if _level == PUBLISHED:
        return [replace(cases[0], **square), *(case for case in cases if case.published)]
    dims = "N" if "W_feature" in formula.inputs else "NTDHW"  # a captioner takes long to build for every size
    edges = {f"{dim} = 1": {dim: 1} for dim in dims if re.search(rf":\w*{dim}", formula.inputs)}
    edges = {label: sizes | ({"G": 4} if "H" in sizes else {}) for label, sizes in edges.items()}
    if "hw" in formula.inputs:
        edges |= {"a 3 x 5 grid": {"h": 3, "w": 5}, "a 1 x 6 grid": {"h": 1, "w": 6}}
    first = replace(cases[0], hint="")
    shaped = [replace(first, label=label, sizes=first.sizes | sizes) for label, sizes in edges.items()]
    others = [case for case in cases[1:] if not case.published and "N" not in case.sizes]
    return [*shaped, replace(first, **square, label="inputs that are not contiguous", strided=True), *others]


def _limit(formula):
    return max(formula.limit, SINGLE if _level == PUBLISHED else 0)


# ---------------------------------------------------------------------------------------------------------
# Running what may be wrong in any way
# ---------------------------------------------------------------------------------------------------------


class OutputError(Exception):
    """The learner's code gave nothing that can be compared. The message says what, in one sentence."""


def _attempt(name, function, *args, **kwargs):
    """function(*args, **kwargs); whatever it raises becomes an `OutputError` that quotes the learner's line."""
    try:
        return function(*args, **kwargs)
    except NotImplementedError as error:
        todo = re.fullmatch(r"TODO: (\S+)", str(error))  # it may be a function that this one calls
        raise OutputError(f"{todo[1] if todo else name} is not written yet: it raises NotImplementedError") from None
    except OutputError as error:  # of a call in another process: what it returned cannot be sent here
        raise OutputError(f"{name} {error}") from None
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        advice = f" ({OWN_DTYPE})" if re.search("dtype|Double|Float", reason) else ""
        said = f"{name} raised {type(error).__name__}: {reason}{advice}{_learners_line(error)}"
        raise OutputError(said) from None


def _learners_line(error):
    """The innermost line of the traceback that is neither ours nor PyTorch's."""
    libraries = {Path(__file__).parent, Path(torch.__file__).parent}
    if hasattr(error, "learners_line"):  # it was raised in another process
        return error.learners_line
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not libraries & set(Path(frame.filename).parents)]
    if not theirs:
        return ""
    return f"; line {theirs[-1].lineno} of {Path(theirs[-1].filename).name}: {theirs[-1].line}"


def _named(name, raw, outputs, spare=()):
    """What `name` returned, by output; spare: further values of any kind (a cache) at the end."""
    wanted = (*outputs, *spare)
    listed = ", ".join(wanted)
    if raw is None:
        raise OutputError(f"{name} returned None, wanted {listed}: it is not written yet, or lacks its return")
    if len(wanted) == 1:
        raw = (raw,)
    if not isinstance(raw, (tuple, list)):
        raise OutputError(f"{name} returned one {type(raw).__name__}, wanted {len(wanted)} values: {listed}")
    if len(raw) != len(wanted):
        raise OutputError(f"{name} returned {len(raw)} values, wanted {len(wanted)}: {listed}")
    for output, value in zip(outputs, raw):
        if value is None:
            raise OutputError(f"{name} returned None for {output}: it is not written yet")
        if not torch.is_tensor(value):
            raise OutputError(f"{name} returned a {type(value).__name__} for {output}, wanted a tensor")
        if value.is_meta:
            raise OutputError(f"{name} returned {output} on the device meta, without numbers: make it with x.new_zeros")
    return dict(zip(wanted, raw))


# Each of the following makes a `run`: (inputs by name, gradients that come in, options) -> outputs by name.


def _run_forward(name, function, formula, spare):
    def run(inputs, incoming, options):
        return _named(name, _attempt(name, function, *inputs.values(), **options), formula.outputs, spare)

    return run


def _run_backward(name, run_forward, backward, formula, arguments):
    """arguments(inputs, incoming, values): what `backward` takes, `values` being what the forward gave."""

    def run(inputs, incoming, options):
        given = arguments(inputs, incoming, run_forward(inputs, incoming, options))
        return _named(name, _attempt(name, backward, *given, **options), formula.gradients)

    return run


def _run_module(name, Class, formula, method="forward"):
    """Build the module, put the inputs that are parameters in their place, call it with the others."""

    def run(inputs, incoming, options):
        sizes = inputs["W_embed"].shape if "W_embed" in inputs else (len(inputs["Wx"]), len(inputs["Wh"]))
        module = _attempt(name, Class, *sizes)
        if not isinstance(module, nn.Module):
            raise OutputError(f"{name} is no torch.nn.Module: derive it from nn.Module, call super().__init__()")
        _place(name, module.double(), {key: value for key, value in inputs.items() if key in PARAMETERS})
        if not hasattr(module, method):
            raise OutputError(f"{name} has no method {method}")
        function = module if method == "forward" else getattr(module, method)
        arguments = [value for key, value in inputs.items() if key not in PARAMETERS]
        called = f"{name}.{method}"
        return _named(called, _attempt(called, function, *arguments), formula.outputs)

    return run


def _place(name, module, parameters):
    """Put plain tensors in the parameters' place: what autograd then gives them are the parameters' gradients."""
    owned = dict(module.named_parameters())
    for key, value in parameters.items():
        if key not in owned:
            raise OutputError(f"{name} has no parameter {key}; it has {', '.join(owned) or 'none'}")
        if owned[key].shape != value.shape:
            shapes = f"{tuple(owned[key].shape)}, wanted {tuple(value.shape)}"
            raise OutputError(f"{name}.{key} has shape {shapes}")
        delattr(module, key)
        setattr(module, key, value)


def _run_autograd(name, run_forward, formula):
    """The gradients that autograd gives through what `run_forward` calls."""

    def run(inputs, incoming, options):
        leaves = {key: v.requires_grad_(v.is_floating_point()) for key, v in inputs.items()}
        values = run_forward(leaves, incoming, options)
        loss = _loss(name, values, formula, incoming)
        if not loss.requires_grad:
            raise OutputError(f"no gradient flows back through {name}: no_grad, detach, .data or .item() cuts it")
        wrt = [leaves[gradient[1:]] for gradient in formula.gradients]
        grads = _attempt(f"the backward of {name}", torch.autograd.grad, loss, wrt, allow_unused=True)
        for gradient, grad in zip(formula.gradients, grads):
            if grad is None:
                raise OutputError(f"no gradient reaches {gradient[1:]} through {name}")
        return dict(zip(formula.gradients, grads))

    return run


# ---------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------


def _compare(table, formula, run, value, cases=None, label=""):
    """Add rows to `table`: what `run` gives in each case, against the formula's reference.

    value: `formula.values` or `formula.derivatives`. cases: other than the formula's. label: one row of this name
    instead of one an output. Returns what the first case gave, None where that cannot be compared.
    """
    first = None
    for case in _cases(formula, cases):
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
                table.hint(_sizes(formula, case))
                table.hint(case.hint)
            if case.label:
                continue
            _try_square_grid(table, formula, run, value)
            return None
        missed = _add_rows(table, label or case.label, got, want, _limit(formula))
        if missed and news:
            table.hint(case.hint)
            _explain(table, formula, value, (inputs, incoming, case.options), missed, got, want)
        if first is None:
            first = got
            _add_unchanged(table, formula, inputs, incoming, *copies)
    return None if _level == BEYOND else first


def _strided_copy(value):
    """An equal tensor whose elements do not lie side by side."""
    return torch.stack([value, value], dim=-1)[..., 0]


def _add_rows(table, label, got, want, limit):
    """Add a row an output, or one, `label`, with the worst of them. Returns the outputs that missed."""
    errors = {}
    for name in want:
        same_dtype = got[name].dtype == want[name].dtype or (_level == PUBLISHED and got[name].is_floating_point())
        comparable = got[name].shape == want[name].shape and same_dtype
        errors[name] = rel_error(got[name], want[name]) if comparable else math.inf
    for name, error in ({label: max(errors.values())} if label else errors).items():
        table.add(name, error, limit)
    return [name for name, error in errors.items() if error > limit]


@_lesson_only
def _add_unchanged(table, formula, inputs, incoming, inputs_after, incoming_after):
    names = [*inputs, *(f"d{name}" for name in formula.outputs[: len(incoming)])]
    before, after = [*inputs.values(), *incoming], [*inputs_after.values(), *incoming_after]
    changed = [name for name, old, new in zip(names, before, after) if not torch.equal(old, new)]
    if changed or all(row.quantity != UNCHANGED for row in table.rows):
        table.add(UNCHANGED, math.inf if changed else 0.0, limit=0)
    if changed:
        table.hint(f"changed in place: {', '.join(changed)}; make a new tensor (a = a + b), not a += b")


@_lesson_only
def _try_square_grid(table, formula, run, value):
    """After an error: would it be right if the grid were square, as it is in the published assignment?"""
    if "hw" in formula.inputs:
        square = CheckTable("")
        _compare(square, formula, run, value, [Case("square", sizes={"h": 4, "w": 4})])
        if square.passed:
            table.hint("it is right on a 4 x 4 grid: take h and w from A.shape[2:], the grid need not be square")


@_lesson_only
def _add_numeric(table, formula, forward_name, run_forward, gradients):
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
            return _loss(forward_name, values, formula, incoming)

        slope = compute_numeric_gradient(loss, torch.zeros((), dtype=torch.float64))
        worst = max(worst, rel_error((gradient * direction).sum(), slope))
    exact = max(row.error for row in table.rows if row.quantity in gradients)
    numeric = table.add("numeric, along random directions", worst, NUMERIC)
    if numeric.passed and exact > NUMERIC:
        table.hints.insert(0, f"the backward is right for your own forward: mend {forward_name} first")
    if not numeric.passed and exact <= formula.limit:
        table.hint(f"the backward is right, but {forward_name} computes something else: mend that")


def _loss(name, values, formula, incoming):
    """The number whose gradient is checked: the outputs, each with the gradient that comes in, summed up."""
    for output, d in zip(formula.outputs, incoming):
        if values[output].shape != d.shape:
            shapes = f"{tuple(values[output].shape)}, wanted {tuple(d.shape)}"
            raise OutputError(f"{name} returned {output} of shape {shapes}: mend that first")
    return sum((values[output] * d).sum() for output, d in zip(formula.outputs, incoming)).double()


def _guard(table, add, *args):
    """Add rows, or one that says why there are none."""
    try:
        add(*args)
    except (OutputError, ValueError) as error:  # ValueError: `rel_error` of different shapes
        table.add("further rows", math.inf)
        table.hint(str(error))


# ---------------------------------------------------------------------------------------------------------
# Saying what went wrong
# ---------------------------------------------------------------------------------------------------------


def _explain(table, formula, value, given, missed, got, want):
    """Add hints: the fewest known mistakes that give the missed outputs' numbers, else how these differ."""
    found, same = [], max(SAME, _limit(formula))
    for sentence, mistake in formula.mistakes:
        wrong = value(lambda mistake=mistake, **p: mistake(formula.compute, p), *given)
        alike = {name for name in want if _alike(got[name], wrong[name], same)}
        # Zeros tell little: they count where the mistake gives all the other outputs too.
        telling = {name for name in alike if got[name].any() or len(alike) == len(want)}
        found.append((sentence, {name for name in telling if not _alike(wrong[name], want[name], same)}, len(alike)))
    left = set(missed)
    while left:
        sentence, names, _ = max(found, key=lambda entry: (len(entry[1] & left), entry[2]))
        if not names & left:
            break
        hit = [name for name in missed if name in names & left]
        table.hint(f"{', '.join(hit)}: {'this is' if len(hit) == 1 else 'these are'} what comes out when {sentence}")
        left -= names
    for name in (name for name in missed if name in left):
        table.hint(f"{name} {_difference(got[name], want[name])}")
        if got[name].shape != want[name].shape:
            table.hint(_sizes(formula, MAIN))


def _alike(got, wrong, same=SAME):
    return got.shape == wrong.shape and rel_error(got, wrong) < same


def _sizes(formula, case):
    """What the numbers in a shape stand for."""
    sizes = SIZES | case.sizes
    dims = dict.fromkeys("".join(re.findall(r":(\w+)", formula.inputs)))
    return f"here {', '.join(f'{dim} = {sizes[dim]}' for dim in dims).replace('G', '4H')}"


def _difference(got, want):
    """How a wrong output differs from the right one, as a clause."""
    if got.shape != want.shape:
        return f"has shape {tuple(got.shape)}, wanted {tuple(want.shape)}{_shape_slip(got, want)}"
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
        meaning = next((f": {text}" for known, text in RATIOS if math.isclose(ratio, known, rel_tol=SAME)), "")
        return f"is {ratio:.6g} times the right value{meaning}"
    return f"comes from no mistake known here; {_place_of_difference(got, want)}"


def _shape_slip(got, want):
    """What a wrong shape comes from, where the numbers tell."""
    if got.dim() > want.dim() and _alike(got.sum(dim=tuple(range(got.dim() - want.dim()))), want):
        return ": it is not summed over the leading dimensions (the batch, the steps)"
    if got.dim() == want.dim():
        for axes in itertools.permutations(range(got.dim())):
            if _alike(got.permute(axes), want):
                return f": it is transposed, permute{axes} puts it right"
    if got.dim() > 1 and _alike(got[:, 1:], want):
        return ": the first state stands in front, it is not one of the outputs"
    return ": the numbers are right, a reshape is missing" if _alike(got.flatten(), want.flatten()) else ""


def _place_of_difference(got, want):
    """Which steps of a sequence (N, T, ...) are wrong; where that does not tell, the largest difference."""
    difference = (got - want).abs().double()
    if got.dim() > 2 and got.shape[1] == SIZES["T"]:
        wrong = difference.transpose(0, 1).flatten(1).amax(1) > SAME * want.abs().max()
        if not wrong.all():
            steps = ", ".join(str(t) for t in wrong.nonzero().flatten().tolist())
            return f"of the steps 0 to {SIZES['T'] - 1} these are wrong: {steps}"
    place = tuple(index.item() for index in torch.unravel_index(difference.argmax(), got.shape))
    return f"the largest difference is at {list(place)}: {got[place]:.6g}, wanted {want[place]:.6g}"


# ---------------------------------------------------------------------------------------------------------
# Properties that hold without a reference: (table, run, values of the main case) -> more rows
# ---------------------------------------------------------------------------------------------------------


@_lesson_only
def _weigh_cells(table, run, values):
    """A picture's weights sum to 1; permuting the cells of the grid permutes the weights."""
    weights = values["attn_weights"]
    table.add("weights sum to 1", (weights.sum(dim=(1, 2)) - 1).abs().max())
    inputs, incoming = formulas.DOT_PRODUCT_ATTENTION.draw(MAIN)
    order = torch.randperm(weights[0].numel(), generator=torch.Generator().manual_seed(2))

    def shuffle(grid):
        return grid.flatten(-2)[..., order].view(grid.shape)

    shuffled = run(inputs | {"A": shuffle(inputs["A"])}, incoming, {})["attn_weights"]
    table.add("cells permuted, weights permuted", rel_error(shuffled, shuffle(weights)))


@_lesson_only
def _ignore_padding(table, run, values):
    """The padding after a caption must not move a weight, not even by a rounding error."""
    y = formulas.TEMPORAL_SOFTMAX.draw(formulas.IGNORING)[0]["y"]
    ignored = values["dx"][y == formulas.IGNORED]
    if not table.add("dx where y is ignore_index", ignored.abs().max(), limit=0).passed:
        table.hint("dx is exactly 0 where y is ignore_index: multiply by the mask y != ignore_index")


def _differentiate(name, formula, then=None, **how):
    """Autograd's gradients through the forward, once its values are right; then: a property of these."""

    def add(table, run, values):
        if table.passed and values is not None:
            by_autograd = _run_autograd(name, run, formula)
            gradients = _compare(table, formula, by_autograd, formula.derivatives, formula.cases[:1], **how)
            if then and _comparable(table, gradients):
                then(table, by_autograd, gradients)

    return add


def _comparable(table, values):
    """Whether there are values at all, in the right shapes, and finite."""
    return values is not None and all(math.isfinite(row.error) for row in table.rows if row.quantity in values)


# ---------------------------------------------------------------------------------------------------------
# The three kinds of check
# ---------------------------------------------------------------------------------------------------------


class Check(NamedTuple):
    """A check, and the names of the functions or classes to call it with, in order."""

    run: Callable[..., CheckTable]
    needs: tuple[str, ...]


CHECKS: dict[str, Check] = {}


@contextmanager
def _one_thread():
    """Tensors this small gain nothing from threads, and on a busy machine wait for them: 30 times as long, measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _register(part, needs, check, about):
    """Enter a check in `CHECKS` and return it."""
    check = _one_thread()(check)
    check.__name__ = check.__qualname__ = f"check_{part}"
    check.__doc__ = f"check_{part}({', '.join(needs)}): {about}. Returns a `CheckTable` or raises `CheckError`."
    CHECKS[part] = Check(check, needs)
    return check


def _forward_check(name, formula, add=None, spare=("cache",)):
    """A check of a function that computes a value. add: a property to add rows for."""

    def check(function):
        table = CheckTable(f"{name} against {formula.against}")
        run = _run_forward(name, function, formula, spare)
        values = _compare(table, formula, run, formula.values)
        if add and _comparable(table, values):
            _guard(table, add, table, run, values)
        return table.raise_on_miss()

    return _register(name, (name,), check, f"{', '.join(formula.outputs)} against {formula.against}")


def _incoming_and_cache(inputs, incoming, values):
    return *incoming, values["cache"]


def _backward_check(forward_name, name, formula, add=None, spare=("cache",), arguments=_incoming_and_cache):
    """A check of a gradient, against autograd and against differences of the learner's own forward."""

    def check(forward, backward):
        table = CheckTable(f"{name} against autograd through {formula.against}")
        run_forward = _run_forward(forward_name, forward, formula, spare)
        run = _run_backward(name, run_forward, backward, formula, arguments)
        gradients = _compare(table, formula, run, formula.derivatives)
        if _comparable(table, gradients):
            _guard(table, _add_numeric, table, formula, forward_name, run_forward, gradients)
            if add:
                _guard(table, add, table, run, gradients)
        return table.raise_on_miss()

    about = f"{', '.join(formula.gradients)} against autograd through {formula.against}, and against differences"
    return _register(name, (forward_name, name), check, about)


def _module_check(part, name, formula, step=None):
    """A check of a module: values, then gradients (once the values are right), then the step that sampling uses."""

    def check(module_class):
        table = CheckTable(f"{name} against {formula.against}")
        run = _run_module(name, module_class, formula)
        _differentiate(name, formula)(table, run, _compare(table, formula, run, formula.values))
        if step:
            run_step = _run_module(name, module_class, step, "step_forward")
            _compare(table, step, run_step, step.values, [MAIN])
        return table.raise_on_miss()

    about = f"values, and gradients through the module, against {formula.against}" + ("; its step" if step else "")
    return _register(part, (name,), check, about)


# ---------------------------------------------------------------------------------------------------------
# The captioner: any student's, whatever its layers are called
# ---------------------------------------------------------------------------------------------------------

ROLES = {  # weight -> what it is, and the bias that goes with it
    "W_feature": ("the affine map of the image features", "b_feature"),
    "W_out": ("the affine map to the vocabulary", "b_out"),
}


@cache
def _vocabulary(size, specials):
    names = dict(zip(specials, ("<NULL>", "<START>", "<END>")))
    return {names.get(word, f"word{word}"): word for word in range(size)}


def _build_captioner(captioner_class, cell_type, inputs, specials):
    """A captioner of these sizes. Raises `OutputError`."""
    (C, H), (V, W), null = inputs["W_feature"].shape, inputs["W_embed"].shape, specials[0]
    given = {"input_dim": C, "wordvec_dim": W, "hidden_dim": H, "cell_type": cell_type, "ignore_index": null}
    words = dict(_vocabulary(V, specials))
    return _attempt("CaptioningRNN", captioner_class, words, **given, image_encoder_pretrained=False)


def _weights_by_name(model, inputs):
    """The inputs that are weights, in the shapes and under the names that they have in a student's captioner.

    Both layouts of a matrix will do, and so will a 1 x 1 convolution. Raises `OutputError` where one is missing.
    """
    try:
        parent, attribute = encoders.find_encoder(model)
    except (ValueError, AttributeError) as error:
        raise OutputError(str(error)) from None
    encoder = {id(parameter) for parameter in getattr(parent, attribute).parameters()}
    owned = {name: p for name, p in model.named_parameters() if id(p) not in encoder}
    listed = ", ".join(f"{name} {tuple(p.shape)}" for name, p in owned.items()) or "none"
    placed = {}
    for name, value in inputs.items():
        if name in ROLES:
            fitting = {key: _fit(value, p) for key, p in owned.items() if _is_matrix(key, p, value)}
            biases = {_sibling(key, "bias"): inputs[ROLES[name][1]] for key in fitting}
            biases = {key: bias for key, bias in biases.items() if key in owned}
            lacking = f"{ROLES[name][0]} {tuple(value.shape)}" if not fitting else f"a bias of {ROLES[name][0]}"
            if not fitting or not biases:
                raise OutputError(f"CaptioningRNN has no parameter that is {lacking}; its parameters: {listed}")
            placed |= fitting | biases
        elif name in PARAMETERS:
            fitting = {key: value for key, p in owned.items() if _is_named(key, name) and p.shape == value.shape}
            if not fitting:
                wanted = f"{name} {tuple(value.shape)}"
                raise OutputError(f"CaptioningRNN has no parameter {wanted}; its parameters: {listed}")
            placed |= fitting
    return placed


def _is_matrix(key, parameter, value):
    shape = tuple(parameter.flatten(1).shape) if parameter.dim() in (2, 4) else ()
    return shape in (tuple(value.shape), tuple(value.t().shape)) and key.rpartition(".")[2] not in PARAMETERS


def _fit(value, parameter):
    """A matrix in the layout of a parameter: its own, transposed as nn.Linear keeps it, or a convolution's."""
    flat = parameter.flatten(1).shape
    return (value if flat == value.shape else value.t()).reshape(parameter.shape)


def _is_named(key, name):
    """nn.Embedding's weight will do as W_embed: it has the same layout."""
    return key.rpartition(".")[2] == name or (name == "W_embed" and key.rpartition(".")[2] == "weight")


def _sibling(key, leaf):
    parent, _, own = key.rpartition(".")
    return f"{parent}.{leaf}" if own == "weight" else key.replace("W", "b").replace("weight", leaf)


def _run_captioner(captioner_class, cell_type, formula, method):
    """Runs a captioner in float32 on features, which stand in for its encoder's; see `encoders.fed_with_features`."""
    build = cache(lambda sizes, specials: _build_captioner(captioner_class, cell_type, dict(build.inputs), specials))

    def run(inputs, incoming, options):
        build.inputs, specials = inputs, options.get("specials", SPECIALS)
        model = build(tuple(value.shape for key, value in inputs.items() if "_" in key), specials)  # the weights' sizes
        weights = {name: value.float() for name, value in _weights_by_name(model, inputs).items()}
        with encoders.fed_with_features(model):
            return method(model, weights, inputs, options, specials)

    return run


def _captioner_loss(model, weights, inputs, options, specials):
    name, given = "CaptioningRNN.forward", (inputs["features"].float(), inputs["captions"])
    loss = _named(name, _attempt(name, functional_call, model, weights, given), ("loss",))["loss"]
    if loss.dim():
        raise OutputError(f"{name} returned a loss of shape {tuple(loss.shape)}, wanted a single number")
    return {"loss": loss.double()}


@torch.no_grad()
def _captioner_sample(model, weights, inputs, options, specials):
    """The captions up to <END>: a student's may end early, or go on as it likes after <END>."""
    owned, outputs = dict(model.named_parameters()), ("captions",)
    for name, value in weights.items():
        owned[name].copy_(value)
    length, name = options.get("max_length", 15), "CaptioningRNN.sample"
    if "Wattn" in inputs:
        outputs = "captions", "attn_weights"
    model.eval()
    sampled = _named(name, _attempt(name, model.sample, inputs["features"].float(), max_length=length), outputs)
    captions, maps = sampled["captions"], sampled.get("attn_weights")
    N, H = len(inputs["features"]), inputs["features"].shape[2:]
    if captions.dim() != 2 or len(captions) != N or not 0 < captions.shape[1] <= length:
        raise OutputError(f"{name} returned captions of shape {tuple(captions.shape)}, wanted ({N}, {length})")
    if maps is not None and (maps.shape[:1] != (N,) or maps.shape[2:] != H or maps.shape[1] < captions.shape[1]):
        wanted = f"({N}, {length}, {H[0]}, {H[1]})"
        raise OutputError(f"{name} returned attention weights of shape {tuple(maps.shape)}, wanted {wanted}")
    if maps is not None and maps.device.type != "cpu":
        raise OutputError(f"{name} returned attention weights on {maps.device}, wanted them on the CPU: .cpu()")
    shown = None if maps is None else maps[:, : captions.shape[1]].double()
    missing, pad = length - captions.shape[1], nn.functional.pad
    ended, shown = formulas.end_captions(captions.long(), shown, specials)
    values = {"captions": pad(ended, (0, missing), value=specials[0]), "goes on": (captions != ended).any()}
    return values if maps is None else values | {"attn_weights": pad(shown, (0, 0, 0, 0, 0, missing))}


def _add_silence(table, formula, run):
    """Add a row: whether there is nothing but <NULL> after <END>. The published assignment does not ask for it."""
    case = formula.cases[0]
    goes_on = run(*formula.draw(case), case.options)["goes on"]
    if not table.add("only <NULL> after <END>", math.inf if goes_on else 0.0, limit=0).passed:
        table.hint("sample() goes on after <END>: write <NULL> from there on, and stop when every caption has ended")


def _captioner_checks(cell_type, loss, sample):
    """Register the check of a captioner's loss, values and gradients, and that of its captions."""

    def check_loss(captioner_class):
        table = CheckTable(f"CaptioningRNN's loss, cell_type {cell_type!r}, against {loss.against}")
        run = _run_captioner(captioner_class, cell_type, loss, _captioner_loss)
        _differentiate("CaptioningRNN", loss)(table, run, _compare(table, loss, run, loss.values))
        return table.raise_on_miss()

    def check_sample(captioner_class):
        table = CheckTable(f"CaptioningRNN.sample, cell_type {cell_type!r}, against {sample.against}")
        run = _run_captioner(captioner_class, cell_type, sample, _captioner_sample)
        _compare(table, sample, run, sample.values)
        if _level == BEYOND:
            _guard(table, _add_silence, table, sample, run)
        return table.raise_on_miss()

    about = f"the captioner with cell_type {cell_type!r} against PyTorch's layers: "
    return (
        _register(f"{cell_type}_captioner_loss", ("CaptioningRNN",), check_loss, f"{about}loss, gradients"),
        _register(f"{cell_type}_captioner_sample", ("CaptioningRNN",), check_sample, f"{about}captions, attention"),
    )


# ---------------------------------------------------------------------------------------------------------
# The checks, in the order of the lesson
# ---------------------------------------------------------------------------------------------------------


def _inputs_only(inputs, incoming, values):
    return inputs.values()


def _incoming_inputs_weights(inputs, incoming, values):
    return *incoming, *inputs.values(), values["attn_weights"]


check_rnn_step_forward = _forward_check("rnn_step_forward", formulas.RNN_STEP)
check_rnn_step_backward = _backward_check("rnn_step_forward", "rnn_step_backward", formulas.RNN_STEP)
check_rnn_forward = _forward_check(
    "rnn_forward",
    formulas.RNN_SEQUENCE,
    _differentiate("rnn_forward", formulas.RNN_SEQUENCE, label="gradients by autograd"),
)
check_rnn_backward = _backward_check("rnn_forward", "rnn_backward", formulas.RNN_SEQUENCE)
check_rnn_module = _module_check("rnn_module", "RNN", formulas.RNN_SEQUENCE, formulas.RNN_STEP)

check_word_embedding_forward = _forward_check("word_embedding_forward", formulas.WORD_EMBEDDING)
check_word_embedding_backward = _backward_check(
    "word_embedding_forward", "word_embedding_backward", formulas.WORD_EMBEDDING
)
check_word_embedding_module = _module_check("word_embedding_module", "WordEmbedding", formulas.WORD_EMBEDDING)
check_temporal_affine_forward = _forward_check("temporal_affine_forward", formulas.TEMPORAL_AFFINE)
check_temporal_affine_backward = _backward_check(
    "temporal_affine_forward", "temporal_affine_backward", formulas.TEMPORAL_AFFINE
)
check_temporal_softmax_loss = _forward_check(
    "temporal_softmax_loss",
    formulas.TEMPORAL_SOFTMAX,
    _differentiate("temporal_softmax_loss", formulas.TEMPORAL_SOFTMAX, then=_ignore_padding),
    spare=(),
)
check_temporal_softmax_backward = _backward_check(
    "temporal_softmax_loss",
    "temporal_softmax_backward",
    formulas.TEMPORAL_SOFTMAX,
    _ignore_padding,
    spare=(),
    arguments=_inputs_only,
)
check_rnn_captioner_loss, check_rnn_captioner_sample = _captioner_checks(
    "rnn", formulas.RNN_CAPTIONER_LOSS, formulas.RNN_CAPTIONER_SAMPLE
)

check_lstm_step_forward = _forward_check("lstm_step_forward", formulas.LSTM_STEP)
check_lstm_step_backward = _backward_check("lstm_step_forward", "lstm_step_backward", formulas.LSTM_STEP)
check_lstm_forward = _forward_check("lstm_forward", formulas.LSTM_SEQUENCE)
check_lstm_backward = _backward_check("lstm_forward", "lstm_backward", formulas.LSTM_SEQUENCE)
check_lstm_module = _module_check("lstm_module", "LSTM", formulas.LSTM_FROM_H0, formulas.LSTM_STEP)
check_lstm_captioner_loss, check_lstm_captioner_sample = _captioner_checks(
    "lstm", formulas.LSTM_CAPTIONER_LOSS, formulas.LSTM_CAPTIONER_SAMPLE
)

check_dot_product_attention = _forward_check(
    "dot_product_attention", formulas.DOT_PRODUCT_ATTENTION, _weigh_cells, spare=()
)
check_dot_product_attention_backward = _backward_check(
    "dot_product_attention",
    "dot_product_attention_backward",
    formulas.DOT_PRODUCT_ATTENTION,
    spare=(),
    arguments=_incoming_inputs_weights,
)
check_attention_lstm_step_forward = _forward_check("attention_lstm_step_forward", formulas.ATTENTION_LSTM_STEP)
check_attention_lstm_step_backward = _backward_check(
    "attention_lstm_step_forward", "attention_lstm_step_backward", formulas.ATTENTION_LSTM_STEP
)
check_attention_lstm_forward = _forward_check("attention_lstm_forward", formulas.ATTENTION_LSTM_SEQUENCE)
check_attention_lstm_backward = _backward_check(
    "attention_lstm_forward", "attention_lstm_backward", formulas.ATTENTION_LSTM_SEQUENCE
)
check_attention_lstm_module = _module_check(
    "attention_lstm_module",
    "AttentionLSTM",
    formulas.ATTENTION_LSTM_STATES,
    formulas.ATTENTION_LSTM_STEP,
)
check_attn_captioner_loss, check_attn_captioner_sample = _captioner_checks(
    "attn", formulas.ATTN_CAPTIONER_LOSS, formulas.ATTN_CAPTIONER_SAMPLE
)
