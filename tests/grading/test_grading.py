"""The grader, graded: mistakes made on purpose, right answers in other styles, whole files as students hand them in."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from support import ROOT, confinement, in_process, mutants, rewrites
from support.reports import explain, lost
from support.tables import Tables

from eecs598 import checks
from eecs598.checks import CHECKS
from eecs598.grad import CheckError
from eecs598.grading import grader as grading
from eecs598.grading import submissions, underneath
from eecs598.grading.grader import ABSENT, PUBLISHED_PARTS, RIGHT, STOPPED, UNDONE, WRONG
from eecs598.grading.submissions import Submission
from eecs598.handout.parts import PARTS
from eecs598.handout.source import cut_source, definitions

SOLUTION = (ROOT / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
STUDENT = (ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
PARTS_TO_GRADE = mutants.parts_to_grade(SOLUTION)
NEEDS_SANDBOX = {"a GPU assumed", "the course's helpers imported, code at the end"}  # which has stand-ins for both
TIMEOUT = 60.0  # seconds: none of these hangs, and a busy machine is no mistake


@pytest.fixture(scope="module")
def jail():
    """For all gradings here, where the command makes one for each submission: torch is loaded once."""
    with confinement.open_jail() as jail:
        yield jail


@pytest.fixture(scope="module")
def grade(jail):
    """Grade a source as a student's file: (source, parts) -> report."""
    grader = grading.Grader(jail, TIMEOUT, 3600.0)
    return lambda source, parts=None, **files: grader.grade(Submission("student", source.encode(), files), parts)


@pytest.fixture(scope="module")
def verdict(jail, tables):
    """Mutant or rewrite -> its report, without advice, and a line in a table that is printed after the tests.

    In this process, since they are many, unless `confined`.
    """
    in_sandbox = grading.Grader(jail, TIMEOUT, 3600.0, advice=False)
    here, told = in_process.Grader(), set()

    def run(entry, confined=False):
        if isinstance(entry, mutants.Mutant):
            kind, source, parts = "mutants of the solution", mutants.apply(SOLUTION, entry), PARTS_TO_GRADE[entry]
        else:
            kind, source, parts = "rewrites", f"{STUDENT}\n\n{entry.code}", entry.parts
        grader = in_sandbox if confined else here
        report = grader.grade(Submission("student", source.encode()), parts)
        if entry not in told:
            tables.add(f"{kind}, and the parts that lost their points", line_of(entry, report))
            told.add(entry)
        return report

    return run


def line_of(entry, report):
    return f"{describe(entry)} -> {', '.join(lost(report)) or 'full marks'}"


def describe(entry):
    return f"{entry.where}: {entry.what}" if isinstance(entry, mutants.Mutant) else entry.what


# --- mutants and rewrites ---------------------------------------------------------------------------------


def test_there_are_enough_of_both_and_each_is_another():
    assert len({mutants.apply(SOLUTION, mutant) for mutant in mutants.MUTANTS} - {SOLUTION}) == len(mutants.MUTANTS)
    assert len(mutants.MUTANTS) >= 80 and len({rewrite.code for rewrite in rewrites.REWRITES}) >= 30
    touched = {part for mutant in mutants.MUTANTS for part in mutant.parts}
    assert touched == set(CHECKS)


KINDS = (
    "a sign", "transposed", "gates o and g swapped", "missing", "mean for sum", "off by one in time", "wrong axis",
    "state not carried", "gradient not accumulated", "float32 hard-coded", "device hard-coded", "<NULL> not ignored",
    "cell state forgotten in sampling",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mistake_is_made(kind):
    assert any(kind in mutant.what for mutant in mutants.MUTANTS)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=describe)
def test_a_mistake_costs_its_own_part_and_no_other(verdict, mutant):
    report = verdict(mutant)
    assert set(lost(report)) == set(mutant.parts), explain(report)
    assert all(report.results[part].verdict == WRONG for part in mutant.parts), explain(report)
    assert all(report.results[part].advice for part in mutant.advised), explain(report)
    assert all(len(report.results[part].text.splitlines()) >= 2 for part in mutant.parts), "a miss without a cause"


@pytest.mark.parametrize("entry", [*mutants.MUTANTS[::20], *rewrites.REWRITES[::10]], ids=describe)
def test_a_sandbox_changes_nothing_in_a_report(verdict, entry):
    assert verdict(entry, confined=True) == verdict(entry)


