"""Find submissions in files and folders, with limits on their size and without following links."""

import itertools
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from eecs598 import ROOT
from eecs598.checks import CHECKS
from eecs598.grading import NAME
from eecs598.grading.remote import plain

SOLUTION = ROOT / f"{NAME}.py"
NAMES = list(dict.fromkeys(name for check in CHECKS.values() for name in check.needs))
LARGEST_SOURCE = 1 << 20  # bytes
MOST_BESIDE, LARGEST_BESIDE = 64, 1 << 23  # other files of a submission, and their total size in bytes
MOST_ENTRIES, DEEPEST = 10_000, 12  # of a student's folder
LONGEST_NAME = 100
PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".ipynb")  # formats in which students' work may arrive
DEFINES = re.compile(rb"^(?:def|class)\s+(?:%s)\b" % "|".join(NAMES).encode(), re.MULTILINE)

MENTIONS = re.compile(rb"%s|import|raise|exec|eval|globals|vars|__" % "|".join(NAMES).encode())


class GradingError(ValueError):
    """What cannot be graded, and why."""


@dataclass
class Submission:
    """A student's file: its source and the files beside it, as bytes. problem: why there is no source."""

    name: str
    source: bytes = b""
    files: dict = field(default_factory=dict)
    problem: str = ""

    def __post_init__(self):
        self.name, self.problem = plain(self.name, LONGEST_NAME) or "nameless", plain(self.problem, 500)

    @property
    def is_empty(self):
        """Whether there is nothing to run: no source, or one that neither names a part nor could create such a name."""
        return not self.source or not any(MENTIONS.search(text) for text in (self.source, *self.files.values()))


def find_submissions(path):
    """Return the submissions at a path: a file, a folder with one submission, or a class of files and folders.

    Raises GradingError if there are none.
    """
    path = Path(path)
    if path.is_file() or path.is_symlink():
        return [_read(path.stem if path.stem != NAME else path.absolute().parent.name, path)]
    if not path.is_dir():
        raise GradingError(f"{path}: no such file or folder")
    loose = path / f"{NAME}.py"
    others = _find_others(path) if loose.is_file() else []
    if loose.is_file() and not others:
        return [_read(path.resolve().name, loose, path)]
    if len(others) == 1:
        raise GradingError(f"{path}: {others[0].name} is there beside {NAME}.py. If it is an older version, move it "
                           "away; in the folder of a class, put each file into a folder of its own")  # fmt: skip
    found = [_find_in(entry, path) for entry in sorted(path.iterdir())]
    found = [submission for submission in found if submission]
    if not found:
        raise GradingError(f"{path}: there is no {NAME}.py in it, nor files or folders of students")
    return found


def _find_others(folder):
    """What else a folder with a submission holds that may be one: if there are several, it must be a class."""
    found = []
    for entry in itertools.islice(sorted(folder.iterdir()), MOST_ENTRIES):
        if entry.name.startswith((".", "__")) or entry.name == f"{NAME}.py" or entry.is_symlink():
            continue
        if entry.is_dir():
            found += [entry] if _find_file(entry) else []
        elif entry.suffix == ".py" and not _find_problem(entry, folder) and DEFINES.search(entry.read_bytes()):
            found.append(entry)
    return found


def _find_in(entry, folder):
    """Return the submission in an entry of a class's folder; None, with a note, if there is none."""
    try:
        if entry.name == f"{NAME}.py":
            problem = f"{entry} is directly in the folder of a class: put it into a folder with the student's name"
            return Submission(NAME, problem=problem)
        if entry.suffix == ".py" and not entry.is_dir():
            return _read(entry.stem, entry, folder, beside=False)
        if entry.is_dir() and not entry.name.startswith((".", "__")):
            if entry.is_symlink():
                return Submission(entry.name, problem=f"{entry} is a link")
            file = _find_file(entry)
            return _read(entry.name, file, entry) if file else Submission(
                entry.name, problem=f"there is no {NAME}.py in {entry}")  # fmt: skip
        if entry.suffix.lower() in PACKED and not entry.name.startswith("."):
            problem = f"{entry.name} is not graded: unpack it to, or save the notebook's code as, {NAME}.py"
            return Submission(entry.stem, problem=problem)
    except Exception as error:  # whatever it is, it must not affect other students
        return Submission(entry.name, problem=f"{entry} cannot be read ({type(error).__name__}: {error})")
    if not entry.name.startswith((".", "__")):
        print(plain(f"note: {entry} is not graded, as it is not a .py file", 1000), file=sys.stderr)
    return None


def _find_file(folder):
    """The uppermost NAME.py in a student's folder; None if the first MOST_ENTRIES entries do not include one."""
    entries, level = 0, [folder]
    for _ in range(DEEPEST):
        below = []
        for place in level:
            with os.scandir(place) as scanned:
                inside = sorted(itertools.islice(scanned, MOST_ENTRIES - entries), key=lambda entry: entry.name)
            entries += len(inside)
            if any(entry.name == f"{NAME}.py" for entry in inside):
                return Path(place, f"{NAME}.py")
            below += [entry.path for entry in inside if entry.is_dir(follow_symlinks=False)]
        level = below
    return None


def _read(name, path, folder=None, beside=True):
    """Read a submission. folder: in which the file must be; beside: whether to read the files beside it too."""
    problem = _find_problem(path, folder)
    if problem:
        return Submission(name, problem=f"{path} {problem}")
    files, room = {}, LARGEST_BESIDE
    try:
        for entry in _python_files(path.parent) if folder and beside else ():
            if entry.name != path.name and not _find_problem(Path(entry.path), folder):
                room -= entry.stat(follow_symlinks=False).st_size
                if room < 0 or len(files) == MOST_BESIDE:
                    bound = f"more than {MOST_BESIDE} files or {LARGEST_BESIDE} bytes"
                    return Submission(name, problem=f"{path}: there are {bound} beside it")
                files[entry.name] = Path(entry.path).read_bytes()
        source = path.read_bytes()
        if b"\0" in source:
            return Submission(name, problem=f"{path} is not UTF-8, perhaps UTF-16 of Windows: save it as UTF-8")
        return Submission(name, source, dict(sorted(files.items())))
    except OSError as error:
        return Submission(name, problem=f"{path} cannot be read ({error.strerror})")


def _python_files(folder):
    """The entries of a folder whose name ends in .py, at most MOST_ENTRIES."""
    with os.scandir(folder) as scanned:
        return list(itertools.islice((entry for entry in scanned if entry.name.endswith(".py")), MOST_ENTRIES))


def _find_problem(path, folder):
    if path.is_symlink() or (folder and not path.resolve().is_relative_to(folder.resolve())):
        return "is a link, or is reached through one"
    if not path.is_file():
        return "is not a file"
    if SOLUTION.exists() and path.samefile(SOLUTION) and path.resolve() != SOLUTION:
        return "is a link to the solution"
    return f"is larger than {LARGEST_SOURCE} bytes" if path.stat().st_size > LARGEST_SOURCE else ""


def name_apart(submissions):
    """Make the submissions' names unique: the second ann becomes ann-2."""
    given, taken = {submission.name.casefold() for submission in submissions}, set()
    for submission in submissions:
        if submission.name.casefold() in taken:
            names = (f"{submission.name}-{k}" for k in itertools.count(2))
            submission.name = next(name for name in names if name.casefold() not in taken | given)
        taken.add(submission.name.casefold())
    return submissions
