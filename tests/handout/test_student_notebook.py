"""The student's notebook: what is in it, and a learner's path through it."""

import contextlib
import importlib.util
import re
import subprocess
import sys

import pytest
from support import ROOT
from support.editions import NAMES, PUBLISHED, SENTENCE, SOLUTION, definitions, fill, make
from support.notebook_run import write_scenes

from eecs598.checks import CHECKS
from eecs598.handout import notebook
from eecs598.handout.edition import NOTEBOOK, SOURCE, write_edition
from eecs598.handout.parts import GROUPS, PARTS, HandoutError


def code_of(folder):
    import nbformat  # here, as it takes two seconds, and every process that runs tests imports this file

    whole = nbformat.read(folder / NOTEBOOK, as_version=4)
    nbformat.validate(whole)
    return whole, [cell for cell in whole.cells if cell.cell_type == "code"]


def test_the_notebook_has_no_outputs_no_answers_and_nothing_that_needs_the_fast_room(edition):
    _, code = code_of(edition)
    assert not [cell for cell in code if cell.outputs or cell.execution_count or "execution" in cell.metadata]
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title\n", "text"]},
        {"cell_type": "code", "id": "b", "metadata": {"tags": ["answer"]}, "source": ["secret"], "outputs": []},
        {"cell_type": "markdown", "id": "d", "metadata": {"tags": ["fast"]}, "source": ["Now fast."]},
        {"cell_type": "code", "id": "e", "metadata": {"tags": ["fast"]}, "source": ["fast()"], "outputs": []},
        {"cell_type": "code", "id": "c", "metadata": {}, "source": ["import helpers"], "outputs": [1]},
    ]
    sources = ["".join(cell["source"]) for cell in notebook.cut_notebook({"cells": cells}, ["Due: today"])["cells"]]
    assert sources == ["# Title\n\n> Due: today\ntext", "import helpers", notebook.HOW_TO_WORK, notebook.KEEP_UP]


@pytest.mark.parametrize("kind", ["edition", "published"])
def test_every_question_has_a_place_for_the_answer_and_no_model_answer(kind, request):
    """Two questions a part, each followed by a cell to write in; model answers and rubrics are the instructors'."""
    cells = code_of(request.getfixturevalue(kind))[0].cells
    asked = [k for k, cell in enumerate(cells) if re.search(r"\*\*Question \d\.\d\.\*\*", cell.source)]
    names = [re.search(r"Question (\d\.\d)", cells[k].source)[1] for k in asked]
    assert names == [f"{part}.{number}" for part in range(1, 7) for number in (1, 2)]
    assert all(cells[k + 1].source == "*Your answer here.*" for k in asked)
    answers = [cell for cell in code_of(ROOT)[0].cells if re.fullmatch(r"question-.*-answer", cell.id)]
    assert len(answers) == len(asked)
    text = "\n".join(cell.source for cell in cells)
    assert "Rubric" not in text and "Model answer" not in text
    assert not [cell.id for cell in answers if cell.source.split("\n\n")[1][:60] in text]


@pytest.mark.parametrize("kind", ["edition", "published", *GROUPS])
def test_every_check_that_a_box_names_is_called_in_the_notebook(kind, request, tmp_path):
    folder = make(tmp_path, "--parts", kind) if kind in GROUPS else request.getfixturevalue(kind)
    boxes = set(re.findall(r'check\("\w+", rlc\)', (folder / SOURCE).read_text()))
    code = "\n".join(cell.source for cell in code_of(folder)[1])
    assert boxes and not [call for call in boxes if call not in code]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not here")