@pytest.mark.parametrize("rewrite", rewrites.REWRITES, ids=describe)
def test_another_style_has_full_marks(verdict, rewrite):
    report = verdict(rewrite, confined=rewrite.what in NEEDS_SANDBOX)
    assert not lost(report), explain(report)


def missed(source, name):
    """Whether a function of a source misses its part's check, as strict as the published one, in this process."""
    module = types.ModuleType("mutant")
    exec(compile(source, "mutant", "exec"), module.__dict__)
    (part,) = [part for part, check in CHECKS.items() if check.needs[-1] == name]
    functions = [getattr(module, need) for need in CHECKS[part].needs]
    return not grading._run(part, functions, checks.PUBLISHED).passed


def test_a_mistake_made_by_a_rule_never_passes(tables):
    """Where a rule can make the mistake: a sign, a term, a factor, a transpose, outputs swapped, mean for sum, ..."""
    made = list(mutants.generate(SOLUTION))
    assert len(made) >= 100 and len({source for _, _, source in made}) == len(made)
    as_written = ast.unparse(ast.parse(SOLUTION))
    assert not [name for name in {name for name, _, _ in made} if missed(as_written, name)]
    results = {f"{name}, {what}": missed(source, name) for name, what, source in made}
    for key, caught in results.items():
        tables.add("mutants made by rules", f"{key} -> {'lost' if caught else 'FULL MARKS'}")
    assert all(results.values()), [key for key, caught in results.items() if not caught]


@pytest.mark.parametrize("entry", [mutants.MUTANTS[0], rewrites.REWRITES[0]], ids=describe)
def test_each_is_a_line_of_a_table_that_is_printed(verdict, entry, tables):
    """`pytest`, and so `make test`, shows both tables after the tests, whichever processes ran them."""
    report, shown, printed = verdict(entry), Tables(), []
    shown.merge(json.loads(json.dumps(tables.as_dict())))
    shown.write(types.SimpleNamespace(section=printed.append, write_line=printed.append))
    assert line_of(entry, report) in printed


def test_a_mutant_whose_text_is_gone_says_so():
    with pytest.raises(mutants.MutantError, match=r"rnn_step_forward, a sign: 'nowhere' occurs 0 times"):
        mutants.apply(SOLUTION, mutants.Mutant("rnn_step_forward", "a sign", "nowhere", "", ()))


# --- whole files ------------------------------------------------------------------------------------------


def test_the_solution_has_full_marks_and_no_advice(grade):
    report = grade(SOLUTION)
    assert {result.label for result in report.results.values()} == {RIGHT}, explain(report)
    assert not report.advice and not any(result.advice for result in report.results.values())


def test_a_published_file_has_full_marks_and_advice_on_what_it_does_not_ask(grade):
    report = grade(STUDENT)
    assert [part for part in CHECKS if report.results[part].verdict == RIGHT] == [
        part for part in CHECKS if part in PUBLISHED_PARTS]  # fmt: skip
    assert {report.results[part].verdict for part in CHECKS if part not in PUBLISHED_PARTS} == {ABSENT}
    advice = report.results["attn_captioner_sample"].advice
    assert "a 3 x 5 grid" in advice[0] and "line" in advice[1]


def test_what_is_right_and_narrow_costs_nothing_and_is_advised(grade):
    """A batch of one, a GPU that is assumed, <END> ignored: more than the published checks ask."""
    codes = {rewrite.what: rewrite.code for rewrite in rewrites.REWRITES}
    squeezed = grade(STUDENT + codes["attention with a squeeze that drops a batch of one"], ["dot_product_attention"])
    advice = "\n".join(squeezed.results["dot_product_attention"].advice)
    assert not lost(squeezed) and "it is right on a 4 x 4 grid" in advice, explain(squeezed)
    assert "wrong beyond the published cases: N = 1, H = 1, a 3 x 5 grid" in advice, explain(squeezed)
    on_gpu = grade(STUDENT + codes["a GPU assumed"], ["temporal_softmax_loss"])
    assert not lost(on_gpu) and any("it assumes a GPU" in line for line in on_gpu.advice), explain(on_gpu)
    going_on = mutants.Mutant("CaptioningRNN.sample", "<END> ignored", "words == self.end", "words == -1", ())
    report = grade(mutants.apply(SOLUTION, going_on), ["rnn_captioner_sample"])
    assert not lost(report), explain(report)
    assert any("<END>" in line for line in report.results["rnn_captioner_sample"].advice), explain(report)


