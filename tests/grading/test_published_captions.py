"""The published notebook's check of captions, for a captioner whose loss is right but for rounding."""

import pytest
import torch

import rnn_lstm_captioning as rlc
from eecs598.checks import published
from eecs598.checks.running import OutputError


class Table:
    def __init__(self):
        self.rows, self.hints = [], []

    def add(self, quantity, error, limit):
        self.rows.append(quantity)

    def hint(self, text):
        self.hints.append(text)


class WithoutMemory(rlc.CaptioningRNN):
    """An attention captioner whose samples begin with c0 = 0; its loss is right."""

    def begin(self, images):
        state = super().begin(images)
        return state._replace(c=torch.zeros_like(state.c))


class WithoutLoss(rlc.CaptioningRNN):
    """A captioner that samples well and has no loss yet."""

    def forward(self, images, captions):
        raise RuntimeError("unfinished")


def test_a_loss_that_raises_costs_the_captions_nothing():
    table = Table()
    published.add_published_captions(table, WithoutLoss, "lstm")
    assert table.rows == ["shapes"] and not table.hints


@pytest.mark.parametrize("word", [-1, 6, 99])
def test_ids_of_no_word_are_no_caption(word):
    """Their loss cannot be computed, so nothing would be compared."""

    class Wordless(rlc.CaptioningRNN):
        def sample(self, images, max_length=15):
            return torch.full_like(super().sample(images, max_length), word)

    with pytest.raises(OutputError, match=f"sample returned the word {word}, wanted ids of the vocabulary, 0 to 5"):
        published.add_published_captions(Table(), Wordless, "rnn")


@pytest.mark.parametrize("loss, told", [(8.0156, True), (8.015640258789062, True), (8.01556, True), (8.0158, False)])
def test_wrong_words_are_told_where_the_loss_is_the_published_one(loss, told, monkeypatch):
    """Processors round differently, and the notebook shows four decimals: 8.01564 is the same as 8.0156."""
    monkeypatch.setattr(published, "_published_loss", lambda *_: loss)
    right, wrong = Table(), Table()
    published.add_published_captions(right, rlc.CaptioningRNN, "attn")
    published.add_published_captions(wrong, WithoutMemory, "attn")
    assert right.rows == ["shapes"]
    assert wrong.rows == (["shapes", "the likeliest word"] if told else ["shapes"])
    assert len(wrong.hints) == told and all("is likelier" in hint for hint in wrong.hints)
