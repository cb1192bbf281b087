"""Run the notebook with any file in the place of rnn_lstm_captioning.py: `run_notebook`.

As a program, `python notebook_run.py FOLDER`, it runs the notebook in a folder that `run_notebook` made.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 32, 8  # scenes to train on and to caption, as few as the notebook's cells take
LIGHT = {"EECS598_QUICK": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def run_notebook(source, folder):
    """Run the notebook's code cells, as IPython does, in a process of its own. Returns [(cell id, text, error)].

    source: the text of a rnn_lstm_captioning.py. folder: where the project is put together, with this file in it; data
    and features are kept beside it. text: what the cell printed and, as text, what it showed; error: what it ended
    with, "TypeError: ...", or None. After an error the other cells still run. Raises CalledProcessError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rnn_lstm_captioning.py").write_text(source, encoding="utf-8")
    for item in ("eecs598", "helpers.py", "notebooks"):
        if not (folder / item).exists():
            (folder / item).symlink_to(ROOT / item)
    subprocess.run([sys.executable, Path(__file__).resolve(), folder], cwd=folder, check=True, env=os.environ | LIGHT)
    return [tuple(cell) for cell in json.loads((folder / "cells.json").read_text(encoding="utf-8"))]


def main(folder):
    sys.path.insert(0, str(folder))
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    shell.display_formatter.active_types = ["text/plain"]  # figures are made, but not drawn
    os.environ["EECS598_DATA"] = str(prepare(folder))
    cells, ran = json.loads((folder / "notebooks" / "rnn_lstm_captioning.ipynb").read_text(encoding="utf-8")), []
    for cell in cells["cells"]:
        if cell["cell_type"] == "code":
            with capture_output() as captured:
                result = shell.run_cell("".join(cell["source"]), store_history=True)
            error = result.error_before_exec or result.error_in_exec
            shown = [str(output.data.get("text/plain", "")) for output in captured.outputs]
            ran.append((cell["id"], "\n".join([captured.stdout, *shown]), error and f"{type(error).__name__}: {error}"))
    (folder / "cells.json").write_text(json.dumps(ran), encoding="utf-8")


def prepare(folder):
    """A small data file of scenes, kept beside the folder, as the features of its pictures are. Returns its path."""
    import helpers  # noqa: F401  # imports torchvision first, as the notebook does
    from eecs598 import coco, features, scenes

    features.FEATURES_FOLDER = folder.parent / "features"
    path = folder.parent / "scenes.pt"
    if not path.exists():
        coco.save_data(scenes.make_scenes(*PICTURES), path)
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