def unfinished(*names):
    """The published file with functions as the starter code has them: they return what was set to None."""
    lines, nodes = STUDENT.splitlines(), dict(definitions(ast.parse(STUDENT)))
    for name in sorted(names, key=lambda name: -nodes[name].lineno):
        body, end = nodes[name].body[0], nodes[name].end_lineno
        returned = lines[end - 1].replace("torch.stack(hn, dim=1)", "hn").replace("attn, weights.reshape(N, D_a, D_b)",
                                                                                  "attn, attn_weights")  # fmt: skip
        indent = " " * body.col_offset
        nothing = f"{indent}{returned.split('return ')[1].replace(', ', ' = ')} = None"
        lines[body.lineno - 1 : end] = [nothing, f"{indent}pass", returned]
    return "\n".join(lines) + "\n"


def test_a_half_finished_file_has_the_points_of_its_half(grade):
    undone = ("rnn_step_backward", "dot_product_attention", "AttentionLSTM.forward", "AttentionLSTM.step_forward")
    report = grade(unfinished(*undone), PUBLISHED_PARTS)
    verdicts = {part: result.verdict for part, result in report.results.items() if result.verdict != RIGHT}
    assert verdicts == {
        "rnn_step_backward": UNDONE, "dot_product_attention": UNDONE, "attention_lstm_module": UNDONE,
    }, explain(report)  # fmt: skip
    assert report.results["rnn_backward"].label == "right on top of our code"
    assert report.results["attn_captioner_loss"].label == "right on top of our code"


def test_a_student_edition_untouched_has_no_points_but_those_of_what_is_given(grade):
    report = grade(cut_source(SOLUTION, list(PARTS)))
    assert {part: result.verdict for part, result in report.results.items()} == {
        part: RIGHT if part == "rnn_module" else UNDONE for part in CHECKS}, explain(report)  # fmt: skip


def test_a_notebook_export_with_the_courses_imports_and_prints(grade):
    head = "from a5_helper import *\nimport matplotlib.pyplot as plt\nfrom google.colab import drive\nprint('Hello')\n"
    report = grade(head + STUDENT.replace("    x, prev_h, Wx, Wh, next_h = cache\n", "    x, prev_h, Wx, Wh, next_h = "
                   "cache\n    print(dnext_h.shape)\n"), ["rnn_step_backward", "rnn_backward"])  # fmt: skip
    assert not lost(report)
    assert report.advice == ["not available here and replaced by stand-ins: a5_helper, google, google.colab"]


def test_a_call_of_the_checks_that_was_left_in_does_no_harm(grade):
    """They are not in the jail: the grader compares elsewhere."""
    head = "from eecs598.checks import CHECKS\nfrom eecs598.grad import rel_error\n"
    report = grade(head + STUDENT, ["rnn_step_forward"])
    assert not lost(report) and report.advice in ([], ["not available here and replaced by stand-ins: eecs598.checks"])


def test_colabs_usual_lines_do_nothing(grade):
    head = """
try:
    from google.colab import drive, files
    drive.mount('/content/drive')
    for name in files.upload():
        print(name)
except ImportError:
    pass
get_ipython().run_line_magic('matplotlib', 'inline')
"""
    assert not lost(grade(head + STUDENT, ["rnn_step_forward"]))


def test_what_is_not_graded_in_a_class_folder_is_said(tmp_path, capsys):
    (tmp_path / "ann.py").write_text(STUDENT)
    (tmp_path / "cy.ipynb").write_text("{}")
    (tmp_path / "notes.txt").write_text("late: bob")
    with zipfile.ZipFile(tmp_path / "bob.zip", "w") as archive:
        archive.writestr("rnn_lstm_captioning.py", STUDENT)
    found = {entry.name: entry.problem for entry in grading.find_submissions(tmp_path)}
    assert found == {
        "ann": "", **{Path(name).stem: f"{name} is not graded: unpack it to, or save the notebook's code as, "
                      "rnn_lstm_captioning.py" for name in ("bob.zip", "cy.ipynb")}}  # fmt: skip
    assert capsys.readouterr().err == f"note: {tmp_path / 'notes.txt'} is not graded, as it is not a .py file\n"


