"""The student edition as files: the source, the notebook, and what both editions share; a folder and a zip."""

import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

from eecs598.badge import (
    NOTEBOOK,
    add_badge,
    add_badge_to_notebook,
    make_badge,
    remove_badge,
    remove_badge_from_notebook,
)
from eecs598.handout.notebook import cut_notebook
from eecs598.handout.parts import HandoutError, answers
from eecs598.handout.source import cut_source, head_source, lost_names

SOURCE = "rnn_lstm_captioning.py"
STAMP = ".handout.json"  # marks a folder as an earlier handout, and lists its files with their digests
GENERATED = {"__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".hypothesis", ".venv", "build",
             "rnn_lstm_captioning.egg-info"}  # by using a handout  # fmt: skip
DRAWN = re.compile(r"datasets/(scenes-[\w-]+\.pt|features/.*)")  # made again when they are missing
FOLDER = "rnn_lstm_captioning"  # the folder in the zip

# Copied besides the source, the notebook and some tests. Left out: the answers, and what is for instructors.
COPIED = ("README.md", "LICENSE", "Makefile", "pyproject.toml", ".gitignore", "helpers.py", "datasets/README.md",
          "datasets/.gitignore", "docs/*", "eecs598/**/*.py", "eecs598/**/*.html", "eecs598/**/*.js")  # fmt: skip
LEFT_OUT = ("fast", "handout", "grading", "instructors")
INSTRUCTORS_LINES = re.compile(r"^.*\bINSTRUCTORS ONLY\b(?:.*\n)+?.*\bEND INSTRUCTORS\b.*\n+", re.MULTILINE)


class Edition(NamedTuple):
    """Which edition to make: parts that the student writes, parts that are left out altogether, and two notices.

    repository: the edition's own on GitHub, "owner/name", for its "Open in Colab" badge; empty: no badge.
    """

    todo: list[str]
    absent: list[str]
    due: str = ""
    ai_use: str = ""
    repository: str = ""


def edition_files(edition, root):
    """Return the edition as a dict from path to bytes. Raises HandoutError, BadgeError and OSError."""
    source = (root / SOURCE).read_text(encoding="utf-8")
    notices = _notices(edition)
    try:
        student = cut_source(source, edition.todo, edition.absent)
    except HandoutError as error:
        raise HandoutError(f"{root / SOURCE}: {error}") from None
    notebook = _with_own_badge(edition, json.loads((root / NOTEBOOK).read_text(encoding="utf-8")))
    notebook = cut_notebook(notebook, notices, lost_names(source, student), edition.absent)
    texts = {
        SOURCE: head_source(student, notices),
        NOTEBOOK: json.dumps(notebook, indent=1, ensure_ascii=False) + "\n",
    }
    files = _copied_files(root)
    if edition.repository:
        files["README.md"] = add_badge(files["README.md"].decode(), make_badge(edition.repository)).encode()
    files |= {name: text.encode() for name, text in texts.items()}
    digests = {name: _digest(name, content) for name, content in sorted(files.items())}
    stamp = {"todo": edition.todo, "absent": edition.absent, "files": digests}
    return files | {STAMP: (json.dumps(stamp, indent=1) + "\n").encode()}


def _with_own_badge(edition, notebook):
    """Replace the badge of the solution's repository, where the answers are, by the edition's own, if it has one."""
    if edition.repository:
        return add_badge_to_notebook(notebook, make_badge(edition.repository))
    return remove_badge_from_notebook(notebook)


def _notices(edition):
    """Return the notices at the top of the notebook and of the source."""
    texts = (("Due", edition.due), ("Use of AI", edition.ai_use))
    lines = [f"Student edition: {len(edition.todo)} parts to write, in boxes marked TODO."]
    return lines + [f"{label}: {' '.join(text.split())}" for label, text in texts if text]


def _copied_files(root):
    """Return the files that both editions share."""
    paths = [path for pattern in COPIED for path in sorted(root.glob(pattern)) if path.is_file()]
    files = {}
    for path in [path for path in paths if not _is_left_out(path.relative_to(root))] + _copied_tests(root):
        content = path.read_bytes()
        with contextlib.suppress(UnicodeDecodeError):  # a picture
            text = content.decode().replace("\r\n", "\n")  # of a checkout on Windows
            content = INSTRUCTORS_LINES.sub("", remove_badge(text)).encode()
        if path.suffix == ".py":
            _refuse_answers(path, content)
        files[path.relative_to(root).as_posix()] = content
    return files


