"""Grade submissions of the assignment: a score by part, and for each miss what is wrong and the likely cause.

    python -m eecs598.grading FILE-or-FOLDER... [--parts PART...] [--points FILE.json]
                              [--json PATH] [--csv PATH] [--jobs N] [--timeout S] [--memory MB] [--solution FILE]

A folder is one submission, if it has rnn_lstm_captioning.py in it, or holds many: files or folders, one a student.
The parts are those of `eecs598.checks.CHECKS`; "published" stands for those of the published assignment. A part has
its points (1, or what --points says) or 0. What counts is what the published notebook's cells ask: their sizes, their
grid, values and gradients to single precision, the captioner's loss with their parameters, its captions' shapes. What
goes beyond (a batch of one, other grids, ignore_index=None, inputs changed in place, ...) is reported as advice.

One mistake costs one part. A part that misses on top of a wrong one is checked again with the solution's functions in
the wrong ones' place, and a backward of a wrong forward against differences of that forward. Every part runs in a
process of its own, with limits; `eecs598.grading.sandbox` says what it is kept from, and that nothing is judged in it.
"""

import argparse
import ast
import csv
import io
import itertools
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from eecs598 import checks, commands, files
from eecs598.checks import BEYOND, CHECKS, LESSON, PUBLISHED
from eecs598.grad import CheckError, CheckTable
from eecs598.grading import older
from eecs598.grading.remote import CAPTIONER, Launcher, Sandbox, Stopped
from eecs598.grading.sandbox import NAME, ROOT
from eecs598.handout.parts import published_checks

SOLUTION = ROOT / f"{NAME}.py"
PUBLISHED_PARTS = published_checks()
NAMES = list(dict.fromkeys(name for check in CHECKS.values() for name in check.needs))
LARGEST_SOURCE = 1 << 22  # bytes
RIGHT, WRONG, UNDONE, STOPPED, ABSENT = "right", "wrong", "not written yet", "stopped", "not in this file"


class GradingError(ValueError):
    """What was asked for cannot be graded; the message says why."""


# ---------------------------------------------------------------------------------------------------------
# Which function stands on which
# ---------------------------------------------------------------------------------------------------------


def _pair(stem):
    return f"{stem}_forward", f"{stem}_backward"


ATTENTION = "dot_product_attention", "dot_product_attention_backward"
SOFTMAX = "temporal_softmax_loss", "temporal_softmax_backward"
RNN_PAIRS = _pair("rnn_step"), _pair("rnn")
LSTM_PAIRS = _pair("lstm_step"), _pair("lstm")
ATTENTION_STEPS = LSTM_PAIRS[0], ATTENTION, _pair("attention_lstm_step")
PAIRS = [*RNN_PAIRS, *LSTM_PAIRS, *ATTENTION_STEPS[1:], _pair("attention_lstm"), SOFTMAX, _pair("word_embedding"),
         _pair("temporal_affine")]  # fmt: skip
STANDS_ON = {  # function or class -> the pairs, besides its own, and the classes that it may call
    "rnn_forward": RNN_PAIRS[:1], "rnn_backward": RNN_PAIRS[:1], "RNN": RNN_PAIRS,
    "lstm_forward": LSTM_PAIRS[:1], "lstm_backward": LSTM_PAIRS[:1], "LSTM": LSTM_PAIRS,
    "attention_lstm_step_forward": LSTM_PAIRS[:1], "attention_lstm_step_backward": LSTM_PAIRS[:1],
    "attention_lstm_forward": ATTENTION_STEPS, "attention_lstm_backward": ATTENTION_STEPS,
    "AttentionLSTM": (*ATTENTION_STEPS, _pair("attention_lstm"), ("LSTM",)),
    "WordEmbedding": (_pair("word_embedding"),), "temporal_softmax_loss": (SOFTMAX[1:],),
    "CaptioningRNN": (*PAIRS, ("RNN",), ("LSTM",), ("AttentionLSTM",), ("WordEmbedding",)),
}  # fmt: skip

