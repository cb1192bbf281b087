"""Numeric gradients, relative errors, and the results table of a check."""

import contextlib
import html
import itertools
import math
from dataclasses import dataclass, field

import torch

TIGHT = 1e-10  # error limit against an exact reference, in float64
NUMERIC = 1e-7  # error limit against finite differences


def compute_numeric_gradient(f, x, dLdf=None, h=1e-5):
    """Gradient of L = sum(f(x) * dLdf) by central differences, (L(x + h) - L(x - h)) / 2h for each element.

    f maps the tensor x to a tensor or a number; dLdf has the shape of f(x) (None: ones, the gradient of the
    sum). x is changed in place, one element at a time, and restored, even if f raises; f may therefore use x
    from its closure and ignore its argument, as in the published notebook. Returns a tensor of the shape of x.

    Everything must be float64. The truncation error is about h ** 2 and the rounding error about 1e-16 / h,
    1e-10 in total; in float32, rounding alone is 1e-2. Raises TypeError for any other dtype, ValueError if
    dLdf has another shape than f(x).
    """
    _require_float64("x", x, "pass x.double()")

    def value():
        y = f(x)
        y = y.detach() if torch.is_tensor(y) else torch.tensor(y, dtype=x.dtype)
        return y.clone()  # f may return x itself, which is about to change

    y = value()
    _require_float64("f(x)", y, "compute f in double precision: x.double(), weight.double()")
    dLdf = torch.ones_like(y) if dLdf is None else torch.as_tensor(dLdf, dtype=y.dtype, device=y.device)
    if dLdf.shape != y.shape:
        raise ValueError(f"dLdf has shape {tuple(dLdf.shape)}; it must be that of f(x), {tuple(y.shape)}")
    grad = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    with _separate_elements(x):
        for index in itertools.product(*map(range, x.shape)):
            old = x[index].item()
            up, down = old + h, old - h
            try:
                _set(x, index, up)
                above = value()
                _set(x, index, down)
                below = value()
            finally:
                _set(x, index, old)
            grad[index] = ((above - below) * dLdf).sum() / (up - down)  # up - down is 2h as rounded
    return grad


@contextlib.contextmanager
def _separate_elements(x):
    """A context in which no two elements of x share memory, as those of an expanded tensor do."""
    memory = torch.arange(x.untyped_storage().nbytes() // x.element_size())
    places = memory.as_strided(x.shape, x.stride(), x.storage_offset())
    shared = x.data
    if len(places.unique()) < x.numel():
        x.data = x.detach().clone()
    try:
        yield
    finally:
        x.data = shared


def rel_error(x, y, eps=1e-10):
    """max |x - y| / max(|x| + |y|, eps), the maxima over all elements: 0 for equal tensors, at most 1.

    x and y: tensors (or numbers) of the same shape; otherwise ValueError, since broadcasting hides mistakes.
    Returns a float; inf if either contains nan or inf, so that no limit is met.
    """
    x, y = (torch.as_tensor(v).detach().cpu() for v in (x, y))
    x, y = (v if v.is_complex() else v.double() for v in (x, y))
    if x.shape != y.shape:
        raise ValueError(f"rel_error needs equal shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.numel() == 0:
        return 0.0
    error = ((x - y).abs().max() / (x.abs() + y.abs()).max().clamp(min=eps)).item()
    return error if math.isfinite(error) else math.inf  # nan or inf in x or y makes it nan


def _require_float64(name, x, remedy):
    if not torch.is_tensor(x):
        raise TypeError(f"{name} is a {type(x).__name__}, wanted a float64 tensor: {remedy}")
    if x.dtype != torch.float64:
        raise TypeError(f"{name} is {x.dtype}, not precise enough for differences; wanted torch.float64: {remedy}")


@torch.no_grad()
def _set(x, index, value):
    x[index] = value


class CheckError(AssertionError):
    """A failed check. The message is the whole table with its hints; `table` is the `CheckTable`."""

    def __init__(self, message, table=None):
        super().__init__(message)
        self.table = table

    def _render_traceback_(self):
        """Shown by IPython instead of a traceback, whose frames are the check's and not the learner's."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Row:
    """One compared quantity. passed: error <= limit, which is false for nan."""

    quantity: str
    error: float
    limit: float

    @property
    def passed(self):
        return self.error <= self.limit

    @property
    def cells(self):
        return self.quantity, f"{self.error:.1e}", f"{self.limit:.0e}", "pass" if self.passed else "MISS"


@dataclass
class CheckTable:
    """The result of a check: rows of quantity, error, limit and verdict, and hints for rows that miss.

    It is displayed as text by `str` and as an HTML table by a notebook.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    known_mistakes: list[str] = field(default_factory=list)  # that give all the numbers that missed; else none

    HEAD = ("quantity", "error", "limit", "verdict")

    def add(self, quantity, error, limit=TIGHT):
        """Append a row and return it."""
        self.rows.append(Row(quantity, float(error), limit))
        return self.rows[-1]

    def hint(self, sentence):
        """Append a hint unless it is empty or already there."""
        if sentence and sentence not in self.hints:
            self.hints.append(sentence)

    @property
    def passed(self):
        """Whether there are rows and all of them pass."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def raise_on_miss(self):
        """Return the table, or raise `CheckError` with the table and its hints as the message."""
        if not self.passed:
            raise CheckError(f"\n{self}", self)
        return self

    @property
    def summary(self):
        missed = sum(not row.passed for row in self.rows)
        return f"{self.title}: {f'{missed} of {len(self.rows)} missed' if missed else 'all pass'}"

    def __str__(self):
        table = [self.HEAD, *(row.cells for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
        return "\n".join([self.summary, *lines, *(f"hint: {hint}" for hint in self.hints)])

    def _repr_html_(self):
        # Translucent backgrounds and inherited text colour, for light and dark themes.
        tint = {True: "rgba(46, 160, 67, 0.22)", False: "rgba(248, 81, 73, 0.28)"}
        cell = "padding: 2px 10px; text-align: left; border-bottom: 1px solid rgba(128, 128, 128, 0.35)"
        head = "".join(f'<th style="{cell}">{name}</th>' for name in self.HEAD)
        body = ""
        for row in self.rows:
            cells = "".join(f'<td style="{cell}">{html.escape(text)}</td>' for text in row.cells[:-1])
            verdict = f'<td style="{cell}; background: {tint[row.passed]}">{row.cells[-1]}</td>'
            body += f'<tr style="background: transparent">{cells}{verdict}</tr>'
        hints = "".join(f"<li>{html.escape(hint)}</li>" for hint in self.hints)
        return (
            f'<div style="color: inherit"><b>{html.escape(self.summary)}</b>'
            f'<table style="border-collapse: collapse; color: inherit; font-variant-numeric: tabular-nums">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"{f'<ul>{hints}</ul>' if hints else ''}</div>"
        )
