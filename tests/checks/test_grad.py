"""Numeric gradients, relative error, check tables."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checking import draw

from eecs598.grad import CheckError, CheckTable, compute_numeric_gradient, rel_error

SHAPES = [(), (1,), (1, 1), (5,), (2, 3), (1, 4, 1), (2, 3, 4), (0, 3)]


def f(x):
    """A function of every element and of their order."""
    position = torch.arange(x.numel(), dtype=x.dtype).view(x.shape)
    return torch.sin(x + position) * x.sum()


def by_autograd(function, x, dLdf):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad((function(x) * dLdf).sum(), x)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_autograd(shape):
    x, dLdf = draw(*shape), draw(*shape, seed=1)
    before = x.clone()
    numeric = compute_numeric_gradient(f, x, dLdf)
    assert numeric.shape == x.shape
    assert rel_error(numeric, by_autograd(f, x, dLdf)) < 1e-8
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "view",
    [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x.flip(0)[1:], lambda x: x[1], lambda x: x[:1].expand(3, -1),
     lambda x: x.unfold(1, 3, 2)],
    ids=["transposed", "strided", "offset", "row", "expanded", "overlapping"],
)
def test_right_on_views(view):
    """Also if f uses x itself and ignores its argument, as in the published notebook. Nothing is changed for good."""
    x = view(whole := draw(4, 6))
    dLdf, before, place = draw(*x.shape, seed=1), whole.clone(), x.data_ptr()
    for using in (f, lambda _: f(x)):
        assert rel_error(compute_numeric_gradient(using, x, dLdf), by_autograd(f, x, dLdf)) < 1e-8
    assert torch.equal(whole, before) and x.data_ptr() == place and torch.equal(x, view(before))


def test_a_number_and_another_shape_out():
    x = draw(2, 3)
    assert rel_error(compute_numeric_gradient(lambda x: (x**2).sum(), x), 2 * x) < 1e-8
    assert rel_error(compute_numeric_gradient(lambda x: (x**2).sum().item(), x), 2 * x) < 1e-8
    W, dLdf = draw(3, 5, seed=1), draw(2, 5, seed=2)
    assert rel_error(compute_numeric_gradient(lambda x: x @ W, x, dLdf), dLdf @ W.t()) < 1e-8


def test_f_may_ignore_its_argument_and_close_over_x():
    """The published notebook's check cells do."""
    h = draw(3, 2)
    assert rel_error(compute_numeric_gradient(lambda prev_h: torch.tanh(h), h), 1 - torch.tanh(h) ** 2) < 1e-8


def test_f_may_return_its_argument():
    x, dLdf = draw(3, 2), draw(3, 2, seed=1)
    assert rel_error(compute_numeric_gradient(lambda x: x, x, dLdf), dLdf) < 1e-8


def test_a_parameter():
    weight = torch.nn.Parameter(draw(2, 2))
    numeric = compute_numeric_gradient(lambda w: w**3, weight)
    assert rel_error(numeric, 3 * weight**2) < 1e-8
    assert weight.requires_grad and weight.is_leaf and not numeric.requires_grad


def test_x_is_restored_when_f_raises():
    x = draw(4)
    before, calls = x.clone(), []

    def fails_later(x):
        calls.append(0)
        if len(calls) == 4:
            raise RuntimeError("stop")
        return x.sum()

    with pytest.raises(RuntimeError, match="stop"):
        compute_numeric_gradient(fails_later, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.complex128])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"x\.double\(\)"):
        compute_numeric_gradient(torch.sum, torch.ones(2, dtype=dtype))


def test_a_single_precision_function_is_refused():
    with pytest.raises(TypeError, match=r"f\(x\) is torch.float32.*double"):
        compute_numeric_gradient(lambda x: x.float(), draw(2))


def test_no_tensor_is_refused():
    with pytest.raises(TypeError, match="x is a list"):
        compute_numeric_gradient(sum, [1.0, 2.0])


def test_the_shape_of_dLdf_is_checked():  # noqa: N802
    with pytest.raises(ValueError, match=r"dLdf has shape \(3,\); it must be that of f\(x\), \(2, 3\)"):
        compute_numeric_gradient(lambda x: x, draw(2, 3), draw(3))  # it would broadcast


# --------------------------------------------------------------------------------------------- rel_error


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8))
def test_rel_error_is_the_published_definition(x, y):
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y[: len(x)], dtype=torch.float64)
    published = (x - y).abs().max().item() / (x.abs() + y.abs()).clamp(min=1e-10).max().item()
    assert rel_error(x, y) == pytest.approx(published, abs=0)
    assert rel_error(x, y) == rel_error(y, x) <= 1
    assert rel_error(x, x) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_never_pass(bad):
    x, y = draw(3), draw(3)
    x[1] = bad
    for error in (rel_error(x, y), rel_error(y, x), rel_error(x, x)):
        assert not error <= 1e9
        assert error > 1e9


@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((2, 1), (2,)), ((), (1,)), ((2, 3), (3, 2))])
def test_shapes_must_be_equal(shapes):
    with pytest.raises(ValueError, match="equal shapes"):
        rel_error(*(torch.ones(shape) for shape in shapes))


def test_rel_error_of_numbers_of_mixed_and_of_small_integer_types():
    assert rel_error(1.0, 1) == 0
    assert rel_error(torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([2, 1])) == pytest.approx(1 / 3)
    assert rel_error(torch.ones(2), torch.ones(2, dtype=torch.float64)) == 0
    assert rel_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
    assert rel_error(torch.ones(2, requires_grad=True), torch.ones(2)) == 0


# -------------------------------------------------------------------------------------------- CheckTable


def table(*errors, limit=1e-10):
    made = CheckTable("a < b")
    for k, error in enumerate(errors):
        made.add(f"d<{k}>", error, limit)
    return made


def test_a_row_at_its_limit_passes_and_nan_misses():
    assert table(1e-10, 0).passed
    assert not table(0, 1.1e-10).passed
    assert not table(math.nan).passed
    assert not table(math.inf).passed
    assert not table().passed  # nothing was compared
    assert table(0, limit=0).passed


def test_raise_on_miss():
    good, bad = table(0), table(0, 1)
    bad.hint("look here")
    bad.hint("look here")
    bad.hint("")
    assert good.raise_on_miss() is good
    with pytest.raises(CheckError) as caught:
        bad.raise_on_miss()
    assert isinstance(caught.value, AssertionError)
    assert caught.value.table is bad
    assert str(bad) in str(caught.value)
    assert str(bad).count("hint: look here") == 1 and str(bad).count("hint") == 1
    assert str(bad) in "".join(caught.value._render_traceback_())


def test_text_columns_are_aligned():
    made = table(0, 1)
    made.add("a much longer quantity", 1e-12)
    title, head, *rows = str(made).splitlines()
    assert title == "a < b: 1 of 3 missed"
    at = head.index("error")
    assert all(row[at - 2 : at] == "  " and row[at] != " " for row in rows)
    assert [row.split()[-1] for row in rows] == ["pass", "MISS", "pass"]


def test_html_is_well_formed_and_escaped():
    from xml.etree import ElementTree

    made = table(0, 1)
    made.hint("x < y & z")
    root = ElementTree.fromstring(made._repr_html_())  # raises where a tag is left open or a < is not escaped
    cells = ["".join(cell.itertext()) for cell in root.iter("td")]
    assert cells[:4] == ["d<0>", "0.0e+00", "1e-10", "pass"] and cells[7] == "MISS"
    assert [item.text for item in root.iter("li")] == ["x < y & z"]
    assert "#fff" not in made._repr_html_() and "color: black" not in made._repr_html_()
