"""eecs598.coco.builder: fetched pictures and captions, Karpathy splits, killed builds, memory."""

import functools
import hashlib
import http.server
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from support import ROOT
from support.data_files import PEAK, assert_equal, message, numbers_of, write_folder
from support.faulty_server import error_of

from eecs598 import coco
from eecs598.coco import build_data, builder, download
from eecs598.coco.__main__ import main
from eecs598.coco.captions import DataError
from eecs598.coco.download import DownloadError
from eecs598.coco.forms import read_captions_file, select_split, with_words


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host = self.server.host
        host.asked.append(self.path)
        time.sleep(host.pause)
        content = host.files.get(self.path)
        self.send_response(host.status.get(self.path, 404 if content is None else 200))
        self.send_header("Content-Length", len(content or b""))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # a killed client hangs up


class Host:
    """An image host on loopback: `files` by path; `status` by path answers that instead; `asked` logs paths."""

    def __init__(self):
        self.files, self.status, self.asked, self.pause = {}, {}, [], 0
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.host = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.image_url = self.url + "/{folder}/{file_name}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def host():
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "fetch_many", functools.partial(download.fetch_many, retries=1, backoff=0.01))


def serve_folder(host, folder, numbers):
    """The pictures and captions of `write_folder`, the pictures served as those of COCO's train2014."""

    def add_addresses(content):
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/train2014/{image['file_name']}"

    images, captions = write_folder(folder, numbers, change=add_addresses)
    host.files |= {f"/train2014/{path.name}": path.read_bytes() for path in images.iterdir()}
    return images, captions


# --- fetched pictures ---------------------------------------------------------------------------------------


def test_fetched_pictures_give_the_same_file_and_only_the_chosen_are_fetched(tmp_path, host):
    images, captions = serve_folder(host, tmp_path, range(40))
    options = {"num_train": 12, "num_val": 5, "image_size": 6}
    fetched = {"image_url": host.image_url, "cache": tmp_path / "cache", **options}
    data = build_data(train_captions=captions, **fetched)
    assert_equal(data, build_data(images, captions, **options))
    numbers = numbers_of(data, "train") + numbers_of(data, "val")
    assert sorted(host.asked) == sorted(f"/train2014/{number:03}.png" for number in numbers)
    host.asked.clear()
    assert_equal(build_data(train_captions=captions, **fetched), data)  # all from the cache
    assert not host.asked


def test_fetching_takes_no_more_than_the_courses_file_holds_unless_asked(tmp_path, host, monkeypatch):
    _, captions = serve_folder(host, tmp_path, range(40))
    monkeypatch.setattr(builder, "COURSE_COUNTS", {"train": 7, "val": 3})
    fetched = {"image_url": host.image_url, "cache": tmp_path / "cache", "image_size": 4}
    data = build_data(train_captions=captions, **fetched)
    assert (len(data["train_images"]), len(data["val_images"])) == (7, 3)
    assert len(build_data(train_captions=captions, num_train=20, **fetched)["train_images"]) == 20


def test_a_picture_that_the_host_lacks_is_replaced(tmp_path, host, capsys):
    images, captions = serve_folder(host, tmp_path, range(20))
    for number in (3, 8):
        del host.files[f"/train2014/{number:03}.png"]
        (images / f"{number:03}.png").write_bytes(b"")  # in the folder: there, so chosen, but cannot be read
    options = {"num_train": 15, "num_val": 3, "image_size": 4}
    data = build_data(None, captions, image_url=host.image_url, cache=tmp_path / "cache", **options)
    assert_equal(data, build_data(images, captions, **options))
    assert "skipped" in (said := capsys.readouterr().err) and "404" in said


