"""The sentence that says which argument of a call has the wrong shape."""

import re

import numpy as np
import pytest
import torch

import rnn_lstm_captioning as rlc
from eecs598.bridge import by_hand
from eecs598.shapes import blame_shapes

SHAPES = {
    "rnn_step_forward": {"x": "ND", "prev_h": "NH", "Wx": "DH", "Wh": "HH", "b": "H"},
    "rnn_forward": {"x": "NTD", "h0": "NH", "Wx": "DH", "Wh": "HH", "b": "H"},
    "lstm_step_forward": {"x": "ND", "prev_h": "NH", "prev_c": "NH", "Wx": "DG", "Wh": "HG", "b": "G"},
    "lstm_forward": {"x": "NTD", "h0": "NH", "c0": "NH", "Wx": "DG", "Wh": "HG", "b": "G"},
    "dot_product_attention": {"prev_h": "NH", "A": "NHhw"},
    "attention_lstm_step_forward": {
        "x": "ND", "prev_h": "NH", "prev_c": "NH", "attn": "NH", "Wx": "DG", "Wh": "HG", "Wattn": "HG", "b": "G"},
    "attention_lstm_forward": {"x": "NTD", "A": "NHhw", "Wx": "DG", "Wh": "HG", "Wattn": "HG", "b": "G"},
    "temporal_affine_forward": {"h": "NTD", "W": "DV", "b": "V"},
}  # fmt: skip
NUMBERS = {"N": 3, "T": 4, "D": 5, "H": 7, "G": 28, "V": 9, "h": 2, "w": 3}


def draw(name):
    return {arg: torch.randn([NUMBERS[size] for size in shape]) for arg, shape in SHAPES[name].items()}


def blame(function, *arguments):
    with pytest.raises((RuntimeError, IndexError, ValueError, TypeError)) as caught:
        function(*arguments)
    return blame_shapes(caught.value)


@pytest.mark.parametrize(("name", "wrong"), [(name, arg) for name in SHAPES for arg in SHAPES[name]])
def test_names_the_argument_with_the_wrong_size(name, wrong):
    """A size that no other argument has: the sentence names this argument, and others only if they may be wrong too."""
    values, column = draw(name), 1 if wrong == "A" else -1
    grown = list(values[wrong].shape)
    grown[column] += 4
    values[wrong] = torch.randn(grown)
    said = blame(getattr(rlc, name), *values.values())
    assert said.startswith(f"{name}: ") and f"{wrong} is {tuple(grown)}, wanted (" in said
    named = re.findall(r"(\w+) is \(", said)
    assert wrong in named and all(SHAPES[name][wrong][column] in SHAPES[name][arg] for arg in named)


def test_the_sentence_has_the_wanted_shape_in_letters_and_numbers():
    x, h0, Wx, Wh, b = draw("rnn_forward").values()
    assert blame(rlc.rnn_forward, x, h0[:, :6], Wx, Wh, b) == "rnn_forward: h0 is (3, 6), wanted (N, H) = (3, 7)"
    assert blame(rlc.rnn_forward, x, h0, Wx.t(), Wh, b) == "rnn_forward: Wx is (7, 5), wanted (D, H) = (5, 7)"
    assert blame(rlc.rnn_forward, x[0], h0, Wx, Wh, b) == "rnn_forward: x is (4, 5), wanted (N, T, D) = (3, T, 5)"
    x, A, *weights = draw("attention_lstm_forward").values()
    assert blame(rlc.attention_lstm_forward, x, A.flatten(2), *weights) == (
        "attention_lstm_forward: A is (3, 7, 6), wanted (N, H, h, w) = (3, 7, h, w)")  # fmt: skip


def test_two_arguments_that_may_be_wrong_are_both_named():
    x, h0, *weights = draw("rnn_forward").values()
    assert blame(rlc.rnn_forward, x, h0[:2], *weights) == (
        "rnn_forward: x is (3, 4, 5), wanted (N, T, D) = (N, T, 5); h0 is (2, 7), wanted (N, H) = (N, 7)")  # fmt: skip


def loses_a_unit(x, h0, Wx, Wh, b):
    """x (N, T, D), h0 (N, H), Wx (D, H), Wh (H, H), b (H,)."""
    state, _ = rlc.rnn_step_forward(x[:, 0], h0, Wx, Wh, b)
    return rlc.rnn_step_forward(x[:, 1], state[:, 1:], Wx, Wh, b)


def test_the_first_wrong_call_is_blamed():
    """That is the inner one only if the outer one is right."""
    x, h0, *weights = draw("rnn_forward").values()
    assert blame(loses_a_unit, x, h0, *weights) == "rnn_step_forward: prev_h is (3, 6), wanted (N, H) = (3, 7)"
    assert blame(loses_a_unit, x, h0[:, :6], *weights) == "loses_a_unit: h0 is (3, 6), wanted (N, H) = (3, 7)"


@pytest.mark.parametrize(("layer", "wrong"), [("RNN", "h0"), ("LSTM", "h0"), ("AttentionLSTM", "A")])
def test_a_layer_raises_the_sentence(layer, wrong):
    model = getattr(rlc, layer)(5, 7)
    state = torch.randn(3, 6, 2, 3) if wrong == "A" else torch.randn(3, 6)
    with pytest.raises(ValueError, match=rf"forward: {wrong} is \(3, 6"):
        model(torch.randn(3, 4, 5), state)
    with pytest.raises(ValueError, match=r"x is \(3, 4, 6\), wanted \(N, T, D\).*; Wx is \(5, "):
        model(torch.randn(3, 4, 6), torch.randn(3, 7, 2, 3) if wrong == "A" else torch.randn(3, 7))


def scale(x, y, z):
    """x (N, D), y (2D,), z (D,). Returns y (N, N)."""
    return x + y + z


class Scale:
    def scale(self, x):  # not the function above
        return x @ x


def test_a_multiple_of_a_size_and_what_is_returned():
    x, z = torch.ones(3, 5), torch.ones(5)
    assert blame(scale, x, torch.ones(11), z) == "scale: y is (11,), wanted (2D,) = (10,)"
    assert blame(scale, x, torch.ones(10), np.ones(4)) is None  # not a tensor
    assert blame(Scale().scale, torch.ones(2, 3, 5)) is None  # another function of this name


def test_no_numbers_where_none_is_known():
    assert blame(rlc.dot_product_attention, torch.ones(2, 5), torch.ones(3, 6, 2, 2)) == (
        "dot_product_attention: prev_h is (2, 5), wanted (N, H); A is (3, 6, 2, 2), wanted (N, H, h, w)")  # fmt: skip


def test_other_errors_stay_as_they_are():
    def fails(x):
        """x (N, D)."""
        raise RuntimeError("out of memory")

    assert blame(fails, torch.ones(2, 3)) is None
    with pytest.raises(RuntimeError, match="out of memory"):
        by_hand(fails, fails, torch.ones(2, 3))
    assert blame(rlc.word_embedding_forward, torch.tensor([[9]]), torch.ones(2, 3)) is None  # an id, not a shape
    assert blame(lambda: torch.ones(2) @ torch.ones(3)) is None  # no docstring
