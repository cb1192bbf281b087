"""Grade submissions of the assignment: a score for each part and, for each failed part, the likely cause.

    python -m eecs598.grading FILE-or-FOLDER... [--parts PART...] [--points FILE.json] [--json PATH] [--csv PATH]
                              [--seed N] [--jobs N] [--timeout S] [--limit S] [--memory MB] [--by-hand] [--unconfined]

A folder that contains rnn_lstm_captioning.py is one submission; any other folder is a class, with one file or folder
per student. The parts are those of `eecs598.checks.CHECKS`; "published" means those of the published assignment. A part
earns all of its points (1, or as --points says) or none. It passes if the published notebook's cells would accept it:
their sizes and grid, values and gradients to single precision, the captioner's loss with their parameters, the shapes
of its captions. Anything beyond (a batch of one, other grids, ignore_index=None, inputs modified in place, ...) is
advice.

The inputs are random, with one seed for the whole class. A mistake costs only its own part: if a part fails and builds
on another part that is graded and wrong, it is checked again with the reference formula in place of that other part,
and the backward pass of a forward pass with a known mistake is checked numerically against that forward pass. Each part
runs in a process of its own in the submission's jail (`eecs598.grading.jail`), but is judged outside it.
"""

import functools
import itertools
import json
import math
import secrets
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from eecs598 import checks, commands
from eecs598.checks import BEYOND, CHECKS, LESSON, PUBLISHED
from eecs598.grad import CheckError, CheckTable
from eecs598.grading import NAME, older, scan, underneath
from eecs598.grading.jail import Jail, find_confinement
from eecs598.grading.remote import CAPTIONER, Sandbox, Stopped, plain
from eecs598.grading.reports import ABSENT, RIGHT, STOPPED, UNDONE, WRONG, Report, Result, Results, format_report
from eecs598.grading.submissions import NAMES, SOLUTION, GradingError, find_submissions, name_apart
from eecs598.handout.parts import published_checks

PUBLISHED_PARTS = published_checks()
LIMIT = 120.0  # seconds per submission, all parts together; a correct one takes about 10
DAY = 86_400  # seconds: the longest time limit


# ---------------------------------------------------------------------------------------------------------
# Which function calls which
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
CALLS = {  # function or class -> the pairs, besides its own, and the classes that it may call
    "rnn_forward": RNN_PAIRS[:1], "rnn_backward": RNN_PAIRS[:1], "RNN": RNN_PAIRS,
    "lstm_forward": LSTM_PAIRS[:1], "lstm_backward": LSTM_PAIRS[:1], "LSTM": LSTM_PAIRS,
    "attention_lstm_step_forward": LSTM_PAIRS[:1], "attention_lstm_step_backward": LSTM_PAIRS[:1],
    "attention_lstm_forward": ATTENTION_STEPS, "attention_lstm_backward": ATTENTION_STEPS,
    "AttentionLSTM": (*ATTENTION_STEPS, _pair("attention_lstm"), ("LSTM",)),
    "WordEmbedding": (_pair("word_embedding"),), "temporal_softmax_loss": (SOFTMAX[1:],),
    "CaptioningRNN": (*PAIRS, ("RNN",), ("LSTM",), ("AttentionLSTM",), ("WordEmbedding",)),
}  # fmt: skip

# Often a sequence's cache is the list of its steps' caches, so a correct backward pass accepts this loop's cache.
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
    """Yield ways to replace wrong functions by the reference: (names to replace, source to run afterwards).

    needs: the names that the part's check takes, its own last; bad: the names that are not known to be correct.
    """
    own, below = needs[-1], CALLS.get(needs[-1], ())
    partner = needs[0] if len(needs) == 2 and needs[0] in bad else None
    names = {name for pair in below if bad & set(pair) for name in pair} - {own}
    if names:
        yield names, ""
    if partner:
        yield names | {partner}, ""
        if partner in LOOPED:
            yield names, LOOP.format(name=partner, step=LOOPED[partner])


# ---------------------------------------------------------------------------------------------------------
# One submission
# ---------------------------------------------------------------------------------------------------------


class _Attempt:
    """The outcome of a part's check in one process.

    table, lesson: the tables of the level that decides and of the level `lesson`; stopped: why the process ended early.
    """

    def __init__(self, stopped=""):
        self.table = self.lesson = None
        self.stopped, self.advice, self.used = stopped, [], set()

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
        return "\n".join([f"wrong: {', '.join(missed)}", *self.table.hints])