# A sequence's cache is often the list of its steps' caches: with it another's backward can be checked.
LOOP = """
def {name}(x, *given):
    states, weights, h, caches = given[:-3], given[-3:], [], []
    for t in range(x.shape[1]):
        *states, cache = submission.{step}(x[:, t], *states, *weights)
        h.append(states[0])
        caches.append(cache)
    return torch.stack(h, 1), caches

submission.{name} = {name}
"""
LOOPED = {"rnn_forward": "rnn_step_forward", "lstm_forward": "lstm_step_forward"}


def _replacements(needs, bad):
    """Ways to put ours underneath: pairs of the names to replace, and a source that runs afterwards.

    needs: the part's names, the last being its own; bad: the names that are not known to be right.
    """
    own, below = needs[-1], STANDS_ON.get(needs[-1], ())
    partner = needs[0] if len(needs) == 2 and needs[0] in bad else None
    names = {name for pair in below if bad & set(pair) for name in pair} - {own}
    if names:
        yield names, ""
    if partner:
        yield names | {partner}, ""
        if partner in LOOPED:
            yield names, LOOP.format(name=partner, step=LOOPED[partner])


_parsed = cache(ast.parse)


def excerpt(source, names, without):
    """Of a Python source what the functions and classes `names` need, the definitions `without` left out.

    It goes where the submission can read it: there must be no answer in it to what is being checked.
    """
    tree = _parsed(source)
    nodes, kept, todo = {}, set(), list(names)
    for node in tree.body:
        targets = [getattr(target, "id", "") for target in getattr(node, "targets", ())]
        nodes.update(dict.fromkeys([node.name] if hasattr(node, "name") else targets, node))
    while todo:
        name = todo.pop()
        if name in nodes and name not in kept and name not in without:
            kept.add(name)
            todo += [inner.id for inner in ast.walk(nodes[name]) if isinstance(inner, ast.Name)]
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(map(ast.unparse, [*imports, *(node for name, node in nodes.items() if name in kept)]))


# ---------------------------------------------------------------------------------------------------------
# One submission
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Submission:
    """A student's file: source and what lies beside it, both bytes. problem: why there is no source."""

    name: str
    source: bytes = b""
    files: dict = field(default_factory=dict)
    problem: str = ""


@dataclass
class Result:
    """A part's verdict. how: by which way it is right; text: what is wrong; advice: what costs no points."""

    verdict: str
    how: str = ""
    text: str = ""
    advice: list = field(default_factory=list)

    @property
    def label(self):
        return f"{self.verdict} {self.how}".strip()


@dataclass
class Report:
    """A submission's results by part, and advice that concerns no single part."""

    name: str
    results: dict
    advice: list

    def points(self, worth):
        """Points by part. worth: part -> points."""
        return {part: worth[part] if result.verdict == RIGHT else 0 for part, result in self.results.items()}


class _Attempt:
    """One process's run of a part's check: as a lesson, then as the published assignment; then, if right, beyond."""

    def __init__(self, table=None, lesson=None, stopped="", how=""):
        self.table, self.lesson, self.stopped, self.how, self.advice = table, lesson, stopped, how, []

    @property
    def right(self):
        return self.table is not None and self.table.passed

    @property
    def undone(self):
        return any("is not written yet" in hint for hint in (self.table.hints if self.table else ()))

    @property
    def text(self):
        if self.stopped:
            return self.stopped
        missed = [row.quantity for row in self.table.rows if not row.passed]
        return "\n".join([f"missed: {', '.join(missed)}", *self.table.hints])


