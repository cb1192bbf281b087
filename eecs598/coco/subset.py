"""A data file of photographs from the first available source: an existing file, COCO's host, the course's file.

`find_photographs` tries these in order; `build_subset` is the second one. The pictures of a split are downloaded in a
fixed random order, so that a smaller subset is the beginning of a larger one. After preprocessing they are saved in
files of up to RUN pictures, named after the range of the order that they cover. A later call continues after the last.
"""

import contextlib
import os
import random
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import torch
from tqdm import tqdm

from eecs598 import DATASETS
from eecs598.coco.builder import CACHE, COURSE_COUNTS, fetch_captions, join_splits
from eecs598.coco.captions import MAX_WORDS, MIN_COUNT, DataError, shorten_error, tokenize
from eecs598.coco.course_file import download_course_file
from eecs598.coco.datafile import load_data, save_data
from eecs598.coco.download import (
    COCO_HOSTS,
    COURSE_FILE_URLS,
    DownloadError,
    fetch_in_order,
    find_answering,
)
from eecs598.coco.forms import read_captions_file, with_words
from eecs598.coco.pictures import prepare_image
from eecs598.files import remove, remove_partial, save_whole

ARCHIVE = "annotations/annotations_trainval2014.zip"  # of a host, and in the folder until it is unpacked
IMAGE_SIZE = 112
LEAST = (200, 50)  # training and validation pictures; fewer are not enough to train on
RUN = 64  # pictures per file
MEASURE = 100  # pictures after which the speed is printed
WORKERS = 16
PATIENCE = 16  # failures in a row after which the host is given up
TIMEOUT = 4  # seconds without a response; a host that hangs costs at most five times as much in total


def find_photographs(folder=None, num_train=COURSE_COUNTS["train"], num_val=COURSE_COUNTS["val"], minutes=5, *,
                     least=LEAST, datasets=DATASETS, hosts=COCO_HOSTS, course_urls=COURSE_FILE_URLS,
                     timeout=TIMEOUT):  # fmt: skip
    """The path of a data file of photographs from the first available source, or None.

    1. an existing file: the one named by the environment variable EECS598_PHOTOS ("none" means no source at all), or
       the largest in `datasets`
    2. `num_train` + `num_val` pictures of COCO 2014, or as many as `minutes` allow: see `build_subset`
    3. the course's coco.pt, if it can be downloaded within `minutes`

    folder: for downloads and the resulting file (photographs.pt or coco.pt), which later calls reuse; None:
        datasets/coco_images
    datasets: the folder of data files
    course_urls: the addresses of the course's file
    least, hosts, timeout: as in `build_subset`

    Each step prints a line. A source that fails does not raise an error.
    """
    if os.environ.get("EECS598_PHOTOS") == "none":
        tqdm.write("EECS598_PHOTOS=none: photographs are skipped")
        return None
    folder = Path(folder or CACHE)
    subset, course_file = folder / "photographs.pt", folder / "coco.pt"
    others = [path for path in sorted(Path(datasets).glob("*.pt")) if path != subset]  # which may be added to
    if (path := _find_file([*others, course_file], least)) is not None:
        return path
    try:
        options = {"least": least, "folder": folder, "hosts": hosts, "timeout": timeout}
        return build_subset(subset, num_train, num_val, minutes, **options)
    except (DataError, DownloadError) as error:
        tqdm.write(f"COCO's pictures: {error}")
    if counts := _count_photographs(subset):
        tqdm.write(f"{subset}: {_tell(counts)} from an earlier call are used")
        return subset
    try:
        patience = {"retries": 1, "timeout": timeout, "deadline": time.monotonic() + 60 * minutes}
        download_course_file(course_file, find_answering(course_urls, timeout), **patience)
    except DownloadError as error:
        tqdm.write(f"the course's file: {error}")
    else:
        tqdm.write(f"{course_file}: {_tell(_count_photographs(course_file))}, the course's file")
        return course_file
    own = "EECS598_PHOTOS=FILE names a data file of your own"
    command = f"python -m eecs598.coco subset --out {DATASETS.name}/photographs.pt"
    tqdm.write(f"no photographs; with a network `{command}` fetches some, and {own}")
    return None


