"""Submissions that do what they should not: each loses its own points and disturbs nothing."""

import io
import json
import platform
import struct
import sys
import textwrap
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ROOT, confinement

from eecs598.grading import grader as grading
from eecs598.grading import jail as jail_module
from eecs598.grading import messages, remote, reports, sandbox
from eecs598.grading.reports import RIGHT, STOPPED, WRONG
from eecs598.grading.submissions import NAMES, Submission

SOLUTION = ROOT / "rnn_lstm_captioning.py"
STUDENT = (ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
PART, NEIGHBOUR = "temporal_softmax_loss", "rnn_step_forward"
SOON, LATE = 3.0, 60.0  # seconds: who hangs takes them; who does not has time also on a busy machine
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits are Linux's")


@pytest.fixture(scope="module")
def jail():
    with confinement.open_jail(1024) as jail:
        yield jail


@pytest.fixture
def confined(jail):
    confinement.required()
    return jail


@pytest.fixture
def grade(jail):
    """Grade a source, its part that misbehaves and a neighbour."""

    def run(source, parts=(NEIGHBOUR, PART), timeout=LATE, **settings):
        grader = grading.Grader(jail, timeout, limit=600.0, **settings)
        return grader.grade(Submission("student", source.encode("utf-8", "surrogatepass")), parts)

    return run


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
    "hangs": ("while True: pass", "stopped after 3 s: does it loop"),
    "closes everything and hangs": ("os.closerange(0, 256)\nwhile True: pass", "it closed the grader's channel"),
    "ends its process": ("os._exit(0)", "it ended its process (exit status 0)"),
    "crashes": ("import faulthandler; faulthandler._sigsegv()", "it crashed (SIGSEGV)"),
    "prints much": ("print('word ' * 10_000_000)\nos._exit(3)", "it ended its process (exit status 3)"),
    "writes into the channel": ("""
        for fd in range(3, 64):
            try:
                os.write(fd, b'\\xff' * 64)
            except OSError:
                pass
     """, "it wrote to the grader's channel"),
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
    assert "the file cannot be imported: stopped after 3 s" in report.results[PART].text


@linux
def test_the_server_that_forks_may_be_killed_and_is_started_again(jail, grade):
    grade(misbehaving("pass"), [PART])
    jail.process.kill()
    while jail.control.recv(64):  # what is in the jail ends a moment after bubblewrap
        pass
    assert {result.verdict for result in grade(STUDENT).results.values()} == {RIGHT}


GONE, REFUSED = "No such file or directory", "Operation not permitted"
RAISES = {
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "calls itself without end": ("return temporal_softmax_loss(x, y)", "RecursionError"),
    "raises what cannot be shown": ("""
        class Odd(Exception):
            def __str__(self):
                raise self
        raise Odd
    """, "one that cannot be shown"),
    "writes a large file": ("""
        with open('large', 'wb') as file:
            while True:
                file.write(bytes(1 << 20))
    """, "File too large"),
}  # fmt: skip
if sys.platform == "linux":
    RAISES["eats memory"] = ("kept = []\nwhile True: kept.append(torch.empty(1 << 26))", "memory")


@pytest.mark.parametrize("body, said", RAISES.values(), ids=RAISES)
def test_what_fails_is_said(grade, body, said):
    assert_costs_its_own_points(grade(misbehaving(body)), WRONG, said)


CONFINED = {
    "calls the checks": ("from eecs598.checks import CHECKS\nCHECKS()", "CHECKS is not available during grading"),
    "imports the checks' formulas": ("from eecs598.checks.formulas import rnn_step\nrnn_step(1)", "is not available"),
    "imports the grader": ("from eecs598.grading import grader", "cannot import name 'grader'"),
    "imports the fast functions": ("from eecs598.fast import lstm", "No module named 'eecs598.fast'"),
    "imports what answers are": ("from eecs598.handout import parts", "No module named 'eecs598.handout'"),
    "reads the solution": ("open({solution!r}).read()", GONE),
    "reads the solution's history": ("open({history!r}, 'rb').read()", GONE),
    "maps the solution": ("torch.from_file({solution!r}, size=9, dtype=torch.uint8)", GONE),
    "reads a neighbour's file": ("open({mine!r}).read()", GONE),
    "writes a file": ("open({outside!r}, 'w')", GONE),
    "removes a file": ("os.remove({mine!r})", GONE),
    "changes what it may read": ("open(torch.__file__, 'a')", ""),
    "forks": ("os.fork()", REFUSED),
    "starts a program": ("import subprocess; subprocess.run(['true'])", REFUSED),
    "starts a shell": ("assert os.system('true') == 0, 'refused'", "refused"),
    "ends the server": ("os.kill(os.getppid(), 9)", REFUSED),
    "opens a socket": ("import socket; socket.socket()", REFUSED),
    "raises its limits": ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "not allowed to raise"),
    "changes a mode": ("open('f', 'w').close(); os.chmod('f', 0)", REFUSED),
    "changes a time": ("open('f', 'w').close(); os.utime('f', (1, 1))", REFUSED),
    "changes its priority": ("os.setpriority(os.PRIO_PROCESS, 0, 19)", REFUSED),
    "changes its scheduler": ("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))", REFUSED),
}  # fmt: skip
FILTERED = REFUSED, "refused", "not allowed to raise"