class Grader:
    """Grades submissions, one after the other. launcher: a started `remote.Launcher`.

    solution: the source whose functions stand in for wrong ones, or None; timeout: seconds that a part may take.
    advice: whether to look beyond what counts.
    """

    def __init__(self, launcher, solution=None, timeout=20.0, advice=True):
        self.launcher, self.solution, self.timeout, self.advice = launcher, solution, timeout, advice

    def grade(self, submission, parts=None):
        """Returns a `Report` of the parts, all if None. For all of them together: a timeout for each part there is."""
        parts, self.deadline = list(parts or CHECKS), time.monotonic() + len(CHECKS) * self.timeout
        report = Report(submission.name, {}, [])
        if submission.problem:
            report.results = {part: Result(ABSENT, text=submission.problem) for part in parts}
            return report
        info, problem = self._load(submission, report)
        if problem:
            report.results = {part: Result(STOPPED, text=problem) for part in parts}
            return report
        self.older = older.is_older(submission.source)
        if self.older:
            report.advice.append(older.ADVICE)
            info["has"] = older.current_names(submission.source, info["has"])
        present = [part for part in parts if set(CHECKS[part].needs) <= set(info["has"])]
        attempts = {part: self._attempt(submission, part, report) for part in present}
        bad = set(info["has"]) - {CHECKS[part].needs[-1] for part in present if attempts[part].right}
        bad |= {CHECKS[part].needs[-1] for part in present if not attempts[part].right}
        for part in parts:
            if part not in attempts:
                missing = [name for name in CHECKS[part].needs if name not in info["has"]]
                differs = self.older and older.DIFFERENT & set(missing)
                where = "is that of another assignment" if differs else "is not in this file"
                report.results[part] = Result(ABSENT, text=f"{', '.join(missing)} {where}")
            else:
                report.results[part] = self._judge(submission, part, attempts[part], bad, report)
        return report

    def _load(self, submission, report):
        """Import the file once. Returns what it has, and why it cannot be imported or an empty string."""
        with self._sandbox(submission) as box:
            try:
                info = box.load(NAMES)
                refusals = box.refusals()
            except (Stopped, Exception) as error:
                where = getattr(error, "learners_line", "")
                kind = "" if isinstance(error, Stopped) else f"{type(error).__name__}: "
                return None, f"the file cannot be imported: {kind}{error}{where}"
        if info["cuda"]:
            report.advice.append("it assumes a GPU: .cuda() and device='cuda' were taken as the CPU here")
        if info["stand_ins"]:
            report.advice.append(f"imported as stand-ins, being absent here: {', '.join(info['stand_ins'])}")
        self._note(report, refusals)
        return info, ""

    def _sandbox(self, submission):
        return Sandbox(self.launcher, submission.source, self.timeout, submission.files)

    @staticmethod
    def _note(report, refusals):
        for what in refusals:
            sentence = f"it was kept from trying to {what}"
            if sentence not in report.advice:
                report.advice.append(sentence)

    def _attempt(self, submission, part, report, names=(), further=""):
        """Check a part in a process of its own, with ours in the place of `names`."""
        if time.monotonic() > self.deadline:
            return _Attempt(stopped=f"not run: all parts together took more than {len(CHECKS) * self.timeout:g} s")
        attempt, needs = _Attempt(), CHECKS[part].needs
        with self._sandbox(submission) as box:
            try:
                box.load(NAMES)
                if self.older:
                    box.rebind("", (), older.CLASSES)
                if names or further:
                    below = {name for pair in STANDS_ON.get(needs[-1], ()) for name in pair} | {*needs[:-1]}
                    box.rebind(excerpt(self.solution, names, set(NAMES) - below), names, further)
                functions = [box.make_class(name) if name[0].isupper() else box.function(name) for name in needs]
                self._check(attempt, part, functions)
                self._note(report, box.refusals())
            except Stopped as stopped:
                if not attempt.right:
                    attempt.stopped = f"{needs[-1]}: {stopped}"
                else:
                    attempt.advice.append(f"beyond the published cases: {stopped}")
            except Exception as error:  # the import, which went well before
                attempt.stopped = f"{type(error).__name__}: {error}"
        return attempt

    def _check(self, attempt, part, functions):
        attempt.table = attempt.lesson = _run(part, functions, LESSON)
        if not attempt.table.passed:
            attempt.table = _run(part, functions, PUBLISHED)
            if attempt.table.passed:
                attempt.advice += attempt.lesson.hints
            elif CAPTIONER in CHECKS[part].needs:  # a published loss that misses says nothing of the cause
                attempt.table.hints += [hint for hint in attempt.lesson.hints if hint not in attempt.table.hints]
        if attempt.right and self.advice:
            beyond = _run(part, functions, BEYOND)
            missed = [row.quantity for row in beyond.rows if not row.passed]
            if missed:
                attempt.advice.append(f"misses beyond the published cases: {', '.join(missed)}")
                attempt.advice += beyond.hints[:1]

    def _judge(self, submission, part, attempt, bad, report):
        """The verdict of a part, once all have been tried by themselves."""
        if attempt.right:
            return Result(RIGHT, advice=attempt.advice)
        shown, needs = attempt, CHECKS[part].needs
        if len(needs) == 2 and needs[0] in bad and _right_for_own_forward(attempt.lesson):
            return Result(RIGHT, "for its own forward", advice=[f"{needs[0]} is wrong, its gradient is right"])
        for names, further in _replacements(needs, bad) if self.solution else ():
            second = self._attempt(submission, part, report, sorted(names), further)
            if second.right:
                replaced = ", ".join(sorted(names | ({needs[0]} if further else set())))
                return Result(RIGHT, "with ours underneath", advice=[f"ours in the place of {replaced}"])
            if shown is attempt:
                shown = second
        undone = attempt.undone and (shown.undone or shown is attempt)
        verdict = STOPPED if shown.stopped else UNDONE if undone else WRONG
        return Result(verdict, text=shown.text)