def build_subset(out, num_train=COURSE_COUNTS["train"], num_val=COURSE_COUNTS["val"], minutes=5, *, least=LEAST,
                 folder=CACHE, hosts=COCO_HOSTS, timeout=TIMEOUT):  # fmt: skip
    """Make the data file `out` from COCO 2014 pictures of 112 x 112, downloaded one by one. Returns its path.

    num_train, num_val: numbers of pictures from each official split. Unavailable pictures are replaced by the next in
        order. If time runs out or the host fails, there are fewer, in the same proportion
    least: numbers of pictures of each split that are downloaded first, and are enough for a data file
    minutes: time limit for the captions (241 MB, downloaded once), and again for the pictures
    folder: for the captions and pictures, from which the next call resumes, even after an interruption
    hosts: the addresses of COCO's host and its mirrors, in order
    timeout: seconds without a response after which an address is given up

    An existing file with enough pictures is left as it is. All captions of each picture become references. Raises
    DownloadError or DataError.
    """
    out, folder, goals = Path(out), Path(folder), {"train": num_train, "val": num_val}
    there = _count_photographs(out) or dict.fromkeys(goals, 0)
    if all(there[name] >= goal for name, goal in goals.items()):
        tqdm.write(f"{out}: {_tell(there)}, there already")
        return out
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    archives = find_answering([f"{host}/{ARCHIVE}" for host in hosts], timeout)
    hosts = [archive.removesuffix(f"/{ARCHIVE}") for archive in archives]
    tqdm.write(f"{hosts[0]}: {_tell(goals)} wanted, kept in {folder}")
    patience = {"retries": 1, "timeout": timeout, "deadline": time.monotonic() + 60 * minutes}
    captions = fetch_captions(2014, folder, archives, **patience)
    remove_partial(folder / "subset")
    splits = [_open_split(*facts, folder / "subset") for facts in zip(goals, captions, goals.values(), least)]
    try:
        ended = _fetch_pictures(splits, hosts, minutes, timeout)
    finally:  # also after Ctrl-C
        for split in splits:
            _save_run(split)
    kept = {split.name: min(split.count, split.goal) for split in splits}
    if any(kept[split.name] < split.least for split in splits):
        needed = _tell({split.name: split.least for split in splits})
        raise DownloadError(f"{_tell(kept)} are too few, wanted {needed} or more; {ended}")
    grown = any(kept[name] > there[name] for name in kept)
    if grown and all(kept[name] >= min(there[name], goals[name]) for name in kept):
        save_data(_make_data(splits), out)
    tqdm.write(f"{out}: {_tell(_count_photographs(out))}{ended and f', since {ended}'}")
    return out


def _tell(counts):
    return f"{counts['train']:,} + {counts['val']:,} pictures"


