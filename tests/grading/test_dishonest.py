"""What a dishonest student, or an accident, could do to the grader itself: one test or more for each kind."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from support import ROOT, confinement, in_process

import rnn_lstm_captioning as rlc
from eecs598 import checks
from eecs598.checks import CHECKS, PUBLISHED
from eecs598.grad import CheckError
from eecs598.grading import grader as grading
from eecs598.grading import jail as jails
from eecs598.grading import reports, scan, submissions
from eecs598.grading.reports import RIGHT, STOPPED, WRONG, Report, Result
from eecs598.grading.submissions import Submission, find_submissions

STUDENT = (ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
NAME = "rnn_lstm_captioning.py"


def grade(source, *parts, seed=None, **settings):
    """The results of a source whose code is known, in this process."""
    grader = in_process.Grader(seed)
    for name, value in settings.items():
        setattr(grader, name, value)
    return grader.grade(Submission("student", source.encode()), list(parts)).results


# --- the rules ---------------------------------------------------------------------------------------------


def test_inputs_are_the_seeds_alone():
    formula = checks.parts.LSTM_SEQUENCE

    def drawn(seed):
        with checks.drawn_from(seed):
            return formula.draw(formula.cases[0])[0]["x"]

    assert torch.equal(drawn(5), drawn(5)) and not torch.equal(drawn(5), drawn(6))
    assert torch.equal(drawn(None), formula.draw(formula.cases[0])[0]["x"]) and not torch.equal(drawn(None), drawn(5))


@pytest.mark.parametrize("part", CHECKS)
def test_what_is_right_is_right_whatever_the_seed(part):
    for level in (checks.LESSON, PUBLISHED):
        with checks.at_level(level), checks.drawn_from(8):
            assert CHECKS[part].run(*(getattr(rlc, need) for need in CHECKS[part].needs)).passed


@pytest.mark.parametrize("part", [part for part, check in CHECKS.items() if check.needs[-1].islower()])
def test_what_was_noted_is_wrong_whatever_the_seed(part):
    """The answers noted with the lesson's inputs are given again: no such table has a point in a run of the grader."""
    *functions, right = (getattr(rlc, need) for need in CHECKS[part].needs)
    table = []

    def note(*args, **kwargs):
        table.append(right(*args, **kwargs))
        return table[-1]

    with checks.at_level(PUBLISHED):
        CHECKS[part].run(*functions, note)
        answers = iter(table * 3)
        with checks.drawn_from(8), pytest.raises(CheckError):
            CHECKS[part].run(*functions, lambda *args, **kwargs: next(answers))


@pytest.mark.parametrize("part", [part for part in CHECKS if part.endswith(("captioner_loss", "captioner_sample"))])
def test_a_captioners_published_answers_differ_from_seed_to_seed(part):
    """A constant, as the published loss is one, is no answer in a run."""
    seen = []
    for seed in (1, 2):
        with checks.drawn_from(seed):
            if part.endswith("loss"):
                seen.append(checks.published.wanted_loss(part.partition("_")[0]))
            else:
                formula = getattr(checks.parts, f"{part.partition('_')[0].upper()}_CAPTIONER_SAMPLE")
                inputs, _ = formula.draw(formula.cases[0])
                seen.append(tuple(formula.reference(**inputs)[0].flatten().tolist()))
    assert seen[0] != seen[1]


TRIVIAL = """
def rnn_step_forward(x, prev_h, Wx, Wh, b):
    return 0.5 * x @ Wx + 0.1 * prev_h @ Wh + 2 * b, (x, prev_h, Wx, Wh, b)

def rnn_step_backward(d, cache):
    x, prev_h, Wx, Wh, b = cache
    return 0.5 * d @ Wx.t(), 0.1 * d @ Wh.t(), 0.5 * x.t() @ d, 0.1 * prev_h.t() @ d, 2 * d.sum(0)
"""


def test_a_backward_of_a_forward_of_ones_own_invention_has_no_points():
    results = grade(STUDENT + TRIVIAL, "rnn_step_forward", "rnn_step_backward")
    assert {result.verdict for result in results.values()} == {WRONG}


