"""eecs598.coco.subset: photographs from whatever host is alive, against a server that misbehaves."""

import _thread
import functools
import hashlib
import io
import itertools
import json
import shutil
import socket
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.data_files import assert_equal
from support.faulty_server import error_of, serve, unused_port

from eecs598 import coco
from eecs598.coco import (
    DataError,
    DownloadError,
    build_subset,
    download,
    find_photographs,
    load_data,
    save_data,
    subset,
)
from eecs598.coco.__main__ import main

TIMEOUT = 0.3  # seconds that the client waits for a silent server, which is silent for much longer
PATIENCE = 20  # and for any other: on a busy machine no picture shall be given up
NUMBERS = {"train": range(1, 401), "val": range(1001, 1081)}  # the ids of the pictures
ARCHIVE = "annotations/annotations_trainval2014.zip"


def colour(number):
    return number % 16 * 16, number // 16 % 16 * 16, number // 256 * 40


def file_name(split, number):
    return f"{split}2014/COCO_{split}2014_{number:012}.jpg"


@functools.cache
def jpeg(number):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour(number)).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def sentences(number):
    return ["very " * 20 + "long", f"A picture, {number}.", *(f"picture {n} of a thing" for n in range(3))]


@functools.cache
def captions(split):
    """A captions file as COCO's are, in bytes."""
    images = [{"id": n, "file_name": file_name(split, n).partition("/")[2]} for n in NUMBERS[split]]
    notes = [{"image_id": n, "caption": text} for n in NUMBERS[split] for text in sentences(n)]
    return json.dumps({"images": images, "annotations": notes}).encode()


class Host:
    """COCO's host on loopback: `asked` logs the pictures, `fault` strikes all requests after the first `after`.

    `fell_ill` is the time of the first that it struck.
    """

    def __init__(self):
        self.asked, self.lock, self.fault, self.after, self.fell_ill = [], threading.Lock(), None, 0, None
        self.at_picture = {}  # the functions to call when that many pictures were asked for

    @property
    def timeout(self):
        return TIMEOUT if self.fault == "silent" else PATIENCE

    def trouble(self, path):
        with self.lock:
            is_picture = path.endswith(".jpg")
            if is_picture:
                self.asked.append(path.lstrip("/"))
                self.at_picture.get(len(self.asked), lambda: None)()
            if self.fault is None or len(self.asked) + (not is_picture) <= self.after:
                return None
            self.fell_ill = self.fell_ill or time.monotonic()
            return self.fault

    def fall_ill(self, fault, after=0):
        self.fault, self.after, self.fell_ill = fault, len(self.asked) + after, None


@pytest.fixture
def host(monkeypatch):
    monkeypatch.delenv("EECS598_PHOTOS", raising=False)
    host = Host()
    with serve(patience=30, trouble=host.trouble) as add:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for split in NUMBERS:
                zipped.writestr(f"annotations/captions_{split}2014.json", captions(split))
        host.archive = add(ARCHIVE, archive.getvalue())
        for split, numbers in NUMBERS.items():
            for number in numbers:
                add(file_name(split, number), jpeg(number))
        host.add, host.url = add, host.archive.url.removesuffix(f"/{ARCHIVE}")
        yield host


@pytest.fixture
def build(host, tmp_path):
    """`build_subset` with the captions at hand, a few pictures wanted, and this host's address."""
    (tmp_path / "kept" / "annotations").mkdir(parents=True)
    for split in NUMBERS:
        (tmp_path / "kept" / "annotations" / f"captions_{split}2014.json").write_bytes(captions(split))

    def call(num_train=40, num_val=10, name="photographs.pt", **options):
        known = {"folder": tmp_path / "kept", "hosts": [host.url], "timeout": host.timeout, "least": (20, 5)}
        return load_data(build_subset(tmp_path / name, num_train, num_val, **{**known, **options}))

    return call


@pytest.fixture
def find(host, build, tmp_path):
    """`find_photographs` there, with no data file in `datasets`."""
    (tmp_path / "datasets").mkdir()
    known = {"folder": tmp_path / "kept", "hosts": [host.url], "least": (20, 5), "num_train": 40, "num_val": 10}
    known |= {"datasets": tmp_path / "datasets", "course_urls": [f"{host.url}/coco.pt"]}
    return lambda **options: find_photographs(**{**known, "timeout": host.timeout, **options})


