"""eecs598.coco.inspection: what `check` says of a data file spoilt in silence, and that of others it says nothing."""

import io
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, resident_memory
from support.data_files import PEAK, write_folder

from eecs598.coco import build_data, build_vocabulary, encode_captions, prepare_image, save_data
from eecs598.coco.__main__ import main
from eecs598.coco.forms import read_captions_file
from eecs598.coco.inspection import _match, _shrink, find_problems
from eecs598.scenes.dataset import make_scenes

SENTENCE = "a dog runs on the green grass while two people watch it from their old wooden bench near water"
WORDS = SENTENCE.split()


def pictures(count, seed=0, size=64):
    """Blurred noise (count, 3, size, size), uint8: no two alike, and smooth as photographs are."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(noise, (size, size), mode="bilinear").byte()


def texts(count, split):
    """Captions of 5 words that no two share."""
    return [f"{split} {WORDS[i % 7]} {WORDS[i % 9]} {WORDS[i % 11]} {WORDS[i % 13]} {i}" for i in range(count)]


def clean_data(train=40, val=20, references=True):
    """A data file's dict with nothing to complain of: 2 captions a picture."""
    said = {"train": texts(2 * train, "first"), "val": texts(2 * val, "second")}
    vocab = build_vocabulary([text.split() for some in said.values() for text in some])
    data = {"vocab": vocab}
    for split, rows, seed in (("train", train, 0), ("val", val, 1)):
        both = [said[split][2 * i : 2 * i + 2] for i in range(rows)]
        data[f"{split}_images"] = pictures(rows, seed)
        data[f"{split}_captions"] = encode_captions([first.split() for first, _ in both], vocab)
        data[f"{split}_image_ids"] = torch.arange(rows) + 100
        if references:
            data[f"{split}_references"] = both
    return data


def one_line(data, **options):
    lines = find_problems(data, **options)
    assert len(lines) == 1 and "\n" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("references", [True, False])
def test_a_clean_file_gives_no_warning(references, tmp_path, capsys):
    data = clean_data(references=references)
    assert find_problems(data) == find_problems(data, quick=True) == []
    save_data(data, tmp_path / "clean.pt")
    assert main(["check", str(tmp_path / "clean.pt")]) == 0
    assert "warning" not in capsys.readouterr().out


def test_the_drawn_scenes_are_clean():
    assert find_problems(make_scenes(300, 100)) == []


# --- pictures -------------------------------------------------------------------------------------------------


def recompressed(image):
    saved = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 48)).save(saved, "JPEG", quality=80)
    return prepare_image(saved, image.shape[-1])


def test_pictures_in_both_splits_are_found_to_the_byte_and_nearly():
    data = clean_data()
    data["val_images"][3] = data["train_images"][7]
    data["val_images"][9] = recompressed(data["train_images"][12])
    data["val_images"][11] = data["train_images"][20].flip(2)  # mirrored: another picture
    line = one_line(data)
    assert line.startswith("2 of 20 val pictures are also training pictures (1 exactly, 1 nearly; ")
    assert "first: val row 3, id 103 is train row 7, id 107" in line
    del data["val_image_ids"], data["train_image_ids"]
    assert "first: val row 3 is train row 7)" in one_line(data)
    assert find_problems(data, quick=True) == []


def test_the_same_picture_is_found_among_many_of_the_same_hash():
    """Small things on a wide plain ground: their hashes say next to nothing, so the bytes come first."""
    data = clean_data()
    for split in ("train", "val"):
        data[f"{split}_images"][:] = 255
        for row in range(len(data[f"{split}_images"])):
            colour = torch.tensor([row * 6, 0, 200 if split == "val" else 0])
            data[f"{split}_images"][row, :, 9:21, 9:21] = colour[:, None, None].byte()
    assert find_problems(data) == []
    data["val_images"][0] = data["train_images"][39]
    assert "1 of 20 val pictures" in (line := one_line(data)) and "is train row 39" in line


def test_matching_in_blocks_finds_what_comparing_all_pairs_finds():
    train, val = pictures(50), pictures(23, seed=1)
    for row in range(0, 23, 2):
        val[row] = recompressed(train[2 * row])
    train[1] = (train[4] * 0.88).byte()  # found first, but farther from val row 2 than train row 4 is
    shrunk = _shrink(train)[0], _shrink(val)[0]
    assert _match(shrunk[0][:4], shrunk[1][2:3]) == [(0, 1)]
    wanted = [(row, 2 * row) for row in range(0, 23, 2)]
    assert _match(*shrunk) == _match(*shrunk, block=7) == _match(*shrunk, block=1) == wanted
    assert _match(shrunk[0][:0], shrunk[1]) == _match(shrunk[0], shrunk[1][:0]) == []


def test_dim_pictures_of_different_things_are_not_the_same():
    """As fog and night make them: all their colours are near each other, so the hashes tell them apart."""
    data = clean_data()
    for split in ("train", "val"):
        data[f"{split}_images"] = (100 + data[f"{split}_images"].float() / 8).byte()
    assert find_problems(data) == []
    data["val_images"][8] = data["train_images"][8]
    assert "1 of 20 val pictures" in one_line(data)


def test_pictures_of_one_colour_are_counted_and_not_compared():
    data = clean_data()
    for row in (4, 6):
        data["train_images"][row] = 128
    data["val_images"][5] = 128
    lines = find_problems(data)
    assert [line[: line.index(":", 7)] for line in lines] == [
        "train: 2 pictures have a single colour (first", "val: 1 pictures have a single colour (first",
    ]  # fmt: skip
    assert "train row 4, id 104" in lines[0]
    data["train_images"][4, 0, 0, :9] = 0  # a thin line is something to see
    assert "train: 1 pictures" in find_problems(data)[0]