def test_a_backward_of_a_forward_with_a_known_mistake_has_its_points():
    linear = re.sub(r"torch\.tanh\((x\.mm.*)\)", r"(\1)", STUDENT).replace("(1 - next_h**2)", "1")
    results = grade(linear.replace("next_h = cache", "_ = cache"), "rnn_step_forward", "rnn_step_backward")
    assert results["rnn_step_forward"].verdict == WRONG
    assert results["rnn_step_backward"].label == "right for its own forward", results["rnn_step_backward"]
    assert "tanh is left out" in results["rnn_step_backward"].advice[0]


STUB = """
def lstm_step_forward(*given): raise NotImplementedError
def lstm_step_backward(*given): raise NotImplementedError
class LSTM(LSTM):
    def step_forward(self, x, h, c):
        return lstm_step_forward(x, h, c, self.Wx, self.Wh, self.b)[:2]
"""


def test_nothing_is_lent_in_the_place_of_a_stub_that_is_not_graded():
    assert grade(STUDENT + STUB, "lstm_module")["lstm_module"].verdict != RIGHT
    both = grade(STUDENT + STUB, "lstm_step_forward", "lstm_module")
    assert both["lstm_step_forward"].verdict != RIGHT and both["lstm_module"].how == "on top of our code"


LIBRARY = {
    "autograd in a backward": ("rnn_step_backward", """
        def rnn_step_forward(x, prev_h, Wx, Wh, b):
            return torch.tanh(x @ Wx + prev_h @ Wh + b), (x, prev_h, Wx, Wh, b)

        def rnn_step_backward(d, cache):
            with torch.enable_grad():
                leaves = [value.detach().requires_grad_() for value in cache]
                return torch.autograd.grad(rnn_step_forward(*leaves)[0], leaves, d)
    """, "grad"),
    "backward() under another name": ("rnn_step_backward", """
        go = torch.autograd.backward

        def _all(d, cache):
            leaves = [value.detach().requires_grad_() for value in cache]
            go(rnn_step_forward(*leaves)[0], d)
            return [leaf.grad for leaf in leaves]

        def rnn_step_forward(x, prev_h, Wx, Wh, b):
            return torch.tanh(x @ Wx + prev_h @ Wh + b), (x, prev_h, Wx, Wh, b)

        def rnn_step_backward(d, cache):
            return _all(d, cache)
    """, "backward"),
    "a cell": ("lstm_module", """
        import torch as th
        class LSTM(LSTM):
            def step_forward(self, x, h, c):
                order = lambda w: th.cat([w.chunk(4, -1)[k] for k in (0, 1, 3, 2)], -1)
                Wx, Wh, b = map(order, (self.Wx, self.Wh, self.b))
                return th.lstm_cell(x, (h, c), Wx.t(), Wh.t(), b, th.zeros_like(b))
    """, "lstm_cell"),
}  # fmt: skip


@pytest.mark.parametrize("part, code, name", LIBRARY.values(), ids=LIBRARY)
def test_what_is_not_by_hand_is_named_and_costs_the_part_where_that_is_asked(part, code, name):
    source = STUDENT + textwrap.dedent(code)
    named = grade(source, part)[part]
    assert named.verdict == RIGHT and "not by hand" in named.advice[0] and name in named.advice[0]
    assert grade(source, part, by_hand=True)[part].verdict == WRONG
    assert not grade(STUDENT, part, by_hand=True)[part].advice


def test_a_call_that_the_text_does_not_show_is_seen_where_it_is_made():
    cell = textwrap.dedent(LIBRARY["a cell"][1])
    hidden = STUDENT + cell.replace("th.lstm_cell", "getattr(th, 'lstm' + '_cell')")
    own = "import mine\nimport torch.nn as nn\nclass A:\n    cell = mine.LSTM(3)\nclass B:\n    cell = nn.LSTM(3)"
    assert scan.Text(own.encode()).uses("A") == [] and scan.Text(own.encode()).uses("B") == ["LSTM"]
    assert scan.Text(hidden.encode()).uses("LSTM") == []
    with confinement.open_jail() as jail:
        report = grading.Grader(jail, advice=False).grade(Submission("bob", hidden.encode()), ["lstm_module"])
    assert "lstm_cell" in report.results["lstm_module"].advice[0]