def ids_of(data, split):
    """The ids of a split's pictures, checked row by row against pixels, captions and references."""
    ids, tokens = data[f"{split}_image_ids"].tolist(), data["vocab"]["idx_to_token"]
    for row, number in enumerate(ids):
        seen = data[f"{split}_images"][row].float().mean((1, 2)).tolist()
        assert all(abs(one - other) < 8 for one, other in zip(seen, colour(number)))
        assert sorted(data[f"{split}_references"][row]) == sorted(
            " ".join(coco.tokenize(s)) for s in sentences(number)
        )
        words = [tokens[i] for i in data[f"{split}_captions"][row, 1:3].tolist()]
        assert words == ["a", "picture"]  # the first that is not too long
    return ids


def assert_begins(larger, smaller):
    """A subset's pictures, captions apart from the vocabulary, are the first rows of a larger one's."""
    for split in NUMBERS:
        n = len(smaller[f"{split}_images"])
        assert torch.equal(larger[f"{split}_images"][:n], smaller[f"{split}_images"])
        assert torch.equal(larger[f"{split}_image_ids"][:n], smaller[f"{split}_image_ids"])
        assert larger[f"{split}_references"][:n] == smaller[f"{split}_references"]


def counts_of(data):
    return len(data["train_images"]), len(data["val_images"])


# --- the subset ---------------------------------------------------------------------------------------------


def test_a_healthy_host_gives_the_subset_and_nothing_else_is_fetched(host, build, capsys):
    data = build(40, 10)
    ids = {split: ids_of(data, split) for split in NUMBERS}
    assert counts_of(data) == (40, 10) and data["train_images"].shape[1:] == (3, 112, 112)
    assert all(set(ids[split]) < set(NUMBERS[split]) and ids[split] != sorted(ids[split]) for split in ids)
    assert sorted(host.asked) == sorted(file_name(split, n) for split in ids for n in ids[split])
    counted = Counter(word for n in ids["train"] for text in sentences(n) for word in coco.tokenize(text))
    assert set(data["vocab"]["idx_to_token"][4:]) == {word for word, count in counted.items() if count >= 4}
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and "40 + 10 pictures wanted" in said.out and "50/50" in said.err


def test_a_later_call_fetches_nothing_twice_and_a_smaller_subset_begins_a_larger_one(host, build, tmp_path, capsys):
    small = build(40, 10)
    host.asked.clear()
    assert_equal(build(40, 10), small)
    assert not host.asked and "there already" in capsys.readouterr().out
    large = build(100, 25)
    assert_begins(large, small)
    assert len(host.asked) == 75 and not set(host.asked) & {file_name("train", n) for n in ids_of(small, "train")}
    host.asked.clear()
    assert_equal(build(40, 10, "again.pt"), small)  # of what is kept
    assert not host.asked
    assert_equal(build(100, 25, folder=fresh_folder(tmp_path), name="fresh.pt"), large)  # in one call, the same


def fresh_folder(tmp_path):
    folder = tmp_path / "fresh"
    (folder / "annotations").mkdir(parents=True)
    for split in NUMBERS:
        (folder / "annotations" / f"captions_{split}2014.json").write_bytes(captions(split))
    return folder


def test_pictures_that_cannot_be_had_are_replaced_by_the_next(host, build, tmp_path):
    whole = build(60, 12)
    train = ids_of(whole, "train")
    missing, broken, dropped = train[3], train[20], train[39]
    host.add(file_name("train", missing), b"", ["error_404"])
    host.add(file_name("train", broken), b"\xff\xd8 no picture")
    host.add(file_name("train", dropped), jpeg(dropped), ["drop"])
    others = [number for number in train if number not in (missing, broken, dropped)]
    options = {"folder": fresh_folder(tmp_path), "name": "replaced.pt"}
    assert ids_of(build(40, 10, **options), "train") == others[:40]
    host.asked.clear()
    assert ids_of(build(57, 10, **options), "train") == others  # what was given up stays so
    assert len(host.asked) == 17


def test_a_slow_host_gives_as_many_as_the_minutes_allow(host, build, monkeypatch, capsys):
    monkeypatch.setattr(subset, "MEASURE", 20)
    host.fall_ill("slow")  # 16 at a time take 0.1 s or more
    data = build(400, 80, minutes=0.03)
    train, val = counts_of(data)
    assert 20 <= train + val < 400 and val >= 5 and abs(train / val - 5) < 1.5
    said = capsys.readouterr().out
    assert "pictures a second: the other 460 take about" in said and "0.03 min allow about" in said
    assert "since 0.03 min are over" in said
    host.fall_ill(None)
    assert_begins(build(train + 20, val + 4), data)
    again = sum(count > 1 for count in Counter(host.asked).values())
    assert again <= 5 * 16  # what was on its way, or waited, when time was up


