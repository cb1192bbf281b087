"""A data file of photographs from whatever host is alive: a file that is there, COCO's own host, the course's file.

`find_photographs` tries these in order, and `build_subset` is the second alone. A split's pictures are taken in an
order that is drawn once, so a smaller subset is the beginning of a larger one. They are kept, made small, in runs:
files of up to RUN pictures, named after the part of the order that they cover. A later call goes on behind the last.
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

from eecs598.coco.builder import CACHE, COURSE_COUNTS, fetch_captions, join_splits
from eecs598.coco.captions import MAX_WORDS, DataError, shorten_error, tokenize
from eecs598.coco.course_file import COURSE_FILE, download_course_file
from eecs598.coco.datafile import load_data, save_data
from eecs598.coco.download import (
    COCO_ANNOTATIONS_SHA256,
    COCO_HOSTS,
    COURSE_FILE_URLS,
    DownloadError,
    download,
    fetch_in_order,
    find_answering,
)
from eecs598.coco.forms import read_captions_file, with_words
from eecs598.coco.pictures import prepare_image
from eecs598.files import save_whole

DATASETS = COURSE_FILE.parent
ARCHIVE = "annotations/annotations_trainval2014.zip"  # of a host, and in the folder until it is unpacked
IMAGE_SIZE = 112
MIN_COUNT = 4  # as in `build_data`: rarer words become <UNK>
LEAST = (200, 50)  # training and validation pictures; fewer are no data to train on
RUN = 64  # pictures that are kept in one file
MEASURE = 100  # pictures after which the rate is told
WORKERS = 16
PATIENCE = 16  # pictures in a row that could not be had, after which the host counts as dead
TIMEOUT = 4  # seconds of silence; a host that hangs costs at most five times as long in all


def find_photographs(folder=None, num_train=COURSE_COUNTS["train"], num_val=COURSE_COUNTS["val"], minutes=5, *,
                     least=LEAST, datasets=DATASETS, hosts=COCO_HOSTS, course_urls=COURSE_FILE_URLS,
                     timeout=TIMEOUT):  # fmt: skip
    """The path of a data file of photographs, from the first source that has one; None where none has.

    1. a file that is there: the one that the environment variable EECS598_PHOTOS names ("none": use no source at all),
       else the largest in `datasets`
    2. `num_train` + `num_val` pictures of COCO 2014, or as many as `minutes` allow: see `build_subset`
    3. the course's coco.pt, if it comes within `minutes`

    folder: keeps all that is fetched, and the file made of it (photographs.pt, or coco.pt), for a later call to go on;
        None: datasets/coco_images
    datasets: the folder of the data files
    course_urls: the addresses of the course's file
    least, hosts, timeout: as in `build_subset`

    Each step is a line of output, and no source that fails raises an error.
    """
    if os.environ.get("EECS598_PHOTOS") == "none":
        _say("EECS598_PHOTOS=none: no photographs are looked for")
        return None
    folder = Path(folder or CACHE)
    subset, course_file = folder / "photographs.pt", folder / "coco.pt"
    others = [path for path in sorted(Path(datasets).glob("*.pt")) if path != subset]  # which may be added to
    if (path := _find_file([*others, course_file])) is not None:
        return path
    try:
        options = {"least": least, "folder": folder, "hosts": hosts, "timeout": timeout}
        return build_subset(subset, num_train, num_val, minutes, **options)
    except (DataError, DownloadError) as error:
        _say(f"COCO's pictures: {error}")
    if counts := _count_photographs(subset):
        _say(f"{subset}: {_tell(counts)} from an earlier call are used")
        return subset
    try:
        patience = {"retries": 1, "timeout": timeout, "deadline": time.monotonic() + 60 * minutes}
        download_course_file(course_file, find_answering(course_urls, timeout), **patience)
    except DownloadError as error:
        _say(f"the course's file: {error}")
    else:
        _say(f"{course_file}: {_tell(_count_photographs(course_file))}, the course's file")
        return course_file
    own = "EECS598_PHOTOS=FILE names a data file of your own"
    command = f"python -m eecs598.coco subset --out {DATASETS.name}/photographs.pt"
    _say(f"no photographs; with a network `{command}` fetches some, and {own}")
    return None


def build_subset(out, num_train=COURSE_COUNTS["train"], num_val=COURSE_COUNTS["val"], minutes=5, *, least=LEAST,
                 folder=CACHE, hosts=COCO_HOSTS, timeout=TIMEOUT):  # fmt: skip
    """Make the data file `out` of COCO 2014 pictures, 112 x 112, fetched one by one; returns its path.

    num_train, num_val: how many pictures of each official split. A picture that cannot be had is replaced by the next
        of the order. Fewer are taken, in this proportion, where `minutes` allow no more or the host dies
    least: how many of each split are fetched first, and make a data file if no more come
    minutes: for the captions (241 MB, fetched once), and again for the pictures
    folder: keeps the captions and the pictures, from which the next call goes on, also after an interruption
    hosts: the addresses of COCO's host and its mirrors, in order
    timeout: seconds of silence after which an address is given up

    A file that is there and has as many pictures stays. All captions of each picture are kept as references. Raises
    DownloadError or DataError.
    """
    out, folder, goals = Path(out), Path(folder), {"train": num_train, "val": num_val}
    there = _count_photographs(out) or dict.fromkeys(goals, 0)
    if all(there[name] >= goal for name, goal in goals.items()):
        _say(f"{out}: {_tell(there)}, there already")
        return out
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    archives = find_answering([f"{host}/{ARCHIVE}" for host in hosts], timeout)
    hosts = [archive.removesuffix(f"/{ARCHIVE}") for archive in archives]
    _say(f"{hosts[0]}: {_tell(goals)} wanted, kept in {folder}")
    captions = _fetch_captions(folder, archives, minutes, timeout)
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
    if any(kept[name] > there[name] for name in kept):
        save_data(_make_data(splits), out)
    _say(f"{out}: {_tell(_count_photographs(out))}{ended and f', since {ended}'}")
    return out


def _tell(counts):
    return f"{counts['train']:,} + {counts['val']:,} pictures"


def _say(line):
    tqdm.write(line)


@contextlib.contextmanager
def _writing(path):
    """An OSError in it is told as a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({shorten_error(error)})") from None


