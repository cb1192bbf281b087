"""The student edition: cut from the solution, and whole again with the answers put back."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from support import ROOT

import helpers
from eecs598 import handout
from eecs598.checks import CHECKS
from eecs598.grad import CheckError

SOLUTION = (ROOT / handout.SOURCE).read_text(encoding="utf-8")
STUDENT = (ROOT / "tests" / "support" / "student" / handout.SOURCE).read_text(encoding="utf-8")
PARTS = handout.list_parts(SOLUTION)
ANSWERS = handout.find_answers(SOLUTION)
GIVEN = {"rnn_module"}  # a check of what is no part: it stays, as in the published assignment
ABSENT = [part for part in PARTS if part not in handout.PUBLISHED]
SENTENCE = r"(\S+) is still to do\. Write it in rnn_lstm_captioning\.py, line (\d+), where its box says what; .*"


def definitions(source):
    """Functions, classes, methods and constants: name -> node."""
    tree = ast.parse(source)
    return dict([*handout._definitions(tree), *handout._constants(tree)])


def load(source, folder):
    """A source as a module, written to `folder` so that it has lines to show."""
    path = folder / handout.SOURCE
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("rnn_lstm_captioning", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(student, other, names):
    """The student's source with `other`'s functions in the boxes of `names`, and with what only `other` has."""
    theirs, wanted = other.splitlines(), definitions(other)
    marks = {answer.name: answer.code for answer in handout.find_answers(other) if not answer.whole}
    lines, boxes = student.splitlines(), definitions(student)
    for name in sorted(names, key=lambda name: -boxes[name].lineno):
        box, body = boxes[name], wanted[name].body
        docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        start = marks.get(name) or body[docstring].lineno
        first = next(i for i in range(box.lineno, box.end_lineno) if lines[i].strip() == f"# TODO {name}")
        lines[first - 1 : box.end_lineno] = theirs[start - 1 : wanted[name].end_lineno]
    classes = definitions("\n".join(lines))
    for name, node in reversed(wanted.items()):
        if name in classes or re.search(rf"^from .* import .*\b{name}\b", student, re.MULTILINE):
            continue
        owner, _, method = name.rpartition(".")
        text = ["", *theirs[handout._start(node) - 1 : node.end_lineno]]
        if not method or not owner:
            lines += text
        elif owner in classes:
            lines[classes[owner].end_lineno : classes[owner].end_lineno] = text
    return "\n".join(lines) + "\n"


def put_back(student, parts):
    return fill(student, SOLUTION, [name for part in parts for name in PARTS[part]])


def cut(todo, absent=()):
    return handout.cut_source(SOLUTION, todo, absent)


def make(folder, *options):
    assert handout.main([str(folder / "edition"), *options]) == 0
    return folder / "edition"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are small: on a busy machine threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    return make(tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return make(tmp_path_factory.mktemp("published"), "--published")


def without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body[0].value.value = ""
    return tree


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
            for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}  # fmt: skip


# --- the marks --------------------------------------------------------------------------------------------


def test_every_check_has_a_part_and_every_published_part_is_one():
    assert {name for part in PARTS for name in handout.checks_of(part)} == set(CHECKS) - GIVEN
    assert all(handout.checks_of(part) for part in PARTS)
    assert set(handout.PUBLISHED) <= set(PARTS)


def test_with_nothing_cut_the_solution_stays_but_for_the_marks():
    given = cut([])
    assert ast.dump(ast.parse(given)) == ast.dump(ast.parse(SOLUTION)) and "ANSWER" not in given
    marks = sum(answer.code - answer.first for answer in ANSWERS)
    assert len(given.splitlines()) == len(SOLUTION.splitlines()) - marks


@pytest.mark.parametrize("source, message", [
    ("x = 1\n# ANSWER a: b\ny = 2\n", "line 2: the mark a is neither in a function nor above a definition"),
    ("def f():\n    # ANSWER a: b\n    x = 1\n    # ANSWER b: c\n    return x\n",
     "line 4: the mark b is the second one of f"),
])  # fmt: skip
def test_a_mark_that_marks_nothing_is_an_error(source, message):
    with pytest.raises(handout.HandoutError, match=re.escape(message)):
        handout.find_answers(source)


def test_a_mark_in_a_string_is_none():
    assert handout.find_answers('TEXT = """\n# ANSWER a: b\n"""\n') == []


