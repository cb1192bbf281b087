"""Run the notebook with any file in the place of rnn_lstm_captioning.py: `NotebookRunner`.

As a program, `python notebook_run.py`, it loads what every run needs, then runs a notebook for each line of JSON
that it reads, in a fork of itself.
"""

import gc
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

    def run(self, source, folder, cells=None, changes=(), environment=None):
        """Returns [(cell id, text, error)].

        source: the text of a rnn_lstm_captioning.py. folder: where the project is put together, with this file in it;
        data and features are kept beside it. cells: the ids of those that run, None for all. changes: (old, new), for
        text in these cells. environment: variables beyond LIGHT's; an empty one is taken out. text: what the cell
        printed and, as text, what it showed; error: what it ended with, "TypeError: ...", or None. After an error the
        other cells still run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rnn_lstm_captioning.py").write_text(source, encoding="utf-8")
        for item in ("eecs598", "helpers.py", "notebooks"):
            if not (folder / item).exists():
                (folder / item).symlink_to(ROOT / item)
        order = {"folder": str(folder), "cells": cells, "changes": list(changes), "environment": environment or {}}
        print(json.dumps(order), file=self.server.stdin, flush=True)
        assert self.server.stdout.readline() == "0\n", f"the notebook's process in {folder} failed"
        return [tuple(cell) for cell in json.loads((folder / "cells.json").read_text(encoding="utf-8"))]


def serve():
    sys.path.insert(0, str(ROOT))
    import torch._dynamo  # noqa: F401  # as the first optimizer would, for two seconds

    import helpers  # noqa: F401  # with all that the notebook imports from it, but no rnn_lstm_captioning
    from eecs598 import bench  # noqa: F401

    sys.path.remove(str(ROOT))
    gc.freeze()  # a fork's garbage collector need not go through all of this, which took a fifth of its time
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_cells(**json.loads(line))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run_cells(folder, cells, changes, environment):
    sys.stdout, folder = sys.stderr, Path(folder)  # standard output is the answers'
    os.environ |= environment
    for name in [name for name in environment if not environment[name]]:
        del os.environ[name]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    from eecs598 import features

    shell, ran = InteractiveShell.instance(), []
    shell.display_formatter.active_types = ["text/plain"]  # figures are made, but not drawn
    os.environ["EECS598_DATA"] = str(write_scenes(folder.parent / "scenes.pt"))
    features.FEATURES_FOLDER = folder.parent / "features"
    whole = json.loads((folder / "notebooks" / "rnn_lstm_captioning.ipynb").read_text(encoding="utf-8"))
    chosen = [cell for cell in whole["cells"] if cell["cell_type"] == "code" and cell["id"] in (cells or [cell["id"]])]
    unused = {old for old, _ in changes}
    for cell in chosen:
        code = "".join(cell["source"])
        unused -= {old for old in unused if old in code}
        for change in changes:
            code = code.replace(*change)
        with capture_output() as captured:
            result = shell.run_cell(code, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        shown = [str(output.data.get("text/plain", "")) for output in captured.outputs]
        printed = [captured.stdout, captured.stderr, *shown]
        ran.append((cell["id"], "\n".join(printed), error and f"{type(error).__name__}: {error}"))
    assert not unused, f"nothing to change: {unused}"
    (folder / "cells.json").write_text(json.dumps(ran), encoding="utf-8")


def write_scenes(path):
    """A small data file of scenes at `path`, unless it is there already. Returns the path."""
    from eecs598 import coco, scenes

    if not path.exists():
        coco.save_data(scenes.make_scenes(*PICTURES), path)
    return path


if __name__ == "__main__":
    serve()