def test_what_can_hide_much_is_named_for_a_look_by_eye():
    text = scan.Text(b"import zlib\nexec(zlib.decompress(b''))\n")
    assert text.strange == ["exec", "zlib"] and not scan.Text(STUDENT.encode()).strange
    assert not scan.Text(b"model.eval()\n").strange and scan.Text(b"run = eval\n").strange == ["eval"]


BACKWARD = b"def rnn_step_backward(dnext_h, cache):\n    dx = dnext_h @ cache\n    return dx, check\n"


@pytest.mark.parametrize("source, files, found", [
    (b"dx = x.grad\n" + BACKWARD, {}, []),  # a variable of the function has this name too
    (b"check = x.grad\n" + BACKWARD, {}, ["grad"]),
    (b"def slope(x):\n    return x.grad\n\ndef rnn_step_backward(d, cache, slope=slope):\n    return slope(d)\n", {},
     ["grad"]),
    (b"def rnn_step_backward(d, cache):\n    global slope\n    slope = slope or d\n\nslope = x.grad\n", {}, ["grad"]),
    (BACKWARD, {"try.py": b"def rnn_step_backward(d, cache):\n    return d.grad\n"}, []),  # never imported
    (b"from mine import check\n" + BACKWARD, {"mine.py": b"from deeper import *\ncheck = a\n",
                                             "deeper.py": b"a = x.grad\n"}, ["grad"]),
    (b"import importlib\ncheck = importlib.import_module('mine').check\n" + BACKWARD,
     {"mine.py": b"check = x.grad\n"}, ["grad"]),
])  # fmt: skip
def test_only_what_a_part_itself_uses_counts(source, files, found):
    assert scan.Text(source, files).uses("rnn_step_backward") == found


# --- a class ------------------------------------------------------------------------------------------------


def write(folder, *names, source=STUDENT):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def problems(folder):
    return {found.name: found.problem for found in find_submissions(folder)}


def test_links_are_refused_wherever_they_lie(tmp_path, monkeypatch):
    write(tmp_path, "class/ann.py", "elsewhere/rnn_lstm_captioning.py")
    (tmp_path / "class" / "bob").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "one.py").symlink_to(ROOT / NAME)
    assert "is a link" in problems(tmp_path / "class")["bob"] and not problems(tmp_path / "class")["ann"]
    assert "is a link" in problems(tmp_path / "one.py")["one"]
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "class" / "cid")
    solution = Path(shutil.copy(ROOT / NAME, tmp_path))
    monkeypatch.setattr(submissions, "SOLUTION", solution)
    os.link(solution, tmp_path / "class" / "dan.py")
    assert problems(tmp_path / "class")["dan"].endswith("is a link to the solution")


def test_a_loose_file_does_not_take_the_class(tmp_path):
    write(tmp_path, "ann.py", f"bob/{NAME}", NAME)
    assert "is directly in the folder of a class" in problems(tmp_path)["rnn_lstm_captioning"]
    assert not problems(tmp_path)["ann"] and not problems(tmp_path)["bob"]
    write(tmp_path / "one", NAME)
    write(tmp_path / "one", "a5_helper.py", source="def show(): pass\n")
    (found,) = find_submissions(tmp_path / "one")
    assert found.name == "one" and list(found.files) == ["a5_helper.py"]
    write(tmp_path / "one", f"old/{NAME}")
    with pytest.raises(submissions.GradingError, match=r"old is there beside .*\. If it is an older version, move"):
        find_submissions(tmp_path / "one")


@pytest.mark.parametrize("count, size", [(200, 10), (12, 1 << 20)], ids=["many", "large"])
def test_files_beside_are_bounded_in_sum(tmp_path, count, size):
    write(tmp_path, f"bob/{NAME}", "ann.py")
    for k in range(count):
        (tmp_path / "bob" / f"f{k}.py").write_bytes(b"#" * size)
    assert "beside it" in problems(tmp_path)["bob"] and not problems(tmp_path)["ann"]


