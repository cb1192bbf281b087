"""The student edition as a folder and a zip, and the command that makes it."""

import ast
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT
from support.editions import PUBLISHED, make, put_back, texts

from eecs598.badge import main as add_badges
from eecs598.handout import __main__ as command
from eecs598.handout import edition as edition_module
from eecs598.handout.__main__ import main
from eecs598.handout.edition import FOLDER, INSTRUCTORS_LINES, NOTEBOOK, SOURCE, STAMP
from eecs598.handout.parts import PARTS, HandoutError, choose_parts


def test_what_jupyter_hides_in_folders_is_no_part_of_an_edition(tmp_path):
    for name in ("docs/page.md", "docs/.ipynb_checkpoints/page-checkpoint.md", "eecs598/utils.py", "tests/conftest.py",
                 "eecs598/.ipynb_checkpoints/utils-checkpoint.py", ".gitignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    copied = edition_module._copied_files(tmp_path)
    assert set(copied) - {"tests/conftest.py"} == {"docs/page.md", "eecs598/utils.py", ".gitignore"}


def test_the_folder_has_what_a_student_needs_and_nothing_of_an_instructors(edition):
    names = set(texts(edition))
    assert {"helpers.py", "eecs598/bridge.py", "eecs598/checks/formulas.py", "datasets/README.md", "Makefile"} <= names
    assert not [name for name in names if re.search(r"/handout|grading|/fast|student|instructors|^\.ci", name)]
    assert not [name for name, text in texts(edition).items() if "INSTRUCTORS" in text]


def test_a_copy_of_the_solution_is_not_handed_out(tmp_path):
    for name in (SOURCE, NOTEBOOK, "eecs598/__init__.py", "tests/conftest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    everything = edition_module.Edition(list(PARTS), [])
    assert "eecs598/__init__.py" in edition_module.edition_files(everything, tmp_path)
    shutil.copy(ROOT / SOURCE, tmp_path / "eecs598" / "old_version.py")
    with pytest.raises(HandoutError, match=r"old_version.py would be handed out, but defines \w+: move it"):
        edition_module.edition_files(everything, tmp_path)
    with (tmp_path / "eecs598" / "old_version.py").open("a") as file:
        file.write("<<<<<<< HEAD\n")
    with pytest.raises(HandoutError, match=r"old_version.py would be handed out, but line \d+ is not valid Python"):
        edition_module.edition_files(everything, tmp_path)


# Where the project is installed in development mode, what the edition lacks would be found there.
ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


def run_in(folder, program):
    """What a program prints, run in the folder of an edition, and with nothing of the project but that."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE + program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORTS = """
import importlib, pkgutil, eecs598
for module in pkgutil.walk_packages(eecs598.__path__, "eecs598."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(eecs598.__path__[0])
"""


def test_every_module_of_an_edition_can_be_imported_without_the_fast_room(edition, tmp_path):
    mine = shutil.copytree(edition, tmp_path / "mine")
    assert run_in(mine, IMPORTS).split() == [str(mine / "eecs598")]


TRAINING = """
import torch
import rnn_lstm_captioning as rlc
from eecs598.training import solver
from eecs598.training.objective import Objective
from eecs598.training.options import Options
torch.manual_seed(0)
words = {word: k for k, word in enumerate(["<NULL>", "<START>", "<END>", "a", "b"])}
images, captions = torch.rand(4, 3, 64, 64), torch.tensor([[1, 3, 4, 2], [1, 4, 2, 0], [1, 3, 2, 0], [1, 4, 4, 2]])
for cell in ("rnn", "lstm", "attn"):
    model = rlc.CaptioningRNN(words, 400, 8, 6, cell, image_encoder_pretrained=False, ignore_index=0)
    quiet = Options(progress=False, plot=False)
    losses = solver.train(
        model, images, captions, num_epochs=20, batch_size=4, learning_rate=1e-2, options=quiet).losses
    assert losses[-1] < 0.9 * losses[0], losses
    try:
        Objective(model)(images, captions)
    except ValueError as error:
        print(error)
"""


def test_an_edition_trains_by_the_students_own_code_and_says_that_the_fast_room_is_not_there(edition, tmp_path):
    mine = shutil.copytree(edition, tmp_path / "mine")
    (mine / SOURCE).write_text(put_back((edition / SOURCE).read_text(), list(PARTS)))
    said = run_in(mine, TRAINING).splitlines()
    assert len(said) == 3 and all("eecs598.fast" in line or "eecs598/fast" in line for line in said), said


def test_the_tests_of_an_edition_find_all_that_they_import(edition, tmp_path):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0"]
    mine = shutil.copytree(edition, tmp_path / "mine")
    done = subprocess.run(command, cwd=mine, capture_output=True, text=True)
    assert done.returncode == 0 and "test_ptb.py" in done.stdout, done.stdout + done.stderr


def test_lines_for_instructors_go(edition):
    text = "a:\n\tb\n\n# INSTRUCTORS ONLY\nc:\n\td\n# END INSTRUCTORS\n\ne:\n"
    assert INSTRUCTORS_LINES.sub("", text) == "a:\n\tb\n\ne:\n"
    assert "handout" not in (edition / "Makefile").read_text()


def test_the_zip_holds_the_folder(edition):
    with zipfile.ZipFile(f"{edition}.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {FOLDER}
        held = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert held == {path.relative_to(edition).as_posix(): path.read_bytes()
                    for path in edition.rglob("*") if path.is_file()}  # fmt: skip


def test_the_viewer_works_in_the_unpacked_folder(edition, tmp_path):
    """Its page is a file beside the module, which the edition must bring."""
    shutil.unpack_archive(f"{edition}.zip", tmp_path)
    program = ("import numpy as np, eecs598.vis.viewer as v; print(v.__file__); "
               "print(v.attention_viewer([np.zeros((3, 8, 8))], ['one'], np.ones((1, 1, 2, 2))).page)")  # fmt: skip
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path / FOLDER, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    file, page = result.stdout.split("\n", 1)
    assert Path(file) == tmp_path / FOLDER / "eecs598" / "vis" / "viewer.py"
    assert "<script>" in page and "one" in page


def test_the_same_solution_gives_the_same_zip(edition, tmp_path):
    assert Path(f"{make(tmp_path)}.zip").read_bytes() == Path(f"{edition}.zip").read_bytes()


def test_a_solution_with_a_syntax_error_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(edition, root):
        compile("def open(:", "rnn_lstm_captioning.py", "exec")

    monkeypatch.setattr(command, "edition_files", fail)
    assert main([str(tmp_path / "edition")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: invalid syntax (rnn_lstm_captioning.py, line 1)") and error.count("\n") == 1


def test_the_badge_is_that_of_the_editions_own_repository(tmp_path):
    """Never that of the solution's, where the answers are."""
    for name in (SOURCE, NOTEBOOK, "README.md", "tests/conftest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    assert add_badges(["staff/solution", "--root", str(tmp_path)]) == 0
    readme = tmp_path / "README.md"
    for repository, newline in itertools.product(("", "class/wi2022"), ("\n", "\r\n")):  # git writes \r\n on Windows
        readme.write_text(readme.read_text(encoding="utf-8"), encoding="utf-8", newline=newline)
        whole = edition_module.Edition(list(PARTS), [], repository=repository)
        files = edition_module.edition_files(whole, tmp_path)
        for name in ("README.md", NOTEBOOK):
            assert b"staff/solution" not in files[name]
            assert (b"colab.research.google.com/github/class/wi2022/blob" in files[name]) == bool(repository)
    assert main([str(tmp_path / "edition"), "--repo", "no address"]) == 1


def test_due_text_and_ai_use_head_notebook_and_source(tmp_path):
    due, rule = 'Friday 17:00, "late" \\o/ """no"""', "Ask it, but write\nyourself."
    folder = make(tmp_path, "--due", due, "--ai-use", rule, "--parts", "rnn_step_forward")
    title, *quoted = json.loads((folder / NOTEBOOK).read_text())["cells"][0]["source"][:9]
    said = {line.strip().removeprefix("> ") for line in quoted}
    assert title.startswith("# ") and {f"Due: {due}", "Use of AI: Ask it, but write yourself."} <= said
    docstring = ast.get_docstring(ast.parse((folder / SOURCE).read_text()))
    assert f"Due: {due}\nUse of AI: Ask it, but write yourself." in docstring


def run(capsys, *arguments):
    """The command's status and its one line on standard error."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    return status, capsys.readouterr().err.rstrip("\n")


def test_an_earlier_handout_is_replaced(tmp_path):
    folder = make(tmp_path)
    files = set(texts(folder))
    stamp = json.loads((folder / STAMP).read_text())
    (folder / "left over").write_text("")  # a file of an earlier version
    empty = hashlib.sha256(b"").hexdigest()
    (folder / STAMP).write_text(json.dumps(stamp | {"files": stamp["files"] | {"left over": empty}}))
    for generated in ("datasets/scenes-9-3.pt", "eecs598/__pycache__/utils.pyc", "rnn_lstm_captioning.egg-info/a"):
        (folder / generated).parent.mkdir(exist_ok=True)
        (folder / generated).write_text("")
    assert sorted(texts(make(tmp_path, "--parts", "lstm,rnn_forward"))) == sorted(files)
    assert json.loads((folder / STAMP).read_text())["todo"] == choose_parts(["lstm", "rnn_forward"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edition", "edition.zip"]
    assert texts(make(tmp_path, "--parts", "lstm", "rnn_forward"))[SOURCE] == texts(folder)[SOURCE]


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


def test_what_using_a_handout_makes_is_replaced_and_a_damaged_stamp_is_one_line(tmp_path, capsys):
    folder = make(tmp_path)
    for made in ("datasets/scenes-10-5.pt", "datasets/features/a.npy", "build/page.html"):
        (folder / made).parent.mkdir(exist_ok=True)
        (folder / made).write_text("made")
    assert run(capsys, folder)[0] == 0 and not (folder / "build").exists()
    (folder / ".handout.json").write_text("[]")
    status, error = run(capsys, folder)
    assert status == 1 and error.startswith(f"error: {folder / '.handout.json'}: damaged") and "\n" not in error


@pytest.mark.parametrize("added", [".git/HEAD", "grades.csv", "notebooks/mine.ipynb", "datasets/coco.pt"])
def test_what_was_added_to_an_earlier_handout_is_not_lost(added, tmp_path, capsys):
    folder = make(tmp_path)
    (folder / added).parent.mkdir(exist_ok=True)
    (folder / added).write_text("mine")
    status, error = run(capsys, folder)
    assert status == 1 and f"{folder / added} is not part of the handout and would be lost" in error
    assert (folder / added).read_text() == "mine"


@pytest.mark.parametrize("edited", [SOURCE, NOTEBOOK, "README.md"])
def test_edits_to_an_earlier_handout_are_not_lost(edited, tmp_path, capsys):
    folder = make(tmp_path)
    text = (folder / edited).read_text(encoding="utf-8").replace("Write", "Please write", 1) + "\n"
    (folder / edited).write_text(text, encoding="utf-8")
    status, error = run(capsys, folder)
    assert status == 1 and f"{folder / edited} was edited, and the changes would be lost" in error
    assert (folder / edited).read_text(encoding="utf-8") == text


def test_running_the_notebook_of_an_earlier_handout_is_no_edit(tmp_path, capsys):
    folder = make(tmp_path)
    notebook = json.loads((folder / NOTEBOOK).read_text(encoding="utf-8"))
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        cell["execution_count"] = number
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["done"]}]
    (folder / NOTEBOOK).write_text(json.dumps(notebook), encoding="utf-8")
    assert run(capsys, folder) == (0, "")


@pytest.mark.parametrize("step", ["_write_zip", "rename", "replace"])
def test_a_failure_leaves_the_earlier_handout(step, tmp_path, capsys, monkeypatch):
    folder = make(tmp_path, "--parts", "rnn")
    before, rename = texts(folder), Path.rename

    def fail(path, *args):
        if step == "rename" and not path.name.endswith(".part"):
            return rename(path, *args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edition_module if step == "_write_zip" else Path, step, fail)
    status, error = run(capsys, folder)
    assert status == 1 and "No space left" in error and texts(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edition", "edition.zip"]


def test_wrong_usage_is_one_line(tmp_path, capsys):
    status, error = run(capsys, tmp_path / "x", "--parts", "rnn,rmn_forward")
    assert status == 1 and error.startswith("error: there is no part 'rmn_forward'; groups are rnn, words, ")
    assert all(part in error for part in PARTS) and "\n" not in error
    assert run(capsys) == (2, "error: OUT is missing: give the folder to write, before --parts; see --help")
    assert run(capsys, tmp_path / "x", "--parts", "rnn", "--published")[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_student_edition_makes_no_student_edition(edition, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "ROOT", edition)
    status, error = run(capsys, tmp_path / "x")
    assert status == 1 and "is still to do in it; a student edition is made from the complete solution" in error
    assert not list(tmp_path.iterdir())


def test_the_list_names_every_part(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(PARTS)
    assert {line.split()[0] for line in lines if line.endswith("yes")} == set(PUBLISHED)
