"""Running a learner's code: whatever it raises or returns becomes values, or a one-sentence error."""

import re
import traceback
from pathlib import Path

import torch
from torch import nn

from eecs598.shapes import blame_shapes

PARAMETERS = ("Wx", "Wh", "Wattn", "b", "W_embed")
OWN_DTYPE = "a tensor created inside has a different dtype from x: create it with x.new_zeros(...) or dtype=x.dtype"


class OutputError(Exception):
    """The learner's code returned nothing that can be compared. The message says what, in one sentence."""


def attempt(name, function, *args, **kwargs):
    """function(*args, **kwargs). Anything that it raises becomes an `OutputError` that quotes the learner's line."""
    try:
        return function(*args, **kwargs)
    except NotImplementedError as error:
        todo = re.fullmatch(r"TODO: (\S+)", str(error))  # possibly of a function that this one calls
        raise OutputError(f"{todo[1] if todo else name} is not written yet: it raises NotImplementedError") from None
    except OutputError as error:  # from a call in another process, whose result cannot be sent
        raise OutputError(f"{name} {error}") from None
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        advice = f" ({OWN_DTYPE})" if re.search("dtype|Double|Float", reason) else ""
        blame = blame_shapes(error)
        where = f"{_learners_line(error)}{f' ({blame})' if blame else ''}"
        raise OutputError(f"{name} raised {type(error).__name__}: {reason}{advice}{where}") from None


def _learners_line(error):
    """The innermost line of the traceback that is neither in this package nor in PyTorch."""
    libraries = {Path(__file__).parents[1], Path(torch.__file__).parent}
    if hasattr(error, "learners_line"):  # it was raised in another process
        return error.learners_line
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not libraries & set(Path(frame.filename).parents)]
    if not theirs:
        return ""
    return f"; line {theirs[-1].lineno} of {Path(theirs[-1].filename).name}: {theirs[-1].line}"


def named(name, raw, outputs, spare=()):
    """The values that `name` returned, by output name. spare: names of further values at the end, such as a cache."""
    wanted = (*outputs, *spare)
    listed = ", ".join(wanted)
    if raw is None:
        raise OutputError(f"{name} returned None, wanted {listed}: it is not written yet, or has no return statement")
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
        if value.layout != torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else "sparse"
            raise OutputError(f"{name} returned a {kind} tensor for {output}, wanted a plain one")
    return {output: value.cpu() if torch.is_tensor(value) else value for output, value in zip(wanted, raw)}


# Each of the following returns a function `run`: (inputs by name, upstream gradients, options) -> outputs by name.


def forward_run(name, function, formula, spare):
    def run(inputs, incoming, options):
        return named(name, attempt(name, function, *inputs.values(), **options), formula.outputs, spare)

    return run


def backward_run(name, run_forward, backward, formula, arguments):
    """arguments(inputs, incoming, values): the arguments of `backward`, where `values` are the forward's results."""

    def run(inputs, incoming, options):
        given = arguments(inputs, incoming, run_forward(inputs, incoming, options))
        return named(name, attempt(name, backward, *given, **options), formula.gradients)

    return run


def module_run(name, Class, formula, method="forward"):
    """Build the module, set its parameters from the inputs, and call it with the other inputs."""

    def run(inputs, incoming, options):
        sizes = inputs["W_embed"].shape if "W_embed" in inputs else (len(inputs["Wx"]), len(inputs["Wh"]))
        module = attempt(name, Class, *sizes)
        if not isinstance(module, nn.Module):
            raise OutputError(f"{name} is not a torch.nn.Module: derive it from nn.Module and call super().__init__()")
        dtype = next(value.dtype for value in inputs.values() if value.is_floating_point())
        _place(name, module.to(dtype), {key: value for key, value in inputs.items() if key in PARAMETERS})
        if not hasattr(module, method):
            raise OutputError(f"{name} has no method {method}")
        function = module if method == "forward" else getattr(module, method)
        arguments = [value for key, value in inputs.items() if key not in PARAMETERS]
        called = f"{name}.{method}"
        return named(called, attempt(called, function, *arguments), formula.outputs)

    return run


def _place(name, module, parameters):
    """Replace parameters with plain tensors, so that autograd gives these the gradients of the parameters."""
    owned = dict(module.named_parameters())
    for key, value in parameters.items():
        if key not in owned:
            raise OutputError(f"{name} has no parameter {key}; it has {', '.join(owned) or 'none'}")
        if owned[key].shape != value.shape:
            shapes = f"{tuple(owned[key].shape)}, wanted {tuple(value.shape)}"
            raise OutputError(f"{name}.{key} has shape {shapes}")
        delattr(module, key)
        setattr(module, key, value)


def autograd_run(name, run_forward, formula):
    """Autograd's gradients through `run_forward`."""

    def run(inputs, incoming, options):
        leaves = {key: v.requires_grad_(v.is_floating_point()) for key, v in inputs.items()}
        values = run_forward(leaves, incoming, options)
        loss = driven_sum(name, values, formula, incoming)
        if not loss.requires_grad:
            raise OutputError(f"no gradient flows back through {name}: no_grad, detach, .data or .item() cuts it off")
        wrt = [leaves[gradient[1:]] for gradient in formula.gradients]
        grads = attempt(f"the backward of {name}", torch.autograd.grad, loss, wrt, allow_unused=True)
        for gradient, grad in zip(formula.gradients, grads):
            if grad is None:
                raise OutputError(f"no gradient reaches {gradient[1:]} through {name}")
        return dict(zip(formula.gradients, grads))

    return run


def driven_sum(name, values, formula, incoming):
    """The scalar whose gradient is checked: the sum of the outputs times their upstream gradients."""
    for output, d in zip(formula.outputs, incoming):
        if values[output].shape != d.shape:
            shapes = f"{tuple(values[output].shape)}, wanted {tuple(d.shape)}"
            raise OutputError(f"{name} returned {output} of shape {shapes}: fix that first")
    return sum((values[output] * d).sum() for output, d in zip(formula.outputs, incoming)).double()