# --- the source -------------------------------------------------------------------------------------------


def test_each_box_says_what_to_do_and_no_docstring_is_lost():
    student, before = cut(list(PARTS)), definitions(SOLUTION)
    after = definitions(student)
    for name in (name for names in PARTS.values() for name in names):
        assert ast.get_docstring(after[name]) == ast.get_docstring(before[name])
        box = "\n".join(student.splitlines()[after[name].lineno : after[name].end_lineno])
        labels = ["TODO", "Task:", "Formula:", "Hint:", "Check:"]
        labels += ["Shapes:"] if name not in ("CaptioningRNN.__init__", "CaptioningRNN.begin") else []
        assert not [label for label in labels if f"# {label}" not in box], box
        assert box.endswith(f'raise NotImplementedError("TODO: {name}")')
    assert max(map(len, student.splitlines())) <= 120


def test_private_functions_go_with_the_last_answer_that_uses_them():
    lstm = definitions(cut(["lstm_forward"]))
    assert {"_pack", "_cell_forward_"} <= set(lstm)
    both = definitions(cut(handout.choose_parts(["rnn", "lstm", "attention"], PARTS)))
    assert not [name for name in both if name.startswith(("_pack", "_cell_forward", "_cell_backward"))]
    text = "X = 1\nY = 2\n\ndef f():\n    # ANSWER rnn_a: b\n    return _g(X)\n\ndef _g(x):\n    return _g(x)\n\nf(Y)\n"
    assert sorted(definitions(handout.cut_source(text, ["rnn_a"]))) == ["Y", "f"]
    assert "in one batch\n# ---" in SOLUTION and "in one batch\n# ---" not in cut(list(PARTS))


@pytest.mark.parametrize("absent", [(), ABSENT], ids=["all", "published"])
def test_no_line_of_an_answer_is_left_anywhere(absent, edition, published):
    """Lines of code that are long enough not to be in other code by chance. What checks compare with is no secret."""
    todo = [part for part in PARTS if part not in absent]
    lines = ast.unparse(without_docstrings(ast.parse(SOLUTION))).splitlines()
    kept = set(map(str.strip, ast.unparse(ast.parse(cut(todo, absent))).splitlines()))
    in_source = {line for line in map(str.strip, SOLUTION.splitlines()) if len(line) > 50 and line[0] != "#"}
    telling = in_source & set(map(str.strip, lines)) - kept
    assert len(telling) > 40
    for name, text in texts(published if absent else edition).items():
        found = [line for line in telling if line in text and name != "eecs598/checks/formulas.py"]
        assert not found, f"{name}: {found}"


def test_the_published_edition_has_what_the_published_assignment_has(published):
    names = set(definitions((published / handout.SOURCE).read_text()))
    beyond = {name for part in ABSENT for name in PARTS[part]}
    assert not names & beyond and "captioning_gradients" not in names
    assert names >= {name for part in handout.PUBLISHED for name in PARTS[part]} | {"RNN", "RNN.forward", "_run"}


# --- the circle -------------------------------------------------------------------------------------------


def assert_stops(part, module):
    """The check of a part stops at a TODO, with one sentence and the right line; returns the function's name."""
    with pytest.raises(CheckError) as caught:
        helpers.check(part, module)
    name, line = re.fullmatch(SENTENCE, str(caught.value)).groups()
    source = Path(module.__file__).read_text().splitlines()
    assert source[int(line) - 1].strip() == f'raise NotImplementedError("TODO: {name}")'
    return name


def assert_passes(part, module):
    assert helpers.check(part, module).passed


def captioner(module, cell_type="attn"):
    words = {token: i for i, token in enumerate(("<NULL>", "<START>", "<END>", "<UNK>", "a", "b"))}
    return module.CaptioningRNN(words, 400, 8, 6, cell_type, image_encoder_pretrained=False, ignore_index=0)


