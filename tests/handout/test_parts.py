"""The table of parts: what an answer is, and which check sees it."""

import pytest
from support.editions import PUBLISHED, SOLUTION, definitions

from eecs598.checks import CHECKS
from eecs598.grading.grader import PUBLISHED_PARTS
from eecs598.handout import parts
from eecs598.handout.parts import GIVEN, GROUPS, PARTS


def test_every_check_has_a_part_and_every_part_a_check():
    assert {check for part in PARTS.values() for check in part.checks} == set(CHECKS) - set(GIVEN)
    assert all(part.checks and part.answers for part in PARTS.values())


def test_each_function_is_the_answer_of_one_part():
    names = [answer.name for part in PARTS.values() for answer in part.answers]
    assert sorted(names) == sorted(parts.answers())


def test_every_function_of_the_solution_is_an_answer_or_given_in_full():
    """Given: how a module is made, and the gradient of the whole model, which only calls what is written by hand."""
    public = {name for name in definitions(SOLUTION) if not name.split(".")[-1].startswith("_")}
    functions = {name for name in public if name[0].islower() or "." in name}
    given = {"RNN.forward", "RNN.step_forward", "Affine.forward", "captioning_gradients"}
    assert functions - set(parts.answers()) == given


def test_the_grader_and_the_published_edition_have_the_same_parts():
    checks = {check for part in PUBLISHED for check in PARTS[part].checks}
    assert set(PUBLISHED_PARTS) == checks | set(GIVEN)
    assert [part for part in CHECKS if part in PUBLISHED_PARTS] == PUBLISHED_PARTS


def test_parts_are_chosen_by_their_names_and_by_their_groups_in_the_tables_order():
    assert parts.choose_parts(["lstm", "rnn_forward"]) == [
        "rnn_forward", *(part for part in PARTS if PARTS[part].group == "lstm")]  # fmt: skip
    assert parts.choose_parts(GROUPS) == list(PARTS)
    with pytest.raises(parts.HandoutError, match=r"there is no part 'rmn'; groups are rnn, words, lstm, "):
        parts.choose_parts(["rmn"])