class Grader:
    """Grades submissions one after another, in an open `jail.Jail`.

    timeout, limit: time limits in seconds, for a part and for a submission. seed: of the random inputs; None for the
    inputs of the lesson. advice: whether to run the checks of the level `beyond` too. by_hand: whether a part fails if
    it uses autograd in a backward pass, or PyTorch's cells anywhere. conditions: the report's first line.
    """

    def __init__(self, jail, timeout=20.0, limit=LIMIT, seed=None, advice=True, by_hand=False, conditions=""):
        self.jail, self.timeout, self.limit, self.seed = jail, timeout, limit, seed
        self.advice, self.by_hand, self.conditions = advice, by_hand, conditions

    def grade(self, submission, parts=None):
        """Return a `Report` on `parts` (default: all). No exception affects more than this submission."""
        parts = list(parts or CHECKS)
        report = Report(submission.name, {}, [], self.conditions)
        try:
            with checks.drawn_from(self.seed):
                self._grade(submission, parts, report)
        except Exception as error:
            where = f"the grader fails on this file ({type(error).__name__}: {error}): look at it by eye"
            report.results |= {part: Result(STOPPED, text=where) for part in parts if part not in report.results}
        report.results = {part: report.results[part] for part in parts}
        report.advice = Result("", advice=report.advice).advice
        return report

    def _grade(self, submission, parts, report):
        if submission.problem:
            report.results = {part: Result(ABSENT, text=submission.problem) for part in parts}
            return
        if submission.is_empty:
            texts = {part: f"{CHECKS[part].needs[-1]} is not in this file" for part in parts}
            report.results = {part: Result(ABSENT, text=text) for part, text in texts.items()}
            return
        self.deadline = math.inf
        info, problem = self._load(submission, report)
        if problem:
            report.results = {part: Result(STOPPED, text=problem) for part in parts}
            return
        self.older = older.is_older(submission.source)
        if self.older:
            report.advice.append(older.ADVICE)
            info["has"] = older.current_names(submission.source, info["has"])
        self.text = scan.Text(submission.source, submission.files)
        if self.text.strange:
            named = ", ".join(self.text.strange)
            report.advice.append(f"look at this file by eye: it uses {named}, which no part needs")
        present = [part for part in parts if set(CHECKS[part].needs) <= set(info["has"])]
        attempts = {part: self._attempt(submission, part) for part in present}
        # Names that are not graded may be stubs, so nothing is known about them and they are not replaced.
        bad = {CHECKS[part].needs[-1] for part in parts} & set(info["has"])
        bad -= {CHECKS[part].needs[-1] for part in present if attempts[part].right}
        bad |= {CHECKS[part].needs[-1] for part in present if not attempts[part].right}
        self.attempts = attempts
        for part in parts:
            if part not in attempts:
                missing = [name for name in CHECKS[part].needs if name not in info["has"]]
                differs = self.older and older.DIFFERENT & set(missing)
                where = "is that of another assignment" if differs else "is not in this file"
                report.results[part] = Result(ABSENT, text=f"{', '.join(missing)} {where}")
            else:
                report.results[part] = self._hand_written(part, self._judge(submission, part, bad), attempts[part])

    def _load(self, submission, report):
        """Import the file once. Returns what it defines, and an empty string or why it cannot be imported."""
        with self._sandbox(submission) as box:
            self.deadline = time.monotonic() + self.limit  # from now on; the time to load torch does not count
            try:
                info = box.load(NAMES)
            except (Stopped, Exception) as error:
                where = getattr(error, "learners_line", "")
                kind = "" if isinstance(error, Stopped) else f"{type(error).__name__}: "
                return None, f"the file cannot be imported: {kind}{error}{where}"
        if info["cuda"]:
            report.advice.append("it assumes a GPU: .cuda() and device='cuda' used the CPU here")
        if info["stand_ins"]:
            report.advice.append(f"not available here and replaced by stand-ins: {', '.join(info['stand_ins'])}")
        return info, ""

    def _sandbox(self, submission):
        left = max(self.deadline - time.monotonic(), 0.1)
        return Sandbox(self.jail, submission.source, min(self.timeout, left), submission.files)

    def _attempt(self, submission, part, names=(), further=""):
        """Check a part in a process of its own, with `names` replaced by the reference and `further` run."""
        if time.monotonic() > self.deadline:
            return _Attempt(stopped=f"not run: the submission took more than {self.limit:g} s in total")
        attempt, needs = _Attempt(), CHECKS[part].needs
        with self._sandbox(submission) as box:
            try:
                box.load(NAMES)
                if self.older:
                    box.lend("", (), older.CLASSES)
                if names or further:
                    box.lend(underneath.source(), names, further)
                functions = [box.make_class(name) if name[0].isupper() else box.function(name) for name in needs]
                self._check(attempt, part, functions)
            except Stopped as stopped:
                if not attempt.right:
                    attempt.stopped = f"{needs[-1]}: {stopped}"
                else:
                    attempt.advice.append(f"beyond the published cases: {stopped}")
            except Exception as error:  # of the import, although it succeeded before
                attempt.stopped = f"{type(error).__name__}: {error}"
            attempt.used = set() if names or further else box.used
        return attempt

    def _check(self, attempt, part, functions):
        attempt.table = attempt.lesson = _run(part, functions, LESSON)
        if not attempt.table.passed:
            attempt.table = _run(part, functions, PUBLISHED)
            if attempt.table.passed:
                attempt.advice += attempt.lesson.hints
            elif CAPTIONER in CHECKS[part].needs:  # a wrong published loss says nothing about the cause
                attempt.table.hints += [hint for hint in attempt.lesson.hints if hint not in attempt.table.hints]
        if attempt.right and self.advice:
            beyond = _run(part, functions, BEYOND)
            missed = [row.quantity for row in beyond.rows if not row.passed]
            if missed:
                attempt.advice.append(f"wrong beyond the published cases: {', '.join(missed)}")
                attempt.advice += beyond.hints[:1]

    def _judge(self, submission, part, bad):
        """Return the `Result` of a part, once all parts have been checked separately."""
        attempt = shown = self.attempts[part]
        if attempt.right:
            return Result(RIGHT, advice=attempt.advice)
        needs = CHECKS[part].needs
        if len(needs) == 2 and needs[0] in bad and _right_for_own_forward(attempt.lesson):
            forward = self.attempts.get(next(name for name, check in CHECKS.items() if check.needs == needs[:1]))
            mistakes = forward.lesson.known_mistakes if forward and forward.lesson else []
            if mistakes:
                advice = f"{needs[0]} is wrong, as when {mistakes[0]}; its gradient is right"
                return Result(RIGHT, "for its own forward", advice=[advice])
        for names, further in _replacements(needs, bad):
            if time.monotonic() > self.deadline:
                break
            second = self._attempt(submission, part, sorted(names), further)
            if second.right:
                replaced = ", ".join(sorted(names | ({needs[0]} if further else set())))
                return Result(RIGHT, "on top of our code", advice=[f"checked with our {replaced}"])
            if shown is attempt:
                shown = second
        undone = attempt.undone and (shown.undone or shown is attempt)
        verdict = STOPPED if shown.stopped else UNDONE if undone else WRONG
        return Result(verdict, text=shown.text)

    def _hand_written(self, part, result, attempt):
        """Return the result, with a note if PyTorch does work that is to be written by hand."""
        used = {*self.text.uses(CHECKS[part].needs[-1]), *attempt.used}
        used = sorted(name for name in used if scan.forbidden(part, name))
        if not used or result.verdict != RIGHT:
            return result
        what = f"not by hand: it uses autograd, or a cell or attention of PyTorch ({', '.join(used)})"
        if self.by_hand:
            return Result(WRONG, text=what)
        return Result(RIGHT, result.how, result.text, [what, *result.advice])