def captioner_calls(module, cell_type="attn"):
    """What a captioner does, by part."""
    model, images = captioner(module, cell_type), torch.rand(2, 3, 64, 96)
    model(images, torch.tensor([[1, 4, 5, 2], [1, 5, 2, 0]])).backward()
    model.step(torch.tensor([1, 1]), model.begin(images))
    model.sample(images, max_length=3)


def test_all_is_to_do_and_each_check_stops_at_its_todo(edition, tmp_path):
    module = load((edition / handout.SOURCE).read_text(), tmp_path)
    names = {name for part in PARTS for name in PARTS[part]}
    for check in CHECKS:
        assert assert_stops(check, module) in names
    with pytest.raises(NotImplementedError, match=r"^TODO: CaptioningRNN.__init__$"):
        captioner(module)


@pytest.mark.parametrize("part", list(PARTS))
def test_one_part_to_do_stops_its_own_check(part, tmp_path):
    """And what does not build on it passes."""
    module = load(cut([part]), tmp_path)
    for check in handout.checks_of(part):
        assert assert_stops(check, module) in PARTS[part]
    independent = "temporal_affine_backward" if part != "temporal_affine_backward" else "rnn_step_forward"
    if part != "temporal_affine_forward":
        assert_passes(independent, module)


@pytest.mark.parametrize("part", list(PARTS))
def test_one_answer_put_back_into_the_full_edition(part, edition, tmp_path):
    """It stops at what it builds on, or it passes."""
    student = (edition / handout.SOURCE).read_text()
    module = load(put_back(student, [part]), tmp_path)
    for check in handout.checks_of(part):
        try:
            assert_passes(check, module)
        except CheckError as error:
            assert re.fullmatch(SENTENCE, str(error))[1] not in PARTS[part]


def test_all_answers_put_back(edition, tmp_path):
    module = load(put_back((edition / handout.SOURCE).read_text(), list(PARTS)), tmp_path)
    for check in CHECKS:
        assert_passes(check, module)
    for cell_type in ("rnn", "lstm", "attn"):
        captioner_calls(module, cell_type)


@pytest.mark.parametrize("group", list(handout.GROUPS))
def test_a_group_put_back_into_its_own_edition(group, tmp_path):
    parts = handout.choose_parts([group], PARTS)
    module = load(put_back(cut(parts), parts), tmp_path)
    for check in CHECKS:
        assert_passes(check, module)


def test_a_students_published_answers_in_the_published_edition(published, tmp_path):
    names = [name for part in handout.PUBLISHED for name in PARTS[part]]
    module = load(fill((published / handout.SOURCE).read_text(), STUDENT, names), tmp_path)
    beyond = {check for part in ABSENT for check in handout.checks_of(part)}
    for check in CHECKS:
        if all(hasattr(module, need) for need in CHECKS[check].needs):
            assert_passes(check, module)
        else:
            assert check in beyond
    for cell_type in ("rnn", "lstm", "attn"):
        model, images = captioner(module, cell_type), torch.rand(2, 3, 128, 128)
        model(images, torch.tensor([[1, 4, 5, 2], [1, 5, 2, 0]])).backward()
        model.sample(images, max_length=3)


