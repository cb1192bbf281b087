"""The student's source file: cut from the solution, and whole again with the answers put back."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from support.editions import (
    ABSENT,
    NAMES,
    PUBLISHED,
    SENTENCE,
    SOLUTION,
    STUDENT,
    assert_passes,
    assert_stops,
    captioner,
    captioner_calls,
    cut,
    definitions,
    fill,
    load,
    put_back,
    texts,
)

from eecs598.checks import CHECKS
from eecs598.grad import CheckError
from eecs598.handout import source
from eecs598.handout.edition import SOURCE
from eecs598.handout.parts import GROUPS, PARTS, HandoutError, choose_parts

EDITIONS = {"all": (list(PARTS), []), "published": (PUBLISHED, ABSENT), "nothing": ([], []),
            **{group: (choose_parts([group]), []) for group in GROUPS},
            **{f"{part} alone": ([part], []) for part in PARTS}}  # fmt: skip


# --- what is cut ------------------------------------------------------------------------------------------


def test_with_nothing_cut_the_solution_stays_as_it_is():
    assert cut([]) == SOLUTION


def test_no_mark_in_the_source_says_what_an_answer_is():
    assert not re.search(r"\bANSWER\b|\bTODO\b", SOLUTION)


@pytest.mark.parametrize("old, new, said", [
    ("def rnn_forward(", "def rnn_foward(", "it lacks rnn_forward"),
    ("self.image_encoder = ", "self.encoder = ", "CaptioningRNN.__init__ does not assign self.image_encoder, after"),
], ids=["renamed", "given"])  # fmt: skip
def test_a_source_that_lacks_an_answer_is_an_error(old, new, said):
    with pytest.raises(HandoutError, match=re.escape(said)):
        source.cut_source(SOLUTION.replace(old, new), list(PARTS))


def test_a_source_with_a_part_to_do_is_no_solution():
    with pytest.raises(HandoutError, match="lstm_backward is still to do in it; a student edition is made"):
        source.cut_source(cut(["lstm_backward"]), ["rnn_forward"])


def test_the_answer_is_the_body_after_the_docstring_comments_and_all():
    before, after = definitions(SOLUTION)["lstm_step_backward"], definitions(cut(["lstm_step_backward"]))
    comments = [line for line in SOLUTION.splitlines()[before.lineno : before.end_lineno] if "# 1. next_h" in line]
    assert comments and comments[0] not in cut(["lstm_step_backward"])
    docstring, undone = after["lstm_step_backward"].body
    assert docstring.value.value == before.body[0].value.value
    assert ast.unparse(undone) == "raise NotImplementedError('TODO: lstm_step_backward')"


def test_each_box_says_what_to_do_and_no_docstring_is_lost():
    student, before = cut(list(PARTS)), definitions(SOLUTION)
    after = definitions(student)
    for part, name in ((part, name) for part, names in NAMES.items() for name in names):
        assert ast.get_docstring(after[name]) == ast.get_docstring(before[name])
        box = "\n".join(student.splitlines()[after[name].lineno : after[name].end_lineno])
        labels = ["TODO", "Task:", "Formula:", "Hint:", "Check:"]
        labels += ["Shapes:"] if name not in ("CaptioningRNN.__init__", "CaptioningRNN.begin") else []
        assert not [label for label in labels if f"# {label}" not in box], box
        assert all(f'check("{check}", rlc)' in box for check in PARTS[part].checks)
        assert box.endswith(f'raise NotImplementedError("TODO: {name}")')
    assert max(map(len, student.splitlines())) <= 120


@pytest.mark.parametrize("word", ["lengths", "ANSWER", "solution"])
def test_no_box_says_a_word_that_is_for_others(word):
    assert not re.search(rf"\b{word}\b", cut(list(PARTS)))


def test_private_functions_go_with_the_last_answer_that_uses_them():
    loss, both = cut(["temporal_softmax_loss"]), cut(["temporal_softmax_loss", "temporal_softmax_backward"])
    assert "_target_and_mask" in definitions(loss) and "_softmax_loss" not in definitions(loss)
    assert "_target_and_mask" not in definitions(both) and "_softmax_loss_backward" not in definitions(both)
    everything = set(definitions(cut(list(PARTS))))
    assert not [name for name in everything if name.endswith("Cache") or name == "_word_embedding_gradients"]
    assert {"_weight", "_cell_forward", "_cell_backward", "captioning_gradients", "DecoderState"} <= everything


def test_the_published_edition_has_what_the_published_assignment_has(published):
    names = set(definitions((published / SOURCE).read_text()))
    beyond = {name for part in ABSENT for name in NAMES[part]}
    assert not names & beyond and not names & {"captioning_gradients", "DecoderState", "Affine"}
    assert names >= {name for part in PUBLISHED for name in NAMES[part]} | {"RNN", "RNN.forward", "RNN.step_forward"}


@pytest.mark.parametrize("kind", ["edition", "published"])
def test_nothing_is_quoted_that_is_not_in_the_file(kind, request):
    text = (request.getfixturevalue(kind) / SOURCE).read_text()
    present = {name for name, _, _ in source.imports(ast.parse(text))} | set(definitions(text))
    assert not set(re.findall(r"`(\w+)[`(]", text)) - present


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not here")
def test_nothing_is_unused_in_any_edition(tmp_path):
    """Imports, variables, and lines that became too long."""
    for k, (todo, absent) in enumerate(EDITIONS.values()):
        (tmp_path / f"edition_{k}.py").write_text(cut(todo, absent))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "E,F,W"]
    done = subprocess.run([*command, "--line-length", "120", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", EDITIONS)
def test_no_private_name_is_unused_in_any_edition(name):
    text = cut(*EDITIONS[name])
    used = set(source.used_names(ast.parse(text)))
    assert not [key for key in definitions(text) if re.match(r"_[^_]|\w+Cache$", key) and key not in used]


def without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body[0].value.value = ""
    return tree


@pytest.mark.parametrize("absent", [(), ABSENT], ids=["all", "published"])
def test_no_line_of_an_answer_is_left_anywhere(absent, edition, published):
    """Lines of code that are long enough not to be in other code by chance. What checks compare with is no secret."""
    todo = [part for part in PARTS if part not in absent]
    lines = ast.unparse(without_docstrings(ast.parse(SOLUTION))).splitlines()
    kept = set(map(str.strip, ast.unparse(ast.parse(cut(todo, absent))).splitlines()))
    in_source = {line for line in map(str.strip, SOLUTION.splitlines()) if len(line) > 50 and line[0] != "#"}
    telling = in_source & set(map(str.strip, lines)) - kept
    assert len(telling) > 25
    for name, text in texts(published if absent else edition).items():
        found = [line for line in telling if line in text and name != "eecs598/checks/formulas.py"]
        assert not found, f"{name}: {found}"


# --- the circle: cut, and put back ------------------------------------------------------------------------


def test_all_is_to_do_and_each_check_stops_at_its_todo(edition, tmp_path):
    module = load((edition / SOURCE).read_text(), tmp_path)
    names = {name for part in PARTS for name in NAMES[part]}
    for check in CHECKS:
        assert assert_stops(check, module) in names
    with pytest.raises(NotImplementedError, match=r"^TODO: CaptioningRNN.__init__$"):
        captioner(module)


@pytest.mark.parametrize("part", list(PARTS))
def test_one_part_to_do_stops_its_own_check(part, tmp_path):
    """And what does not build on it passes."""
    module = load(cut([part]), tmp_path)
    for check in PARTS[part].checks:
        assert assert_stops(check, module) in NAMES[part]
    independent = "temporal_affine_backward" if part != "temporal_affine_backward" else "rnn_step_forward"
    if part != "temporal_affine_forward":
        assert_passes(independent, module)


@pytest.mark.parametrize("part", list(PARTS))
def test_one_answer_put_back_into_the_full_edition(part, edition, tmp_path):
    """It stops at what it builds on, or it passes."""
    module = load(put_back((edition / SOURCE).read_text(), [part]), tmp_path)
    for check in PARTS[part].checks:
        try:
            assert_passes(check, module)
        except CheckError as error:
            assert re.fullmatch(SENTENCE, str(error))[1] not in NAMES[part]


def test_all_answers_put_back(edition, tmp_path):
    module = load(put_back((edition / SOURCE).read_text(), list(PARTS)), tmp_path)
    for check in CHECKS:
        assert_passes(check, module)
    for cell_type in ("rnn", "lstm", "attn"):
        captioner_calls(module, cell_type)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_put_back_into_its_own_edition(group, tmp_path):
    chosen = choose_parts([group])
    module = load(put_back(cut(chosen), chosen), tmp_path)
    for check in CHECKS:
        assert_passes(check, module)


def test_a_students_published_answers_in_the_published_edition(published, tmp_path):
    names = [name for part in PUBLISHED for name in NAMES[part]]
    module = load(fill((published / SOURCE).read_text(), STUDENT, names), tmp_path)
    beyond = {check for part in ABSENT for check in PARTS[part].checks}
    for check in CHECKS:
        if all(hasattr(module, need) for need in CHECKS[check].needs):
            assert_passes(check, module)
        else:
            assert check in beyond
    for cell_type in ("rnn", "lstm", "attn"):
        model, images = captioner(module, cell_type), torch.rand(2, 3, 128, 128)
        model(images, torch.tensor([[1, 4, 5, 2], [1, 5, 2, 0]])).backward()
        model.sample(images, max_length=3)


# A learner's attention: caches of other kinds than ours, and PyTorch's own loss.
LEARNERS = '''
def lstm_forward(x, h0, c0, Wx, Wh, b):
    states, caches, h, c = [], {}, h0, c0
    for t in range(x.shape[1]):
        h, c, caches[t] = lstm_step_forward(x[:, t], h, c, Wx, Wh, b)
        states.append(h)
    return torch.stack(states, 1), caches

def attention_lstm_forward(x, A, Wx, Wh, Wattn, b):
    h = c = A.mean(dim=(2, 3))
    states, maps, caches = [], [], ()
    for t in range(x.shape[1]):
        attn, weights = dot_product_attention(h, A)
        before = h
        h, c, cache = attention_lstm_step_forward(x[:, t], h, c, attn, Wx, Wh, Wattn, b)
        caches += ({"prev_h": before, "weights": weights, "step": cache},)
        states.append(h)
        maps.append(weights)
    kept = {"steps": caches, "A": A, "cells": A[0, 0].numel(), "note": "mine"}
    return torch.stack(states, 1), torch.stack(maps, 1), kept

def attention_lstm_backward(dh, cache):
    A = cache["A"]
    dprev_h, dprev_c, dA, dxs, sums = 0, dh.new_zeros(dh[:, 0].shape), torch.zeros_like(A), [], 0
    for t in reversed(range(dh.shape[1])):
        kept = cache["steps"][t]
        dx, dprev_h, dprev_c, dattn, *weights = attention_lstm_step_backward(dh[:, t] + dprev_h, dprev_c, kept["step"])
        dlooked, dcells = dot_product_attention_backward(dattn, kept["prev_h"], A, kept["weights"])
        dprev_h, dA = dprev_h + dlooked, dA + dcells
        dxs.insert(0, dx)
        sums = weights if sums == 0 else [a + b for a, b in zip(sums, weights)]
    dA = dA + ((dprev_h + dprev_c) / cache["cells"])[:, :, None, None]
    return torch.stack(dxs, 1), dA, *sums

def temporal_softmax_loss(x, y, ignore_index=None):
    ignored = -100 if ignore_index is None else ignore_index
    return nn.functional.cross_entropy(x.transpose(1, 2), y, ignore_index=ignored, reduction="sum") / len(x)
'''


def test_the_given_code_works_with_a_learners_answers(edition, tmp_path):
    """The bridge to autograd, the modules and the gradient of the whole model, over caches of any kind."""
    rest = [part for part in PARTS if part not in definitions(LEARNERS)]
    filled = put_back((edition / SOURCE).read_text(), rest)
    module = load(fill(filled, LEARNERS, list(definitions(LEARNERS))), tmp_path)
    for check in CHECKS:
        assert_passes(check, module)
    for cell_type in ("rnn", "lstm", "attn"):
        captioner_calls(module, cell_type)
        model, features = captioner(module, cell_type).double(), torch.rand(2, 400, 2, 3, dtype=torch.float64)
        loss, gradients = module.captioning_gradients(model, features, torch.tensor([[1, 4, 5, 2], [1, 5, 2, 0]]))
        assert loss > 0 and all(gradient.isfinite().all() for gradient in gradients.values())


