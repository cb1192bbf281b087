"""The product by either library, and tanh by the sigmoid: right for every matrix, and used where it should be."""

import copy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import rnn_lstm_captioning as rlc
from eecs598 import bench, choosing
from eecs598.fast import arithmetic
from eecs598.training.objective import Objective

needs_onednn = pytest.mark.skipif(not arithmetic.HAS_ONEDNN, reason="this PyTorch is built without oneDNN")


class Operations(TorchDispatchMode):
    """Inside, notes the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    def by_onednn(self):
        return sum(name.startswith("mkldnn") for name in self.names)


@pytest.fixture
def choose(monkeypatch):
    """Decide by which library matrices are multiplied, and by which function tanh is computed."""

    def choose(onednn):
        for what in ("product", "added-product"):
            monkeypatch.setitem(choosing.fixed_choices(), what, "onednn" if onednn else "torch")
        monkeypatch.setitem(choosing.fixed_choices(), "tanh", "sigmoid" if onednn else "torch")

    return choose


# A matrix that lies in memory in one of the ways that slices and transposes leave it.
LAYOUTS = {
    "rows": lambda rows, columns: torch.randn(rows, columns),
    "transposed": lambda rows, columns: torch.randn(columns, rows).t(),
    "some columns": lambda rows, columns: torch.randn(rows, columns + 5)[:, 2 : 2 + columns],
    "every second row": lambda rows, columns: torch.randn(2 * rows, columns)[::2],
    "every second column": lambda rows, columns: torch.randn(rows, 2 * columns)[:, ::2],
    "one row repeated": lambda rows, columns: torch.randn(1, columns).expand(rows, columns),
    "one column repeated": lambda rows, columns: torch.randn(rows, 1).expand(rows, columns),
}
layouts = st.sampled_from(sorted(LAYOUTS))


@needs_onednn
@example((4, 0, 3), "rows", "rows")
@example((0, 4, 3), "rows", "transposed")
@given(st.tuples(*[st.integers(0, 20)] * 3), layouts, layouts)
def test_product_of_any_matrices(sizes, left, right):
    m, k, n = sizes
    a, b = LAYOUTS[left](m, k), LAYOUTS[right](k, n)
    with pytest.MonkeyPatch.context() as patch, Operations() as ran:
        patch.setitem(choosing.fixed_choices(), "product", "onednn")
        found = arithmetic.product(a, b)
    assert ran.by_onednn() == (k > 0) and found.is_contiguous()
    torch.testing.assert_close(found, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)


TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.02, "atol": 0.05}}


@needs_onednn
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added_to_each_column(choose, onednn, dtype):
    choose(onednn)
    a, b, bias = torch.randn(4, 5, dtype=dtype), torch.randn(5, 7, dtype=dtype), torch.randn(7, dtype=dtype)
    with Operations() as ran:
        found = arithmetic.product(a, b, bias)
    assert ran.by_onednn() == (onednn and dtype == torch.float32) and found.dtype == dtype
    wanted = a.double() @ b.double() + bias.double()
    torch.testing.assert_close(found.double(), wanted, **TOLERANCE[dtype])


@needs_onednn
@pytest.mark.parametrize("onednn", [True, False])
def test_a_product_is_added_in_place(choose, onednn):
    choose(onednn)
    out, a, b = torch.randn(4, 9)[:, 2:], torch.randn(4, 5), torch.randn(5, 7)
    wanted, place = out + a @ b, out.data_ptr()
    with Operations() as ran:
        found = arithmetic.add_product_(out, a, b)
    assert ran.by_onednn() == onednn and found.data_ptr() == place
    torch.testing.assert_close(out, wanted)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_multiplied_by_pytorch(choose, dtype):
    choose(True)
    a, b = torch.randn(3, 4, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    with Operations() as ran:
        assert torch.equal(arithmetic.product(a, b), a @ b)
    assert not ran.by_onednn()


@pytest.mark.parametrize("onednn", [True, False])
def test_wrong_sizes_raise(choose, onednn):
    choose(onednn)
    with pytest.raises(RuntimeError, match="3x4 and 5x6"):
        arithmetic.product(torch.ones(3, 4), torch.ones(5, 6))


@pytest.mark.parametrize("onednn", [True, False])
def test_autograd_records_both(choose, onednn):
    choose(onednn)
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    found = torch.autograd.grad(arithmetic.tanh(arithmetic.product(a, b)).sum(), a)[0]
    torch.testing.assert_close(found, torch.autograd.grad((a @ b).tanh().sum(), a)[0])


@needs_onednn
@pytest.mark.parametrize("cell", ["rnn", "lstm", "attn"])
def test_a_captioner_learns_the_same_by_either_library(choose, cell):
    sizes = bench.Sizes(N=3, T=4, W=6, H=7, V=9, C=5, grid=2)
    model, _, batch = bench.captioner_and_data(rlc, sizes, cell, padding=0)
    gradients = []
    for onednn in (True, False):
        choose(onednn)
        learner = copy.deepcopy(model)
        with Operations() as ran:
            Objective(learner).eval()(*batch).backward()
        # forward and back a step: two products for each of the four steps; and the words' scores, and back
        assert ran.by_onednn() >= 4 * 2 + 2 if onednn else not ran.by_onednn()
        gradients.append([parameter.grad for parameter in learner.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.sampled_from(["torch", "sigmoid"]))
def test_tanh(values, way):
    x = torch.tensor(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(choosing.fixed_choices(), "tanh", way)
        found = arithmetic.tanh(x.clone())
    torch.testing.assert_close(found, x.tanh(), rtol=0, atol=2.4e-7)
    assert found.abs().max() <= 1


def test_tanh_at_its_ends(choose):
    choose(True)
    found = arithmetic.tanh(torch.tensor([0.0, torch.inf, -torch.inf, 1e30, torch.nan]))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, -1.0, 1.0, torch.nan]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("onednn", [True, False])
def test_tanh_is_in_place_in_part_of_a_matrix(choose, onednn):
    choose(onednn)
    a = torch.randn(3, 8)
    wanted = torch.cat([a[:, :6], a[:, 6:].tanh()], dim=1)
    assert arithmetic.tanh(a[:, 6:], out=a[:, 6:]).data_ptr() == a[:, 6:].data_ptr()
    torch.testing.assert_close(a, wanted)


@pytest.mark.parametrize("onednn", [True, False])
def test_tanh_leaves_its_argument_as_it_is(choose, onednn):
    choose(onednn)
    x = torch.randn(3, 8)
    before, out = x.clone(), torch.empty(3, 8)
    assert arithmetic.tanh(x, out=out) is out
    for found in (arithmetic.tanh(x), out):
        torch.testing.assert_close(found, before.tanh())
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tanh_in_another_precision_keeps_its_digits(choose, dtype):
    choose(True)
    x = torch.linspace(-0.01, 0.01, 101).to(dtype)
    assert torch.equal(arithmetic.tanh(x.clone()), x.tanh())


@needs_onednn
def test_each_size_and_layout_has_a_choice_of_its_own(monkeypatch):
    chosen = {}
    monkeypatch.setattr(choosing, "_chosen", chosen)
    monkeypatch.setattr(choosing, "fixed_choices", dict)
    a, b = torch.randn(100, 6), torch.randn(6, 7)
    arithmetic.product(a, b), arithmetic.product(a[:90], b), arithmetic.product(a, torch.randn(7, 6).t())
    arithmetic.product(torch.randn(6, 100).t(), b)
    arithmetic.tanh(a[:60].clone())
    products = [sizes for what, sizes in chosen if what == "product"]
    assert products == [(128, 8, 7), (128, 8, 7, "b"), (128, 8, 7, "a")] and ("tanh", (512,)) in chosen


@needs_onednn
def test_batches_of_all_lengths_share_few_choices(monkeypatch):
    """Without its padding each batch has another number of words, which in dW = x^T da is the inner dimension."""
    chosen = {}
    monkeypatch.setattr(choosing, "_chosen", chosen)
    monkeypatch.setattr(choosing, "fixed_choices", dict)
    for words in range(65, 129):
        arithmetic.product(torch.randn(6, words), torch.randn(words, 7))
    assert list(chosen) == [("product", (8, 128, 7))]