def test_a_host_in_trouble_stops_the_build_and_the_next_goes_on(tmp_path, host):
    images, captions = serve_folder(host, tmp_path, range(20))
    options = {"out": tmp_path / "out.pt", "image_url": host.image_url, "cache": tmp_path / "cache"}
    call = functools.partial(build_data, None, captions, image_size=4, **options)
    host.status = {f"/train2014/{number:03}.png": 500 for number in range(0, 20, 2)}
    assert "pictures could not be downloaded" in error_of(call)
    host.status = {}
    host.files["/train2014/001.png"] = host.files["/train2014/004.png"] = b"<html>please log in</html>"
    text = error_of(call)
    assert "web page" in text and not (tmp_path / "out.pt").exists()
    serve_folder(host, tmp_path, range(20))
    assert_equal(call(), build_data(images, captions, image_size=4))
    assert len(host.asked) < 20 + 2 * 20  # none was fetched twice


def test_a_host_that_has_nothing_or_is_gone_is_told(tmp_path, host):
    _, captions = serve_folder(host, tmp_path, range(5))
    options = {"cache": tmp_path / "cache", "image_size": 4}
    assert "404" in error_of(build_data, None, captions, image_url=host.url + "/none/{file_name}", **options)
    host.server.shutdown()
    host.server.server_close()
    assert "network" in error_of(build_data, None, captions, image_url=host.image_url, **options)


@pytest.mark.parametrize("name", ["../000.png", "/tmp/000.png", "a/../../000.png", "C:000.png", "a\\000.png"])
def test_names_that_lead_out_of_the_cache_are_refused(name, tmp_path):
    change = lambda content: content["images"][0].update(file_name=name, coco_url="http://host/train2014/x")  # noqa: E731
    _, captions = write_folder(tmp_path, range(3), change=change)
    assert "not a plain file name" in message(build_data, None, captions, cache=tmp_path / "cache")


def test_a_replacement_may_be_missing_as_well(tmp_path, capsys):
    """Once the host has some of the pictures, its address is right, and others may be missing one after another."""
    images, captions = write_folder(tmp_path, range(8))
    for number in (0, 2, 3, 4):
        (images / f"{number:03}.png").unlink()
    pictures = [SimpleNamespace(id=n, path=str(images / f"{n:03}.png"), captions=["a"]) for n in range(8)]
    source = builder._Fetcher("http://host/{file_name}", tmp_path)

    def fetch(batch, first):
        missing = [p for p in batch if not Path(p.path).is_file()]
        assert not (first and len(missing) == len(batch))
        return [p for p in batch if p not in missing]

    source.fetch = fetch
    options = {"image_size": 4, "fit": "stretch", "workers": 1, "shards": None}
    _, kept, tried = builder._decode(pictures, 3, "train", source, **options)
    assert [picture.id for picture in kept] == [1, 5, 6] and len(tried) == 7


@pytest.mark.parametrize("first", [True, False])
def test_a_host_without_the_first_pictures_is_the_wrong_one(first, tmp_path, monkeypatch, capsys):
    error = DownloadError("0.png: answers 404", "missing")
    monkeypatch.setattr(download, "fetch_many", lambda jobs, check: [(path, error) for path, *_ in jobs])
    fetcher = builder._Fetcher("http://host/{file_name}", tmp_path)
    pictures = [SimpleNamespace(id=0, folder="", file_name="0.png", path=tmp_path / "0.png")]
    if first:
        with pytest.raises(DownloadError, match=r"1 of 1 pictures could not be downloaded; the first: 0\.png: ans"):
            fetcher.fetch(pictures, first=True)
    else:
        assert fetcher.fetch(pictures, first=False) == [] and "skipped 0.png" in capsys.readouterr().err


def test_a_name_to_download_is_plain_on_windows_too(monkeypatch):
    """There a folder and a name are joined by a backslash, which no name may contain."""
    monkeypatch.setattr(builder, "Path", PureWindowsPath)
    fetcher = builder._Fetcher("http://host/{folder}/{file_name}", PureWindowsPath("C:/cache"))
    picture = SimpleNamespace(id=1, folder="train2014", file_name="COCO_1.jpg")
    assert fetcher.place(picture) == PureWindowsPath("C:/cache/train2014/COCO_1.jpg")
    for name in ("..\\1.jpg", "D:1.jpg", "../1.jpg"):
        with pytest.raises(DataError, match="not a plain file name"):
            fetcher.place(SimpleNamespace(id=1, folder="train2014", file_name=name))


