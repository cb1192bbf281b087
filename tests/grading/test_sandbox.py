"""Submissions that do what they should not: each loses its own points and disturbs nothing."""

import ctypes
import json
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import ROOT

from eecs598.grading import grader as grading
from eecs598.grading import remote, sandbox
from eecs598.grading.grader import RIGHT, STOPPED, WRONG, Submission
from eecs598.grading.remote import Launcher

SOLUTION = ROOT / "rnn_lstm_captioning.py"
STUDENT = (ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
PART, NEIGHBOUR = "temporal_softmax_loss", "rnn_step_forward"
SOON, LATE = 4.0, 60.0  # seconds: who hangs takes them; who does not has time also on a busy machine
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits are Linux's")


@pytest.fixture(scope="module")
def launcher():
    with Launcher(1024, [SOLUTION]) as launcher:
        yield launcher


@pytest.fixture
def grade(launcher):
    """Grade a source, its part that misbehaves and a neighbour; afterwards no process of it is left."""

    def run(source, parts=(NEIGHBOUR, PART), timeout=LATE):
        grader = grading.Grader(launcher, timeout=timeout)
        return grader.grade(Submission("student", source.encode("utf-8", "surrogatepass")), parts)

    yield run
    if sys.platform == "linux":
        children = Path(f"/proc/{launcher.server.pid}/task/{launcher.server.pid}/children")
        assert not children.is_file() or not children.read_text()


def misbehaving(body):
    """The student's file with a loss that runs `body` first, and is right if it comes to its end."""
    right = """
        ignored = -100 if ignore_index is None else ignore_index
        return F.cross_entropy(x.transpose(1, 2), y, ignore_index=ignored, reduction="sum") / len(x)
    """
    lines = textwrap.indent(textwrap.dedent(body).strip() + "\n" + textwrap.dedent(right), "    ")
    return f"{STUDENT}\n\nimport os\n\ndef temporal_softmax_loss(x, y, ignore_index=None):\n{lines}\n"


def assert_costs_its_own_points(report, verdict, said):
    result = report.results[PART]
    assert result.verdict == verdict and said in result.text, f"{result.verdict}: {result.text}"
    assert report.results[NEIGHBOUR].verdict == RIGHT, report.results[NEIGHBOUR].text


def test_the_file_that_misbehaves_is_otherwise_right(grade):
    report = grade(misbehaving("pass"))
    assert {result.verdict for result in report.results.values()} == {RIGHT}


ENDS = {
    "hangs": ("while True: pass", "stopped after 4 s: does it loop"),
    "waits": ("import time; time.sleep(1000)", "stopped after 4 s"),
    "prints without end": ("while True: print('word ' * 1000)", "stopped after 4 s"),
    "closes everything and hangs": ("os.closerange(0, 256)\nwhile True: pass", "stopped after 4 s"),
    "ends its process": ("os._exit(0)", "it ended its process (exit status 0)"),
    "crashes": ("import faulthandler; faulthandler._sigsegv()", "it crashed (SIGSEGV)"),
    "writes into the channel": ("""
        for fd in range(3, 64):
            try:
                os.write(fd, b'\\xff' * 64)
            except OSError:
                pass
     """, "it wrote into the grader's channel"),
}  # fmt: skip


@pytest.mark.parametrize("body, said", ENDS.values(), ids=ENDS)
def test_what_ends_the_process_ends_its_own_alone(grade, body, said):
    source = misbehaving(body)
    report = grade(source, [PART], SOON if "stopped" in said else LATE)
    report.results |= grade(source, [NEIGHBOUR]).results
    assert_costs_its_own_points(report, STOPPED, said)


def test_who_hangs_on_import_is_stopped_once(grade):
    report = grade(f"while True: pass\n{STUDENT}", list(grading.CHECKS), SOON)
    assert {result.verdict for result in report.results.values()} == {STOPPED}
    assert "the file cannot be imported: stopped after 4 s" in report.results[PART].text


RAISES = {
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "calls itself without end": ("return temporal_softmax_loss(x, y)", "RecursionError"),
    "forks": ("os.fork()", "may not call os.fork"),
    "forks below subprocess": ("import _posixsubprocess as p; p.fork_exec([b'true'])", "may not call os.fork"),
    "forks with multiprocessing": (
        "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()", "may not call os.fork"),
    "starts a program": ("import subprocess; subprocess.run(['true'])", "may not call subprocess.Popen"),
    "starts a shell": ("os.system('true')", "may not call os.system"),
    "ends the grader": ("os.kill(os.getppid(), 9)", "may not call os.kill"),
    "calls into C": ("import ctypes; ctypes.CDLL(None)", "may not call ctypes.dlopen"),
    "opens a socket": ("import socket; socket.socket()", "may not call socket."),
    "loads a page": ("import urllib.request as r; r.urlopen('http://127.0.0.1:9')", "may not call urllib.Request"),
    "raises its limits": (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "may not call resource.setrlimit"),
    "imports the checks": ("import eecs598.checks", "may not import eecs598.checks"),
    "imports the grader": ("from eecs598.grading import grader", "may not import eecs598.grading"),
    "imports the fast functions": ("from eecs598.fast import lstm", "may not import eecs598.fast"),
    "imports what answers are": ("from eecs598.handout import parts", "may not import eecs598.handout"),
    "reads the solution": ("open({solution!r}).read()", "may not read the file"),
    "reads the solution's bytecode": ("open({bytecode!r}, 'rb').read()", "may not read the file"),
    "reads the solution's history": ("open({history!r}, 'rb').read()", "may not read the file"),
    "maps the solution": ("torch.from_file({solution!r}, size=9, dtype=torch.uint8)", "may not read the file"),
    "maps the solution as storage": ("torch.UntypedStorage.from_file({solution!r}, False, 9)", "may not read the file"),
    "imports the solution": ("""
        import importlib.util as u
        spec = u.spec_from_file_location("solution", {solution!r})
        spec.loader.exec_module(u.module_from_spec(spec))
    """, "may not read the file"),
    "writes a file": ("open({outside!r}, 'w')", "may not write the file"),
    "saves a tensor": ("torch.save(x, {outside!r})", "may not write the file"),
    "removes a file": ("os.remove({mine!r})", "may not call os.remove"),
    "renames a file": ("os.rename({mine!r}, 'mine')", "may not call os.rename"),
    "makes a folder": ("os.mkdir({outside!r})", "may not call os.mkdir"),
    "writes many files": ("for k in range(100): open(str(k), 'w').close()", "may not write more than 32 files"),
    "writes a large file": ("""
        with open('large', 'wb') as file:
            while True:
                file.write(bytes(1 << 20))
    """, "File too large"),
    "raises what cannot be shown": ("""
        class Odd(Exception):
            def __str__(self):
                raise self
        raise Odd
    """, "one that cannot be shown"),
}  # fmt: skip
if sys.platform == "linux":
    RAISES["eats memory"] = ("kept = []\nwhile True: kept.append(torch.empty(1 << 26))", "memory")


@pytest.mark.parametrize("body, said", RAISES.values(), ids=RAISES)
def test_what_is_refused_or_fails_is_said_and_done_nowhere(grade, tmp_path, body, said):
    mine, outside = tmp_path / "mine", tmp_path / "outside"
    mine.write_text("mine")
    bytecode = ROOT / "__pycache__" / f"{SOLUTION.stem}.{sys.implementation.cache_tag}.pyc"
    paths = {"solution": SOLUTION, "bytecode": bytecode, "history": ROOT / ".git" / "HEAD", "mine": mine}
    for name, path in (paths | {"outside": outside}).items():
        body = body.replace(f"{{{name}!r}}", repr(str(path)))
    report = grade(misbehaving(body))
    assert_costs_its_own_points(report, WRONG, said)
    assert "may not" not in said or any("it was kept from trying to" in line for line in report.advice)
    assert mine.read_text() == "mine" and list(tmp_path.iterdir()) == [mine]


# What comes back in the loss's place. All of these are answers, none of them ends the process.
RETURNS = {
    "a tensor without numbers": ("torch.zeros((), device='meta')", "returned a tensor on the device meta"),
    "a tensor of many numbers": ("x.sum().expand(1 << 40)", "returned a tensor of shape (1099511627776,), too large"),
    "a dtype that is not compared": ("torch.zeros((), dtype=torch.float8_e5m2)", "a tensor of torch.float8_e5m2"),
    "quantized numbers": ("torch.quantize_per_tensor(x[0].float(), 0.1, 0, torch.quint8)", "torch.quint8"),
    "a sparse tensor": ("x[0].to_sparse()", "shape"),
    "complex numbers": ("torch.zeros((), dtype=torch.complex64)", "missed: loss"),
    "nan": ("x.sum() * float('nan')", "holds nan or inf"),
    "a number of many digits": ("10**6000", ""),
    "text": ("'loss \\ud800'", "returned a str for loss"),
    "a list in itself": ("(lambda a: a.append(a) or a)([])", "returned a"),
    "a generator": ("(k for k in x)", "returned a generator for loss"),
    "a function": ("print", "returned a builtin_function_or_method for loss"),
    "a class": ("torch.nn.Module", "returned a type for loss"),
    "what fails at everything": ("type('Odd', (), {'__getattribute__': lambda self, name: 1 / 0})()", ""),
}


@pytest.mark.parametrize("value, said", RETURNS.values(), ids=RETURNS)
def test_whatever_is_returned_is_an_answer(grade, value, said):
    assert_costs_its_own_points(grade(misbehaving(f"return {value}")), WRONG, said)


def test_a_message_cannot_pass_for_lines_of_the_report(grade):
    result = grade(misbehaving(r"raise ValueError('\ud800\x1b[2J\r rnn_forward right \u202e')")).results[PART]
    assert result.verdict == WRONG and "[2J" in result.text
    assert all(line.isprintable() for line in result.text.splitlines())
    result.text.encode()


def test_a_gradient_that_is_sparse_counts(grade):
    report = grade(STUDENT + textwrap.dedent("""
        class WordEmbedding(WordEmbedding):
            def forward(self, x):
                return F.embedding(x, self.W_embed, sparse=True)
    """), ["word_embedding_module"])  # fmt: skip
    assert report.results["word_embedding_module"].verdict == RIGHT, report.results["word_embedding_module"].text


def test_overwriting_the_checks_makes_nothing_right(grade):
    """All that compares is in the grader's process, and so are the numbers to compare with."""
    report = grade(misbehaving("""
        import builtins, math, sys
        import eecs598.grad, eecs598.utils
        yes, none = lambda *args, **kwargs: True, lambda *args, **kwargs: 0.0
        for owner, name, value in [
            (torch, "allclose", yes), (torch, "equal", yes), (torch, "isclose", yes), (math, "isclose", yes),
            (eecs598.grad, "rel_error", none), (eecs598.grad, "compute_numeric_gradient", none),
            (eecs598.grad, "TIGHT", 1e9), (eecs598.grad.CheckTable, "passed", True),
            (eecs598.grad.CheckTable, "raise_on_miss", lambda self: self),
            (torch.testing, "assert_close", yes), (torch.Tensor, "__gt__", yes), (torch.Tensor, "max", none),
            (builtins, "max", none), (builtins, "AssertionError", Exception), (sys, "exit", none),
        ]:
            setattr(owner, name, value)
        return x.sum() * 0
    """))  # fmt: skip
    assert_costs_its_own_points(report, WRONG, "missed: loss")


def test_overwriting_the_answer_in_the_other_process_makes_nothing_right(grade):
    """Even who patches the process that it runs in can only answer with numbers."""
    report = grade(misbehaving("""
        import sys
        server = sys.modules["__main__"].Server
        server._encode = lambda self, value, results, top=True: results.append(x.sum() * 0) or {"tensor": 0}
    """))
    assert_costs_its_own_points(report, WRONG, "missed: loss")


def test_a_fork_server_that_was_killed_is_started_again(launcher, grade):
    launcher.server.kill()
    launcher.server.wait()
    assert {result.verdict for result in grade(STUDENT).results.values()} == {RIGHT}


def test_a_submission_has_the_cpu_on_every_machine(grade):
    report = grade(misbehaving("assert not torch.cuda.is_available() and torch.cuda.device_count() == 0"))
    assert report.results[PART].verdict == RIGHT, report.results[PART].text
    assert remote._environment()["CUDA_VISIBLE_DEVICES"] == ""


GPU = """
device = torch.device("cuda", 0)
torch.cuda.set_device(device)
print(torch.cuda.current_device(), torch.cuda.get_device_name(0))
assert torch.zeros(3, device=device).type(torch.cuda.FloatTensor).dtype == torch.float32
assert torch.zeros(3).type("torch.cuda.DoubleTensor").dtype == torch.float64
torch.cuda.LongTensor(3), torch.zeros(3, device=torch.device("cuda", index=0)).cuda(0, non_blocking=True)
with torch.cuda.device(0):
    nn.Linear(3, 4, device="cuda:0").to(device, torch.float64)
torch.cuda.synchronize()
torch.cuda.empty_cache()
torch.set_default_device("cuda")
"""


def test_a_file_for_a_gpu_runs_on_the_cpu(grade):
    report = grade(STUDENT + GPU)
    assert {result.verdict for result in report.results.values()} == {RIGHT}, report.results[PART].text
    assert report.advice == ["it assumes a GPU: .cuda() and device='cuda' were taken as the CPU here"]


def test_modules_here_that_are_no_secret_can_be_imported(grade):
    imports = ("from eecs598 import decoding, vis", "from eecs598.bridge import by_hand",
               "from eecs598.grad import rel_error", "from eecs598.training import solver")  # fmt: skip
    report = grade("\n".join([*imports, STUDENT]))
    assert {result.verdict for result in report.results.values()} == {RIGHT} and not report.advice


# What the kernel refuses, without the audit hook: what a submission meets that gets around the hook.
KERNEL = """
import json, os, socket, subprocess, sys, threading
from eecs598 import encoders
from eecs598.grading import sandbox

folder, solution, other = sys.argv[1:]
results = {}

def attempt(name, function):
    try:
        function()
        results[name] = "done"
    except OSError as error:
        results[name] = type(error).__name__

def start_thread():
    thread = threading.Thread(target=lambda: results.setdefault("thread", "ran"))
    thread.start()
    thread.join()

sandbox._landlock(folder, {str(sandbox.ROOT), other})
sandbox._filter_system_calls()
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("program", lambda: subprocess.run(["true"]))
attempt("socket", lambda: socket.socket())
attempt("signal", lambda: os.kill(os.getppid(), 0))
attempt("solution", lambda: open(solution).read())
attempt("other submission", lambda: open(f"{other}/ann.py").read())
attempt("outside", lambda: open(f"{other}/new", "w"))
attempt("inside", lambda: open(f"{folder}/new", "w"))
attempt("library", lambda: open(json.__file__).read())
attempt("module", lambda: open(encoders.__file__).read())
attempt("room with answers", lambda: open(f"{sandbox.ROOT}/eecs598/fast/lstm.py").read())
attempt("start thread", start_thread)
print(json.dumps(results))
"""


@linux
def test_what_the_kernel_refuses(tmp_path):
    landlock = ctypes.CDLL(None).syscall(444, None, 0, 1) >= 1
    if not landlock or not Path("/proc/sys/kernel/seccomp").exists() or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no Landlock here, or no seccomp")
    folder, other = tmp_path / "own", tmp_path / "class"
    for path in (folder, other):
        path.mkdir()
    (other / "ann.py").write_text("ann")
    command = [sys.executable, "-c", KERNEL, str(folder), str(SOLUTION), str(other)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    results, refused = json.loads(done.stdout), "PermissionError"
    assert results == dict.fromkeys(
        ("fork", "program", "socket", "signal", "solution", "other submission", "outside", "room with answers"), refused
    ) | dict.fromkeys(("inside", "library", "module", "start thread"), "done") | {"thread": "ran"}


def test_messages_are_bounded():
    """A process may not fill the grader's memory with its answer."""

    class Endless:
        def __init__(self, start):
            self.start = start

        def read(self, size):
            assert size <= sandbox.LARGEST_MESSAGE
            data, self.start = self.start[:size], self.start[size:]
            return data or bytes(size)

    def message(heads):
        head = json.dumps([{}, heads]).encode()
        return len(head).to_bytes(4, "little") + head

    for start in (b"\xff" * 4, message([["torch.uint8", [1 << 40]]]), message([["torch.uint8", [1 << 27]]] * 3)):
        with pytest.raises(sandbox.MessageError, match="a message of"):
            sandbox.receive(Endless(start))