# ---------------------------------------------------------------------------------------------------------
# A class
# ---------------------------------------------------------------------------------------------------------


def grade_all(tasks, confinement, memory=2048, jobs=1, **settings):
    """Yield a report for each task (submission, parts or None), in order. Each submission gets a jail of its own.

    jobs: number of submissions graded in parallel; settings: arguments of a `Grader`.
    """
    if jobs == 1 or len(tasks) < 2:
        jails = [Jail(confinement, memory) for _ in tasks]
        try:
            for k, (jail, task) in enumerate(zip(jails, tasks)):
                for coming in jails[k : k + 2]:  # while one submission is graded, torch is loaded for the next
                    if coming.process is None and not tasks[jails.index(coming)][0].is_empty:
                        coming.open()
                yield _grade_in(jail, task, settings)
        finally:
            for jail in jails:
                jail.kill()
        return
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), _one_thread)
    try:
        graded = [pool.submit(_grade_apart, confinement, memory, task, settings) for task in tasks]
        for future, (submission, parts) in zip(graded, tasks):
            try:
                yield future.result()
            except BrokenProcessPool:  # the system killed one of the pool, perhaps for memory: the rest are done here
                yield from grade_all([(submission, parts)], confinement, memory, **settings)
            except Exception as error:
                yield _failed(submission, parts, error, settings)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt, those that wait are not graded


def _one_thread():
    torch.set_num_threads(1)


def _grade_apart(confinement, memory, task, settings):
    with Jail(confinement, memory) as jail:
        return _grade_in(jail, task, settings)


def _grade_in(jail, task, settings):
    submission, parts = task
    try:
        return Grader(jail, **settings).grade(submission, parts)
    except Exception as error:
        return _failed(submission, parts, error, settings)
    finally:
        jail.kill()