def grade_all(tasks, settings, jobs=1):
    """Yield the report of each task (submission, its parts or None), in order.

    settings: (memory, secrets) for a `Launcher`, and keyword arguments for a `Grader`. jobs: how many at once.
    """
    if jobs == 1 or len(tasks) < 2:
        launching, grading = settings
        with Launcher(*launching) as launcher:
            grader = Grader(launcher, **grading)
            for submission, parts in tasks:
                yield grader.grade(submission, parts)
    else:
        with ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), _start_grader, settings) as pool:
            yield from pool.map(_grade_here, tasks)


def _start_grader(launching, grading):
    global _grader
    torch.set_num_threads(1)
    _grader = Grader(Launcher(*launching).__enter__(), **grading)  # it ends with this process


def _grade_here(task):
    return _grader.grade(*task)


def _run(part, functions, level):
    """The table of a check at a level, passed or not."""
    try:
        with checks.at_level(level):
            return CHECKS[part].run(*functions)
    except CheckError as error:
        return error.table
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # The checks expect all that a function may return; should one be missed, the student is told, not the class.
        table = CheckTable(part)
        table.add("comparison", float("inf"))
        table.hint(f"what it returned cannot be compared ({type(error).__name__}: {str(error).splitlines()[0]})")
        return table


def _right_for_own_forward(table):
    """Whether a backward misses the reference, but is the gradient of its own forward, and no gradient is zero."""
    rows = [] if table is None else table.rows
    numeric = [row for row in rows if row.quantity.startswith("numeric")]
    gradients = [row for row in rows if row.quantity.startswith("d")]
    return bool(numeric) and numeric[0].passed and all(row.error < 1 for row in gradients)


# ---------------------------------------------------------------------------------------------------------
# Finding submissions
# ---------------------------------------------------------------------------------------------------------


PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".ipynb")  # what a student's work may come in


def find_submissions(path):
    """The submissions at a path: a file's, a folder's own, or those of the files and folders in it.

    Raises GradingError where there is none.
    """
    path = Path(path)
    if path.is_file():
        return [_read(path.stem if path.stem != NAME else path.resolve().parent.name, path)]
    if not path.is_dir():
        raise GradingError(f"{path}: no such file or folder")
    if (path / f"{NAME}.py").is_file():
        return [_read(path.resolve().name, path / f"{NAME}.py", path)]
    found = []
    for entry in sorted(path.iterdir()):
        if entry.is_file() and entry.suffix == ".py":
            found.append(_read(entry.stem, entry, path, beside=False))
        elif entry.is_dir() and not entry.name.startswith((".", "__")):
            files = sorted(entry.rglob(f"{NAME}.py"), key=lambda file: len(file.parts))
            missing = Submission(entry.name, problem=f"there is no {NAME}.py in {entry}")
            found.append(_read(entry.name, files[0], entry) if files else missing)
        elif entry.suffix.lower() in PACKED and not entry.name.startswith("."):
            problem = f"{entry.name} is not graded: unpack it, or save the notebook's code, to a {NAME}.py"
            found.append(Submission(entry.stem, problem=problem))
        elif not entry.name.startswith((".", "__")):
            print(f"note: {entry} is not graded, being no .py file", file=sys.stderr)
    if not found:
        raise GradingError(f"{path}: there is no {NAME}.py in it, nor files or folders of students")
    return found