@pytest.mark.parametrize("body, said", CONFINED.values(), ids=CONFINED)
def test_what_a_jail_keeps_a_submission_from(confined, grade, tmp_path, body, said):
    if said in FILTERED and not sandbox.pyseccomp:
        pytest.skip("pyseccomp is not here: system calls are not filtered")
    mine, outside = tmp_path / "mine", tmp_path / "outside"
    mine.write_text("mine")
    paths = {"solution": SOLUTION, "history": ROOT / ".git" / "HEAD", "mine": mine, "outside": outside}
    for name, path in paths.items():
        body = body.replace(f"{{{name}!r}}", repr(str(path)))
    assert_costs_its_own_points(grade(misbehaving(body)), WRONG, said)
    assert mine.read_text() == "mine" and list(tmp_path.iterdir()) == [mine]


CALLS = {"shmget": 29, "semget": 64, "msgget": 68, "memfd_create": 319, "io_uring_setup": 425, "keyctl": 250,
         "add_key": 248, "ptrace": 101, "process_vm_readv": 310, "pidfd_open": 434, "unshare": 272, "setns": 308,
         "mount": 165, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "personality": 135}  # fmt: skip


def test_system_calls_are_on_a_list_of_what_is_allowed(confined, grade):
    """Numbers: x86-64's table. Arguments are zeros, with which none of these changes anything."""
    if not sandbox.pyseccomp or platform.machine() != "x86_64":
        pytest.skip("pyseccomp is not here, or the numbers are another processor's")
    body = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        done = []
        for name, number in {CALLS}.items():
            ctypes.set_errno(0)
            if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
                done.append(name)
        raise ValueError(f"not refused: {{done}}")
    """
    assert "not refused: []" in grade(misbehaving(body)).results[PART].text


def test_inside_is_another_user_without_rights_and_little_to_see(confined, grade):
    body = """
        status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
        seen = [status[name].split()[0] for name in ("Uid", "CapEff", "CapPrm", "NoNewPrivs")]
        processes = sum(name.isdigit() for name in os.listdir("/proc"))
        network = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
        raise ValueError(f"{seen} {processes} {network} {sorted(os.listdir('/'))} {os.listdir('/etc')}")
    """
    text = grade(misbehaving(body)).results[PART].text
    assert "['65534', '0000000000000000', '0000000000000000', '1'] 3 ['lo'] [" in text and "passwd" not in text, text


def test_what_is_written_is_limited_in_sum(confined, grade, jail):
    body = """
        for k in range(100):
            with open(str(k), "wb") as file:
                file.write(bytes(8 << 20))
    """
    report = grade(misbehaving(body), [PART, NEIGHBOUR])
    assert "No space left on device" in report.results[PART].text
    assert report.results[NEIGHBOUR].verdict == RIGHT  # the disk is empty again
    grade(misbehaving("open('/tmp/of another part', 'wb').close()"), [PART])
    text = grade(misbehaving("raise ValueError(os.listdir('/tmp'))"), [PART]).results[PART].text
    assert "['" in text and "another" not in text


def test_a_jail_is_gone_with_its_submission(confined):
    with confinement.open_jail() as jail:
        grading.Grader(jail).grade(Submission("student", STUDENT.encode()), [NEIGHBOUR])
        process = jail.process
        assert process.poll() is None
    assert process.poll() is not None and jail.process is None


def test_without_fork_a_process_for_each_part_gives_the_same_and_its_start_costs_no_time(monkeypatch):
    monkeypatch.delattr("os.fork", raising=False)  # as on Windows
    with jail_module.Jail(confinement.best()) as jail:
        report = grading.Grader(jail, LATE, limit=600.0).grade(Submission("student", STUDENT.encode()), (PART,))
        assert report.results[PART].verdict == RIGHT, report.results[PART].text
        slow = "import os, time; time.sleep(2); os.write(1, b'ready'); os.close(1); time.sleep(60)"
        monkeypatch.setattr(jail_module, "_command", lambda *arguments: [sys.executable, "-c", slow])
        why = "closed the grader's channel"  # not that it took more than a second
        with pytest.raises(remote.Stopped, match=why), remote.Sandbox(jail, b"", timeout=1.0) as box:
            box.load([])
        monkeypatch.setattr(jail_module, "_command", lambda *arguments: [sys.executable, "-c", "raise SystemExit(3)"])
        with pytest.raises(RuntimeError, match="does not start: exit status 3"):
            jail.start()


def test_what_has_the_solution_in_it_does_not_enter(grade):
    """Part of what a submission is sent comes back as the names of its parameters: nothing of the solution's."""
    spy = """
        import json, sys
        main, seen = sys.modules["__main__"], []
        for name in [name for name in dir(main.Server) if name.startswith("do_")]:
            def spied(self, request, tensors, original=getattr(main.Server, name)):
                seen.append(json.dumps(request))
                return original(self, request, tensors)
            setattr(main.Server, name, spied)
        class CaptioningRNN(nn.Module):
            def __init__(self, *args, **kwargs):
                super().__init__()
                raise ValueError("backward" in "".join(seen), "def rnn_step" in "".join(seen), sum(map(len, seen)))
        def rnn_forward(*args):
            raise NotImplementedError
    """
    report = grade(STUDENT + textwrap.dedent(spy), ["rnn_forward", "rnn_module", "rnn_captioner_loss"])
    assert report.results["rnn_captioner_loss"].verdict == WRONG
    solution = SOLUTION.read_text(encoding="utf-8").split("def rnn_step_backward")[1].splitlines()[2:9]
    text = reports.format_report(report, dict.fromkeys(report.results, 1))
    assert not [line for line in solution if line.strip() and line.strip() in text]


