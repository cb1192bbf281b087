"""Student editions for tests: cutting the solution, and writing answers back into the boxes."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import torch

import helpers
from eecs598.checks import CHECKS
from eecs598.grad import CheckError
from eecs598.handout import parts, source
from eecs598.handout.__main__ import main
from eecs598.handout.edition import SOURCE
from eecs598.handout.parts import PARTS
from support import ROOT

SOLUTION = (ROOT / SOURCE).read_text(encoding="utf-8")
STUDENT = (ROOT / "tests" / "support" / "student" / SOURCE).read_text(encoding="utf-8")
NAMES = {part: [answer.name for answer in PARTS[part].answers] for part in PARTS}  # part -> its functions
PUBLISHED = [part for part in PARTS if PARTS[part].published]
ABSENT = [part for part in PARTS if part not in PUBLISHED]
SENTENCE = r"(\S+) is still to do\. Write it in rnn_lstm_captioning\.py, line (\d+); its box says what to do\. .*"


def cut(todo, absent=()):
    return source.cut_source(SOLUTION, todo, absent)


def make(folder, *options):
    assert main([str(folder / "edition"), *options]) == 0
    return folder / "edition"


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
            for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}  # fmt: skip


def definitions(text):
    """Functions, classes, methods and constants: name -> node."""
    tree = ast.parse(text)
    return dict([*source.definitions(tree), *source.constants(tree)])


def load(text, folder):
    """A source as a module, written to `folder` so that it has lines to show."""
    path = folder / SOURCE
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("rnn_lstm_captioning", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(student, other, names):
    """The student's source with `other`'s functions in the boxes of `names`, and with what only `other` has."""
    theirs, wanted, known = other.splitlines(), definitions(other), parts.answers()
    lines, boxes = student.splitlines(), definitions(student)
    for name in sorted(set(names) & set(wanted), key=lambda name: -boxes[name].lineno):
        answer = known[name][1] if other is SOLUTION else parts.Answer(name, "")
        start, box = source._answer_line(answer, wanted[name]), boxes[name]
        first = next(i for i in range(box.lineno, box.end_lineno) if lines[i].strip() == f"# TODO {name}")
        lines[first - 1 : box.end_lineno] = theirs[start - 1 : wanted[name].end_lineno]
    classes, whole = definitions("\n".join(lines)), []
    for name, node in reversed(wanted.items()):
        if name in classes or re.search(rf"^from .* import .*\b{name}\b", student, re.MULTILINE):
            continue
        owner = name.rpartition(".")[0]
        text = ["", *theirs[source.first_line(node) - 1 : node.end_lineno]]
        if not owner:
            whole = [*text, *whole]
        elif owner in classes:
            lines[classes[owner].end_lineno : classes[owner].end_lineno] = text
    lines += whole
    return "\n".join(_with_imports(lines, other)) + "\n"


def _with_imports(lines, other):
    """With what only `other` imports."""
    here, there = (source.imports(ast.parse(text)) for text in ("\n".join(lines), other))
    known = {name for name, _, _ in here}
    missing = dict.fromkeys(ast.unparse(node) for name, node, _ in there if name not in known)
    first = here[0][1].lineno - 1
    return [*lines[:first], *missing, *lines[first:]]


def put_back(student, chosen):
    return fill(student, SOLUTION, [name for part in chosen for name in NAMES[part]])


def assert_stops(check, module):
    """A check stops at a TODO, with one sentence and the right line; returns the function's name."""
    with pytest.raises(CheckError) as caught:
        helpers.check(check, module)
    name, line = re.fullmatch(SENTENCE, str(caught.value)).groups()
    text = Path(module.__file__).read_text().splitlines()
    assert text[int(line) - 1].strip() == f'raise NotImplementedError("TODO: {name}")'
    return name


def assert_passes(check, module):
    assert CHECKS[check] and helpers.check(check, module).passed


def captioner(module, cell_type="attn"):
    words = {token: i for i, token in enumerate(("<NULL>", "<START>", "<END>", "<UNK>", "a", "b"))}
    return module.CaptioningRNN(words, 400, 8, 6, cell_type, image_encoder_pretrained=False, ignore_index=0)


def captioner_calls(module, cell_type="attn"):
    """What a captioner does, by part."""
    model, images = captioner(module, cell_type), torch.rand(2, 3, 64, 96)
    model(images, torch.tensor([[1, 4, 5, 2], [1, 5, 2, 0]])).backward()
    model.step(torch.tensor([1, 1]), model.begin(images))
    model.sample(images, max_length=3)
