"""Grade submissions of the assignment: a score by part, and for each miss what is wrong and the likely cause.

    python -m eecs598.grading FILE-or-FOLDER... [--parts PART...] [--points FILE.json] [--json PATH] [--csv PATH]
                              [--seed N] [--jobs N] [--timeout S] [--limit S] [--memory MB] [--by-hand] [--unconfined]

A folder is one submission, if it has rnn_lstm_captioning.py in it, or holds many: files or folders, one a student.
The parts are those of `eecs598.checks.CHECKS`; "published" stands for those of the published assignment. A part has
its points (1, or what --points says) or 0. What counts is what the published notebook's cells ask: their sizes, their
grid, values and gradients to single precision, the captioner's loss with their parameters, its captions' shapes. What
goes beyond (a batch of one, other grids, ignore_index=None, inputs changed in place, ...) is reported as advice.

All inputs are drawn from a seed, the same for the whole class. One mistake costs one part: a part that misses on top of
a wrong one that is graded, too, is checked again with the formula in the wrong one's place, and a backward of a forward
with a known mistake against differences of that forward. Every part runs in a process of its own, in the submission's
jail (`eecs598.grading.jail`); nothing is judged there.
"""

import argparse
import itertools
import json
import math
import secrets
import sys
import time
from concurrent.futures import ProcessPoolExecutor
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
LIMIT = 120.0  # seconds that a submission may take, all parts together; a right one takes about 10


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


# ---------------------------------------------------------------------------------------------------------
# One submission
# ---------------------------------------------------------------------------------------------------------


class _Attempt:
    """One process's run of a part's check: as a lesson, then as the published assignment; then, if right, beyond."""

    def __init__(self, table=None, lesson=None, stopped="", how=""):
        self.table, self.lesson, self.stopped, self.how, self.advice = table, lesson, stopped, how, []
        self.used = set()

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
    """Grades submissions, one after the other. jail: an open `jail.Jail`.

    timeout, limit: seconds that a part, and that all of them together, may take. seed: of the inputs, None for those
    of the lesson. advice: whether to look beyond what counts. by_hand: whether autograd in a backward, and PyTorch's
    cells anywhere, cost the part.
    """

    def __init__(self, jail, timeout=20.0, limit=LIMIT, seed=None, advice=True, by_hand=False, conditions=""):
        self.jail, self.timeout, self.limit, self.seed = jail, timeout, limit, seed
        self.advice, self.by_hand, self.conditions = advice, by_hand, conditions

    def grade(self, submission, parts=None):
        """Returns a `Report` of the parts, all if None. Whatever goes wrong here costs this submission alone."""
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
        self.text = scan.Text(submission.source, submission.files.values())
        if self.text.strange:
            named = ", ".join(self.text.strange)
            report.advice.append(f"look at this file by eye: it uses {named}, which no part needs")
        present = [part for part in parts if set(CHECKS[part].needs) <= set(info["has"])]
        attempts = {part: self._attempt(submission, part) for part in present}
        # Of what is not graded here nothing is known: it may be a stub, and nothing is put in its place.
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
        """Import the file once. Returns what it has, and why it cannot be imported or an empty string."""
        with self._sandbox(submission) as box:
            self.deadline = time.monotonic() + self.limit  # from here: until torch was loaded was not its fault
            try:
                info = box.load(NAMES)
            except (Stopped, Exception) as error:
                where = getattr(error, "learners_line", "")
                kind = "" if isinstance(error, Stopped) else f"{type(error).__name__}: "
                return None, f"the file cannot be imported: {kind}{error}{where}"
        if info["cuda"]:
            report.advice.append("it assumes a GPU: .cuda() and device='cuda' were taken as the CPU here")
        if info["stand_ins"]:
            report.advice.append(f"imported as stand-ins, being absent here: {', '.join(info['stand_ins'])}")
        return info, ""

    def _sandbox(self, submission):
        left = max(self.deadline - time.monotonic(), 0.1)
        return Sandbox(self.jail, submission.source, min(self.timeout, left), submission.files)

    def _attempt(self, submission, part, names=(), further=""):
        """Check a part in a process of its own, with the formulas in the place of `names`."""
        if time.monotonic() > self.deadline:
            return _Attempt(stopped=f"not run: all parts together took more than {self.limit:g} s")
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
            except Exception as error:  # the import, which went well before
                attempt.stopped = f"{type(error).__name__}: {error}"
            attempt.used = set() if names or further else box.used
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

    def _judge(self, submission, part, bad):
        """The verdict of a part, once all have been tried by themselves."""
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
                return Result(RIGHT, "with ours underneath", advice=[f"ours in the place of {replaced}"])
            if shown is attempt:
                shown = second
        undone = attempt.undone and (shown.undone or shown is attempt)
        verdict = STOPPED if shown.stopped else UNDONE if undone else WRONG
        return Result(verdict, text=shown.text)

    def _hand_written(self, part, result, attempt):
        """The result, with a word on what of PyTorch does the work that is to be done by hand."""
        used = {*self.text.uses(CHECKS[part].needs[-1]), *attempt.used}
        used = sorted(name for name in used if scan.forbidden(part, name))
        if not used or result.verdict != RIGHT:
            return result
        what = f"not by hand: it uses autograd or a cell of PyTorch's library ({', '.join(used)})"
        if self.by_hand:
            return Result(WRONG, text=what)
        return Result(RIGHT, result.how, result.text, [what, *result.advice])


# ---------------------------------------------------------------------------------------------------------
# A class
# ---------------------------------------------------------------------------------------------------------


def grade_all(tasks, confinement, memory=2048, jobs=1, **settings):
    """Yield the report of each task (submission, its parts or None), in order. Each submission has a jail of its own.

    jobs: how many at once; settings: those of a `Grader`.
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
    with ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), _one_thread) as pool:
        graded = [pool.submit(_grade_apart, confinement, memory, task, settings) for task in tasks]
        for future, (submission, parts) in zip(graded, tasks):
            try:
                yield future.result()
            except Exception as error:  # as when the system has ended that process
                yield _failed(submission, parts, error, settings)


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
    add("--limit", type=_seconds, default=LIMIT, metavar="S", help=f"seconds that a submission may take ({LIMIT:g})")
    add("--memory", type=commands.positive, default=2048, metavar="MB", help="what a part may take, on Linux (2048)")
    add("--jobs", type=commands.positive, default=1, metavar="N", help="how many submissions at once (1)")
    add("--seed", type=commands.at_least(0, 2**32 - 1), metavar="N", help="of the inputs (one for each run)")
    add("--by-hand", action="store_true", help="autograd in a backward, or a cell of PyTorch's, costs the part")
    add("--unconfined", action="store_true", help="grade also where nothing confines a submission")
    return parser


@commands.command
def main(arguments=None):
    options = _parser().parse_args(arguments)
    try:
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
            except (OSError, ValueError) as error:  # the others' can be written, perhaps
                print(f"error: the result of {report.name}: {error}", file=sys.stderr)
                status = 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status
