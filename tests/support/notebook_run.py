"""Run the notebook with any file in the place of rnn_lstm_captioning.py: `NotebookRunner`.

As a program, `python notebook_run.py`, it loads what every run needs, then runs the notebook of each folder that it
reads a line of, in a fork of itself.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 32, 8  # scenes to train on and to caption, as few as the notebook's cells take
LIGHT = {"EECS598_QUICK": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


class NotebookRunner:
    """Runs the notebook's code cells as IPython does, each time in a fork of one process. A context manager."""

    def __enter__(self):
        self.server = subprocess.Popen([sys.executable, Path(__file__).resolve()], cwd=ROOT, env=os.environ | LIGHT,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        return self

    def __exit__(self, *error):
        self.server.stdin.close()
        self.server.wait()

    def run(self, source, folder):
        """Returns [(cell id, text, error)].

        source: the text of a rnn_lstm_captioning.py. folder: where the project is put together, with this file in it;
        data and features are kept beside it. text: what the cell printed and, as text, what it showed; error: what it
        ended with, "TypeError: ...", or None. After an error the other cells still run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rnn_lstm_captioning.py").write_text(source, encoding="utf-8")
        for item in ("eecs598", "helpers.py", "notebooks"):
            if not (folder / item).exists():
                (folder / item).symlink_to(ROOT / item)
        print(folder, file=self.server.stdin, flush=True)
        assert self.server.stdout.readline() == "0\n", f"the notebook's process in {folder} failed"
        return [tuple(cell) for cell in json.loads((folder / "cells.json").read_text(encoding="utf-8"))]


def serve():
    sys.path.insert(0, str(ROOT))
    import helpers  # noqa: F401  # with all that the notebook imports from it, but no rnn_lstm_captioning
    from eecs598 import bench  # noqa: F401

    sys.path.remove(str(ROOT))
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_cells(Path(line.rstrip("\n")))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run_cells(folder):
    sys.stdout = sys.stderr  # standard output is the answers'
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell, ran = InteractiveShell.instance(), []
    shell.display_formatter.active_types = ["text/plain"]  # figures are made, but not drawn
    os.environ["EECS598_DATA"] = str(prepare(folder))
    whole = json.loads((folder / "notebooks" / "rnn_lstm_captioning.ipynb").read_text(encoding="utf-8"))
    for cell in (cell for cell in whole["cells"] if cell["cell_type"] == "code"):
        with capture_output() as captured:
            result = shell.run_cell("".join(cell["source"]), store_history=True)
        error = result.error_before_exec or result.error_in_exec
        shown = [str(output.data.get("text/plain", "")) for output in captured.outputs]
        ran.append((cell["id"], "\n".join([captured.stdout, *shown]), error and f"{type(error).__name__}: {error}"))
    (folder / "cells.json").write_text(json.dumps(ran), encoding="utf-8")


def prepare(folder):
    """A small data file of scenes, kept beside the folder, as the features of its pictures are. Returns its path."""
    from eecs598 import coco, features, scenes

    features.FEATURES_FOLDER = folder.parent / "features"
    path = folder.parent / "scenes.pt"
    if not path.exists():
        coco.save_data(scenes.make_scenes(*PICTURES), path)
    return path


if __name__ == "__main__":
    serve()
