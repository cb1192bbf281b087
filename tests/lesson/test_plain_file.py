"""The lesson's file stays plain: short, without options, and with nothing in it that nobody calls."""

import ast
import json
import re

import pytest
from support import ROOT

SOURCE = (ROOT / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
FUNCTIONS = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)]
NOTEBOOK = json.loads((ROOT / "notebooks" / "rnn_lstm_captioning.ipynb").read_text(encoding="utf-8"))


def test_it_can_be_read_in_one_sitting():
    assert len(SOURCE.splitlines()) <= 620
    assert min(node.lineno for node in FUNCTIONS if node.name == "rnn_step_forward") < 60
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in FUNCTIONS}
    assert max(lengths.values()) <= 40, lengths


def test_the_captioners_forward_is_a_handful_of_statements():
    (captioner,) = [node for node in TREE.body if isinstance(node, ast.ClassDef) and node.name == "CaptioningRNN"]
    (forward,) = [node for node in captioner.body if isinstance(node, ast.FunctionDef) and node.name == "forward"]
    statements = [node for node in ast.walk(forward) if isinstance(node, ast.stmt) and node is not forward]
    assert len(statements) - 1 <= 10  # less the docstring


def test_of_the_project_it_imports_the_bridge_and_the_image_encoder():
    imported = {node.module for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom)}
    assert {module for module in imported if module.startswith("eecs598")} == {"eecs598.bridge", "eecs598.encoders"}


@pytest.mark.parametrize("word", ["lengths", "autocast", "dropout", "out=", "is_cuda", "# ANSWER", "lru_cache"])
def test_what_is_about_speed_options_or_the_handout_is_elsewhere(word):
    assert word not in SOURCE


def test_every_function_is_called_by_another_or_by_the_notebook():
    code = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
    called = {"__init__", "forward"}
    unused = [
        node.name for node in FUNCTIONS
        if node.name not in called and len(re.findall(rf"(?<!def )\b{node.name}\b(?!`)", SOURCE)) == 0
        and not re.search(rf"\.{node.name}\b", code)
    ]  # fmt: skip
    assert not unused
