"""What cannot even be compared becomes one clear sentence, and no check breaks on it."""

import re

import pytest
import torch
from support.checking import hints
from torch import nn

import rnn_lstm_captioning as ours
from eecs598.bridge import by_hand
from eecs598.checks import CHECKS
from eecs598.grad import CheckError

FUNCTIONS = [part for part in CHECKS if "captioner" not in part]


def not_written(*args):
    raise NotImplementedError


FAULTS = [
    (not_written, "rnn_step_forward is not written yet: it raises NotImplementedError"),
    (lambda *args: None, "returned None, wanted next_h, cache: it is not written yet"),
    (lambda *args: (None, None), "returned None for next_h: it is not written yet"),
    (lambda x, *args: x, "returned one Tensor, wanted 2 values: next_h, cache"),
    (lambda x, *args: (x, x, x), "returned 3 values, wanted 2: next_h, cache"),
    (lambda x, *args: (x.tolist(), 0), "returned a list for next_h, wanted a tensor"),
    (lambda x, *args: (x, 0), "next_h has shape (3, 6), wanted (3, 5)"),
    (lambda x: (x, 0), "raised TypeError"),
    (lambda x, prev_h, *args: (prev_h.float(), 0), "next_h is torch.float32, wanted torch.float64"),
    (lambda x, prev_h, *args: (prev_h / 0, 0), "next_h holds nan or inf"),
    (lambda x, prev_h, *args: (0 * prev_h, 0), "next_h is all zeros"),
    (lambda x, prev_h, *args: (torch.zeros(3, 6) @ x.t(), 0), "make it with x.new_zeros(...)"),
    (lambda *args: (ours.rnn_step_forward(*args)[0] + 0j, 0), "next_h is torch.complex128, wanted torch.float64"),
    (lambda *args: 1 / 0, "raised ZeroDivisionError: division by zero; line"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "said"), FAULTS)
def test_faults_become_one_clear_sentence(function, said):
    said_of_forward = hints("rnn_step_forward", {"rnn_step_forward": function})
    assert said in said_of_forward
    with pytest.raises(CheckError) as caught:
        CHECKS["rnn_step_backward"].run(function, function)
    assert re.search("hint: rnn_step_(for|back)ward (is not written|returned|raised)", str(caught.value))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("part", CHECKS)
def test_no_check_breaks_on_rubbish(part):
    """Whatever comes back, what goes up is a CheckError with a table and a hint."""
    count = len(CHECKS[part].needs)
    tensors = torch.ones(()), (torch.ones(2, 2),) * 2, (torch.ones(()),) * 8
    for rubbish in (None, 0, (), (None,) * 3, "abc", nn, *tensors):
        names = dict.fromkeys(CHECKS[part].needs, lambda *args, rubbish=rubbish, **options: rubbish)
        assert hints(part, names)
        if count == 2:  # a right forward, so that the backward is reached
            names[CHECKS[part].needs[0]] = getattr(ours, CHECKS[part].needs[0])
            assert hints(part, names)


@pytest.mark.parametrize("part", [part for part in FUNCTIONS if not part.endswith("module")])
@pytest.mark.parametrize("fails", ["raises", "gives another shape"])
def test_no_check_breaks_on_a_function_that_fails_now_and_then(part, fails):
    """Each of the runs of a check may be the one that fails."""
    needs, calls = CHECKS[part].needs, []

    def forward(*args, **options):
        calls.append(0)
        right = getattr(ours, needs[0])(*args, **options)
        if len(calls) != failing:
            return right
        if fails == "raises":
            raise RuntimeError("now and then")
        several = right if isinstance(right, tuple) else (right,)
        wrong = tuple(torch.ones(2, 9, dtype=torch.float64) if torch.is_tensor(v) else v for v in several)
        return wrong if isinstance(right, tuple) else wrong[0]

    functions = forward, *(getattr(ours, need) for need in needs[1:])
    failing = 0
    CHECKS[part].run(*functions)
    for failing in range(1, len(calls) + 1):  # noqa: B007
        calls.clear()
        try:
            CHECKS[part].run(*functions)
        except CheckError as error:
            assert error.table.hints
        else:
            assert fails == "gives another shape" and len(needs) == 2  # the backward needs the cache alone


@pytest.mark.parametrize("part", [part for part in CHECKS if part.endswith("module")])
def test_no_module_check_breaks_on_rubbish(part):
    (name,) = CHECKS[part].needs

    class Rubbish(getattr(ours, name)):
        def forward(self, *args):
            return "abc"

    class Fails(getattr(ours, name)):
        def __init__(self, *args):
            raise ValueError("no such size")

    class Idle(nn.Module):
        def __init__(self, *args):
            super().__init__()

    assert "returned a str" in hints(part, {name: Rubbish})
    assert f"{name} raised ValueError: no such size" in hints(part, {name: Fails})
    assert "it has none" in hints(part, {name: Idle})


def test_the_quoted_line_is_the_learners_not_pytorchs():
    def loss(x, y, ignore_index=None):
        return nn.functional.cross_entropy(x, y, reduction="no such")

    said = hints("temporal_softmax_loss", {"temporal_softmax_loss": loss})
    assert 'of test_faults.py: return nn.functional.cross_entropy(x, y, reduction="no such")' in said


def test_the_hint_says_which_argument_has_the_wrong_shape():
    def forward(x, h0, Wx, Wh, b):
        return ours.rnn_step_forward(x[:, 0], h0[:, 1:], Wx, Wh, b)

    said = hints("rnn_forward", {"rnn_forward": forward})
    assert "(rnn_step_forward: prev_h is (3, 4), wanted (N, H) = (3, 5))" in said


def test_the_quoted_line_is_the_learners_when_autograd_calls_it():
    """Between autograd and a backward by hand stands `by_hand`, which is not the learner's."""

    def backward(dh, cache):
        return dh @ dh

    class Wrong(ours.RNN):
        def forward(self, x, h0):
            return by_hand(ours.rnn_forward, backward, x, h0, self.Wx, self.Wh, self.b)

    assert "of test_faults.py: return dh @ dh" in hints("rnn_module", {"RNN": Wrong})

    def forward(*inputs):
        return torch.zeros(())  # no cache

    class Short(ours.RNN):
        def forward(self, x, h0):
            return by_hand(forward, backward, x, h0, self.Wx, self.Wh, self.b)

    assert "of test_faults.py: return by_hand(forward" in hints("rnn_module", {"RNN": Short})


def test_a_missing_method_is_told_also_after_wrong_values():
    class Wrong(ours.RNN):
        step_forward = None

        def forward(self, x, h0):
            return -super().forward(x, h0)

    said = hints("rnn_module", {"RNN": Wrong})
    assert "h is -1 times the right value: the sign is wrong" in said
    assert "RNN.step_forward raised TypeError: 'NoneType' object is not callable" in said