def nest(folder, depth):
    """Nest folders so deeply that the path of the last is longer than the system allows."""
    place = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=place)
        deeper = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)


def test_folders_without_end_cost_their_own_submission(tmp_path):
    write(tmp_path, "ann.py", f"bob/a/b/{NAME}", "carl/notes.txt")
    for name in ("bob", "carl"):
        nest(tmp_path / name, 2100)
    try:
        found = problems(tmp_path)
        assert (found["ann"], found["bob"]) == ("", "")
        assert found["carl"].startswith(f"there is no {NAME} in"), found["carl"]
    finally:
        for name in ("bob", "carl"):
            jails._remove(tmp_path / name)
    assert not (tmp_path / "bob").exists()


def test_an_error_of_the_grader_costs_one_submission(monkeypatch):
    monkeypatch.setattr(grading.Grader, "_load", lambda self, submission, report: 1 / 0)
    report = grading.Grader(None).grade(Submission("bob", STUDENT.encode()), ["rnn_forward"])
    assert report.results["rnn_forward"].verdict == STOPPED
    assert "ZeroDivisionError" in report.results["rnn_forward"].text


def test_results_are_written_as_they_come_and_checked_before(tmp_path):
    worth, right = {"rnn_forward": 1}, {"rnn_forward": Result(RIGHT)}
    results = reports.Results(worth, tmp_path / "out" / "class.csv", tmp_path / "json", many=True)
    names = ["ann", "b" * 250, "=HYPERLINK(1)", "../../x", "x;=1+1"]
    for k, name in enumerate(names):
        results.add(Report(name, right, []))
        assert len(list(csv.reader((tmp_path / "out" / "class.csv").open(newline="")))) == k + 2
    cells = [row[0] for row in csv.reader((tmp_path / "out" / "class.csv").open(newline=""))]
    assert cells[3:] == ["'=HYPERLINK(1)", "../../x", "x;'=1+1"]
    assert len(list((tmp_path / "json").iterdir())) == 5 and not (tmp_path.parent / "x.json").exists()
    (tmp_path / "file").write_text("")
    for target in ({"table": tmp_path / "file" / "a.csv"}, {"target": tmp_path / "file", "many": True}):
        with pytest.raises(ValueError, match="file"):
            reports.Results(worth, **target)


def test_a_folder_in_which_nothing_can_be_written_is_refused_before_grading(tmp_path, monkeypatch):
    """An immutable folder, in which not even root can create a file."""
    def refuse(dir):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for target in ({"table": tmp_path / "a.csv"}, {"target": tmp_path / "a.json"}, {"target": tmp_path, "many": True}):
        with pytest.raises(ValueError, match="no file can be written in this folder"):
            reports.Results({"rnn_forward": 1}, **target)