@pytest.mark.parametrize("source, said", [
    ("def rnn_step_forward(:\n", "SyntaxError: invalid syntax, line 1"),
    ("import torch\nimport no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'; line 2 of"),
    ("raise SystemExit(3)\n", "SystemExit: 3"),
    ("__\xff\x00", "SyntaxError"),
], ids=["syntax", "import", "exit", "binary"])  # fmt: skip
def test_a_file_that_cannot_be_imported_says_why(grade, source, said):
    report = grade(source, PUBLISHED_PARTS)
    assert {result.verdict for result in report.results.values()} == {STOPPED}
    assert said in report.results["rnn_forward"].text, explain(report)


def test_a_wrong_forward_leaves_its_backward_the_points(grade):
    """Two ways: the backward of a wrong forward is right for it, or on top of our code."""
    wrong = STUDENT.replace("x.mm(Wx) + prev_h.mm(Wh) + b", "x.mm(Wx) - prev_h.mm(Wh) + b")
    report = grade(wrong, ["rnn_step_forward", "rnn_step_backward", "rnn_forward", "rnn_backward", "rnn_module"])
    assert lost(report) == ["rnn_step_forward"], explain(report)
    said = report.results["rnn_step_forward"].text
    assert "next_h matches no known mistake; the largest difference is at" in said, explain(report)


# --- reports and the command ------------------------------------------------------------------------------


def test_results_for_gradescope_and_a_class(tmp_path, capsys):
    folder, points = tmp_path / "class", tmp_path / "points.json"
    for name, source in {"ann": STUDENT, "=bob": unfinished("rnn_step_backward")}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "rnn_lstm_captioning.py").write_text(source)
    (folder / "cid").mkdir()
    points.write_text('{"rnn_step_backward": 2.5, "rnn_step_forward": 0}')
    options = ["--parts", "rnn_step_backward", "rnn_step_forward", "--points", points, "--csv", tmp_path / "class.csv"]
    options += ["--unconfined"]
    assert grading.main([str(option) for option in [folder, *options, "--json", tmp_path / "json"]]) == 0
    rows = list(csv.reader((tmp_path / "class.csv").open(newline="")))
    assert rows == [
        ["submission", "score", "max_score", "rnn_step_forward", "rnn_step_backward"],
        ["'=bob", "0", "2.5", "0", "0"], ["ann", "2.5", "2.5", "0", "2.5"], ["cid", "0", "2.5", "0", "0"],
    ]  # fmt: skip
    results = json.loads((tmp_path / "json" / "ann.json").read_text())
    assert results["score"] == 2.5 and results["tests"][1]["status"] == "passed"
    assert [test["max_score"] for test in results["tests"]] == [0, 2.5]
    missing = json.loads((tmp_path / "json" / "cid.json").read_text())
    assert "there is no rnn_lstm_captioning.py" in missing["tests"][0]["output"]
    shown = capsys.readouterr().out
    assert "ann: 2.5 of 2.5 points" in shown and "not written yet" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class", "class.csv", "json", "points.json"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_the_encoding_of_powershell_is_not_taken_for_empty(encoding, tmp_path):
    (tmp_path / "ann.py").write_bytes(STUDENT.encode(encoding))
    (found,) = grading.find_submissions(tmp_path / "ann.py")
    assert "ann.py is not UTF-8, perhaps UTF-16 of Windows: save it as UTF-8" in found.problem and not found.source


