"""The student's notebook: the solution's, without outputs, answers, and cells that need what the source file lacks."""

import ast
import itertools
import re

from eecs598.handout.parts import HandoutError
from eecs598.handout.source import definitions, used_names

HOW_TO_WORK = """\
Write your code in `rnn_lstm_captioning.py`, in the boxes marked TODO. A change takes effect with the next cell that \
you run; there is no need to restart. A cell that needs a part you have not written yet stops and says where it is. \
Answer the questions at the end of each part in words, in the cells marked *Your answer here.*"""
KEEP_UP = """\
%load_ext autoreload
%autoreload 2
helpers.explain_todos()"""


def cut_notebook(notebook, notices, gone=(), absent=()):
    """Return a notebook (a dict) without outputs and without cells tagged `answer` or `fast`, headed by `notices`.

    gone: names that the student's source lacks; absent: parts that it lacks. Cells that need them are removed. If any
    part is absent, so are cells tagged `beyond`.
    """
    left_out = {"answer", "fast", *(["beyond"] if absent else [])}
    cells = [cell for cell in notebook["cells"] if not left_out & set(_tags(cell))]
    if absent:
        cells = _without_absent(cells, set(gone), set(absent))
    cells = [_cleared(cell) for cell in cells]
    title, _, text = _text(cells[0]).partition("\n")
    quote = "\n>\n".join(f"> {line}" for line in notices)
    cells[0]["source"] = _lines(f"{title}\n\n{quote}\n{text}")
    library = next(i for i, cell in enumerate(cells) if re.search("^import helpers$", _text(cell), re.MULTILINE))
    cells[library + 1 : library + 1] = [
        {"cell_type": "markdown", "id": "student-text", "metadata": {}, "source": _lines(HOW_TO_WORK)},
        {"cell_type": "code", "id": "student-code", "metadata": {}, "source": _lines(KEEP_UP),
         "execution_count": None, "outputs": []},
    ]  # fmt: skip
    return notebook | {"cells": cells}


def _text(cell):
    return "".join(cell["source"])


def _lines(text):
    return text.splitlines(keepends=True)


def _tags(cell):
    return cell["metadata"].get("tags", ())


def _cleared(cell):
    """Return a cell without its outputs and without the metadata of its last run."""
    cell = dict(cell, metadata={key: value for key, value in cell["metadata"].items() if key != "execution"})
    return cell | {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell


def _without_absent(cells, gone, absent):
    """Remove the code cells that need what is absent, and the prose that introduces only such cells."""
    kept, known = [], set()
    for cell in cells:
        if cell["cell_type"] == "code":
            code = _text(cell)
            try:
                own, used = _assigned(code), set(used_names(ast.parse(code)))
            except SyntaxError as error:
                raise HandoutError(f"the notebook's cell that begins with {code[:40]!r} is not plain Python "
                                   f"({error.msg}): leave out magics such as %time and commands such as !ls") from None
            checked = set(re.findall(r'\bcheck\("(\w+)"', code))
            if (used & gone) - own - known or checked & absent:
                gone |= own - known
                kept.append(None)
                continue
            known |= own
        kept.append(cell)
    return _without_lonely_prose(cells, kept)


def _assigned(code):
    """Return the names that a cell defines for later cells."""
    tree = ast.parse(code)
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return {name for target in targets for name in used_names(target)} | {name for name, _ in definitions(tree)}


def _without_lonely_prose(cells, kept):
    """Remove a markdown cell if there is code between it and the next one, and none of that code is kept."""
    result = []
    for i, cell in enumerate(kept):
        below = list(itertools.takewhile(lambda k: cells[k]["cell_type"] == "code", range(i + 1, len(cells))))
        if cell and (cell["cell_type"] == "code" or not below or any(kept[k] for k in below)):
            result.append(cell)
    return result
