"""The student edition, cut from the solution: each answer becomes a TODO box, each output of the notebook goes.

    python -m eecs598.handout OUT [--parts NAME... | --published] [--due TEXT] [--ai-use TEXT]
    python -m eecs598.handout --list

Comments in the solution say what an answer is:

    # ANSWER part: text     in a function: from here to the function's end is an answer. The TODO box in its place
                            says what the docstring says, and the text: a hint, or, after "Task:", "Formula:" and
                            "Hint:", each of these. Further comment lines, indented by three, go on with the text.
    # ANSWER part           above a definition: it gives the part's answer away and goes as a whole.

Private functions, caches and constants that only answers use go without a mark. In the notebook a cell with the tag
`answer` goes, and with the tag `beyond` from the published assignment's edition. In other files the lines from one
with INSTRUCTORS ONLY to one with END INSTRUCTORS go.
"""

import ast
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import sys
import textwrap
import tokenize
import zipfile
from pathlib import Path
from typing import NamedTuple

from eecs598 import commands
from eecs598.checks import CHECKS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "rnn_lstm_captioning.py"
NOTEBOOK = "notebooks/rnn_lstm_captioning.ipynb"
STAMP = ".handout.json"  # by this file an earlier handout is known
FOLDER = "rnn_lstm_captioning"  # the folder in the zip

# What is copied besides the source, the notebook and some tests; what is for instructors stays behind.
COPIED = ("README.md", "LICENSE", "Makefile", "pyproject.toml", ".gitignore", "helpers.py", "datasets/README.md",
          "datasets/.gitignore", "docs/*", "eecs598/**/*.py", "eecs598/**/*.html")  # fmt: skip
INSTRUCTORS = ("handout", "grading", "instructors")
INSTRUCTORS_LINES = re.compile(r"^.*\bINSTRUCTORS ONLY\b(?:.*\n)+?.*\bEND INSTRUCTORS\b.*\n+", re.MULTILINE)

GROUPS = {
    "rnn": "rnn_",
    "words": ("word_embedding_", "temporal_"),
    "lstm": "lstm_",
    "attention": ("dot_product_attention", "attention_lstm_"),
    "captioner": "captioner_",
}
PUBLISHED = (
    "rnn_step_forward", "rnn_step_backward", "rnn_forward", "rnn_backward", "word_embedding_module",
    "temporal_softmax_loss", "captioner_init", "captioner_forward", "captioner_sample", "lstm_module",
    "dot_product_attention", "attention_lstm_module",
)  # fmt: skip
CAPTIONER_CHECKS = {"captioner_init": "_captioner_loss", "captioner_forward": "_captioner_loss",
                    "captioner_step": "_captioner_sample", "captioner_sample": "_captioner_sample"}  # fmt: skip


class HandoutError(ValueError):
    """The edition cannot be made. The message says why, in one line."""


# ---------------------------------------------------------------------------------------------------------
# The marks
# ---------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What one mark marks. Lines are numbered from 1; the answer's are from the mark's first line to `last`."""

    part: str
    name: str  # the function's, as LSTM.forward
    text: str  # the mark's
    first: int
    code: int  # the first line after the mark
    last: int
    whole: bool  # the mark stands above the definition
    node: ast.AST


def find_answers(source):
    """The marks of a Python source, in its order. Raises HandoutError for one that marks nothing or is one too many."""
    lines, definitions = source.splitlines(), list(_definitions(ast.parse(source)))
    comments = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()}  # fmt: skip
    answers = []
    for first in sorted(comments):
        mark = re.match(r"\s*# ANSWER (\w+)(?:: (.*))?$", lines[first - 1])
        if not mark:
            continue
        code, text = first + 1, [mark[2] or ""]
        while code in comments and (more := re.match(r"\s*# {3,}(.*)", lines[code - 1])):
            text.append(more[1])
            code += 1
        name, node, whole = _marked(definitions, first, code)
        if node is None:
            raise HandoutError(f"line {first}: the mark {mark[1]} is neither in a function nor above a definition")
        if any(answer.name == name for answer in answers):
            raise HandoutError(f"line {first}: the mark {mark[1]} is the second one of {name}")
        answers.append(Answer(mark[1], name, " ".join(text), first, code, node.end_lineno, whole, node))
    return answers