@contextlib.contextmanager
def _writing(path):
    """A context in which an OSError becomes a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({shorten_error(error)})") from None


# --- existing files -----------------------------------------------------------------------------------------


def _find_file(paths, least):
    """The data file named by EECS598_PHOTOS, or the largest one of photographs among `paths`, or None.

    least: numbers of pictures in the splits; a file with fewer is passed over, unless it is the one named.
    """
    named = os.environ.get("EECS598_PHOTOS")
    if named:
        try:
            load_data(named)
            tqdm.write(f"{named}: named by EECS598_PHOTOS")
            return Path(named)
        except DataError as error:
            tqdm.write(f"EECS598_PHOTOS: {error}")
    found = {path: counts for path in paths if (counts := _count_photographs(path))}
    if not found:
        tqdm.write(f"no photographs in {DATASETS.name}/*.pt{'' if named else ', and EECS598_PHOTOS names none'}")
        return None
    enough = [path for path in found if all(found[path][name] >= n for name, n in zip(("train", "val"), least))]
    path = max(enough or found, key=lambda path: found[path]["train"])
    if not enough:
        tqdm.write(f"{path}: {_tell(found[path])}, too few; name it with EECS598_PHOTOS to use it all the same")
        return None
    tqdm.write(f"{path}: {_tell(found[path])}, there already")
    return path


def _count_photographs(path):
    """The number of pictures in each split; None if `path` is not a data file of photographs."""
    try:
        data = load_data(path)
    except DataError:
        return None
    return None if "train_scenes" in data else {name: len(data[f"{name}_images"]) for name in ("train", "val")}


# --- the order of a split, and its saved pictures -----------------------------------------------------------


@dataclass
class _Split:
    """The progress of a split towards `goal` pictures. Saved files of pictures are called runs."""

    name: str
    order: list
    goal: int
    least: int  # enough for a data file
    folder: Path  # of the runs
    kept: list = field(default_factory=list)  # pictures in the runs
    saved: int = 0  # length of the part of the order that the runs cover
    fresh: list = field(default_factory=list)  # not saved yet: (place in the order, picture, its pixels)
    tried: int = 0  # length of the part of the order that was downloaded or given up

    @property
    def count(self):
        return len(self.kept) + len(self.fresh)


def _open_split(name, captions, goal, least, folder):
    """The split of a captions file, with the runs from earlier calls."""
    pictures = [picture for picture in read_captions_file(captions).pictures if any(map(tokenize, picture.captions))]
    split = _Split(name, random.Random(0).sample(pictures, len(pictures)), goal, min(least, goal), folder)
    for stop, pictures, _ in _read_runs(split):
        split.kept += pictures
        split.tried = split.saved = stop
    return split


def _read_runs(split):
    """Yield consecutive runs, each as returned by `_read_run`."""
    names, start = sorted((path.name for path in split.folder.glob(f"{split.name}-*.pt")), reverse=True), 0
    while True:
        runs = (_read_run(split, name, start) for name in names if name.startswith(f"{split.name}-{start:06}-"))
        run = next(filter(None, runs), None)  # the longest valid one
        if run is None:
            return
        yield run
        start = run[0]


def _read_run(split, name, start):
    """The end of a run in the order, its pictures, and their pixels uint8 (n, 3, 112, 112).

    None if it is damaged or belongs to another order.
    """
    try:
        stop, run = int(name[-9:-3]), torch.load(split.folder / name, weights_only=True, mmap=True)
        there = {picture.id: picture for picture in split.order[start:stop]}
        pictures = [there[number] for number in run["ids"].tolist()]
        fits = stop > start and run["pixels"].shape == (len(pictures), 3, IMAGE_SIZE, IMAGE_SIZE)
    except Exception:  # damaged files may raise anything
        return None
    return (stop, pictures, run["pixels"]) if fits else None


def _save_run(split):
    """Save the pictures downloaded since the last run."""
    if not split.fresh:
        return
    positions, pictures, pixels = zip(*split.fresh)
    stop = positions[-1] + 1
    path = split.folder / f"{split.name}-{split.saved:06}-{stop:06}.pt"
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_whole({"ids": torch.tensor([p.id for p in pictures]), "pixels": torch.stack(pixels)}, path)
    split.kept += pictures
    split.saved = stop
    split.fresh.clear()


# --- downloading --------------------------------------------------------------------------------------------


def _fetch_pictures(splits, hosts, minutes, timeout):
    """Download missing pictures. Returns the reason why some are still missing, or ""."""
    total, deadline = sum(split.goal for split in splits), time.monotonic() + 60 * minutes
    have = sum(min(split.count, split.goal) for split in splits)
    patience = {"workers": WORKERS, "retries": 0, "timeout": timeout, "deadline": deadline}
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=total, initial=have, unit="picture") as bar,
        contextlib.closing(_fetch_wanted(splits, hosts, folder, patience)) as outcomes,
    ):
        warnings.simplefilter("ignore")  # about EXIF entries of readable pictures
        ended = _keep(outcomes, splits, bar, minutes, timeout)
    return ended or ("there are no more" if any(split.count < split.goal for split in splits) else "")


def _fetch_wanted(splits, hosts, folder, patience):
    """Yield the results of `fetch_in_order` until nothing is missing; each round replaces the failures of the last."""
    while wanted := _list_wanted(splits):
        jobs = [_job(hosts, folder, *item) for item in wanted]
        with contextlib.closing(fetch_in_order(jobs, read=_take_in, **patience)) as outcomes:
            yield from outcomes
        for split, position, _ in wanted:
            split.tried = max(split.tried, position + 1)


def _list_wanted(splits):
    """(split, place in its order, picture) for missing pictures: first `least` of each split, then in proportion."""
    wanted = []
    for split in splits:
        for count, position in zip(range(split.count, split.goal), range(split.tried, len(split.order))):
            share = (False, count / split.least) if count < split.least else (True, count / split.goal)
            wanted.append((share, split, position, split.order[position]))
    return [item[1:] for item in sorted(wanted, key=lambda item: item[0])]


def _job(hosts, folder, split, position, picture):
    """A job of `fetch_in_order`."""
    urls = [f"{host}/{quote(picture.folder)}/{quote(picture.file_name)}" for host in hosts]
    return (split, position, picture), urls, Path(folder, f"{split.name}{picture.id}.jpg")


def _take_in(path):
    """The pixels of a downloaded picture, uint8 (3, 112, 112), or a DataError."""
    try:
        return prepare_image(path, IMAGE_SIZE)
    except DataError as error:
        return error
    finally:
        remove(path)


def _keep(outcomes, splits, bar, minutes, timeout):
    """Add downloaded pictures to their splits. Returns the reason for an early end, or ""."""
    failed, first, begun = 0, bar.n, time.monotonic()
    last = begun  # time of the last success
    for (split, position, picture), got, _ in outcomes:
        if isinstance(got, Exception):
            failed += 1
            if getattr(got, "reason", None) == "stopped":
                return f"{minutes:g} min are over; the next call continues"
            if failed == PATIENCE or time.monotonic() - last > 3 * timeout:
                return f"the last {failed} could not be downloaded ({got})"
            continue
        failed, last = 0, time.monotonic()
        split.fresh.append((position, picture, got))
        if len(split.fresh) == RUN:
            _save_run(split)
        bar.update()
        if bar.n == first + MEASURE and (ended := _tell_pace(splits, begun, minutes)):
            return ended
    return ""


def _tell_pace(splits, begun, minutes):
    """After MEASURE pictures, print the remaining time. Returns the reason if `least` cannot be reached, or ""."""
    spent = (time.monotonic() - begun) / 60
    rate = MEASURE / spent  # pictures a minute
    left = sum(max(0, split.goal - split.count) for split in splits)
    least = sum(max(0, split.least - split.count) for split in splits)
    allowed = max(0, int(rate * (minutes - spent)))
    pace = f"{rate / 60:.1f} pictures a second"
    if allowed < least:
        return f"{pace} are too slow for {minutes:g} min; the next call continues"
    fewer = f", of which {minutes:g} min allow about {allowed:,}" if allowed < left else ""
    if left:
        time_left = f"{left / rate:.0f} min" if left > 2 * rate else f"{60 * left / rate:.0f} s"
        tqdm.write(f"{pace}: the other {left:,} take about {time_left}{fewer}")
    return ""


# --- the data file ------------------------------------------------------------------------------------------


def _make_data(splits):
    """The data file's dict of the saved pictures, as from `build_data`."""
    kept = {}
    for split in splits:
        pictures, pixels = _read_saved(split)
        kept[split.name] = pixels, [_lead(picture) for picture in with_words(pictures)]
    return join_splits(kept, {"image_size": IMAGE_SIZE, "fit": "stretch"}, MIN_COUNT)


def _lead(picture):
    """The picture with a caption of at most MAX_WORDS first, if it has one."""
    return picture._replace(captions=sorted(picture.captions, key=lambda text: len(text.split()) > MAX_WORDS))


def _read_saved(split):
    """The first `goal` saved pictures, and their pixels, uint8 (n, 3, 112, 112)."""
    pictures, parts = [], []
    for _, found, pixels in _read_runs(split):  # in one pass: another process may be saving runs
        room = split.goal - len(pictures)
        pictures += found[:room]
        parts.append(pixels[:room])
    return pictures, torch.cat(parts)
