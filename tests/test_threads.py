"""How long threads wait for work is set before torch is imported, whichever way the project is entered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eecs598

ROOT = Path(eecs598.__file__).parent.parent
SPY = """
import os, sys
class Spy:
    def find_spec(self, name, *_):
        if name == "torch":
            print("when torch is imported:", os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.meta_path.insert(0, Spy())
import runpy
"""


def setup_of_the_notebook():
    """The notebook's first cell that imports the project."""
    cells = json.loads((ROOT / "notebooks/rnn_lstm_captioning.ipynb").read_text(encoding="utf-8"))["cells"]
    return next(source for cell in cells if "import helpers" in (source := "".join(cell["source"])))


DOORS = {
    "helpers.py": "runpy.run_path('helpers.py', run_name='__main__')",
    **{name: f"runpy.run_module('eecs598.{name}', run_name='__main__', alter_sys=True)"
       for name in ("bench", "coco", "scenes", "grading")},
    "notebook": setup_of_the_notebook(),
    "tests": "sys.path.insert(0, 'tests'); import conftest",
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("set_by_the_user, wanted", [
    ({}, eecs598.SPINS), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "None"),
])  # fmt: skip
def test_threads_wait_as_the_project_or_the_user_says(door, set_by_the_user, wanted):
    environment = dict(os.environ)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", SPY + DOORS[door]], cwd=ROOT, env=environment | set_by_the_user,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.splitlines()[-1:] == [f"when torch is imported: {wanted}"], done.stderr