def test_each_submission_has_a_name_of_its_own_and_is_no_link(tmp_path, capsys):
    """A link could lead to the solution or to another student's file."""
    folder, names = tmp_path / "class", ["ann", "bob", "cid", "d\udce4n"]
    for name in names:
        (folder / name).mkdir(parents=True)
    good = folder / "ann" / "rnn_lstm_captioning.py"
    good.write_text(STUDENT)
    (folder / "ann.py").write_text(STUDENT)
    (folder / "bob" / "rnn_lstm_captioning.py").symlink_to(good)
    (folder / "bob.py").symlink_to(folder / "ann.py")
    (folder / "cid" / "rnn_lstm_captioning.py").write_bytes(b"#" * (submissions.LARGEST_SOURCE + 1))
    (folder / names[3] / "rnn_lstm_captioning.py").write_text("raise ValueError('\\ud800')")
    assert [found.name for found in grading.find_submissions(folder)].count("ann") == 2
    options = ["--parts", "rnn_step_forward", "--csv", tmp_path / "class.csv", "--json", tmp_path / "json"]
    options += ["--unconfined"]
    assert grading.main([str(option) for option in [folder, *options]]) == 0
    rows = list(csv.reader((tmp_path / "class.csv").open(newline="", encoding="utf-8")))
    assert [row[:2] for row in rows[1:]] == [
        ["ann", "1"], ["ann-2", "1"], ["bob", "0"], ["bob-2", "0"], ["cid", "0"], ["d n", "0"]]  # fmt: skip
    assert len(list((tmp_path / "json").iterdir())) == 6
    shown = capsys.readouterr().out
    assert shown.count("is a link, or is reached through one") == 2 and "is larger than 1048576 bytes" in shown


def test_a_second_ann_does_not_take_the_name_of_another_student():
    named = [types.SimpleNamespace(name=name) for name in ("ann", "Ann", "ann-2", "bob")]
    assert [submission.name for submission in submissions.name_apart(named)] == ["ann", "Ann-3", "ann-2", "bob"]


def test_the_options_of_the_command_reach_the_grader(tmp_path, monkeypatch):
    (tmp_path / "rnn_lstm_captioning.py").write_text(STUDENT)
    asked = []
    monkeypatch.setattr(grading, "grade_all", lambda *given, **settings: asked.append((given, settings)) or [])
    options = ["--timeout", "7", "--limit", "9", "--jobs", "2", "--memory", "999", "--seed", "5", "--by-hand"]
    file = str(tmp_path / "rnn_lstm_captioning.py")
    assert grading.main([file, *options, "--unconfined", "--parts", "rnn_step_forward"]) == 0
    (((task,), _, memory, jobs), settings), = asked
    assert task[1] == ["rnn_step_forward"] and (memory, jobs) == (999, 2)
    assert {**settings, "conditions": None} == {
        "timeout": 7, "limit": 9, "seed": 5, "by_hand": True, "conditions": None,
    }  # fmt: skip


@pytest.mark.parametrize("arguments, said", [
    (["nowhere.py"], "error: nowhere.py: no such file or folder"),
    ([".", "--parts", "rnn"], "error: --parts: there is no part 'rnn'; use all, published, or rnn_step_forward, "),
    ([".", "--points", "nowhere.json"], "error: --points nowhere.json: cannot be read as JSON"),
    ([".", "--timeout", "0"], "error: argument --timeout: '0', wanted a positive number, at most 86,400"),
    (["empty"], "error: empty: there is no rnn_lstm_captioning.py in it, nor files or folders of students"),
], ids=["file", "part", "points", "timeout", "empty"])  # fmt: skip
def test_wrong_usage_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    try:
        status = grading.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status and line.startswith(said)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
@pytest.mark.parametrize("arguments, words", [
    (["a.py", "b.py"], ["a.py", "b.py"]), (["FILE=a.py b.py"], ["a.py", "b.py"]),
    (["FILE=rnn_lstm_captioning (1).py"], ["rnn_lstm_captioning (1).py"]),  # as a browser names a second download
])  # fmt: skip
def test_make_grade_takes_files_by_both_ways(arguments, words, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "rnn_lstm_captioning (1).py").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    python.chmod(0o755)
    # As from a shell, also where make runs the tests: that make's options and level are in the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "-o", ".venv/ready", "grade", *arguments, "OPTIONS=--jobs 2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    told = [f"<{word}>" for word in ("-m", "eecs598.grading", *words, "--jobs", "2")]
    assert done.stdout.splitlines() == told, done.stderr


# --- the page for instructors -----------------------------------------------------------------------------