# What comes back in the loss's place. All of these are answers, none of them ends the process.
RETURNS = {
    "a tensor without numbers": ("torch.zeros((), device='meta')", "returned a tensor on the device meta"),
    "a tensor of many numbers": ("x.sum().expand(1 << 40)", "returned a tensor of shape (1099511627776,), too large"),
    "a dtype that is not compared": ("torch.zeros((), dtype=torch.float8_e5m2)", "a tensor of torch.float8_e5m2"),
    "quantized numbers": ("torch.quantize_per_tensor(x[0].float(), 0.1, 0, torch.quint8)", "torch.quint8"),
    "a sparse tensor": ("x[0].to_sparse()", "shape"),
    "complex numbers": ("torch.zeros((), dtype=torch.complex64)", "wrong: loss"),
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
    assert_costs_its_own_points(report, WRONG, "wrong: loss")


def test_overwriting_the_answer_in_the_other_process_makes_nothing_right(grade):
    """Even who patches the process that it runs in can only answer with numbers."""
    report = grade(misbehaving("""
        import sys
        server = sys.modules["__main__"].Server
        server._encode = lambda self, value, results, top=True: results.append(x.sum() * 0) or {"tensor": 0}
    """))
    assert_costs_its_own_points(report, WRONG, "wrong: loss")


def test_a_submission_has_the_cpu_on_every_machine(grade):
    report = grade(misbehaving("assert not torch.cuda.is_available() and torch.cuda.device_count() == 0"))
    assert report.results[PART].verdict == RIGHT, report.results[PART].text


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
    assert report.advice == ["it assumes a GPU: .cuda() and device='cuda' used the CPU here"]


def test_a_file_that_asks_for_a_gpu_first_assumes_none(grade):
    assert not grade(f"{STUDENT}\n\ndevice = 'cuda' if torch.cuda.is_available() else 'cpu'\n", [NEIGHBOUR]).advice


def test_a_file_beside_may_assume_a_gpu_too(jail):
    files = {"mine.py": b"import torch\n\nones = torch.ones(3).cuda()\n"}
    submission = Submission("student", f"from mine import ones\n{STUDENT}".encode(), files)
    report = grading.Grader(jail, LATE).grade(submission, [NEIGHBOUR])
    assert report.results[NEIGHBOUR].verdict == RIGHT and "it assumes a GPU" in report.advice[0]


def test_modules_here_that_are_no_secret_can_be_imported(grade):
    imports = ("from eecs598 import decoding, vis", "from eecs598.bridge import by_hand",
               "from eecs598.grad import rel_error", "from eecs598.training import solver")  # fmt: skip
    report = grade("\n".join([*imports, STUDENT]))
    assert {result.verdict for result in report.results.values()} == {RIGHT}


# What comes back through the channel may be anything. Here a server in this process answers, and one of its answers is
# changed on its way: no change makes the grader fail, take memory without bound or write what is not plain.


class _Changed:
    """A channel to a server in this process, whose answer number `which` is changed by `change`."""

    def __init__(self, which, change):
        self.server, self.which, self.change, self.answers = sandbox.Server(None), which, change, io.BytesIO()
        self.server.module = types.ModuleType("submission")
        self.server.module.__dict__.update(_student(), __file__="submission.py")

    def write(self, data):
        request, tensors = messages.receive(io.BytesIO(data))
        if request["op"] == "load":
            answer = messages.pack({"has": NAMES, "stand_ins": [], "cuda": False})
        else:
            answer = self.server.answer(request, tensors)
        self.which -= 1
        self.answers = io.BytesIO(self.change(answer) if self.which == 0 else answer)

    def flush(self):
        pass

    def read(self, size):
        assert size <= messages.LARGEST_MESSAGE
        return self.answers.read(size)

    def close(self):
        pass


_known = {}


def _student():
    if not _known:
        exec(STUDENT, _known)
    return _known


class _FakeJail:
    def __init__(self, channel):
        self.start = lambda: channel

    def end(self):
        return None

    def kill(self):
        pass


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20),
    st.sampled_from(["\x1b[2J\n", "x" * 5000, "torch.float64", "tuple", "object", "__class__", "_modules", "a.b.c"]),
)  # fmt: skip
KEYS = st.sampled_from(["tensor", "object", "class", "list", "tuple", "error", "unsent", "value", "x"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def _places(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], new)
    return copy


@given(which=st.integers(1, 5), data=st.data(), part=st.sampled_from(["rnn_step_backward", "word_embedding_module"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_changed_answer_breaks_the_grader(which, data, part):
    def change(answer):
        (size,) = struct.unpack("<I", answer[:4])
        head, blobs = json.loads(answer[4 : 4 + size]), answer[4 + size :]
        if data.draw(st.integers(0, 4)) == 0:  # any bytes
            where = data.draw(st.integers(0, len(answer) - 1))
            return answer[:where] + data.draw(st.binary(max_size=16)) + answer[where + data.draw(st.integers(0, 9)) :]
        path = data.draw(st.sampled_from(list(_places(head))))
        text = json.dumps(_replaced(head, path, data.draw(VALUES))).encode()
        return struct.pack("<I", len(text)) + text + blobs

    grader = grading.Grader(_FakeJail(_Changed(which, change)), advice=False)
    report = grader.grade(Submission("student", STUDENT.encode()), [part])
    result = report.results[part]
    lines = [*result.text.splitlines(), *result.advice, *report.advice]
    assert all(line.isprintable() for line in lines)
    assert sum(map(len, [result.text, *result.advice])) <= reports.LONGEST_TEXT
    json.dumps(reports.gradescope_results(report, {part: 1})).encode()


@pytest.mark.parametrize("head", [
    b"\xff" * 4, [["torch.uint8", [1 << 40]]], [["torch.uint8", [1 << 25]]] * 3,
    [["torch.float32", [0, 1 << 14, 1 << 14]]],
    [["torch.float32", [0, 1 << 40]]], [["torch.float32", [0, -1]]], [["torch.float32", [0, True]]],
    [["torch.float32", []]] * 5000, [["torch.float32", [1] * 100]],
], ids=["a length", "a tensor", "a sum", "an empty tensor", "an emptier one", "a negative size", "no number", "many",
        "dimensions"])  # fmt: skip
def test_messages_are_bounded(head):
    """A process may not fill the grader's memory with its answer, nor with a shape that has no numbers."""

    class Endless:
        def __init__(self, start):
            self.start, self.given = start, 0

        def read(self, size):
            self.given += size
            assert self.given <= 2 * messages.LARGEST_MESSAGE
            data, self.start = self.start[:size], self.start[size:]
            return data + bytes(size - len(data))

    text = json.dumps([{}, head]).encode() if isinstance(head, list) else b""
    with pytest.raises(messages.MessageError):
        messages.receive(Endless(struct.pack("<I", len(text)) + text if text else head))