# A learner's sequence functions: loops over the steps, `lengths` left unused, three kinds of cache.
NAIVE = '''
def rnn_forward(x, h0, Wx, Wh, b, lengths=None):
    states, caches, prev_h = [], [], h0
    for t in range(x.shape[1]):
        prev_h, cache = rnn_step_forward(x[:, t], prev_h, Wx, Wh, b)
        states.append(prev_h)
        caches.append(cache)
    return torch.stack(states, 1), caches

def rnn_backward(dh, cache):
    dprev_h, dxs, sums = 0, [], 0
    for t in reversed(range(dh.shape[1])):
        dx, dprev_h, *weights = rnn_step_backward(dh[:, t] + dprev_h, cache[t])
        dxs.insert(0, dx)
        sums = weights if sums == 0 else [a + b for a, b in zip(sums, weights)]
    return torch.stack(dxs, 1), dprev_h, *sums

def lstm_forward(x, h0, c0, Wx, Wh, b, lengths=None):
    states, caches, h, c = [], {}, h0, c0
    for t in range(x.shape[1]):
        h, c, caches[t] = lstm_step_forward(x[:, t], h, c, Wx, Wh, b)
        states.append(h)
    return torch.stack(states, 1), caches

def lstm_backward(dh, cache):
    dprev_h, dprev_c, dxs, sums = 0, dh.new_zeros(dh[:, 0].shape), [], 0
    for t in reversed(range(dh.shape[1])):
        dx, dprev_h, dprev_c, *weights = lstm_step_backward(dh[:, t] + dprev_h, dprev_c, cache[t])
        dxs.insert(0, dx)
        sums = weights if sums == 0 else [a + b for a, b in zip(sums, weights)]
    return torch.stack(dxs, 1), dprev_h, dprev_c, *sums

def attention_lstm_forward(x, A, Wx, Wh, Wattn, b, lengths=None):
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
    return F.cross_entropy(x.transpose(1, 2), y, ignore_index=ignored, reduction="sum") / len(x)
'''


def test_the_given_code_works_with_a_learners_answers(edition, tmp_path):
    """The bridge to autograd, the modules and the gradient of the whole model, over caches of any kind."""
    rest = [part for part in PARTS if part not in definitions(NAIVE)]
    filled = put_back((edition / handout.SOURCE).read_text(), rest)
    module = load(fill(filled, NAIVE, list(definitions(NAIVE))), tmp_path)
    for check in CHECKS:
        assert_passes(check, module)
    for cell_type in ("rnn", "lstm", "attn"):
        captioner_calls(module, cell_type)
        model, features = captioner(module, cell_type).double(), torch.rand(2, 400, 2, 3, dtype=torch.float64)
        loss, gradients = module.captioning_gradients(model, features, torch.tensor([[1, 4, 5, 2], [1, 5, 2, 0]]))
        assert loss > 0 and all(gradient.isfinite().all() for gradient in gradients.values())


# --- the notebook -----------------------------------------------------------------------------------------


def code_of(folder):
    notebook = nbformat.read(folder / handout.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_has_no_outputs_and_no_answers(edition):
    notebook, code = code_of(edition)
    assert not [cell for cell in code if cell.outputs or cell.execution_count or "execution" in cell.metadata]
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title\n", "text"]},
        {"cell_type": "code", "id": "b", "metadata": {"tags": ["answer"]}, "source": ["secret"], "outputs": []},
        {"cell_type": "code", "id": "c", "metadata": {}, "source": ["import helpers"], "outputs": [1]},
    ]
    sources = ["".join(cell["source"]) for cell in handout.cut_notebook({"cells": cells}, ["Due: today"])["cells"]]
    assert sources == ["# Title\n\n> Due: today\ntext", "import helpers", handout.HOW_TO_WORK, handout.KEEP_UP]


@pytest.mark.parametrize("kind", ["edition", "published"])
def test_the_notebook_names_nothing_that_the_source_lacks(kind, request):
    folder = request.getfixturevalue(kind)
    names = set(definitions((folder / handout.SOURCE).read_text()))
    code = "\n".join(cell.source for cell in code_of(folder)[1])
    assert not set(re.findall(r"\brlc\.(\w+)", code)) - names
    checked = re.findall(r'\bcheck\("(\w+)"', code)
    assert len(checked) >= 8 and all(set(CHECKS[check].needs) <= names for check in checked)


def test_the_published_edition_keeps_the_published_lesson(published, edition):
    checked = re.findall(r'\bcheck\("(\w+)"', "\n".join(cell.source for cell in code_of(published)[1]))
    assert set(checked) >= set(handout.PUBLISHED) & set(CHECKS)
    kept = {cell.id for cell in code_of(published)[0].cells}
    lost = [cell for cell in code_of(edition)[0].cells if cell.id not in kept]
    untagged = [cell for cell in lost if cell.cell_type == "code" and "beyond" not in cell.metadata.get("tags", [])]
    assert untagged and not [cell for cell in untagged if not re.search(
        r"rlc\.\w+|check\(|plain_loss|compare_gradients|model\.step", cell.source)]  # fmt: skip