def test_what_cannot_be_fetched_for_want_of_an_address_is_told(tmp_path):
    images, captions = write_folder(tmp_path, range(3))
    assert "name a folder with --images" in message(build_data, None, captions, cache=tmp_path / "cache")
    assert "wanted an address like" in message(build_data, None, captions, image_url="http://x/{nothing}")
    assert "give both" in message(build_data, images, None, captions)
    assert "name the training pictures' folder too" in message(build_data, None, captions, val_images=images)
    assert "year 2015: wanted 2014 or 2017" in message(build_data, images, year=2015)
    (tmp_path / "file").write_text("")
    assert "cannot be created" in message(build_data, cache=tmp_path / "file")


def test_coco_names_and_addresses_tell_the_folder(tmp_path):
    images = [
        {"id": 1, "file_name": "COCO_val2014_000000000001.jpg"},
        {"id": 2, "file_name": "000000000002.jpg", "coco_url": "http://images.cocodataset.org/val2017/000000000002.jpg"},
        {"id": 3, "file_name": "3.jpg", "coco_url": 7},
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": []}))
    pictures = read_captions_file(tmp_path / "captions.json").pictures
    assert [picture.folder for picture in pictures] == ["val2014", "val2017", ""]


def test_the_command_fetches_from_the_host_that_is_named(tmp_path, host, capsys):
    images, captions = serve_folder(host, tmp_path, range(12))
    options = ["--image-size", "4", "--num-train", "6", "--num-val", "2", "--cache", str(tmp_path / "cache")]
    options += ["--train-captions", str(captions), "--out", str(tmp_path / "out.pt")]
    mirrors = ["--image-url", f"{host.url}/gone/{{file_name}}", "--image-url", host.image_url]
    assert main(["build", *options, *mirrors]) == 0
    assert "train: 6 pictures of 4 x 4" in capsys.readouterr().out
    wanted = build_data(images, captions, image_size=4, num_train=6, num_val=2)
    assert_equal(coco.load_data(tmp_path / "out.pt"), wanted)
    path = karpathy(tmp_path)
    options = ["--captions", str(path), "--images", str(images), "--out", str(tmp_path / "karpathy.pt")]
    assert main(["build", *options]) == 0
    assert "train: 6 pictures of 112 x 112" in capsys.readouterr().out


# --- fetched captions ---------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path, host, monkeypatch):
    """Captions served as COCO's archive of 2017: 20 training and 8 validation pictures."""
    _, train = serve_folder(host, tmp_path, range(20))
    train = train.read_bytes()
    _, val = serve_folder(host, tmp_path, range(20, 28))
    with zipfile.ZipFile(tmp_path / "official.zip", "w") as archive:
        archive.writestr("annotations/captions_train2017.json", train)
        archive.writestr("annotations/captions_val2017.json", val.read_bytes())
        archive.writestr("annotations/instances_val2017.json", "not wanted")
    content = (tmp_path / "official.zip").read_bytes()
    host.files["/official.zip"] = content
    monkeypatch.setitem(download.COCO_ANNOTATIONS_URLS, 2017, (host.url + "/official.zip",))
    monkeypatch.setitem(download.COCO_ANNOTATIONS_SHA256, 2017, hashlib.sha256(content).hexdigest())
    return host


def test_without_captions_the_official_ones_are_fetched(tmp_path, official):
    options = {"image_url": official.image_url, "cache": tmp_path / "cache", "year": 2017, "image_size": 4}
    data = build_data(num_train=9, num_val=4, **options)
    assert set(numbers_of(data, "train")) < set(range(20)) and set(numbers_of(data, "val")) < set(range(20, 28))
    kept = sorted(path.name for path in (tmp_path / "cache" / "annotations").iterdir())
    assert kept == ["captions_train2017.json", "captions_val2017.json"]
    build_data(num_train=9, num_val=4, **options)
    assert official.asked.count("/official.zip") == 1


def test_an_archive_without_the_captions_is_told(tmp_path, official, monkeypatch):
    monkeypatch.setitem(download.COCO_ANNOTATIONS_URLS, 2014, download.COCO_ANNOTATIONS_URLS[2017])
    monkeypatch.setitem(download.COCO_ANNOTATIONS_SHA256, 2014, download.COCO_ANNOTATIONS_SHA256[2017])
    text = message(builder.fetch_captions, 2014, tmp_path / "cache")
    assert "captions_train2014.json cannot be extracted" in text and "remove it" in text
    assert [path.suffix for path in (tmp_path / "cache" / "annotations").iterdir()] == [".zip"]


def test_two_that_want_the_official_captions_fetch_them_once(tmp_path, monkeypatch):
    fetched, both = [], threading.Barrier(2)

    def fetch(urls, path, sha256):
        fetched.append(path)
        time.sleep(0.3)
        with zipfile.ZipFile(path, "w") as zipped:
            for split in ("train", "val"):
                zipped.writestr(f"annotations/captions_{split}2014.json", "{}")

    def call():
        both.wait()
        found.append(builder.fetch_captions(2014, tmp_path))

    monkeypatch.setattr(download, "download", fetch)
    found, threads = [], [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1 and len(found) == 2 and all(path.read_text() == "{}" for path in found[0] + found[1])


# --- Karpathy's splits --------------------------------------------------------------------------------------


def karpathy(tmp_path, change=lambda entry: None, folder="train2014"):
    splits = ["train", "restval", "val", "test"] * 3
    images = []
    for number, split in enumerate(splits):
        texts = [f"A picture, {number}.", f"picture number {number}", "very " * 20 + "long"]
        entry = {"filepath": folder, "filename": f"{number:03}.png", "split": split, "cocoid": number, "imgid": 50}
        images.append(entry | {"sentences": [{"raw": text, "tokens": ["not", "read"]} for text in texts]})
    change(images[5])
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def test_a_karpathy_file_gives_its_own_split(tmp_path, host):
    images, _ = serve_folder(host, tmp_path, range(12))
    path = karpathy(tmp_path)
    data = build_data(images, captions=path, image_size=4)
    assert sorted(numbers_of(data, "train")) == [0, 1, 4, 5, 8, 9] and sorted(numbers_of(data, "val")) == [2, 6, 10]
    assert_equal(build_data(captions=path, image_url=host.image_url, cache=tmp_path / "cache", image_size=4), data)
    os.rename(images, tmp_path / "train2014")  # the archives' own folders, in the one that is named
    assert_equal(build_data(tmp_path, captions=path, image_size=4), data)


def test_flickrs_karpathy_file_has_neither_folders_nor_coco_ids(tmp_path):
    content = json.loads(karpathy(tmp_path).read_text())
    for number, entry in enumerate(content["images"]):
        del entry["filepath"], entry["cocoid"]
        entry["imgid"] = 100 + number
    (tmp_path / "flickr.json").write_text(json.dumps(content))
    found = read_captions_file(tmp_path / "flickr.json")
    train, val = (with_words(select_split(found, split, tmp_path)) for split in ("train", "val"))
    assert [picture.id for picture in train] == [100, 101, 104, 105, 108, 109] and len(val) == 3
    assert train[0].folder == "" and train[0].captions[0] == "a picture 0"


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda entry: entry.update(split="dev"), "images[5]: split is 'dev', wanted train, restval, val or test"),
        (lambda entry: entry.update(filename=3), "images[5]: filename is 3, wanted str"),
        (lambda entry: entry.update(cocoid=1), "images[5]: id 1 occurs twice"),
        (lambda entry: entry["sentences"].append({}), "images[5].sentences[3]: raw is None, wanted str"),
    ],
)
def test_wrong_karpathy_files_are_told(change, phrase, tmp_path):
    assert phrase in message(read_captions_file, karpathy(tmp_path, change))


