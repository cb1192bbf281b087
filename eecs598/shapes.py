"""Which argument has the wrong shape: the shapes in a function's docstring against those in a traceback."""

import itertools
import re

import torch

LISTED = re.compile(r"((?:\w+(?:, and |, | and ))*\w+) \(([\w, .]+)\)")  # such as: prev_h and prev_c (N, H)
SIZE = re.compile(r"(\d*)([A-Za-z])")  # such as 4H


def blame_shapes(error):
    """A sentence about the first call in an error's traceback whose arguments contradict its docstring, or None.

    Such a docstring lists shapes as in "x (N, D), prev_h and prev_c (N, H), Wx (D, 4H)"; a letter stands for the same
    number everywhere. The argument to blame is the one without which the others agree. If there are several such
    arguments, the sentence names them all.
    """
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        function = frame.f_globals.get(frame.f_code.co_name)
        if getattr(function, "__code__", None) is frame.f_code:
            sentence = _blame(function, frame.f_locals)
            if sentence:
                return sentence
    return None


def _blame(function, values):
    """The sentence about one call. values: its local variables."""
    wanted = _listed_shapes(function)
    seen = {name: tuple(values[name].shape) for name in wanted if torch.is_tensor(values.get(name))}
    wrong = _find_wrong(seen, wanted)
    sizes = _solve(seen.keys() - wrong, seen, wanted)
    said = [f"{name} is {seen[name]}, wanted {_describe(wanted[name], sizes)}" for name in wrong]
    return f"{function.__name__}: {'; '.join(said)}" if said else None


def _listed_shapes(function):
    """The shapes of the arguments in a function's docstring: name -> sizes, such as ("N", "4H")."""
    text = " ".join((function.__doc__ or "").split("Returns")[0].split())
    listed = {}
    for names, sizes in LISTED.findall(text):
        for name in re.split(r", and |, | and ", names):
            listed[name] = tuple(size for size in sizes.replace(" ", "").split(",") if size)
    code = function.__code__
    return {name: listed[name] for name in code.co_varnames[: code.co_argcount] if _is_shape(listed.get(name, ()))}


def _is_shape(sizes):
    return len(sizes) > 0 and all(SIZE.fullmatch(size) for size in sizes[sizes[0] == "..." :])


def _find_wrong(seen, wanted):
    """The names of the arguments to blame; none if all shapes agree."""
    for count in range(len(seen) + 1):  # the fewest
        groups = [group for group in itertools.combinations(seen, count)
                  if _solve(seen.keys() - group, seen, wanted) is not None]  # fmt: skip
        if groups:
            return [name for name in seen if any(name in group for group in groups)]


def _solve(names, seen, wanted):
    """The number that each letter stands for, if the shapes of these arguments agree, else None."""
    numbers = {}
    for name in names:
        shape, sizes = seen[name], wanted[name]
        if sizes[0] == "...":
            shape, sizes = shape[len(shape) - len(sizes) + 1 :], sizes[1:]
        if len(shape) != len(sizes):
            return None
        for number, size in zip(shape, sizes):
            factor, letter = SIZE.fullmatch(size).groups()
            factor = int(factor or 1)
            if numbers.setdefault(letter, number // factor) * factor != number:
                return None
    return numbers


def _describe(sizes, numbers):
    """A wanted shape, such as "(N, 4H) = (2, 20)"; a letter that stands for no number yet remains."""
    parts = [SIZE.fullmatch(size) for size in sizes]
    known = [str(int(part[1] or 1) * numbers[part[2]]) if part and part[2] in numbers else size
             for part, size in zip(parts, sizes)]  # fmt: skip
    comma = "," * (len(sizes) == 1)
    listed, here = f"({', '.join(sizes)}{comma})", f"({', '.join(known)}{comma})"
    return listed if known == list(sizes) else f"{listed} = {here}"