def _failed(submission, parts, error, settings):
    text = f"it could not be graded ({type(error).__name__}: {error})"
    results = {part: Result(STOPPED, text=text) for part in parts or CHECKS}
    return Report(submission.name, results, [], settings.get("conditions", ""))


def _run(part, functions, level):
    """Return the table of a check at a level, whether or not it passes."""
    try:
        with checks.at_level(level):
            return CHECKS[part].run(*functions)
    except CheckError as error:
        return error.table
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # The checks should handle any return value; if one does not, only this student is affected.
        table = CheckTable(part)
        table.add("comparison", float("inf"))
        table.hint(f"what it returned cannot be compared ({type(error).__name__}: {str(error).splitlines()[0]})")
        return table


def _right_for_own_forward(table):
    """Whether a wrong backward pass is the gradient of the student's own forward pass, with no gradient zero."""
    rows = [] if table is None else table.rows
    numeric = [row for row in rows if row.quantity.startswith("numeric")]
    gradients = [row for row in rows if row.quantity.startswith("d")]
    return bool(numeric) and numeric[0].passed and all(row.error < 1 for row in gradients)


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def choose_parts(names):
    """Return the named parts in the lesson's order. names: parts, "published" or "all". Raises GradingError."""
    groups = {"all": list(CHECKS), "published": PUBLISHED_PARTS}
    unknown = [name for name in names if name not in groups and name not in CHECKS]
    if unknown:
        raise GradingError(f"--parts: there is no part {unknown[0]!r}; use all, published, or {', '.join(CHECKS)}")
    chosen = set(itertools.chain.from_iterable(groups.get(name, [name]) for name in names))
    return [part for part in CHECKS if part in chosen]


def read_points(path, parts):
    """Return part -> points: from the JSON file, 1 if it does not name the part. Raises GradingError."""
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
            raise GradingError(f"--points {path}: {part} has {points!r}, wanted a number from 0 to below 1,000,000")
    return {part: given.get(part, 1) for part in parts}


def _parser():
    what = "Grade submissions: a score for each part, with the cause of each failure."
    parser = commands.Parser(prog="python -m eecs598.grading", description=what)
    add, seconds = parser.add_argument, functools.partial(commands.above_zero, most=DAY)
    add("submissions", nargs="+", type=Path, metavar="FILE-or-FOLDER", help=f"{NAME}.py, or a folder of submissions")
    add("--parts", nargs="+", default=["all"], metavar="PART", help="all (the default), published, or parts by name")
    add("--points", type=Path, metavar="FILE", help='JSON: {"rnn_forward": 5, ...}; other parts are worth 1')
    add("--json", type=Path, metavar="PATH", help="write Gradescope's results.json; for several submissions, a folder")
    add("--csv", type=Path, metavar="PATH", help="write a table with one row per submission and one column per part")
    add("--timeout", type=seconds, default=20.0, metavar="S", help="time limit per part, in seconds (20)")
    add("--limit", type=seconds, default=LIMIT, metavar="S", help=f"time limit per submission, in seconds ({LIMIT:g})")
    add("--memory", type=commands.positive, default=2048, metavar="MB", help="memory limit per part, on Linux (2048)")
    add("--jobs", type=commands.positive, default=1, metavar="N", help="number of submissions graded in parallel (1)")
    add("--seed", type=commands.at_least(0, 2**32 - 1), metavar="N", help="random seed of the inputs (new in each run)")
    add("--by-hand", action="store_true", help="fail parts that use autograd in a backward pass, or PyTorch's cells")
    add("--unconfined", action="store_true", help="grade even if submissions cannot be sandboxed")
    return parser


@commands.command
def main(arguments=None):
    options = _parser().parse_args(arguments)
    parts = choose_parts(options.parts)
    worth = read_points(options.points, parts)
    submissions = name_apart([found for path in options.submissions for found in find_submissions(path)])
    many = len(submissions) > 1
    inputs = [SOLUTION, *options.submissions]
    results = Results(worth, options.csv, options.json, many, inputs)
    confinement = find_confinement(options.memory, tuple(map(str, inputs)), options.unconfined)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    settings = {"timeout": options.timeout, "limit": options.limit, "seed": seed, "by_hand": options.by_hand,
                "conditions": f"{plain(confinement.says)}; inputs drawn from --seed {seed}"}  # fmt: skip
    tasks, status = [(submission, parts) for submission in submissions], 0
    graded = grade_all(tasks, confinement, options.memory, options.jobs, **settings)
    for report in tqdm(graded, desc="grading", unit="file", total=len(tasks), disable=not many):
        tqdm.write(format_report(report, worth) + "\n")
        try:
            results.add(report)
        except (OSError, ValueError) as error:  # perhaps the next one can be written
            print(f"error: the result of {report.name} is not written: {error}", file=sys.stderr)
            status = 1
    return status