SLOW = re.compile(r"\b(overfit|train|show_examples|caption_pictures|show_strip|plot_losses|judge|encoder_for|Timer"
                  r"|compare_gradients|score_attention|print_looks|plot_similarity|score_captioner"
                  r"|new_captioner|explain_captions|watch_gates|rank_captions"
                  r"|format_scores|read_photographs|decode_pictures|show_captions|show_source)\(")  # fmt: skip


def test_a_learners_path_through_the_notebook(edition, tmp_path, monkeypatch):
    """It stops at each undone part with one sentence; with the part written, the same cell runs and it goes on."""
    monkeypatch.setenv("EECS598_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "mine"
    handout.write_edition({path.relative_to(edition).as_posix(): path.read_bytes()
                           for path in edition.rglob("*") if path.is_file()}, folder)  # fmt: skip
    notebook, code = code_of(folder)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder / "notebooks")}})
    stops = []
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code" or SLOW.search(cell.source):
                continue
            while name := run_cell(client, cell, index):
                assert name not in stops, f"{name} was written, and still: {cell.outputs}"
                stops.append(name)
                source = (folder / handout.SOURCE).read_text()
                (folder / handout.SOURCE).write_text(fill(source, SOLUTION, [name]))
    assert stops[:4] == ["rnn_step_forward", "rnn_step_backward", "rnn_forward", "rnn_backward"]
    written = {name for part in PARTS if not part.startswith("captioner") for name in PARTS[part]}
    assert set(stops) >= {name for name in written if f'"{name}"' in "".join(cell.source for cell in code)}


def run_cell(client, cell, index):
    """The name of the undone part at which a cell stops, None if it runs. What the learner sees is one sentence."""
    try:
        client.execute_cell(cell, index)
    except CellExecutionError:
        (error,) = [output for output in cell.outputs if output.output_type == "error"]
        line, *more = "\n".join(error.traceback).splitlines()
        assert not more, f"{cell.source}\n\n{line}\n" + "\n".join(more)
        name, number = re.fullmatch(rf"(?:CheckError|NotImplementedError): {SENTENCE}", line).groups()
        return name
    return None


# --- the folder, the zip, the command ---------------------------------------------------------------------


def test_the_folder_has_what_a_student_needs_and_nothing_of_an_instructors(edition):
    names = set(texts(edition))
    assert {"helpers.py", "eecs598/checks/__init__.py", "eecs598/checks/formulas.py", "datasets/README.md", "Makefile"} <= names
    assert not [name for name in names if re.search(r"handout\.py|grading|student|instructors|^\.ci|test_checks", name)]
    for name in names - {handout.SOURCE, handout.NOTEBOOK, handout.STAMP}:
        assert handout.INSTRUCTORS_LINES.sub("", (ROOT / name).read_text()) == texts(edition)[name]


def test_lines_for_instructors_go(edition):
    text = "a:\n\tb\n\n# INSTRUCTORS ONLY\nc:\n\td\n# END INSTRUCTORS\n\ne:\n"
    assert handout.INSTRUCTORS_LINES.sub("", text) == "a:\n\tb\n\ne:\n"
    assert "handout" not in (edition / "Makefile").read_text()


