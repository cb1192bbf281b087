"""The notebook with files of the published assignment in the place of ours: from top to bottom without an error."""

import json
import os

import pytest
from support import ROOT, published_files
from support.notebook_run import NotebookRunner

from eecs598.captioner import CELL_TYPES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each notebook runs in a fork")
TRAINED = {"rnn": "cell-049", "lstm": "cell-085", "attn": "cell-105"}
SHOWN = {"rnn": "cell-051", "lstm": "cell-086", "attn": "cell-106"}


def untimed_cells():
    """The ids of the notebook's code cells that do not time the same functions once more."""
    notebook = json.loads((ROOT / "notebooks" / "rnn_lstm_captioning.ipynb").read_text(encoding="utf-8"))
    code = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}
    timed = {name for name, source in code.items() if "bench." in source or "measured" in source}
    assert 5 < len(timed) < 15
    return [name for name in code if name not in timed]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the notebook with a source; returns cell id -> (text, error)."""
    folder = tmp_path_factory.mktemp("notebooks")
    with NotebookRunner() as runner:

        def run(source, cells=None):
            place = folder / str(len(list(folder.iterdir())))
            return {name: (text, error) for name, text, error in runner.run(source, place, cells)}

        yield run


@pytest.mark.parametrize("habits", published_files.TOGETHER)
def test_a_published_file_runs_from_top_to_bottom(run, habits):
    cells = run(published_files.TOGETHER[habits], untimed_cells())
    assert not {name: error for name, (_, error) in cells.items() if error}
    texts = {name: text for name, (text, _) in cells.items()}
    left_out = [name for name, text in texts.items() if "this cell is left out" in text and "photos-" not in name]
    assert "lstm_step_forward is not in this file: this cell is left out" in texts["cell-060"]
    assert not set(left_out) & {*TRAINED.values(), *SHOWN.values()} and len(left_out) < len(cells) / 4
    for cell_type in CELL_TYPES:
        assert "Figure size" in texts[SHOWN[cell_type]], texts[SHOWN[cell_type]]
    assert all(name in texts["cell-125"] for name in ("BLEU-4", "CIDEr-D", *CELL_TYPES))
    assert "Figure size" in texts["cell-109"]  # where it looked


def test_our_own_file_leaves_out_nothing_but_photographs(run):
    cells = run((ROOT / "rnn_lstm_captioning.py").read_text(encoding="utf-8"), untimed_cells())
    assert not {name: error for name, (_, error) in cells.items() if error}
    left_out = {name for name, (text, _) in cells.items() if "left out" in text}
    assert left_out == {name for name in cells if name.startswith("photos-")} - {"photos-speaker"}


def test_a_mistake_is_still_a_check_that_misses(run):
    """Only what is missing is left out: what is wrong is said as ever."""
    _, source = published_files.WRONG["gate order"]
    cells = run(source, [name for name in untimed_cells() if not name.startswith("photos-")][:70])
    assert cells["cell-077"][1].startswith("CheckError") and "gates" in cells["cell-077"][1]