# --- files that are there -----------------------------------------------------------------------------------


def _find_file(paths):
    """The data file that EECS598_PHOTOS names, else the largest of photographs among `paths`; None without one."""
    named = os.environ.get("EECS598_PHOTOS")
    if named:
        try:
            load_data(named)
            _say(f"{named}: named by EECS598_PHOTOS")
            return Path(named)
        except DataError as error:
            _say(f"EECS598_PHOTOS: {error}")
    found = {path: counts for path in paths if (counts := _count_photographs(path))}
    if not found:
        _say(f"no photographs in {DATASETS.name}/*.pt{'' if named else ', and EECS598_PHOTOS names none'}")
        return None
    path = max(found, key=lambda path: found[path]["train"])
    _say(f"{path}: {_tell(found[path])}, there already")
    return path


def _count_photographs(path):
    """The number of pictures of each split; None where `path` is no data file of photographs, but of scenes or none."""
    try:
        data = load_data(path)
    except DataError:
        return None
    return None if "train_scenes" in data else {name: len(data[f"{name}_images"]) for name in ("train", "val")}


# --- the order of a split, and what is kept of it -----------------------------------------------------------


@dataclass
class _Split:
    """A split on its way to `goal` pictures: the order in which they are taken, and how far it is."""

    name: str
    order: list
    goal: int
    least: int  # makes a data file
    folder: Path  # of its runs
    kept: list = field(default_factory=list)  # the pictures that are in the runs
    saved: int = 0  # how much of the order the runs cover
    fresh: list = field(default_factory=list)  # what came since: (place in the order, picture, its pixels)
    tried: int = 0  # how much of the order has been had or given up

    @property
    def count(self):
        return len(self.kept) + len(self.fresh)


def _fetch_captions(folder, archives, minutes, timeout):
    """The paths of the official captions, train and val, fetched from one of the addresses `archives` unless there."""
    if not (folder / "annotations" / "captions_val2014.json").is_file():  # the last that is unpacked
        patience = {"retries": 1, "timeout": timeout, "deadline": time.monotonic() + 60 * minutes}
        download(archives, folder / ARCHIVE, sha256=COCO_ANNOTATIONS_SHA256[2014], **patience)
    return fetch_captions(2014, folder)


def _open_split(name, captions, goal, least, folder):
    """The split of a captions file, with the runs that earlier calls have kept."""
    pictures = [picture for picture in read_captions_file(captions).pictures if any(map(tokenize, picture.captions))]
    split = _Split(name, random.Random(0).sample(pictures, len(pictures)), goal, min(least, goal), folder)
    for stop, pictures, _ in _read_runs(split):
        split.kept += pictures
        split.tried = split.saved = stop
    return split


def _read_runs(split):
    """Yield the runs as they follow on each other, each as `_read_run` gives it."""
    names, start = sorted((path.name for path in split.folder.glob(f"{split.name}-*.pt")), reverse=True), 0
    while True:
        runs = (_read_run(split, name, start) for name in names if name.startswith(f"{split.name}-{start:06}-"))
        run = next(filter(None, runs), None)  # the longest that is whole
        if run is None:
            return
        yield run
        start = run[0]


