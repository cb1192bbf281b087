"""The notebook as committed, and its set-up cells where Colab, Drive and a repository are stand-ins."""

import json
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "rnn_lstm_captioning.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def test_it_was_executed_from_top_to_bottom_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 10


def test_it_was_executed_on_the_full_setting():
    (switch,) = [cell for cell in CODE if "EECS598_QUICK" in source(cell)]
    assert any("train: 16,000 pictures" in "".join(output.get("text", "")) for output in switch["outputs"])


def test_it_is_small_and_its_cells_are_short():
    assert NOTEBOOK.stat().st_size < 2e6
    lengths = [len(source(cell).splitlines()) for cell in CODE]
    assert max(lengths) <= 25 and statistics.median(lengths) <= 8


def test_every_cell_follows_some_prose():
    """No more than four code cells in a row."""
    kinds = "".join(cell["cell_type"][0] for cell in CELLS)
    assert "ccccc" not in kinds and kinds.startswith("m")


# --- the set-up cells -------------------------------------------------------------------------------------


def set_up_cells():
    """The code of the cells up to the one that enters the project."""
    last = next(i for i, cell in enumerate(CODE) if "os.chdir(project)" in source(cell))
    return "\n".join(source(cell) for cell in CODE[: last + 1])


def run_set_up(folder, colab="", environment=None, drive="nowhere"):
    """The set-up in its own process, in `folder`; colab: code that puts a stand-in for google.colab in place."""
    program = colab + "\n" + set_up_cells().replace("/content/drive", drive) + "\nimport helpers; print(Path.cwd())"
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
    import http.server
    import threading

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


@pytest.mark.parametrize("way", ["variable", "opened from it"])
def test_colab_with_a_repository(copy, tmp_path, sessions_server, way):
    """Cloned without Drive; the address comes from the variable or from where Colab opened the notebook."""
    project = copy(tmp_path / "served" / "course")
    (project / "notebooks" / "keep").write_text("")
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    address = f"file://{project}"
    sessions_server.opened = f"fileId={address.replace('/', '%2F')}%2Fblob%2Fmain%2Fnotebooks%2Fx.ipynb"
    environment = sessions_server.environment | ({"EECS598_REPOSITORY": address} if way == "variable" else {})
    work = tmp_path / "content"
    work.mkdir()
    result = run_set_up(work, COLAB, environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(work / "project") and not (work / "mounted").exists()
