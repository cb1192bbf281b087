"""The notebook's part on photographs, trained on real ones: what it promises holds."""

import csv
import json
import os
import re

import pytest
from support import ROOT
from support.notebook_run import NotebookRunner

from eecs598.captioner import CELL_TYPES
from eecs598.coco import build_data

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each notebook runs in a fork")
NOTEBOOK = json.loads((ROOT / "notebooks" / "rnn_lstm_captioning.ipynb").read_text(encoding="utf-8"))
PHOTOS = [cell["id"] for cell in NOTEBOOK["cells"] if cell["id"].startswith("photos-") and cell["cell_type"] == "code"]
BEFORE = [  # what they call
    "cell-002", "cell-003", "cell-006", "cell-008", "cell-043", "features", "entropy", "cell-045", "cell-048",
    "switch-on-code",
]
OWN = ["cell-136", "cell-138", "cell-140"]  # own photographs, by the captioner of this part
SEEN = ("150_000", "24_000")  # captions that each model trains on: fewer pictures are here, and less time
COUNTS = {"train": 160, "val": 40}  # photographs of each data set
SOURCE = (ROOT / "rnn_lstm_captioning.py").read_text(encoding="utf-8")


def table(real_data, path, split):
    """Write a captions table with pictures of Flickr8k and of the COCO sample."""
    first = 0 if split == "train" else COUNTS["train"]  # the COCO sample has one split for both
    with path.open("w", encoding="utf-8", newline="") as file:
        for name, captions in (("flickr8k", f"captions_{split}.json"), ("coco_sample", "captions.json")):
            known = json.loads((real_data / name / captions).read_text(encoding="utf-8"))
            pictures = known["images"][first if name == "coco_sample" else 0 :][: COUNTS[split]]
            files = {picture["id"]: f"{name}/images/{picture['file_name']}" for picture in pictures}
            rows = [(files[said["image_id"]], said["caption"].replace("\n", " "))
                    for said in known["annotations"] if said["image_id"] in files]  # fmt: skip
            csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def texts(real_data, tmp_path_factory):
    """What each cell of the part printed and showed, on 400 photographs of two data sets: cell id -> text."""
    place = tmp_path_factory.mktemp("photographs")
    tables = [table(real_data, place / f"{split}.csv", split) for split in COUNTS]
    data = build_data(real_data, *tables, place / "photos.pt", image_size=112)
    assert [len(data[f"{split}_images"]) for split in COUNTS] == [2 * count for count in COUNTS.values()]
    # which needs a model of scenes; which trains once more, and what needs that
    others = {"photos-speaker", "photos-few-code", "photos-few-leak"}
    cells = [*BEFORE, *(name for name in PHOTOS if name not in others), *OWN]
    environment = {"EECS598_QUICK": "", "EECS598_PHOTOS": str(place / "photos.pt")}
    with NotebookRunner() as runner:
        ran = runner.run(SOURCE, place / "project", cells, [SEEN], environment)
    assert not {name: error for name, _, error in ran if error}
    return {name: text for name, text, _ in ran}


def test_each_model_overfits_32_captions_twice_as_well_as_it_must(texts):
    ends = re.findall(r"(\w+): ([\d.]+) at the end, ([\d.]+) without looking", texts["photos-heart-code"])
    assert [cell_type for cell_type, *_ in ends] == list(CELL_TYPES)
    assert all(float(loss) < float(limit) / 2 for _, loss, limit in ends), ends


def test_every_loss_falls(texts):
    for name in ("photos-train-code", "photos-train-lstm", "photos-train-attn"):
        losses = [float(loss) for loss in re.findall(r"\bloss=([\d.]+)", texts[name])]
        assert losses[-1] < 0.75 * losses[0], (name, losses)


def test_every_model_scores_above_one_caption_for_all_and_below_a_person(texts):
    rows = [line.split() for line in texts["photos-scores-code"].splitlines()]
    cider = {row[0]: float(row[-3]) for row in rows if row and row[-1].replace(".", "").isdigit()}
    assert cider["one"] < min(cider[cell_type] for cell_type in CELL_TYPES), cider
    assert max(cider[cell_type] for cell_type in CELL_TYPES) < cider["a"], cider


def test_what_is_shown(texts):
    assert "left out" not in "".join(texts.values())
    for name in ("look", "captions", "ends-pictures", "maps", "maps-worst"):
        assert "Figure size" in texts[f"photos-{name}"], name
    assert "Figure size" in texts["cell-138"]  # own photographs
    assert "Attention viewer, 8 pictures" in texts["photos-viewer"]
    assert "examples of the median word" in texts["photos-count-code"]
    assert len(re.findall(r"^ *(?:rnn|lstm|attn): .", texts["photos-words"], re.MULTILINE)) == 8 * 3


def test_the_committed_notebook_holds_no_photograph():
    for cell in NOTEBOOK["cells"]:
        shown = {kind for output in cell.get("outputs", ()) for kind in output.get("data", ())}
        if "pictures" in cell["metadata"].get("tags", ()):
            assert not cell["outputs"], cell["id"]
        elif cell["id"] in PHOTOS and not cell["id"].startswith(("photos-train", "photos-few")):  # losses are drawn
            assert not shown & {"image/png", "image/svg+xml", "text/html"}, cell["id"]
