"""The checks pass what is right, and miss what is wrong; the formulas are what PyTorch computes."""

import inspect
import math
from unittest import mock

import pytest
import torch
from support.checking import draw, hints, run, student
from support.second_device import a_second_device
from torch import nn

import rnn_lstm_captioning as ours
from eecs598.checks import CHECKS, drawn_from, formulas, parts
from eecs598.checks.hints import describe_sizes
from eecs598.checks.parts import MAIN, Case, Formula
from eecs598.checks.running import named
from eecs598.grad import NUMERIC, CheckError, CheckTable, rel_error

CAPTIONER = [part for part in CHECKS if "captioner" in part]  # of a whole model, in float32
FUNCTIONS = [part for part in CHECKS if part not in CAPTIONER]
FORMULAS = {name: f for name, f in vars(parts).items() if isinstance(f, Formula)}


@pytest.mark.parametrize("names", [vars(ours), student()], ids=["ours", "a student's"])
@pytest.mark.parametrize("part", FUNCTIONS)
def test_right_functions_pass(part, names):
    table = run(part, names)
    assert isinstance(table, CheckTable) and table.passed and not table.hints
    for row in table.rows:
        assert row.error < (NUMERIC if row.quantity.startswith("numeric") else 1e-12), str(table)


@pytest.mark.parametrize("part", CAPTIONER)
def test_our_captioner_passes(part):
    table = run(part, vars(ours))
    assert table.passed and not table.hints


class Blind(ours.CaptioningRNN):
    def encode(self, images):
        return super().encode(0 * images)


class Averaged(ours.CaptioningRNN):
    def forward(self, images, captions):
        return super().forward(images, captions) / (captions.shape[1] - 1)


class CountsPadding(ours.CaptioningRNN):
    def forward(self, images, captions):
        self.ignore_index = None
        return super().forward(images, captions)


class Forgetful(ours.CaptioningRNN):
    def step(self, words, state):
        scores, state, weights = super().step(words, state)
        return scores, state._replace(h=torch.zeros_like(state.h)), weights


class StartsAnywhere(ours.CaptioningRNN):
    def sample(self, images, max_length=15):
        self.start = self.end
        return super().sample(images, max_length)


@pytest.mark.parametrize("part", CAPTIONER)
def test_a_captioner_that_is_wrong_misses(part):
    wrong = (Blind, Averaged, CountsPadding) if part.endswith("loss") else (Blind, Forgetful, StartsAnywhere)
    for captioner in wrong:
        with pytest.raises(CheckError):
            run(part, {"CaptioningRNN": captioner})


def test_every_hand_written_function_and_module_has_a_check():
    needed = {need for check in CHECKS.values() for need in check.needs}
    modules = {"RNN", "LSTM", "AttentionLSTM", "WordEmbedding", "CaptioningRNN"}
    functions = {name for name, f in inspect.getmembers(ours, inspect.isfunction) if f.__module__ == ours.__name__}
    by_hand = {n for n in functions if n.endswith(("_forward", "_backward", "_loss", "attention")) and n[0] != "_"}
    assert by_hand | modules == needed


def test_checks_say_what_they_take():
    for part, check in CHECKS.items():
        assert check.run.__name__ == f"check_{part}" and ", ".join(check.needs) in check.run.__doc__


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_equals_reference(name):
    """The mistakes are made in the formula, the learner is compared with the reference: one mathematics."""
    formula = FORMULAS[name]
    for case in formula.cases:
        inputs, incoming = formula.draw(case)
        compared = (formula.values,) if name.endswith("SAMPLE") else (formula.values, formula.derivatives)
        for value in compared:  # sampled words have no gradient
            written = value(formula.compute, inputs, incoming, case.options)
            torchs = value(formula.reference, inputs, incoming, case.options)
            assert written.keys() == torchs.keys()
            assert all(rel_error(written[key], torchs[key]) < 1e-12 for key in written)