def _read(name, path, folder=None, beside=True):
    """The submission in a file. folder: where links are refused; beside: with the files beside it."""
    problem = _find_problem(path, folder)
    if problem:
        return Submission(name, problem=f"{path} {problem}")
    try:
        others = path.parent.glob("*.py") if folder and beside else ()
        files = {file.name: file.read_bytes() for file in others if file != path and not _find_problem(file, folder)}
        return Submission(name, path.read_bytes(), files)
    except OSError as error:
        return Submission(name, problem=f"{path} cannot be read ({error.strerror})")


def _find_problem(path, folder):
    if folder and (path.is_symlink() or not path.resolve().is_relative_to(folder.resolve())):
        return "is a link, or lies behind one"
    if not path.is_file():
        return "is no file"
    return f"is larger than {LARGEST_SOURCE} bytes" if path.stat().st_size > LARGEST_SOURCE else ""


def name_apart(submissions):
    """Give each of the submissions a name of its own: of two named ann the second becomes ann-2."""
    taken = set()
    for submission in submissions:
        names = itertools.chain([submission.name], (f"{submission.name}-{k}" for k in itertools.count(2)))
        submission.name = next(name for name in names if name not in taken)
        taken.add(submission.name)
    return submissions


# ---------------------------------------------------------------------------------------------------------
# Reports
# ---------------------------------------------------------------------------------------------------------


def format_report(report, worth):
    """The report as a table with, under each part, what is wrong or advised."""
    points = report.points(worth)
    lines = [f"{report.name}: {_number(sum(points.values()))} of {_number(sum(worth.values()))} points"]
    width = max(map(len, worth))
    for part, result in report.results.items():
        lines.append(f"  {part:<{width}}  {_number(points[part]):>3} / {_number(worth[part]):<3}  {result.label}")
        lines += [f"      {line}" for line in result.text.splitlines()]
        lines += [f"      advice: {line}" for line in result.advice]
    return "\n".join([*lines, *(f"  advice: {line}" for line in report.advice)])


def _number(value):
    return f"{value:.6g}"


def gradescope_results(report, worth):
    """The report in the form of Gradescope's results.json, as a dict."""
    points = report.points(worth)
    tests = []
    for part, result in report.results.items():
        advice = [f"advice: {line}" for line in result.advice]
        tests.append({
            "name": part, "score": points[part], "max_score": worth[part],
            "status": "passed" if result.verdict == RIGHT else "failed",
            "output": "\n".join([result.label, *result.text.splitlines(), *advice]), "visibility": "visible",
        })  # fmt: skip
    summary = "\n".join([f"{_number(sum(points.values()))} of {_number(sum(worth.values()))} points", *report.advice])
    return {"score": sum(points.values()), "output": summary, "visibility": "visible", "tests": tests,
            "stdout_visibility": "hidden"}  # fmt: skip