def test_a_host_that_is_too_slow_for_the_least_is_given_up_early(host, build, monkeypatch):
    monkeypatch.setattr(subset, "MEASURE", 20)
    host.fall_ill("slow")
    assert "are too slow for 0.03 min" in error_of(build, num_train=400, num_val=80, least=(350, 70), minutes=0.03)


@pytest.mark.parametrize("fault", ["hang_up", "error_403", "error_503", "silent"])
def test_a_host_that_dies_midway_leaves_a_smaller_subset(fault, host, build, capsys):
    host.fall_ill(fault, after=120)
    data = build(200, 40)
    assert time.monotonic() - host.fell_ill < 5 * TIMEOUT + 4
    train, val = counts_of(data)
    assert 60 < train + val <= 120 and train >= 20 and val >= 5
    assert "could not be downloaded" in capsys.readouterr().out
    host.fall_ill(None)
    assert_begins(build(200, 40), data)


def test_a_host_that_dies_near_the_end_is_not_asked_for_all_there_is(host, build, capsys):
    host.fall_ill("silent", after=47)
    assert sum(counts_of(build(40, 10, hosts=[host.url] * 2))) <= 47
    assert time.monotonic() - host.fell_ill < 5 * TIMEOUT + 4
    assert len(host.asked) < 200  # of 2 * 480; how many are on their way at the end depends on the machine


def test_too_few_pictures_are_no_subset(host, build, tmp_path):
    host.fall_ill("hang_up", after=30)
    text = error_of(build, num_train=60, num_val=12, least=(40, 8))
    assert "are too few, wanted 40 + 8 pictures or more" in text and not (tmp_path / "photographs.pt").exists()
    host.fall_ill(None)
    host.asked.clear()
    assert counts_of(build(60, 12)) == (60, 12) and len(host.asked) < 72  # those that came are kept


@pytest.mark.parametrize("position", [3, 140])
def test_after_an_interruption_the_next_call_goes_on(position, host, build, tmp_path, heard):
    host.at_picture = {position: _thread.interrupt_main}
    with pytest.raises(KeyboardInterrupt):
        build(120, 30)
    kept = sum(len(torch.load(path)["ids"]) for path in (tmp_path / "kept").glob("subset/*.pt"))
    assert kept >= position - 66  # all but what was on its way
    host.at_picture = {}
    host.asked.clear()
    data = build(120, 30)
    assert len(host.asked) == 150 - kept
    assert_equal(build(120, 30, "fresh.pt", folder=fresh_folder(tmp_path)), data)


def test_a_damaged_or_foreign_run_is_fetched_anew(host, build, tmp_path):
    data = build(100, 20)
    first, *_, last = sorted((tmp_path / "kept" / "subset").glob("train-*.pt"))
    last.write_bytes(last.read_bytes()[:-100])
    run = torch.load(first, weights_only=True)
    torch.save(run | {"ids": run["ids"] + 1000}, first.with_name("train-000000-000099.pt"))
    host.asked.clear()
    assert_equal(build(100, 20, "again.pt"), data)
    assert len(host.asked) == 100 - 64


def test_pictures_and_pixels_are_read_together(host, build, tmp_path):
    """Also if another process, which shares the folder, saves a longer run in the meantime."""
    build(60, 12)
    folder = tmp_path / "kept" / "subset"
    split = subset._open_split("train", tmp_path / "kept" / "annotations" / "captions_train2014.json", 60, 60, folder)
    (first, *_) = sorted(folder.glob("train-*.pt"))
    run, stop = torch.load(first, weights_only=True), int(first.name[-9:-3])
    ids = [picture.id for picture in split.order[1 : stop + 8]]  # without the first one
    pixels = torch.tensor([colour(n) for n in ids], dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 112, 112)
    longer = folder / f"train-000000-{stop + 8:06}.pt"
    torch.save(run | {"ids": torch.tensor(ids), "pixels": pixels.contiguous()}, longer)
    pictures, pixels = subset._read_saved(split)
    assert pictures[0].id == split.order[1].id and len(pictures) == len(pixels)
    wanted = torch.tensor([colour(picture.id) for picture in pictures]).float()
    assert (pixels.float().mean((2, 3)) - wanted).abs().max() < 12