def _marked(definitions, first, code):
    """The definition that a mark belongs to: name, node, and whether the mark stands above it."""
    for name, node in definitions:
        if _start(node) == code:
            return name, node, True
        if isinstance(node, ast.FunctionDef) and node.lineno < first <= node.end_lineno:
            return name, node, False
    return "", None, False


def _definitions(tree):
    """(name, node) of the functions and classes of a module, and of their methods, as LSTM.forward."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef):
                yield f"{node.name}.{method.name}", method


def _constants(tree):
    """(name, node) of the assignments of a module, as BLOCK_ROWS = 512."""
    return [(node.targets[0].id, node) for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]  # fmt: skip


def _start(node):
    """A definition's first line, with its decorators."""
    return min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))


def list_parts(source):
    """Part -> the names of its functions, in the order of the lesson's groups."""
    parts = {}
    for answer in find_answers(source):
        parts.setdefault(answer.part, []).extend([] if answer.whole else [answer.name])
    for part in parts:
        group_of(part)
    return {part: parts[part] for start in GROUPS.values() for part in parts if part.startswith(start)}


def group_of(part):
    """The name of a part's group."""
    for group, start in GROUPS.items():
        if part.startswith(start):
            return group
    raise HandoutError(f"the part {part!r} belongs to none of the groups {', '.join(GROUPS)}")


def checks_of(part):
    """The names of the checks that a part must pass: its own, or those of the captioner with each of the cells."""
    return [name for name in CHECKS if name == part or name.endswith(CAPTIONER_CHECKS.get(part, "?"))]


def choose_parts(names, parts):
    """The parts that names of parts and of groups name, in the order of `parts`. Raises HandoutError."""
    for name in names:
        if name not in parts and name not in GROUPS:
            known = f"groups are {', '.join(GROUPS)}; parts are {', '.join(parts)}"
            raise HandoutError(f"no part is named {name!r}; {known}")
    return [part for part in parts if part in names or group_of(part) in names]


# ---------------------------------------------------------------------------------------------------------
# The source
# ---------------------------------------------------------------------------------------------------------


def cut_source(source, todo, absent=()):
    """The solution without its answers.

    todo: parts whose answers become TODO boxes. absent: parts whose functions are left out, with all that uses them.
    The other parts stay; no mark does.
    """
    lines = source.splitlines()
    for answer in reversed(find_answers(source)):
        if answer.part in absent or (answer.whole and answer.part in todo):
            _delete(lines, answer.first if answer.whole else _start(answer.node), answer.last)
        elif answer.part in todo:
            lines[answer.first - 1 : answer.last] = _box(answer)
        else:
            del lines[answer.first - 1 : answer.code - 1]
    gone = {answer.name for answer in find_answers(source) if answer.part in absent}
    return _drop_empty_sections(_prune(lines, gone))


def _delete(lines, first, last):
    """Delete the lines from `first` to `last`, with the blank ones before them."""
    while not lines[first - 2].strip():
        first -= 1
    del lines[first - 1 : last]


def _prune(lines, gone):
    """Delete what uses a name of `gone`, and private functions, caches and constants that nothing uses."""
    while True:
        tree = ast.parse("\n".join(lines))
        used = _names(tree)
        for name, node in [*_definitions(tree), *_constants(tree)]:
            inside, short = _names(node), name.split(".")[-1]
            private = isinstance(node, ast.Assign) or re.match(r"_[^_]|\w+Cache$", short)
            if ("." not in name and gone & set(inside)) or (private and used.count(short) == inside.count(short)):
                gone = gone | {name}
                _delete(lines, _start(node), node.end_lineno)
                break  # the others have moved
        else:
            return lines


def _names(tree):
    """Every name and attribute that a piece of code uses, each time."""
    return [node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute))]  # fmt: skip