def test_a_file_with_splits_is_not_taken_for_training_captions(tmp_path):
    assert "(--captions)" in message(build_data, tmp_path, karpathy(tmp_path))


# --- killed builds, memory ----------------------------------------------------------------------------------

CHILD = """
import sys, torch
from eecs598.coco import build_data
torch.set_num_threads(1)
print("ready", flush=True)
captions, out, cache, image_url = sys.argv[1:]
build_data(None, captions, out=out, cache=cache, image_url=image_url, image_size=200, num_val=10)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_a_killed_build_goes_on_and_never_looks_finished(tmp_path, host):
    images, captions = serve_folder(host, tmp_path, range(60))
    wanted = build_data(images, captions, image_size=200, num_val=10)
    out, cache, rng = tmp_path / "out.pt", tmp_path / "cache", random.Random(0)
    host.pause = 0.02
    command = [sys.executable, "-c", CHILD, str(captions), str(out), str(cache), host.image_url]
    for _ in range(4):
        until = len(host.asked) + rng.randrange(1, 16)  # pictures
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as child:
            while len(host.asked) < until and child.poll() is None:
                time.sleep(0.003)
            child.send_signal(signal.SIGKILL)
        if out.exists():
            assert_equal(coco.load_data(out), wanted)
            out.unlink()
        for path in cache.glob("train2014/*.png"):
            assert path.read_bytes() == (images / path.name).read_bytes()
    there = {f"/train2014/{path.name}" for path in cache.glob("train2014/*.png")}
    assert there
    host.asked.clear()
    data = build_data(None, captions, out=out, cache=cache, image_url=host.image_url, image_size=200, num_val=10)
    assert not there & set(host.asked)
    assert_equal(data, wanted)
    assert_equal(coco.load_data(out), wanted)
    assert not list(tmp_path.glob(".*.part"))


def test_decoding_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """What was decoded before an interruption is not decoded again, unless the picture has changed since."""
    images, captions = write_folder(tmp_path, range(40))
    spoiled = sorted(images.iterdir())[3]
    spoiled.write_bytes(b"no picture")
    wanted, out, decoded = build_data(images, captions, image_size=9, num_val=4), tmp_path / "out.pt", []
    prepare_in_order = builder.prepare_in_order

    def prepare(pictures, *options):
        if len(decoded) == limit:
            raise KeyboardInterrupt
        decoded.append([picture.path for picture in pictures])
        return prepare_in_order(pictures, *options)

    monkeypatch.setattr(builder, "SHARD", 4)
    monkeypatch.setattr(builder, "prepare_in_order", prepare)
    for limit in (3, 6):  # interrupted after 3 shards, then after 3 more
        with pytest.raises(KeyboardInterrupt):
            build_data(images, captions, out=out, image_size=9, num_val=4)
        assert not out.exists() and len(decoded) == limit
    changed = decoded[4][0]
    os.utime(changed, (1, 1))
    name = builder._shard_name([SimpleNamespace(path=path) for path in decoded[1]], 9, "stretch")
    (tmp_path / ".out.pt.decoded" / f"{name}.pt").write_bytes(b"damaged")
    limit = None
    assert_equal(build_data(images, captions, out=out, image_size=9, num_val=4), wanted)
    before, after = (list(itertools.chain(*part)) for part in (decoded[:6], decoded[6:]))
    again = [path for path in after if path in before]
    assert sorted(again) == sorted(decoded[4] + decoded[1])
    assert not (tmp_path / ".out.pt.decoded").exists()
    assert capsys.readouterr().err.count(f"skipped {spoiled}") >= 1


def test_fewer_pictures_than_asked_for_are_told(tmp_path, capsys):
    """Whichever split the damaged one would have been in, a training picture is missing in the end."""
    images, captions = write_folder(tmp_path, range(10))
    (images / "003.png").write_bytes(b"damaged")
    build_data(images, captions, image_size=4, num_train=8, num_val=2)
    assert "7 train pictures instead of 8: no more can be used" in capsys.readouterr().err


def test_leftovers_of_killed_builds_are_removed_and_those_at_work_are_not(tmp_path):
    images, captions = write_folder(tmp_path, range(5))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {"dead": f".out.pt.{dead.pid}.part", "alive": f".out.pt.{os.getppid()}.part", "other": ".o.pt.1.part"}
    for name in names.values():
        (tmp_path / name).write_bytes(b"half")
    build_data(images, captions, out=tmp_path / "out.pt", image_size=4)
    left = {path.name for path in tmp_path.glob(".*.part")}
    assert left == {names["other"]} | ({names["alive"]} if os.name != "nt" else set())


MEMORY = PEAK + """
import sys, torch
from eecs598.coco import build_data
torch.set_num_threads(1)
before = memory()
images, captions, out = sys.argv[1:]
build_data(images, captions, out=out, image_size=224, workers=1)
print(memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_build_holds_its_pictures_once(tmp_path):
    images, captions = write_folder(tmp_path, range(700))
    (images / "003.png").write_bytes(b"no picture")  # fewer rows than were made room for: still no copy
    command = [sys.executable, "-c", MEMORY, str(images), str(captions), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    output = (tmp_path / "out.pt").stat().st_size / 2**20
    assert output > 95, done.stderr
    assert float(done.stdout) < output + 60


def test_too_many_pictures_for_the_memory_are_told(tmp_path):
    images, captions = write_folder(tmp_path, range(3))
    with pytest.raises(DataError, match="do not fit in memory"):
        build_data(images, captions, image_size=10**8)


def test_a_cached_file_that_is_no_picture_is_not_left_by_fetching(tmp_path, host):
    _, captions = serve_folder(host, tmp_path, range(4))
    host.files["/train2014/002.png"] = b"GIF89a, or so it says"
    text = error_of(build_data, None, captions, image_url=host.image_url, cache=tmp_path / "cache", image_size=4)
    assert "not a picture" in text and not (tmp_path / "cache" / "train2014" / "002.png").exists()


def test_an_odd_picture_keeps_its_pixels(tmp_path, host):
    """What is fetched is prepared as what lies in a folder: a grey picture, one with transparency."""
    images, captions = serve_folder(host, tmp_path, range(6))
    Image.new("L", (9, 7), 77).save(images / "002.png")
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(images / "003.png")
    for number in (2, 3):
        host.files[f"/train2014/{number:03}.png"] = (images / f"{number:03}.png").read_bytes()
    data = build_data(None, captions, image_url=host.image_url, cache=tmp_path / "cache", image_size=4)
    assert torch.equal(data["train_images"], build_data(images, captions, image_size=4)["train_images"])


def test_text_whose_words_nothing_divides_is_refused_by_name(tmp_path):
    def say(text):
        def change(content):
            for entry in content["annotations"]:
                entry["caption"] = text

        return write_folder(tmp_path, range(4), change=change)

    told = message(build_data, *say("สุนัขสีน้ำตาลกำลังวิ่งอยู่บนสนามหญ้า"))
    assert "Thai is written without spaces" in told and "captions.json" in told and "PyThaiNLP" in told
    assert "Khmer" in message(build_data, *say("ឆ្កែពណ៌ត្នោតកំពុងរត់លើស្មៅ"))
    data = build_data(*say("สุนัข สี น้ำตาล กำลัง วิ่ง อยู่ บน สนามหญ้า"), min_count=1)
    assert "สนามหญ้า" in data["vocab"]["token_to_idx"]
