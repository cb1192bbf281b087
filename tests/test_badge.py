"""The Colab badge of README.md and of the notebook."""

import json
import shutil

import pytest
from support import ROOT

from eecs598 import badge

ADDRESS = "https://colab.research.google.com/github/ann/course/blob/main/notebooks/rnn_lstm_captioning.ipynb"


@pytest.fixture
def project(tmp_path):
    """A folder with the README and the notebook of this project."""
    (tmp_path / "notebooks").mkdir()
    for name in ("README.md", badge.NOTEBOOK):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def read(project):
    return [(project / name).read_bytes() for name in ("README.md", badge.NOTEBOOK)]


def test_both_get_one_badge_below_the_title_and_nothing_else_changes(project, capsys):
    page, notebook = read(project)
    page, notebook = badge.remove_badge(page.decode()), json.loads(notebook)
    assert badge.main(["ann/course", "--root", str(project)]) == 0
    lines = (project / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[2].endswith(f"]({ADDRESS})") and lines[1] == lines[3] == ""
    assert lines[:2] + lines[4:] == page.splitlines()
    assert badge.remove_badge("\n".join(lines) + "\n") == page
    found = json.loads((project / badge.NOTEBOOK).read_text(encoding="utf-8"))
    assert "".join(found["cells"][0]["source"]).count(ADDRESS) == 1
    assert found["cells"][1:] == notebook["cells"][1:] and found["metadata"] == notebook["metadata"]
    assert "badge for ann/course" in capsys.readouterr().out


def test_again_changes_nothing_and_another_repository_replaces_it(project):
    badge.main(["ann/course", "--root", str(project)])
    once = read(project)
    badge.main(["ann/course", "--root", str(project)])
    assert read(project) == once
    badge.main(["zoe/other.name", "--branch", "fall/2026", "--root", str(project)])
    for before, after in zip(once, read(project)):
        assert after == before.replace(b"ann/course/blob/main", b"zoe/other.name/blob/fall/2026")


@pytest.mark.parametrize("arguments, message", [
    (["course"], "the repository is 'course'; it must be like owner/name"), ([""], "the repository is ''"),
    (["https://github.com/ann/course"], "the repository is 'https"), (["ann/course)](x"], "the repository is"),
    (["ann/course", "--branch", "a b"], "the branch is 'a b'"), (["ann/course\n"], "the repository is"),
])  # fmt: skip
def test_a_repository_that_is_none_changes_nothing(project, capsys, arguments, message):
    before = read(project)
    assert badge.main([*arguments, "--root", str(project)]) == 1
    assert read(project) == before
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["not JSON", "{}", '{"cells": []}', "[]"])
def test_a_notebook_that_is_none_is_named_and_nothing_is_changed(project, capsys, content):
    (project / badge.NOTEBOOK).write_text(content)
    before = read(project)
    assert badge.main(["ann/course", "--root", str(project)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {project / badge.NOTEBOOK}: no notebook (")
    assert read(project) == before


def test_a_text_without_a_title_has_no_place_for_it(project):
    (project / "README.md").write_text("no title\n")
    before = read(project)
    assert badge.main(["ann/course", "--root", str(project)]) == 1 and read(project) == before
    assert badge.add_badge("# Title", "B") == badge.add_badge("# Title\n", "B") == "# Title\n\nB\n"
