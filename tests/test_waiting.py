"""How OpenMP's threads wait is set before torch is imported, whichever way the program is entered."""

import json
import os
import subprocess
import sys

import pytest
from support import ROOT

from eecs598 import WAITING

DOORS = [
    "helpers", "eecs598", "eecs598.coco.__main__", "eecs598.scenes.__main__", "eecs598.bench.__main__",
    "eecs598.grading.__main__", "eecs598.handout.__main__",
]  # fmt: skip
PROGRAM = """
import json, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise SystemExit(json.dumps({name: os.environ.get(name) for name in sys.argv[2:]}))

sys.meta_path.insert(0, Watch())
try:
    __import__(sys.argv[1], fromlist=[""])
    import torch
except SystemExit as found:
    print(found)
"""


def seen_by_torch(door, **variables):
    """The variables when torch is first imported."""
    environment = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", PROGRAM, door, *WAITING]
    done = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("door", DOORS)
def test_torch_finds_how_its_threads_are_to_wait(door):
    assert seen_by_torch(door) == WAITING


def test_what_the_user_has_set_stays():
    assert seen_by_torch("helpers", GOMP_SPINCOUNT="7") == WAITING | {"GOMP_SPINCOUNT": "7"}
    assert seen_by_torch("helpers", OMP_WAIT_POLICY="active") == dict.fromkeys(WAITING)


def test_the_notebook_imports_helpers_before_torch():
    notebook = json.loads((ROOT / "notebooks" / "rnn_lstm_captioning.ipynb").read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert 0 < code.index("\nimport helpers") < code.index("\nimport torch")