@pytest.mark.parametrize("kind", ["edition", "published"])
def test_the_notebook_uses_no_name_that_it_has_not_and_imports_none_that_it_uses_not(kind, request):
    path = request.getfixturevalue(kind) / NOTEBOOK
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F401,F821", str(path)]
    done = subprocess.run([*command, "--output-format", "concise"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", ["edition", "published"])
def test_the_notebook_never_turns_to_the_fast_room(kind, request):
    cells = code_of(request.getfixturevalue(kind))[0].cells
    assert not [cell.source for cell in cells if re.search(r"eecs598[./]fast|fast=True", cell.source)]


@pytest.mark.parametrize("kind", ["edition", "published"])
def test_the_notebook_names_nothing_that_the_source_lacks(kind, request):
    folder = request.getfixturevalue(kind)
    names = set(definitions((folder / SOURCE).read_text()))
    code = "\n".join(cell.source for cell in code_of(folder)[1])
    assert not set(re.findall(r"\brlc\.(\w+)", code)) - names
    prose = "\n".join(cell.source for cell in code_of(folder)[0].cells if cell.cell_type == "markdown")
    sources = (folder / SOURCE).read_text(), SOLUTION
    own, theirs = ({name.split(".")[-1] for name in definitions(text)} for text in sources)
    assert not set(re.findall(r"`(?:\w+\.)*(\w+)`", prose)) & (theirs - own)
    checked = re.findall(r'\bcheck\("(\w+)"', code)
    assert len(checked) >= 8 and all(set(CHECKS[check].needs) <= names for check in checked)


def test_the_published_edition_keeps_the_published_lesson(published, edition):
    checked = re.findall(r'\bcheck\("(\w+)"', "\n".join(cell.source for cell in code_of(published)[1]))
    assert set(checked) >= {check for part in PUBLISHED for check in PARTS[part].checks} & set(CHECKS)
    kept = {cell.id for cell in code_of(published)[0].cells}
    lost = [cell for cell in code_of(edition)[0].cells if cell.id not in kept]
    untagged = [cell for cell in lost if cell.cell_type == "code" and "beyond" not in cell.metadata.get("tags", [])]
    assert untagged and not [cell for cell in untagged if not re.search(
        r"rlc\.\w+|check\(|plain_loss|check_whole_gradient|look_and_step|model\.step", cell.source)]  # fmt: skip


SLOW = re.compile(r"\b(overfit|train|show_examples|caption_pictures|show_strip|plot_losses|judge|encoder_for|Timer"
                  r"|check_whole_gradient|cached_features|score_attention|print_looks|plot_similarity|score_captioner"
                  r"|new_captioner|explain_captions|watch_gates|rank_captions|inflate_bleu|leak_pictures"
                  r"|format_scores|read_photographs|decode_pictures|show_captions|show_source)\(")  # fmt: skip


def test_a_learners_path_through_the_notebook(edition, tmp_path, monkeypatch):
    """It stops at each undone part with one sentence; with the part written, the same cell runs and it goes on."""
    monkeypatch.setenv("EECS598_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("EECS598_DATA", str(write_scenes(tmp_path / "scenes.pt")))
    folder = tmp_path / "mine"
    write_edition({path.relative_to(edition).as_posix(): path.read_bytes()
                           for path in edition.rglob("*") if path.is_file()}, folder)  # fmt: skip
    cells, code = code_of(folder)
    from nbclient import NotebookClient  # as late as nbformat, which it imports

    client = NotebookClient(cells, timeout=120, resources={"metadata": {"path": str(folder / "notebooks")}})
    stops = []
    with client.setup_kernel():
        for index, cell in enumerate(cells.cells):
            if cell.cell_type != "code" or SLOW.search(cell.source) or cell.id.startswith("photos-"):
                continue
            while name := run_cell(client, cell, index):
                assert name not in stops, f"{name} was written, and still: {cell.outputs}"
                stops.append(name)
                source = (folder / SOURCE).read_text()
                (folder / SOURCE).write_text(fill(source, SOLUTION, [name]))
        shown = outputs_of_failing(client, "rlc.rnn_step_forward(*(torch.ones(2, n) for n in (3, 5)), *weights)")
    assert "mat1 and mat2 shapes" in shown["error"][-1] and len(shown["error"]) > 5, "no traceback"
    assert shown["stream"] == ["rnn_step_forward: prev_h is (2, 5), wanted (N, H) = (2, 4)"]
    assert stops[:4] == ["rnn_step_forward", "rnn_step_backward", "rnn_forward", "rnn_backward"]
    written = {name for part in PARTS if not part.startswith("captioner") for name in NAMES[part]}
    assert set(stops) >= {name for name in written if f'"{name}"' in "".join(cell.source for cell in code)}


def outputs_of_failing(client, code):
    """What a cell that fails shows: kind of output -> lines."""
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell

    client.nb.cells.append(new_code_cell(f"weights = torch.ones(3, 4), torch.ones(4, 4), torch.ones(4)\n{code}"))
    with contextlib.suppress(CellExecutionError):
        client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)
    return {output.output_type: "\n".join(output.get("traceback") or [output.text]).strip().splitlines()
            for output in client.nb.cells[-1].outputs}  # fmt: skip


def run_cell(client, cell, index):
    """The name of the undone part at which a cell stops, None if it runs. What the learner sees is one sentence."""
    from nbclient.exceptions import CellExecutionError

    try:
        client.execute_cell(cell, index)
    except CellExecutionError:
        (error,) = [output for output in cell.outputs if output.output_type == "error"]
        line, *more = "\n".join(error.traceback).splitlines()
        assert not more, f"{cell.source}\n\n{line}\n" + "\n".join(more)
        name, number = re.fullmatch(rf"(?:CheckError|NotImplementedError): {SENTENCE}", line).groups()
        return name
    return None


def test_a_cell_that_is_not_python_is_told():
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["!pip list\n"], "outputs": []}
    with pytest.raises(HandoutError, match=r"cell that begins with '!pip list\\n' is not plain Python"):
        notebook.cut_notebook({"cells": [cell]}, [], absent=["captioner_step"])