@pytest.fixture
def run_page(tmp_path):
    """Run the commands below a heading of docs/instructors.md, in a folder with what they copy."""
    for name in ("rnn_lstm_captioning.py", "helpers.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "eecs598", tmp_path / "eecs598", ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs" / "instructors.md").read_text(encoding="utf-8")

    def run(heading):
        section = page.split(f"### {heading}\n")[1].split("\n#")[0]
        commands = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    ") or not line)
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=os.environ | {"PATH": search},
                       check=True)  # fmt: skip
        return tmp_path / "build"

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_the_pages_commands_for_gradescope(run_page, tmp_path):
    archive, place = run_page("With Gradescope") / "gradescope.zip", tmp_path / "autograder"
    with zipfile.ZipFile(archive) as opened:
        needed = {"setup.sh", "run_autograder", "rnn_lstm_captioning.py", "eecs598/grading/__init__.py"}
        assert needed <= set(opened.namelist())
        assert opened.getinfo("run_autograder").external_attr >> 16 & 0o111
        opened.extractall(place / "source")
    for name in ("setup.sh", "run_autograder"):
        subprocess.run(["bash", "-n", place / "source" / name], check=True)
    (place / "venv" / "bin").mkdir(parents=True)
    (place / "venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (place / "venv" / "bin" / "python").chmod(0o755)
    script = (place / "source" / "run_autograder").read_text().replace("/autograder", str(place))
    script = script.replace("--json", "--parts rnn_step_forward word_embedding_module --json")
    results = []
    for submission in (STUDENT, None):
        (place / "submission").mkdir(exist_ok=True)
        file = place / "submission" / "rnn_lstm_captioning.py"
        file.write_text(submission) if submission else file.unlink()
        subprocess.run(["bash", "-c", script], check=True, capture_output=True)
        results.append(json.loads((place / "results" / "results.json").read_text()))
    assert results[0]["score"] == 2 and [test["status"] for test in results[0]["tests"]] == ["passed"] * 2
    assert results[1] == {"score": 0, "output": "Hand in one file, rnn_lstm_captioning.py."}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_the_pages_test_files_for_otter(run_page, tmp_path, monkeypatch):
    """Otter itself is not needed: a stand-in for its decorator keeps the function, one for its command does nothing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "otter").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "otter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    otter = types.ModuleType("otter.test_files")
    otter.test_case = lambda: lambda function: function
    monkeypatch.setitem(sys.modules, "otter", types.ModuleType("otter"))
    monkeypatch.setitem(sys.modules, "otter.test_files", otter)
    files = sorted((run_page("With otter-grader") / "otter" / "tests").iterdir())
    assert {file.stem for file in files} == set(CHECKS)
    student = {}
    exec(STUDENT, student)
    for file in files:
        entry = {}
        exec(compile(file.read_text(), file.name, "exec"), entry)
        assert entry["name"] == file.stem and entry["OK_FORMAT"] is False and entry["points"] == 1
        test = entry[f"test_{file.stem}"]
        needs = test.__code__.co_varnames[: test.__code__.co_argcount]
        assert needs == CHECKS[file.stem].needs
        if file.stem == "rnn_step_forward":
            test(*(student[name] for name in needs))
            with pytest.raises(CheckError, match="next_h"):
                test(lambda x, prev_h, Wx, Wh, b: (x @ Wx, None))


def test_what_stands_in_is_formulas_and_holds_nothing_of_the_solution():
    """It is sent into the submission's process."""
    text = underneath.source()
    lines = {line.strip() for _, node in definitions(ast.parse(SOLUTION)) for line in
             ast.unparse(node).splitlines()[1:] if "_backward" in getattr(node, "name", "")}  # fmt: skip
    bodies = {line for line in lines if " = " in line and len(line) > 30}
    assert len(bodies) > 20 and not [line for line in bodies if line in text]
    names = {}
    exec(compile(text, "underneath", "exec"), names)
    assert set(submissions.NAMES) - {"CaptioningRNN"} <= set(names)


@pytest.mark.parametrize("part", [part for part, check in CHECKS.items() if "captioner" not in part])
def test_what_stands_in_is_right(part):
    names = {}
    exec(compile(underneath.source(), "underneath", "exec"), names)
    assert CHECKS[part].run(*(names[need] for need in CHECKS[part].needs)).passed


def test_it_runs_from_any_folder(tmp_path):
    (tmp_path / "mine.py").write_text(STUDENT)
    command = [sys.executable, "-m", "eecs598.grading", "mine.py", "--parts", "rnn_step_forward", "--unconfined"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    first, second = done.stdout.splitlines()[:2]
    assert "confined by" in first.lower() and "drawn from --seed " in first, done.stderr
    assert second == "mine: 1 of 1 points"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