def _drop_empty_sections(lines):
    """Without the sections (a heading between two rules, and what follows it) in which only comments are left."""
    rule = re.compile(r"# -{20,}$")
    rules = [i for i, line in enumerate(lines) if rule.match(line)][::2]
    starts = [0, *rules, len(lines)]
    sections = [lines[first:last] for first, last in itertools.pairwise(starts)]
    kept = [section for section in sections if any(line.strip() and line[0] != "#" for line in section)]
    return "\n".join(line for section in kept for line in section).rstrip() + "\n"


# --- the box in an answer's place -------------------------------------------------------------------------


def _box(answer):
    """The lines that stand in an answer's place."""
    indent = " " * answer.node.body[0].col_offset
    rule = f"{indent}# {'-' * (108 - len(indent))}"
    lines = [rule, f"{indent}# TODO {answer.name}"]
    for label, text in _describe(answer).items():
        for piece, line in enumerate(text.splitlines()):
            start = f"{indent}# {'' if piece else label + ':':9}"
            line = re.sub(r"\([^()]{,20}\)", lambda shape: shape[0].replace(" ", "\0"), line)  # (N, H) stays together
            lines += textwrap.wrap(line, 110, initial_indent=start, subsequent_indent=f"{indent}#{' ' * 10}")
    lines = [line.replace("\0", " ") for line in lines]
    return [*lines, rule, f'{indent}raise NotImplementedError("TODO: {answer.name}")']


def _describe(answer):
    """What the box says: label -> text, from the docstring and the mark."""
    hint, *labelled = re.split(r"\b(Task|Formula|Hint): ", answer.text)
    said = {"Hint": hint} if hint else {}
    said |= {label: text.strip() for label, text in zip(labelled[::2], labelled[1::2])}
    task, formula, rest = _read_docstring(ast.get_docstring(answer.node) or "", "Task" not in said)
    box = {"Task": task, "Formula": formula} | said | {"Shapes": rest}
    if checks := checks_of(answer.part):
        box["Check"] = f"{', '.join(f'check({name!r}, rlc)' for name in checks)}, in the notebook".replace("'", '"')
    return {label: box[label] for label in ("Task", "Shapes", "Formula", "Hint", "Check") if box.get(label)}


def _read_docstring(text, has_task):
    """A docstring's task (the first sentence), formula (indented lines, or what follows a colon), and the rest."""
    paragraphs = re.split(r"\n\s*\n", text)
    formulas = [textwrap.dedent(paragraph) for paragraph in paragraphs if paragraph.startswith(" ")]
    plain = " ".join(" ".join(paragraph.split()) for paragraph in paragraphs if not paragraph.startswith(" "))
    if not has_task:
        return "", "\n".join(formulas), plain
    task, _, rest = plain.partition(". ")
    if not formulas and ": " in task:
        task, _, formula = task.partition(": ")
        formulas = [f"{formula.rstrip('.')}."]
    return f"{task.rstrip('.')}.", "\n".join(formulas), rest


# ---------------------------------------------------------------------------------------------------------
# What students read first
# ---------------------------------------------------------------------------------------------------------


def _notices(todo, due, ai_use):
    """The lines that head the notebook and the source."""
    texts = (("Due", due), ("Use of AI", ai_use))
    lines = [f"Student edition: {len(todo)} parts are to do, each in a box marked TODO."]
    return lines + [f"{label}: {' '.join(text.split())}" for label, text in texts if text]


def head_source(source, notices):
    """The source with `notices` in its docstring, below the first line."""
    first = ast.parse(source).body[0].lineno
    safe = [line.replace("\\", "\\\\").replace('"""', r"\"\"\"") for line in notices]
    wrapped = [line for notice in safe for line in textwrap.wrap(notice, 110)]
    lines = source.splitlines()
    lines[first:first] = ["", *wrapped]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------
# The notebook
# ---------------------------------------------------------------------------------------------------------

HOW_TO_WORK = """\
Write your answers into `rnn_lstm_captioning.py`, in the boxes marked TODO. A change there counts from the next cell \
that you run: there is nothing to restart. A cell that comes to a part still to do stops and says where it is."""
KEEP_UP = """\
%load_ext autoreload
%autoreload 2
helpers.explain_todos()"""


