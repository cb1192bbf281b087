"""How well the notebook's three models overfit 32 captions, with several seeds.

`python tests/support/overfit.py FILE...`: on 32 scenes, and on the first 32 pictures of each data file, by the cells
of the notebook. Prints the loss at the end of each run, in nats a caption, and what no model can reach that does not
look at the pictures.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import ROOT
from support.notebook_run import NotebookRunner

BEFORE = ["cell-002", "cell-003", "cell-006", "cell-008", "cell-043", "entropy", "cell-045", "cell-048"]
SCENES = ["cell-046", "cell-084", "cell-104"]
PHOTOGRAPHS = ["features", "switch-on-code", "photos-open", "photos-features", "photos-heart-code"]
SEEDED = "encoder=encoder, seed=0"


def learn(runner, folder, seed, photographs=None):
    """{cell type: (loss at the end, limit)} of one seed."""
    cells = [*BEFORE, *(PHOTOGRAPHS if photographs else SCENES)]
    environment = {"EECS598_QUICK": "", "EECS598_PHOTOS": str(photographs or "none")}
    changes = [(SEEDED, SEEDED.replace("0", str(seed)))]
    source = (ROOT / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
    ran = runner.run(source, folder, cells, changes, environment)
    if errors := [error for _, _, error in ran if error]:
        raise SystemExit(errors[0])
    ends = re.findall(r"(\w+): ([\d.]+) at the end, ([\d.]+) without looking", "".join(text for _, text, _ in ran))
    return {cell_type: (float(loss), float(limit)) for cell_type, loss, limit in ends}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a data file of photographs")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    with NotebookRunner() as runner, tempfile.TemporaryDirectory() as folder:
        for photographs in (None, *(file.resolve() for file in options.files)):
            seeds = [learn(runner, Path(folder) / f"{photographs and photographs.stem}-{seed}", seed, photographs)
                     for seed in range(options.seeds)]  # fmt: skip
            for cell_type, (_, limit) in seeds[0].items():
                losses = [seed[cell_type][0] for seed in seeds]
                print(f"{photographs.name if photographs else 'scenes':24} {cell_type:5} limit {limit:.2f}  largest "
                      f"{max(losses):.2f}  of", *(f"{loss:.2f}" for loss in losses), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