def test_a_disk_that_cannot_be_written_is_told(host, build, tmp_path):
    (tmp_path / "kept" / "subset").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        build(40, 10)
    with pytest.raises(DataError, match="cannot be written"):
        build(40, 10, "kept/subset/photographs.pt")


def test_a_data_file_does_not_lose_pictures_of_one_split_for_those_of_another(host, build, tmp_path):
    """As when the folder of downloads is gone and time runs out before it is as full as the data file."""
    assert counts_of(build(60, 6)) == (60, 6)
    shutil.rmtree(tmp_path / "kept" / "subset")
    host.fall_ill("error_403", after=45)
    assert counts_of(build(60, 12, minutes=1)) == (60, 6)
    host.fall_ill(None)
    assert counts_of(build(60, 12)) == (60, 12)


def test_all_that_there_is_is_taken(build, capsys):
    assert counts_of(build(399, 90)) == (399, 80)
    assert "since there are no more" in capsys.readouterr().out


# --- captions and the command -------------------------------------------------------------------------------


def test_the_command_fetches_the_captions_once(host, tmp_path, monkeypatch, capsys):
    content = hashlib.sha256(host.archive.content).hexdigest()
    monkeypatch.setitem(download.COCO_ANNOTATIONS_SHA256, 2014, content)
    host.archive.faults = ["healthy", "drop"]  # the first is asked whether it is there
    out, folder = tmp_path / "made" / "p.pt", tmp_path / "kept"
    words = ["subset", "--out", str(out), "--folder", str(folder), "--host", host.url, "--minutes", "1"]
    assert main([*words, "--train", "40", "--val", "10"]) == 0
    assert "train: 40 pictures of 112 x 112" in capsys.readouterr().out
    asked = len(host.archive.requests)
    assert asked == 3 and main([*words, "--train", "50", "--val", "10"]) == 0
    assert len(host.archive.requests) == asked + 1 and ids_of(load_data(out), "train")
    assert sorted(p.name for p in (folder / "annotations").iterdir()) == [
        "captions_train2014.json", "captions_val2014.json",
    ]  # fmt: skip
    (folder / "annotations" / "captions_train2014.json").unlink()
    assert main([*words, "--train", "60", "--val", "10"]) == 0  # fetched again, from this host
    assert main(["subset", "--out", str(tmp_path / "q.pt"), "--host", f"http://127.0.0.1:{unused_port()}"]) == 1
    assert capsys.readouterr().err.count("error: no address answers") == 1


def test_captions_that_do_not_come_cost_a_bounded_time(host, tmp_path):
    host.archive.faults = ["healthy", *["stall"] * 50]
    began = time.monotonic()
    text = error_of(build_subset, out=tmp_path / "p.pt", folder=tmp_path, hosts=[host.url], timeout=TIMEOUT)
    assert "is silent for 0.3 s" in text and time.monotonic() - began < 10 * TIMEOUT
    host.archive.faults = ["healthy", *["slow"] * 50]
    options = {"hosts": [host.url], "timeout": TIMEOUT, "minutes": 1e-6}
    assert "not whole in the time allowed" in error_of(build_subset, out=tmp_path / "p.pt", folder=tmp_path, **options)


# --- the order of the sources -------------------------------------------------------------------------------


def photographs(build, path, num_train=40):
    """A data file of photographs at `path`."""
    path.write_bytes(b"")
    save_data(build(num_train, 10, f"{num_train}.pt"), path)
    return path