def cut_notebook(notebook, notices, gone=(), absent=()):
    """A notebook (a dict) without outputs and answers, headed by `notices`.

    gone: names that the student's source lacks; absent: parts that it lacks. Cells that need them go.
    """
    cells = [cell for cell in notebook["cells"] if "answer" not in _tags(cell)]
    if absent:
        cells = _without_absent([cell for cell in cells if "beyond" not in _tags(cell)], set(gone), set(absent))
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
    """A cell without its outputs, and without what its last run left in its metadata."""
    cell = dict(cell, metadata={key: value for key, value in cell["metadata"].items() if key != "execution"})
    return cell | {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell


def _without_absent(cells, gone, absent):
    """Without the code cells that need what is absent, and without the prose that only these followed."""
    kept, known = [], set()
    for cell in cells:
        if cell["cell_type"] == "code":
            code = _text(cell)
            own, used = _assigned(code), set(_names(ast.parse(code)))
            checked = set(re.findall(r'\bcheck\("(\w+)"', code))
            if (used & gone) - own - known or checked & absent:
                gone |= own - known
                kept.append(None)
                continue
            known |= own
        kept.append(cell)
    return _without_lonely_prose(cells, kept)


def _assigned(code):
    """The names that a cell gives to the cells after it."""
    tree = ast.parse(code)
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return {name for target in targets for name in _names(target)} | {name for name, _ in _definitions(tree)}


def _without_lonely_prose(cells, kept):
    """Drop a markdown cell if it has code below it, up to the next, and nothing of that is kept."""
    result = []
    for i, cell in enumerate(kept):
        below = list(itertools.takewhile(lambda k: cells[k]["cell_type"] == "code", range(i + 1, len(cells))))
        if cell and (cell["cell_type"] == "code" or not below or any(kept[k] for k in below)):
            result.append(cell)
    return result


# ---------------------------------------------------------------------------------------------------------
# The folder and the zip
# ---------------------------------------------------------------------------------------------------------


class Edition(NamedTuple):
    """Which edition to make: the parts left to the student, those left out altogether, and two lines of text."""

    todo: list[str]
    absent: list[str]
    due: str = ""
    ai_use: str = ""


def edition_files(edition, root):
    """The edition as a dict from path to bytes. Raises HandoutError and OSError."""
    source = (root / SOURCE).read_text(encoding="utf-8")
    if not find_answers(source):
        raise HandoutError(f"{root / SOURCE}: no answers are marked; a student edition is made from the solution")
    notices = _notices(edition.todo, edition.due, edition.ai_use)
    student = cut_source(source, edition.todo, edition.absent)
    notebook = json.loads((root / NOTEBOOK).read_text(encoding="utf-8"))
    notebook = cut_notebook(notebook, notices, _lost_names(source, student), edition.absent)
    texts = {
        SOURCE: head_source(student, notices),
        NOTEBOOK: json.dumps(notebook, indent=1, ensure_ascii=False) + "\n",
        STAMP: json.dumps({"todo": edition.todo, "absent": edition.absent}, indent=1) + "\n",
    }
    files = {name: text.encode() for name, text in texts.items()}
    return files | _copied_files(root)


def _lost_names(source, student):
    """The functions and classes that only the solution has, and methods of such a name that no class has any more."""
    before, after = ({name for name, _ in _definitions(ast.parse(text))} for text in (source, student))
    short = {name.split(".")[-1] for name in after}
    lost = {name for name in before - after if name.split(".")[0] in after or "." not in name}
    return {name.split(".")[-1] for name in lost} - short


def _copied_files(root):
    """The files that both editions share."""
    paths = [path for pattern in COPIED for path in sorted(root.glob(pattern)) if path.is_file()]
    files = {}
    for path in [path for path in paths if not any(part.startswith(INSTRUCTORS) for part in path.relative_to(root).parts)] + _copied_tests(root):
        content = path.read_bytes()
        with contextlib.suppress(UnicodeDecodeError):  # a picture
            content = INSTRUCTORS_LINES.sub("", content.decode()).encode()
        files[path.relative_to(root).as_posix()] = content
    return files


def _copied_tests(root):
    """The tests that test neither the solution nor what is for instructors, and the files that these tests import."""
    knowing = re.compile(rf"rnn_lstm_captioning|eecs598(\.| import .*\b)({'|'.join(INSTRUCTORS)})\b")
    paths = {path: path.read_text(encoding="utf-8") for path in sorted((root / "tests").glob("*.py"))}
    tests = {path: text for path, text in paths.items() if path.stem.startswith("test_") and not knowing.search(text)}
    imports = re.findall(r"^\s*(?:from|import) (\w+)", "\n".join(tests.values()), re.MULTILINE)
    return [path for path in paths if path in tests or path.stem in ("conftest", *imports)]


def write_edition(files, out):
    """Write an edition to the folder `out` and to a zip beside it, both or neither. Returns the zip's path.

    An earlier handout is replaced. Raises HandoutError if there is anything else in the way, and OSError.
    """
    out = Path(out).absolute()
    archive = out.with_name(f"{out.name}.zip")
    _require_free(out, archive)
    out.parent.mkdir(parents=True, exist_ok=True)
    part, part_archive, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("part", "zip", "old"))
    try:
        for name, content in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        _write_zip(files, part_archive)
        if out.exists():
            out.rename(old)
        part.rename(out)
        part_archive.replace(archive)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        part_archive.unlink(missing_ok=True)
    return archive