def write_csv(reports, worth, path):
    """A row a submission: its name, its score, the score's maximum, and each part's points."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["submission", "score", "max_score", *worth])
    for report in reports:
        points = report.points(worth)
        row = [sum(points.values()), sum(worth.values()), *points.values()]
        writer.writerow([_plain(report.name), *map(_number, row)])
    files.write_whole(path, lambda file: file.write(text.getvalue().encode(errors="backslashreplace")))


def _plain(name):
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in "=+-@" else name


def write_json(reports, worth, path):
    """Gradescope's results.json; of several submissions, a folder with a file for each."""
    path = Path(path)
    targets = [path]
    if len(reports) > 1:
        path.mkdir(parents=True, exist_ok=True)
        targets = [path / f"{report.name}.json" for report in reports]
    for report, target in zip(reports, targets):
        text = json.dumps(gradescope_results(report, worth), indent=2)
        files.write_whole(target, lambda file, text=text: file.write(text.encode()))


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def choose_parts(names):
    """Parts in the order of the lesson. names: parts, "published" or "all". Raises GradingError."""
    groups = {"all": list(CHECKS), "published": PUBLISHED_PARTS}
    unknown = [name for name in names if name not in groups and name not in CHECKS]
    if unknown:
        raise GradingError(f"--parts: {unknown[0]!r} is no part; wanted all, published, or of {', '.join(CHECKS)}")
    chosen = set(itertools.chain.from_iterable(groups.get(name, [name]) for name in names))
    return [part for part in CHECKS if part in chosen]


def read_points(path, parts):
    """part -> points: what the JSON file says, 1 for others. Raises GradingError."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError) as error:
        raise GradingError(f"--points {path}: cannot be read as JSON ({error})") from None
    if not isinstance(given, dict):
        raise GradingError(f"--points {path}: it holds a {type(given).__name__}, wanted {{part: points}}")
    for part, points in given.items():
        if part not in CHECKS:
            raise GradingError(f"--points {path}: there is no part {part!r}; the parts are {', '.join(CHECKS)}")
        if isinstance(points, bool) or not isinstance(points, (int, float)) or not 0 <= points < 1e6:
            raise GradingError(f"--points {path}: {part} has {points!r}, wanted a number from 0")
    return {part: given.get(part, 1) for part in parts}


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted seconds above 0")
    return value


def _parser():
    parser = commands.Parser(prog="eecs598.grading", description="Grade submissions: a score by part, with causes.")
    add = parser.add_argument
    add("submissions", nargs="+", type=Path, metavar="FILE-or-FOLDER", help=f"{NAME}.py, or folders with students'")
    add("--parts", nargs="+", default=["all"], metavar="PART", help="all (the default), published, or parts by name")
    add("--points", type=Path, metavar="FILE", help='JSON: {"rnn_forward": 5, ...}; a part not named has 1')
    add("--json", type=Path, metavar="PATH", help="write Gradescope's results.json; of several submissions, a folder")
    add("--csv", type=Path, metavar="PATH", help="write a table: a row a submission, a column a part")
    add("--timeout", type=_seconds, default=20.0, metavar="S", help="seconds that a part may take (20)")
    add("--memory", type=commands.positive, default=2048, metavar="MB", help="what a part may take, on Linux (2048)")
    add("--jobs", type=commands.positive, default=1, metavar="N", help="how many submissions at once (1)")
    add("--solution", type=Path, default=SOLUTION, metavar="FILE", help="its functions stand in for wrong ones (ours)")
    return parser


def _read_solution(path):
    """The solution's source; None, with a line, where it is missing or a student edition."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text or 'NotImplementedError("TODO' in text:
        print(f"note: {path} is no solution: parts on top of wrong ones are judged as they are", file=sys.stderr)
        return None
    return text


@commands.command
def main(arguments=None):
    options = _parser().parse_args(arguments)
    try:
        parts = choose_parts(options.parts)
        worth = read_points(options.points, parts)
        for path in filter(None, (options.json, options.csv)):
            commands.check_output(path, [options.solution, *options.submissions])
        submissions = name_apart([found for path in options.submissions for found in find_submissions(path)])
        solution = _read_solution(options.solution)
        secrets = [options.solution, *options.submissions]
        settings = (options.memory, secrets), {"solution": solution, "timeout": options.timeout}
        graded = grade_all([(submission, parts) for submission in submissions], settings, options.jobs)
        reports, many = [], len(submissions) > 1
        for report in tqdm(graded, desc="grading", unit="file", total=len(submissions), disable=not many):
            reports.append(report)
            tqdm.write(format_report(report, worth) + "\n")
        if options.json:
            write_json(reports, worth, options.json)
        if options.csv:
            write_csv(reports, worth, options.csv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