def _refuse_answers(path, content):
    """Raise HandoutError for a file that defines a function that students write, such as a copy of the solution."""
    try:
        defined = {getattr(node, "name", "") for node in ast.parse(content).body}
    except SyntaxError as error:  # perhaps a broken copy of the solution
        raise HandoutError(f"{path} would be handed out, but line {error.lineno} is not valid Python: repair it, or "
                           "move it out of this folder") from None  # fmt: skip
    if given := sorted(defined & {name for name in answers() if "." not in name}):
        raise HandoutError(f"{path} would be handed out, but defines {given[0]}: move it out of this folder")


def _is_left_out(path):
    hidden = any(folder.startswith(".") for folder in path.parts[:-1])  # such as .ipynb_checkpoints
    return hidden or not set(LEFT_OUT).isdisjoint((*path.parts, path.stem))


def _copied_tests(root):
    """Return the tests that need nothing that is left out, and their support files."""
    support = {path: path.read_text(encoding="utf-8") for path in sorted((root / "tests" / "support").glob("*.py"))}
    tests = {path: path.read_text(encoding="utf-8") for path in sorted((root / "tests").rglob("test_*.py"))}
    telling = re.compile(rf"rnn_lstm_captioning|\bstudent\b|eecs598(\.| import .*\b)({'|'.join(LEFT_OUT)})\b")
    kept, shared = [], set()
    for path, text in [*tests.items(), (root / "tests" / "conftest.py", None)]:
        text = path.read_text(encoding="utf-8") if text is None else text
        needed = _needed(text, support)
        if not telling.search("\n".join([text, *(support[each] for each in needed)])):
            kept.append(path)
            shared |= needed
    return [*kept, *sorted(shared)]


def _needed(text, support):
    """Return the files in tests/support that a test imports, directly or not."""
    needed, texts = set(), [text]
    while texts:
        lines = re.findall(r"^\s*(?:from|import) support\b.*", texts.pop(), re.MULTILINE)
        words = set(re.findall(r"\w+", " ".join([*lines, "__init__" if lines else ""])))
        new = {path for path in support if path.stem in words} - needed
        needed |= new
        texts += [support[path] for path in new]
    return needed


def write_edition(files, out):
    """Write an edition to the folder `out` and to a zip next to it, both or neither. Returns the zip's path.

    An earlier handout is replaced. Raises HandoutError if anything else is in the way, and OSError.
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
        try:
            part_archive.replace(archive)
        except OSError:  # such as on Windows, while the earlier zip is open
            out.rename(part)
            raise
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        part_archive.unlink(missing_ok=True)
    return archive


def _require_free(out, archive):
    """Raise HandoutError rather than overwrite anything but an earlier handout."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise HandoutError(f"{out}: not a folder; give one that is new, empty or an earlier handout")
    if out.is_dir() and any(out.iterdir()) and not (out / STAMP).is_file():
        raise HandoutError(f"{out}: neither empty nor an earlier handout; give another folder")
    if out.is_dir():
        _require_untouched(out)
    if archive.exists() and not _is_handout(archive):
        raise HandoutError(f"{archive}: in the way, and no earlier handout's zip; move it, or give another folder")


def _require_untouched(out):
    """Raise HandoutError if a file was added to an earlier handout, such as a git repository's, or edited in it."""
    digests = _read_digests(out)
    for folder, folders, names in os.walk(out):
        folders[:] = sorted(set(folders) - GENERATED)
        for path in sorted(Path(folder, name) for name in names):
            name = path.relative_to(out).as_posix()
            if name == STAMP or DRAWN.fullmatch(name):
                continue
            if name not in digests:
                raise HandoutError(f"{path} is not part of the handout and would be lost: move it, or give another "
                                   "folder")  # fmt: skip
            if digests[name] != _digest(name, path.read_bytes()):
                raise HandoutError(f"{path} was edited, and the changes would be lost: move it, or give another folder")


def _read_digests(out):
    """The digests of an earlier handout's files, by name; none if the folder is empty."""
    if not (out / STAMP).is_file():
        return {}
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return dict(json.loads((out / STAMP).read_text(encoding="utf-8"))["files"])
    raise HandoutError(f"{out / STAMP}: damaged, or of an earlier version of this command; give another folder")


def _digest(name, content):
    """A digest of a file's content: of a notebook, of its cells without outputs, since running it is no edit."""
    if name.endswith(".ipynb"):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # not a notebook any more
            content = repr(["".join(cell["source"]) for cell in json.loads(content)["cells"]]).encode()
    return hashlib.sha256(content).hexdigest()


def _is_handout(archive):
    try:
        with zipfile.ZipFile(archive) as opened:
            return f"{FOLDER}/{STAMP}" in opened.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _write_zip(files, path):
    """Write the files to a zip, in one folder. The same files give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{FOLDER}/{name}")
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