def _require_free(out, archive):
    """Refuse to write over anything but an earlier handout."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise HandoutError(f"{out}: not a folder; name one that is new, empty or an earlier handout")
    if out.is_dir() and any(out.iterdir()) and not (out / STAMP).is_file():
        raise HandoutError(f"{out}: neither empty nor an earlier handout; name another folder")
    if archive.exists() and not _is_handout(archive):
        raise HandoutError(f"{archive}: in the way, and no earlier handout's zip; move it or name another folder")


def _is_handout(archive):
    try:
        with zipfile.ZipFile(archive) as opened:
            return f"{FOLDER}/{STAMP}" in opened.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _write_zip(files, path):
    """One folder in a zip; the same files give the same zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{FOLDER}/{name}")
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def _parser():
    parser = commands.Parser(prog="eecs598.handout", description="Make the student edition from the solution.")
    add = parser.add_argument
    add("out", nargs="?", type=Path, metavar="OUT", help="the folder to write; OUT.zip, for Drive, comes beside it")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--parts", nargs="+", metavar="NAME", help="parts or groups left to the student (all)")
    chosen.add_argument("--published", action="store_true", help="leave the published assignment's parts; what goes "
                        "beyond them and would give them away is left out")  # fmt: skip
    add("--due", default="", metavar="TEXT", help="a line on when it is due, for the notebook's head and the source's")
    add("--ai-use", default="", metavar="TEXT", help="a line on what use of AI is allowed, in the same places")
    add("--list", action="store_true", help="list the parts and their groups")
    return parser


def _choose(options, parts):
    """The edition that the options ask for."""
    if options.published:
        todo = [part for part in parts if part in PUBLISHED]
        return Edition(todo, [part for part in parts if part not in todo], options.due, options.ai_use)
    names = list(GROUPS) if options.parts is None else re.split(r"[, ]+", " ".join(options.parts))
    return Edition(choose_parts(names, parts), [], options.due, options.ai_use)


def _print_parts(parts):
    print(f"{'part':<32}{'group':<11}published")
    for part in parts:
        print(f"{part:<32}{group_of(part):<11}{'yes' if part in PUBLISHED else ''}".rstrip())


def main(arguments=None):
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        parts = list_parts((ROOT / SOURCE).read_text(encoding="utf-8"))
        if options.list:
            _print_parts(parts)
            return 0
        if options.out is None:
            parser.error("OUT is missing: name the folder to write, before the parts")
        edition = _choose(options, parts)
        files = edition_files(edition, ROOT)
        archive = write_edition(files, options.out)
    except (HandoutError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(files)} files, {len(edition.todo)} parts to do; {archive} holds the same")
    return 0