def _read_run(split, name, start):
    """A run's end in the order, its pictures, their pixels uint8 (n, 3, 112, 112).

    None where it is damaged or of another order.
    """
    try:
        stop, run = int(name[-9:-3]), torch.load(split.folder / name, weights_only=True, mmap=True)
        there = {picture.id: picture for picture in split.order[start:stop]}
        pictures = [there[number] for number in run["ids"].tolist()]
        fits = stop > start and run["pixels"].shape == (len(pictures), 3, IMAGE_SIZE, IMAGE_SIZE)
    except Exception:  # a damaged file raises anything
        return None
    return (stop, pictures, run["pixels"]) if fits else None


def _save_run(split):
    """Keep on the disk what came since the last run."""
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


# --- fetching -----------------------------------------------------------------------------------------------


def _fetch_pictures(splits, hosts, minutes, timeout):
    """Fetch what the splits lack; returns why some are still lacking, in words, or ""."""
    total, deadline = sum(split.goal for split in splits), time.monotonic() + 60 * minutes
    have = sum(min(split.count, split.goal) for split in splits)
    patience = {"workers": WORKERS, "retries": 0, "timeout": timeout, "deadline": deadline}
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=total, initial=have, unit="picture") as bar,
        contextlib.closing(_fetch_wanted(splits, hosts, folder, patience)) as outcomes,
    ):
        warnings.simplefilter("ignore")  # of odd EXIF entries, in pictures that can be read
        ended = _keep(outcomes, splits, bar, minutes, timeout)
    return ended or ("there are no more" if any(split.count < split.goal for split in splits) else "")


def _fetch_wanted(splits, hosts, folder, patience):
    """Yield what comes of `fetch_in_order` until nothing is lacking; a round makes up for what the last one lost."""
    while wanted := _list_wanted(splits):
        jobs = [_job(hosts, folder, *item) for item in wanted]
        with contextlib.closing(fetch_in_order(jobs, read=_take_in, **patience)) as outcomes:
            yield from outcomes
        for split, position, _ in wanted:
            split.tried = max(split.tried, position + 1)


def _list_wanted(splits):
    """(split, place in its order, picture) of what is lacking: first the least of each split, then in proportion."""
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
    """The pixels of a fetched picture, uint8 (3, 112, 112), or the DataError that says why there are none."""
    try:
        return prepare_image(path, IMAGE_SIZE)
    except DataError as error:
        return error
    finally:
        path.unlink()


def _keep(outcomes, splits, bar, minutes, timeout):
    """Add the pictures that come to their splits; returns why no more come, in words, or "" after the last one."""
    failed, first, begun = 0, bar.n, time.monotonic()
    last = begun  # when a picture came
    for (split, position, picture), got, _ in outcomes:
        if isinstance(got, Exception):
            failed += 1
            if getattr(got, "reason", None) == "stopped":
                return f"{minutes:g} min are over; the next call goes on"
            if failed == PATIENCE or time.monotonic() - last > 3 * timeout:
                return f"the last {failed} could not be had ({got})"
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
    """After MEASURE pictures, say how long the rest takes; returns in words why the least cannot be had, or ""."""
    spent = (time.monotonic() - begun) / 60
    rate = MEASURE / spent  # pictures a minute
    left = sum(max(0, split.goal - split.count) for split in splits)
    least = sum(max(0, split.least - split.count) for split in splits)
    allowed = max(0, int(rate * (minutes - spent)))
    pace = f"{rate / 60:.1f} pictures a second"
    if allowed < least:
        return f"{pace} are too slow for {minutes:g} min; the next call goes on"
    fewer = f", of which {minutes:g} min allow about {allowed:,}" if allowed < left else ""
    if left:
        time_left = f"{left / rate:.0f} min" if left > 2 * rate else f"{60 * left / rate:.0f} s"
        _say(f"{pace}: the other {left:,} take about {time_left}{fewer}")
    return ""


# --- the data file ------------------------------------------------------------------------------------------


def _make_data(splits):
    """The data file's dict of what is kept, as `build_data` makes it."""
    chosen = {split.name: [_lead(picture) for picture in with_words(split.kept[: split.goal])] for split in splits}
    kept = {split.name: (_read_pixels(split, len(chosen[split.name])), chosen[split.name]) for split in splits}
    return join_splits(kept, {"image_size": IMAGE_SIZE, "fit": "stretch"}, MIN_COUNT)


def _lead(picture):
    """The picture with a caption first that is short enough to stand for it."""
    return picture._replace(captions=sorted(picture.captions, key=lambda text: len(text.split()) > MAX_WORDS))


def _read_pixels(split, count):
    """The first `count` kept pictures, uint8 (count, 3, 112, 112)."""
    pixels, done = torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8), 0
    for _, _, run in _read_runs(split):
        run = run[: count - done]
        pixels[done : done + len(run)] = run
        done += len(run)
    return pixels