def test_the_zip_holds_the_folder(edition):
    with zipfile.ZipFile(f"{edition}.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {handout.FOLDER}
        held = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert held == {path.relative_to(edition).as_posix(): path.read_bytes()
                    for path in edition.rglob("*") if path.is_file()}  # fmt: skip


def test_the_viewer_works_in_the_unpacked_folder(edition, tmp_path):
    """Its page is a file beside the module, which the edition must bring."""
    shutil.unpack_archive(f"{edition}.zip", tmp_path)
    program = ("import numpy as np, eecs598.vis.viewer as v; print(v.__file__); "
               "print(v.attention_viewer([np.zeros((3, 8, 8))], ['one'], np.ones((1, 1, 2, 2))).page)")  # fmt: skip
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path / handout.FOLDER, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    file, page = result.stdout.split("\n", 1)
    assert Path(file) == tmp_path / handout.FOLDER / "eecs598" / "viewer.py" and "<script>" in page and "one" in page


def test_the_same_solution_gives_the_same_zip(edition, tmp_path):
    assert Path(f"{make(tmp_path)}.zip").read_bytes() == Path(f"{edition}.zip").read_bytes()


def test_due_text_and_ai_use_head_notebook_and_source(tmp_path):
    due, rule = 'Friday 17:00, "late" \\o/ """no"""', "Ask it, but write\nyourself."
    folder = make(tmp_path, "--due", due, "--ai-use", rule, "--parts", "rnn_step_forward")
    title, *quoted = code_of(folder)[0].cells[0].source.splitlines()[:9]
    said = {line.removeprefix("> ") for line in quoted}
    assert title.startswith("# ") and {f"Due: {due}", "Use of AI: Ask it, but write yourself."} <= said
    docstring = ast.get_docstring(ast.parse((folder / handout.SOURCE).read_text()))
    assert f"Due: {due}\nUse of AI: Ask it, but write yourself." in docstring


def run(capsys, *arguments):
    """The command's status and its one line on standard error."""
    try:
        status = handout.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    return status, capsys.readouterr().err.rstrip("\n")


def test_an_earlier_handout_is_replaced(tmp_path):
    folder = make(tmp_path)
    (folder / "left over").write_text("")
    assert sorted(texts(make(tmp_path, "--parts", "lstm,rnn_forward"))) == sorted(set(texts(folder)) - {"left over"})
    assert json.loads((folder / handout.STAMP).read_text())["todo"] == handout.choose_parts(
        ["lstm", "rnn_forward"], PARTS)  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edition", "edition.zip"]
    assert texts(make(tmp_path, "--parts", "lstm", "rnn_forward"))[handout.SOURCE] == texts(folder)[handout.SOURCE]


def test_anything_else_in_the_way_is_left_alone(tmp_path, capsys):
    full, file, foreign = tmp_path / "full", tmp_path / "file", tmp_path / "foreign.zip"
    full.mkdir()
    for path in (full / "mine", file, foreign):
        path.write_text("mine")
    for out, named in ((full, full), (file, file), (tmp_path / "foreign", foreign)):
        status, error = run(capsys, out)
        assert status == 1 and error.startswith(f"error: {named}: ") and "\n" not in error
    assert [path.read_text() for path in (full / "mine", file, foreign)] == ["mine"] * 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("step", ["_write_zip", "rename"])
def test_a_failure_leaves_the_earlier_handout(step, tmp_path, capsys, monkeypatch):
    folder = make(tmp_path, "--parts", "rnn")
    before, rename = texts(folder), Path.rename

    def fail(path, *args):
        if step == "rename" and not path.name.endswith(".part"):
            return rename(path, *args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, "rename", fail) if step == "rename" else (handout, step, fail)))
    status, error = run(capsys, folder)
    assert status == 1 and "No space left" in error and texts(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edition", "edition.zip"]


def test_wrong_usage_is_one_line(tmp_path, capsys):
    status, error = run(capsys, tmp_path / "x", "--parts", "rnn,rmn_forward")
    assert status == 1 and error.startswith("error: no part is named 'rmn_forward'; groups are rnn, words, ")
    assert all(part in error for part in PARTS) and "\n" not in error
    assert run(capsys) == (2, "error: OUT is missing: name the folder to write, before the parts; see --help")
    assert run(capsys, tmp_path / "x", "--parts", "rnn", "--published")[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_student_edition_makes_no_student_edition(edition, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(handout, "ROOT", edition)
    status, error = run(capsys, tmp_path / "x")
    assert status == 1 and "no answers are marked" in error and not list(tmp_path.iterdir())


def test_the_list_names_every_part(capsys):
    assert handout.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(PARTS)
    assert {line.split()[0] for line in lines if line.endswith("yes")} == set(handout.PUBLISHED)