def test_reference_is_the_torch_module():
    x, h0, c0 = draw(3, 4, 6), draw(3, 5, seed=1), draw(3, 5, seed=2)
    for module, columns, reference, state in (
        (nn.RNN(6, 5, batch_first=True), 5, formulas.torch_rnn, (h0,)),
        (nn.LSTM(6, 5, batch_first=True), 20, formulas.torch_lstm, (h0, c0)),
    ):
        Wx, Wh, b = draw(6, columns, seed=3), draw(5, columns, seed=4), draw(columns, seed=5)
        for parameter, value in zip(module.double().parameters(), formulas.torch_weights(Wx, Wh, b)):
            parameter.data.copy_(value)
        first = tuple(s[None] for s in state)
        (h,) = reference(x, *state, Wx, Wh, b)
        assert rel_error(module(x, first if len(first) == 2 else first[0])[0], h) < 1e-14


def test_draws_are_fixed_and_telling():
    """All dimensions differ; words repeat; word 0 occurs; captions differ in their number of ignored words."""
    assert len(set(parts.SIZES.values())) == len(parts.SIZES)
    first, again = (parts.LSTM_STEP.draw(MAIN) for _ in range(2))
    assert all(torch.equal(first[0][key], again[0][key]) for key in first[0])
    x, y = parts.WORD_EMBEDDING.draw(MAIN)[0]["x"], parts.TEMPORAL_SOFTMAX.draw(MAIN)[0]["y"]
    assert all(any(len(row.unique()) < len(row) for row in rows) for rows in (x, x.t()))  # in a caption and in a step
    assert (x == 0).any() and (y == 0).any()
    assert len((y == parts.IGNORED).sum(1).unique()) > 1 and parts.IGNORED != 0


def test_draws_of_a_run_are_telling_too():
    """Of the seeds that may be drawn, about half repeat no word within a step at their first attempt."""
    for seed in range(20):
        with drawn_from(seed):
            x = parts.WORD_EMBEDDING.draw(MAIN)[0]["x"]
        assert all(any(len(row.unique()) < len(row) for row in rows) for rows in (x, x.t())), seed


def test_a_check_leaves_the_random_state_and_the_threads_alone():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    run("rnn_step_backward", student())
    with pytest.raises(CheckError):
        CHECKS["rnn_step_forward"].run(None)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_a_sum_that_keeps_its_dimension_lacks_a_reshape_and_no_sum():
    told = hints("rnn_step_backward", student("da.sum(dim=0)]", "da.sum(dim=0, keepdim=True)]"))
    assert "the numbers are right, a reshape is missing" in told and "not summed" not in told


def test_a_sparse_result_is_told_and_one_on_another_device_is_compared():
    names = student()
    step = names["rnn_step_forward"]
    sparse = dict(names, rnn_step_forward=lambda *given: (step(*given)[0].to_sparse(), step(*given)[1]))
    with pytest.raises(CheckError, match="returned a sparse tensor for next_h, wanted a plain one"):
        run("rnn_step_forward", sparse)
    with a_second_device() as device:
        moved = torch.ones(2).to(device)
        with mock.patch.object(type(moved), "is_meta", False):  # that device's name
            assert named("f", moved, ("next_h",))["next_h"].device == torch.device("cpu")


def test_a_side_case_shows_its_worst_output():
    def attention(prev_h, A):
        attn, weights = ours.dot_product_attention(prev_h, A)
        return attn, weights * (2 if len(A) == 1 else 1)

    assert "only the batch of one fails" in hints("dot_product_attention", {"dot_product_attention": attention})


def test_side_cases_are_one_row_each():
    quantities = [row.quantity for row in run("dot_product_attention", student()).rows]
    assert quantities == [
        "attn",
        "attn_weights",
        "inputs unchanged",
        "a batch of one, one step",
        "large scores",
        "weights sum to 1",
        "cells permuted, weights permuted",
    ]


def test_the_sizes_in_a_hint():
    case = Case("one", sizes={"N": 1})
    assert describe_sizes(parts.LSTM_STEP, case) == "here N = 1, D = 6, H = 5, 4H = 20"
    assert math.prod(parts.SIZES[dim] for dim in "NTV") == math.prod(parts.TEMPORAL_SOFTMAX.draw(MAIN)[0]["x"].shape)
