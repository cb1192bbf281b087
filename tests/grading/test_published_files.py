"""Whole files in the form of the published assignment: what its cells accept has its points, what they reject none."""

import pytest
import torch
from support import ROOT, confinement, in_process, published_files
from support.reports import explain, lost

import rnn_lstm_captioning as ours
from eecs598.checks import CHECKS, PUBLISHED, at_level, published
from eecs598.grad import CheckTable
from eecs598.grading import grader as grading
from eecs598.grading import older
from eecs598.grading.grader import ABSENT, PUBLISHED_PARTS, RIGHT, WRONG
from eecs598.grading.submissions import Submission

SOLUTION = (ROOT / "rnn_lstm_captioning.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def grade():
    """Grade a source for the published parts, without a look beyond what counts."""
    with confinement.open_jail() as jail:
        grader = grading.Grader(jail, timeout=60.0, limit=3600.0, advice=False)
        yield lambda source, parts=PUBLISHED_PARTS: grader.grade(Submission("student", source.encode()), parts)


@pytest.fixture(scope="module")
def grade_here():
    """The same without a sandbox, in this process."""
    grader = in_process.Grader()
    return lambda source, parts=PUBLISHED_PARTS: grader.grade(Submission("student", source.encode()), parts)


def test_there_are_twelve_of_each_and_no_two_alike():
    sources = [*published_files.RIGHT.values(), *(source for _, source in published_files.WRONG.values())]
    assert len(published_files.RIGHT) >= 12 and len(published_files.WRONG) >= 12
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("habit", published_files.RIGHT)
def test_a_file_that_passes_the_published_cells_has_full_marks(grade_here, habit):
    report = grade_here(published_files.RIGHT[habit])
    assert not lost(report), explain(report)


@pytest.mark.parametrize("habit", list(published_files.RIGHT)[::5])
def test_a_sandbox_changes_no_verdict(grade, grade_here, habit):
    reports = (grader(published_files.RIGHT[habit]) for grader in (grade, grade_here))
    first, second = ({part: result.label for part, result in report.results.items()} for report in reports)
    assert first == second


@pytest.mark.parametrize("mistake", published_files.WRONG)
def test_a_usual_mistake_loses_its_own_part_alone(grade_here, mistake):
    parts, source = published_files.WRONG[mistake]
    report = grade_here(source)
    assert set(lost(report)) == set(parts), explain(report)
    assert all(report.results[part].verdict == WRONG for part in parts), explain(report)
    assert all(len(report.results[part].text.splitlines()) >= 2 for part in parts), "a miss without a cause"


def test_what_the_lesson_asks_beyond_is_advice(grade):
    report = grade(published_files.USUAL, ["temporal_softmax_loss", "dot_product_attention"])
    assert not lost(report)
    loss, attention = ("\n".join(result.advice) for result in report.results.values())
    assert "ignore_index=None" in loss and "it is right on a 4 x 4 grid" in attention
    flat = grade(published_files.RIGHT["the grid flattened"], ["rnn_captioner_loss"])
    assert not lost(flat) and "the affine map of the image features" in "\n".join(
        flat.results["rnn_captioner_loss"].advice)  # fmt: skip


def test_a_captioner_that_is_right_for_other_numbers_alone_is_told_the_published_number(grade):
    loss = "captions_out, ignore_index=self.ignore_index)"
    doubled = published_files.change(published_files.RIGHT["the grid flattened"], (loss, f"{loss} * 2"))
    report = grade(doubled, ["lstm_captioner_loss"])
    assert "the loss is 292.632" in report.results["lstm_captioner_loss"].text, explain(report)


# --- the published cells on a captioner, in this process --------------------------------------------------


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
def test_our_captioner_gives_the_published_loss(cell_type):
    loss = published._published_loss(ours.CaptioningRNN, cell_type)
    assert abs(loss / published.LOSSES[cell_type] - 1) < 1e-5


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
def test_the_words_of_a_right_captioner_are_the_likeliest_whatever_its_parameters(cell_type, monkeypatch):
    for seed in range(4):
        monkeypatch.setattr(published, "SEED", seed)
        table = CheckTable("")
        published.add_published_captions(table, ours.CaptioningRNN, cell_type)
        assert table.passed, str(table)


def test_captions_that_begin_with_the_start_word_are_accepted():
    class Begins(ours.CaptioningRNN):
        def sample(self, images, max_length=15):
            captions = super().sample(images, max_length)
            return torch.cat([torch.full_like(captions[:, :1], self.start), captions[:, :-1]], dim=1)

    with at_level(PUBLISHED):
        assert CHECKS["rnn_captioner_sample"].run(Begins).passed


def test_where_the_loss_is_wrong_captions_are_judged_by_their_shapes():
    """Then the loss tells nothing of them; and it has its own part to lose."""

    class Elsewhere(ours.CaptioningRNN):
        def forward(self, images, captions):
            return super().forward(images, captions.flip(1))

    with at_level(PUBLISHED):
        assert CHECKS["lstm_captioner_sample"].run(Elsewhere).passed
        assert not grading._run("lstm_captioner_loss", [Elsewhere], PUBLISHED).passed


# --- older editions ---------------------------------------------------------------------------------------


def test_of_a_file_of_2019_what_can_be_graded_is_graded(grade):
    report = grade(published_files.OLDER)
    assert older.ADVICE in report.advice
    graded = [part for part, result in report.results.items() if result.verdict != ABSENT]
    assert {report.results[part].verdict for part in graded} == {RIGHT}, explain(report)
    assert graded == [
        "rnn_step_forward", "rnn_step_backward", "word_embedding_module", "temporal_softmax_loss", "lstm_module",
        "dot_product_attention", "attention_lstm_module",
    ]  # fmt: skip
    assert "of another assignment" in report.results["rnn_captioner_loss"].text
    assert "not in this file" in report.results["rnn_forward"].text


@pytest.mark.parametrize("old, new, part", [
    ("a = a + attn.mm(Wattn)", "a = a - attn.mm(Wattn)", "attention_lstm_module"),
    ("prev_h, prev_c, hn = h0, torch.zeros_like(h0), []", "prev_h, prev_c, hn = h0, h0, []", "lstm_module"),
])  # fmt: skip
def test_a_mistake_in_a_file_of_2019_is_found(grade, old, new, part):
    report = grade(published_files.change(published_files.OLDER, (old, new)), ["lstm_module", "attention_lstm_module"])
    assert lost(report) == [part], explain(report)


def test_a_file_of_today_is_not_taken_for_an_older_one():
    assert older.is_older(published_files.OLDER.encode())
    helper = "\n\ndef attention_forward(prev_h, A):\n    return dot_product_attention(prev_h, A)\n"
    step = "\n\ndef lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b, attn=None, Wattn=None):\n    pass\n"
    student = published_files.STUDENT
    for source in (SOLUTION, student, student + helper, student + step, "def broken(:", "\x00"):
        assert not older.is_older(source.encode())