def test_two_results_are_not_written_to_one_file(tmp_path):
    with pytest.raises(ValueError, match="out is named for two results; name two files"):
        reports.Results({"rnn_forward": 1}, tmp_path / "out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_cannot_be_written_costs_no_other(tmp_path, monkeypatch, capsys):
    write(tmp_path, "class/ann.py", "class/bob.py", source="x = 1\n")
    add = reports.Results.add

    def fail(self, report):
        if report.name == "ann":
            raise OSError(28, "No space left on device")
        add(self, report)

    monkeypatch.setattr(grading.Results, "add", fail)
    options = ["--parts", "rnn_forward", "--csv", str(tmp_path / "c.csv"), "--unconfined"]
    assert grading.main([str(tmp_path / "class"), *options]) == 1
    assert "bob,0" in (tmp_path / "c.csv").read_text() and "the result of ann" in capsys.readouterr().err


def test_all_text_of_a_submission_is_plain_and_short():
    odd = "\x1b[2J\x1b]0;owned\x07\n\nzoe: 1 of 1 points\u202e" + "x" * 10_000_000
    result = Result(WRONG, text=odd * 2, advice=[odd] * 50)
    lines = [*result.text.splitlines(), *result.advice]
    assert all(line.isprintable() for line in lines) and sum(map(len, lines)) <= reports.LONGEST_TEXT
    assert Submission(odd).name.isprintable() and len(Submission(odd).name) <= submissions.LONGEST_NAME


def test_a_submission_that_sleeps_to_every_limit_takes_its_limit_and_the_others_their_points(tmp_path):
    sleeps = f"{STUDENT}\ndef rnn_step_forward(*given):\n    import time\n    time.sleep(1000)\n"
    tasks = [(Submission(name, source.encode()), None) for name, source in (("ann", sleeps), ("bob", STUDENT))]
    tasks[1] = (tasks[1][0], ["rnn_step_forward"])
    first, second = grading.grade_all(tasks, confinement.best(), timeout=4.0, limit=9.0)
    stopped = [result.text for result in first.results.values() if result.verdict == STOPPED]
    assert any("stopped after 4 s" in text for text in stopped) and any("not run" in text for text in stopped)
    assert second.results["rnn_step_forward"].verdict == RIGHT, second


def test_several_at_once_give_the_same_to_the_bit():
    codes = [STUDENT, STUDENT + TRIVIAL]
    tasks = [(Submission(f"s{k}", code.encode()), ["rnn_step_backward", "lstm_module"]) for k, code in enumerate(codes)]
    alone, together = (list(grading.grade_all(tasks, confinement.best(), jobs=jobs, seed=3)) for jobs in (1, 2))
    assert alone == together and alone[0].results["rnn_step_backward"].verdict == RIGHT


def test_a_pool_that_breaks_costs_no_points(monkeypatch):
    """The system may kill one of its processes, for example for memory; then all that it has not done fails."""

    class Broken(ThreadPoolExecutor):
        def __init__(self, jobs, context, initializer):
            super().__init__(1)

        def submit(self, *task):
            return super().submit(broken)

    def broken():
        raise BrokenProcessPool("a child process terminated abruptly")

    monkeypatch.setattr(grading, "ProcessPoolExecutor", Broken)
    tasks = [(Submission(f"s{k}", STUDENT.encode()), ["rnn_step_forward"]) for k in range(2)]
    reports = list(grading.grade_all(tasks, confinement.best(), jobs=2, seed=3))
    assert [report.name for report in reports] == ["s0", "s1"]
    assert all(report.results["rnn_step_forward"].verdict == RIGHT for report in reports)


def test_what_still_waits_is_not_graded_after_an_interrupt(monkeypatch):
    done = []

    class Slow(ThreadPoolExecutor):
        def __init__(self, jobs, context, initializer):
            super().__init__(1)

        def submit(self, function, confinement, memory, task, settings):
            return super().submit(lambda: (time.sleep(0.05), done.append(task[0].name)))

    monkeypatch.setattr(grading, "ProcessPoolExecutor", Slow)
    reports = grading.grade_all([(Submission(f"s{k}", b"#"), None) for k in range(50)], confinement.best(), jobs=2)
    next(reports)
    with pytest.raises(KeyboardInterrupt):
        reports.throw(KeyboardInterrupt)
    assert len(done) < 10


def test_a_default_is_read_with_the_names_outside():
    text = scan.Text(b"import torch\ngrad = torch.autograd.grad\ndef f(x, grad=grad):\n    return grad(x)\n")
    assert "grad" in text.uses("f") and text.uses("f") == text.uses("grad")


@pytest.mark.parametrize("text", ["lambda: " * 1500 + "0", "lambda: " * 60 + str([0] * 20_000),
                                  "lambda a=" * 18 + "b" + ": 0" * 18])  # fmt: skip
def test_deeply_nested_functions_are_read_in_one_walk(text):
    """A walk for each of them took seconds for a file of 8 KB, in the grader's own process; for defaults, two each."""
    steps, children = [], scan.ast.iter_child_nodes  # walk calls it, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan.ast, "iter_child_nodes", lambda node: steps.append(0) or children(node))
        assert scan.Text(f"f = {text}".encode()).uses("f") == []
    assert len(steps) < 15 * len(text)


# --- confinement is said -------------------------------------------------------------------------------------


def test_without_a_jail_it_refuses_and_with_unconfined_it_says_so(tmp_path):
    """PATH without bubblewrap: as on macOS, or on a machine that does not have it."""
    write(tmp_path, "ann.py")
    command = [sys.executable, "-m", "eecs598.grading", str(tmp_path / "ann.py"), "--parts", "rnn_step_forward"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1 and "--unconfined" in refused.stderr and not refused.stdout
    json_file = tmp_path / "r.json"
    command += ["--unconfined", "--json", str(json_file), "--seed", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("NOT CONFINED") and first.endswith("--seed 4") and second == "ann: 1 of 1 points"
    assert json.loads(json_file.read_text())["output"].splitlines()[0] == first


@pytest.mark.parametrize("status, said", [(0, "memory by a cgroup and limits"), (1, "memory by limits")])
def test_a_jail_is_in_a_cgroup_of_its_own_if_systemd_provides_one(tmp_path, status, said):
    """A stand-in for systemd-run, which writes down its arguments and runs the command that follows its options."""
    confinement.required()
    write(tmp_path, "ann.py")
    tool = tmp_path / "systemd-run"
    tool.write_text(f"""#!/bin/sh
echo "$XDG_RUNTIME_DIR $*" >> {tmp_path}/calls
while [ "${{1#-}}" != "$1" ]; do [ "$1" = -p ] && shift; shift; done
[ {status} = 0 ] || exit {status}
exec "$@"
""")
    tool.chmod(0o755)
    command = [sys.executable, "-m", "eecs598.grading", str(tmp_path / "ann.py"), "--parts", "rnn_step_forward"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"XDG_RUNTIME_DIR": "/run/user/7"}
    done = subprocess.run([*command, "--memory", "500"], env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()[:2]
    assert f"{said};" in first and second == "ann: 1 of 1 points"
    calls = (tmp_path / "calls").read_text().splitlines()
    jailed = [call for call in calls if "/bwrap " in call]
    assert bool(jailed) == (status == 0) and calls
    wanted = ("/run/user/7 ", "--scope", "MemoryMax=1524M", "TasksMax=64")
    assert all(part in call for call in calls for part in wanted)


def test_a_submission_without_a_jail_is_not_told_where_systemd_is(monkeypatch):
    """It could ask systemd for a process outside its limits."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    told = [jails._starting(None, jailed)["env"].get("XDG_RUNTIME_DIR") for jailed in (True, False)]
    assert told == ["/run/user/7", None]


def test_what_confines_is_said_first():
    confinement.required()
    assert confinement.best().says.startswith("confined by bubblewrap")


def test_a_second_copy_of_the_project_is_hidden_too(tmp_path, monkeypatch):
    """As from `pip install .`, while the grader runs from its folder."""
    copies = [tmp_path / NAME, *(tmp_path / "eecs598" / room for room in jails.SECRET)]
    for path in copies[1:]:
        path.mkdir(parents=True)
    copies[0].write_text("def rnn_step_forward(): the answer")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    hidden = jails._hidden(())
    assert {path.resolve() for path in copies} <= set(hidden) and (ROOT / NAME).resolve() in hidden


def test_the_project_installed_among_the_libraries_is_hidden(monkeypatch):
    """As pip lays it there, not in development mode: the solution then lies in what the jail shows."""
    confinement.required()
    paths = jails._paths(())
    shown = {paths[k + 2] for k, word in enumerate(paths) if word == "--ro-bind" and paths[k + 1] != "/dev/null"}
    assert not {str(path) for path in (ROOT / NAME, *(ROOT / "eecs598" / room for room in jails.SECRET))} & shown
    assert str(ROOT / "eecs598" / "bridge.py") in shown
    monkeypatch.setattr(sys, "prefix", str(ROOT))
    paths = jails._paths(())
    assert paths[paths.index(str(ROOT / NAME)) - 1] == "/dev/null"
    assert paths[paths.index(str(ROOT / "eecs598" / "fast")) - 1] == "--tmpfs"
