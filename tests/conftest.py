"""Fixtures that several test files share, and how the tests are divided among processes."""

import os

# One process a core, so one thread a process, those that tests start included: two threads on a busy core wait for
# each other most of the time. OpenMP reads it when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")

import eecs598  # noqa: F401, sets how long threads wait, before torch is imported

# isort: split
import contextlib
import functools
import gc
import http.server
import importlib.util
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.encoder import MeanEncoder
from support.tables import Tables

from eecs598 import features
from eecs598.coco import build_vocabulary, encode_captions
from eecs598.metrics.ptb import PUNCTUATION

os.environ.setdefault("EECS598_PHOTOS", "none")  # no test looks for photographs on the network
for _name in ("http_proxy", "https_proxy", "all_proxy"):  # nor asks a proxy for a file of its own server on loopback
    for _variable in (_name, _name.upper()):
        os.environ.pop(_variable, None)

# Without a GPU the kernels are run by Triton's interpreter, where Triton is installed; it reads this when imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# In continuous integration the same examples every time; at a developer's desk new ones.
# No example has a deadline: a busy machine is no mistake.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


PTB_JAR = Path("tokenizer") / "stanford-corenlp-3.4.1.jar"


@pytest.fixture(scope="session")
def real_data():
    """The folder of real photographs, laid out as the project's design says."""
    folder = os.environ.get("EECS598_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EECS598_REAL_DATA does not name a folder of real photographs with captions")
    return Path(folder).resolve()  # tests may work in another folder


@pytest.fixture(scope="session", autouse=True)
def features_folder(tmp_path_factory):
    """Features that tests cache are not found again by the next run, and not put into the project's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "FEATURES_FOLDER", tmp_path_factory.mktemp("features"))
        yield


@pytest.fixture
def serve():
    """A function that serves a folder's files on loopback, and returns the address."""
    with contextlib.ExitStack() as stack:

        def start(folder):
            handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture
def stanford_tokens(tmp_path):
    """What Stanford's own tokenizer, in Java, makes of captions, as COCO's evaluation code calls it; else skips."""
    spec = importlib.util.find_spec("pycocoevalcap")
    places = [os.environ.get("EECS598_PTB_JAR", "")]
    places += [str(Path(folder) / PTB_JAR) for folder in (spec.submodule_search_locations if spec else [])]
    jar = next((place for place in places if place and Path(place).is_file()), None)
    if jar is None or shutil.which("java") is None:
        pytest.skip("no java, or neither EECS598_PTB_JAR nor pycocoevalcap gives stanford-corenlp-3.4.1.jar")
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command += ["-encoding", "utf-8", str(tmp_path / "captions.txt")]

    def tokens(captions):
        lines = "\n".join(caption.replace("\n", " ") for caption in captions)
        (tmp_path / "captions.txt").write_text(lines, encoding="utf-8")
        lines = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
        lines = [line.split(" ") for line in lines[: len(captions)]]
        return [[word for word in words if word and word not in PUNCTUATION] for words in lines]

    return tokens


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """A function that puts a shell script named `java` before all else on the PATH."""
    if os.name == "nt":
        pytest.skip("a shell script is no program on Windows")

    def write(script):
        java = tmp_path / "bin" / "java"
        java.parent.mkdir()
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(0o755)
        monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.fixture
def tiny_data():
    """A data dict that a model can memorize: plain coloured pictures and what colour they are."""
    colours = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
    captions = [f"a {colour} picture".split() for colour in colours]
    vocab = build_vocabulary(captions)
    pictures = torch.tensor(list(colours.values()), dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 32, 48)
    ids = encode_captions(captions, vocab)
    references = [[" ".join(words), f"{words[1]} all over"] for words in captions]
    return {
        "train_images": pictures.contiguous(), "val_images": pictures.contiguous(),
        "train_captions": ids, "val_captions": ids.clone(), "vocab": vocab,
        "train_references": references, "val_references": references,
    }  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 256 kB, that a test may fill or make read-only; a function `mount(*options)` is on it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode == 0

    if not (shutil.which("mount") and mount("-t", "tmpfs", "-o", "size=256k", "none")):
        pytest.skip("needs the right to mount a disk, as root on Linux has it")
    yield folder, mount
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def mean_encoder():
    return MeanEncoder()


@pytest.fixture
def heard():
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background, whose processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- tables after the tests -------------------------------------------------------------------------------

TABLES = pytest.StashKey()


@pytest.fixture(scope="session")
def tables(pytestconfig):
    """`tables.add(title, line)`: a line of a table that is shown after the tests."""
    return pytestconfig.stash[TABLES]


def pytest_configure(config):
    config.stash[TABLES] = Tables()


def pytest_collection_finish():
    gc.freeze()  # modules and tests, so that the garbage collector need not go through them again and again


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker: its tables go to the process that shows them
        session.config.workeroutput["tables"] = session.config.stash[TABLES].as_dict()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[TABLES].merge(getattr(node, "workeroutput", {}).get("tables"))


def pytest_terminal_summary(terminalreporter, config):
    config.stash[TABLES].write(terminalreporter)


# --- several processes ------------------------------------------------------------------------------------

MOST_PROCESSES = 8  # each has torch loaded, about 0.7 GB with what it starts
WHOLE = {  # files whose tests share what takes long to make, or start torchrun: those of a name run in one process
    "test_browser.py": "browser", "test_commands.py": "commands", "test_processes.py": "torchrun",
    "test_step_time.py": "torchrun", "test_photographs_part.py": "photographs",
    "test_published_file_in_notebook.py": "notebooks", "test_grading.py": "jail", "test_sandbox.py": "small jail",
    "test_dishonest.py": "seeds", "test_published_files.py": "published files",
    **dict.fromkeys(["test_edition.py", "test_parts.py", "test_source.py", "test_student_notebook.py"], "editions"),
}  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a name in WHOLE in one process, in which each fixture is made once; then all others one by one.

    xdist 3.8's own groups (--dist loadgroup) have no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return WHOLE.get(Path(nodeid.partition("::")[0]).name, nodeid)

    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One process more than cores, as tests wait for processes; None, and xdist decides, where the environment says."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores + 1, MOST_PROCESSES)