def test_ten_thousand_pictures_are_compared_in_seconds():
    train, val = torch.rand(10_000, 3, 8, 9) * 255, torch.rand(1_000, 3, 8, 9) * 255
    val[17] = train[9_999] + 1
    begin = time.perf_counter()
    assert _match(train, val) == [(17, 9_999)]
    assert time.perf_counter() - begin < 10  # 0.5 seconds on two idle cores


MEMORY = PEAK + """
import sys, torch
from eecs598.coco import load_data
from eecs598.coco.inspection import find_problems
torch.set_num_threads(1)
data = load_data(sys.argv[1])
before = memory()
find_problems(data)
print(memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_check_holds_few_pictures_at_a_time(tmp_path):
    resident_memory.write_data(tmp_path / "data.pt", 6000)
    assert (tmp_path / "data.pt").stat().st_size > 210 * 2**20
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "data.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert float(done.stdout) < 120, done.stderr


# --- captions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("references", [True, False])
def test_captions_in_both_splits_are_counted(references):
    data = clean_data(references=references)
    for row in range(3):
        if references:
            data["val_references"][row][1] = data["train_references"][row][0]
        data["val_captions"][row] = data["train_captions"][row]
    of, share = (40, "7.5%") if references else (20, "15.0%")
    line = one_line(data)
    assert f"3 of {of} val captions ({share}) are also training captions (first: first a a a a 0)" in line
    for row in range(1, 3):
        if references:
            data["val_references"][row][1] = f"another caption {row}"
        data["val_captions"][row] = data["val_captions"][10]
    assert find_problems(data) == []  # short ones are the same now and then


def test_captions_that_are_cut_are_counted():
    data = clean_data()
    long = " ".join(WORDS[:16])
    for row in range(5):
        data["train_references"][row][1] = f"{long} {row}"
        data["val_references"][row][1] = f"{long} {row + 50}"  # nothing learns from them
    assert one_line(data).startswith("train: 5 of 80 captions (6.2%) have more than 15 words and are cut: ")
    for row in range(5):
        data["train_references"][row][1] = f"{' '.join(WORDS[:14])} {row}"  # 15 words
    assert find_problems(data) == []


def test_captions_that_may_be_cut_are_counted_where_only_rows_are_there():
    data = clean_data(references=False)
    ids = data["vocab"]["token_to_idx"]
    data["train_captions"][:3, 1:16], data["train_captions"][:3, 16] = ids["a"], ids["<END>"]  # 15 words
    data["train_captions"][3] = torch.where(data["train_captions"][3] == ids["<END>"], 0, data["train_captions"][3])
    assert "train: 4 of 40 captions (10.0%) have 15 words or no <END> and may be cut" in one_line(data)


def test_the_share_of_unknown_words():
    data = clean_data()
    data["val_captions"][:11, 1] = data["vocab"]["token_to_idx"]["<UNK>"]
    assert find_problems(data) == []  # 11 of 120
    data["val_captions"][:13, 1] = data["vocab"]["token_to_idx"]["<UNK>"]
    assert one_line(data) == "val: 10.8% of the words are <UNK>: build with a lower --min-count, or from more captions"


# --- the command ----------------------------------------------------------------------------------------------


def test_warnings_do_not_change_the_exit_status(tmp_path, capsys):
    data = clean_data()
    data["val_images"][3] = data["train_images"][7]
    data["train_images"][0] = 9
    save_data(data, tmp_path / "spoilt.pt")
    assert main(["check", str(tmp_path / "spoilt.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines[-3:]] == ["other key", "warning: ", "warning: "]
    assert main(["check", "--quick", str(tmp_path / "spoilt.pt")]) == 0
    assert "warning: " not in capsys.readouterr().out


def test_a_build_ends_with_the_warnings(tmp_path, capsys):
    images, captions = write_folder(tmp_path, range(12))  # plain pictures; a third of their captions has 21 words
    options = ["--images", str(images), "--captions", str(captions), "--out", str(tmp_path / "out.pt")]
    assert main(["build", *options, "--image-size", "8", "--min-count", "1"]) == 0
    said = capsys.readouterr().out
    assert "warning: train: 11 pictures have a single colour" in said
    assert "warning: train: 11 of 33 captions (33.3%) have more than 15 words" in said


# --- the real Flickr8k ----------------------------------------------------------------------------------------


def test_the_real_flickr8ks_picture_under_two_names_is_found(real_data, tmp_path):
    """Its captions, too: 10.6% are longer than a row."""
    folder, twins = real_data / "flickr8k", {"2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg"}
    everything = read_captions_file(folder / "captions_train.json").pictures
    chosen = [p for p in everything if p.file_name in twins] + [p for p in everything if p.file_name not in twins][:300]
    rows = (f"{p.file_name}#{i}\t{text}\n" for p in chosen for i, text in enumerate(p.captions))
    (tmp_path / "captions.txt").write_text("".join(rows))
    names = [p.file_name for p in chosen]
    (tmp_path / "train.txt").write_text("\n".join(names[1:202]))
    (tmp_path / "val.txt").write_text("\n".join(names[:1] + names[202:]))
    lists = [tmp_path / "train.txt", tmp_path / "val.txt"]
    data = build_data(folder / "images", captions=tmp_path / "captions.txt", split_lists=lists)
    lines = find_problems(data)
    assert lines[0].startswith("1 of 101 val pictures are also training pictures (")
    cut = re.match(r"train: [\d,]+ of 1,005 captions \((.+)%\) have more than 15 words", lines[1])
    assert 5 < float(cut[1]) < 15
    assert np.array_equal(*(Image.open(folder / "images" / name).convert("RGB") for name in sorted(twins)))