def test_a_file_that_is_there_is_taken_first(host, build, find, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "datasets"
    small, large = photographs(build, folder / "a.pt"), photographs(build, folder / "b.pt", 60)
    scenes = load_data(small) | {"train_scenes": []} | {f"train_{key}": load_data(large)[f"train_{key}"].repeat(
        2, *[1] * (load_data(large)[f"train_{key}"].ndim - 1)) for key in ("images", "captions")}  # fmt: skip
    torch.save({key: scenes[key] for key in scenes if "ids" not in key and "references" not in key}, folder / "s.pt")
    (folder / "damaged.pt").write_bytes(large.read_bytes()[:1000])
    host.asked.clear()
    capsys.readouterr()
    assert find(least=(61, 5)) == tmp_path / "kept" / "photographs.pt"  # the others have too few
    assert f"{large}: 60 + 10 pictures, too few; name it with EECS598_PHOTOS" in capsys.readouterr().out
    (tmp_path / "kept" / "photographs.pt").unlink()
    host.asked.clear()
    assert find() == large and not host.asked  # not the scenes, though they are more
    assert capsys.readouterr().out == f"{large}: 60 + 10 pictures, there already\n"
    monkeypatch.setenv("EECS598_PHOTOS", str(small))
    assert find() == small and "named by EECS598_PHOTOS" in capsys.readouterr().out
    monkeypatch.setenv("EECS598_PHOTOS", str(tmp_path / "gone.pt"))
    assert find() == large and "EECS598_PHOTOS: " in (said := capsys.readouterr().out) and "no such file" in said


def test_a_file_with_too_few_validation_pictures_does_not_hide_one_with_enough(host, build, find, tmp_path):
    save_data(build(60, 6, "60.pt"), tmp_path / "datasets" / "a.pt")
    enough = photographs(build, tmp_path / "datasets" / "b.pt", 50)
    host.asked.clear()
    assert find(least=(20, 8)) == enough and not host.asked


def test_a_folder_that_may_not_be_read_is_told(host, find, monkeypatch, capsys):
    def is_file(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", is_file)
    assert find() is None
    assert "this folder must be readable and writable (Permission denied)" in capsys.readouterr().out


def test_then_cocos_host_then_the_courses_file_then_nothing(host, find, tmp_path, capsys):
    path = find()
    assert path == tmp_path / "kept" / "photographs.pt" and counts_of(load_data(path)) == (40, 10)
    assert find() == path and "there already" in capsys.readouterr().out
    host.add("coco.pt", path.read_bytes())
    assert find(hosts=["http://127.0.0.1:1"], num_train=50) == path  # what was made earlier, before the course's
    assert "from an earlier call" in capsys.readouterr().out
    path.unlink()
    host.fall_ill("error_403")
    assert find(course_urls=["http://127.0.0.1:1"]) is None
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and "answers 403" in said[1] and "cannot be reached" in said[2]
    assert "python -m eecs598.coco subset --out" in said[-1] and "EECS598_PHOTOS=FILE" in said[-1]
    host.fall_ill(None)
    assert find(hosts=["http://127.0.0.1:1"]) == tmp_path / "kept" / "coco.pt"
    assert "the course's file" in capsys.readouterr().out
    assert find(course_urls=[]) == tmp_path / "kept" / "coco.pt"  # from now on without a host


def test_a_subset_among_the_data_files_is_added_to(find, tmp_path):
    path = find(datasets=tmp_path / "kept", num_train=30)
    assert find(datasets=tmp_path / "kept") == path and counts_of(load_data(path)) == (40, 10)


def test_hosts_that_hang_cost_a_bounded_time(host, find, capsys):
    host.fall_ill("silent")
    began = time.monotonic()
    assert find(hosts=[host.url, host.url]) is None
    assert time.monotonic() - began < 2 * TIMEOUT + 4
    said = capsys.readouterr().out
    assert "COCO's pictures: no address answers" in said and "the course's file: no address answers" in said


def test_a_name_that_is_not_resolved_costs_a_bounded_time(monkeypatch):
    released = threading.Event()

    def resolve(*_, **__):
        released.wait(60)
        raise socket.gaierror

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"no answer within 0\.3 s"):
        download.find_answering(["http://slow.example/"], TIMEOUT)
    assert time.monotonic() - began < 20
    released.set()


def test_only_addresses_that_answer_are_tried(host):
    assert download.find_answering(["http://127.0.0.1:1/", host.archive.url], PATIENCE) == [host.archive.url]
    with pytest.raises(DownloadError, match="answers 404"):
        download.find_answering([f"{host.url}/none"], PATIENCE)
    with pytest.raises(DownloadError, match="no address was given"):
        download.find_answering([], 1)


def test_jobs_are_taken_as_they_are_wanted(host, tmp_path):
    taken = []
    jobs = ((n, f"{host.url}/{file_name('train', n)}", taken.append(n) or tmp_path / f"{n}.jpg") for n in range(1, 300))
    outcomes = download.fetch_in_order(jobs, read=lambda path: path.stat().st_size, workers=2)
    assert [(key, value) for key, value, _ in itertools.islice(outcomes, 5)] == [(n, len(jpeg(n))) for n in range(1, 6)]
    outcomes.close()
    assert len(taken) <= 5 + 4 * 2 + 1 and len(list(tmp_path.glob("*.jpg"))) <= len(taken)
