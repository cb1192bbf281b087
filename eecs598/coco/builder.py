"""Build a data file from photographs and their captions, in folders or downloaded from COCO's image host."""

import contextlib
import functools
import hashlib
import os
import random
import shutil
import zipfile
from pathlib import Path
from unicodedata import normalize
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from eecs598 import DATASETS
from eecs598.coco import download
from eecs598.coco.captions import MAX_WORDS, MIN_COUNT, DataError, build_vocabulary, encode_captions, shorten_error
from eecs598.coco.datafile import save_data
from eecs598.coco.forms import (
    first_of,
    is_picture_name,
    read_captions_file,
    select_split,
    summarize,
    with_words,
)
from eecs598.coco.pictures import prepare_in_order
from eecs598.files import file_lock, remove_partial, save_whole, write_whole
from eecs598.progress import say
from eecs598.scripts import find_unsegmented

SHARD = 64  # pictures decoded between two saves
CACHE = DATASETS / "coco_images"
IMAGE_URLS = (download.COCO_IMAGE_URL, download.COCO_IMAGE_MIRROR_URL)
COURSE_COUNTS = {"train": 10000, "val": 500}  # of the course's own file


def build_data(images=None, train_captions=None, val_captions=None, out=None, *, val_images=None, captions=None,
               split_lists=None, year=2014, cache=CACHE, image_url=IMAGE_URLS, image_size=112, fit="stretch",
               num_train=None, num_val=None, min_count=MIN_COUNT, seed=0, workers=None):
    """Build a data file's dict from pictures and captions, in any of the formats listed in `forms.py`.

    images, val_images: folders of pictures; `val_images` defaults to `images`. Without `images`, the selected
        pictures are downloaded to the folder `cache`, which later calls reuse, from `image_url`: an address with
        {folder} and {file_name}, or several mirrors in order
    captions: the captions file of all pictures. Its own splits, or `split_lists` (files, or folders of them; Flickr8k's
        own are found next to it), define training and validation pictures; test pictures are left out. Without
        validation pictures, `num_val` pictures or a tenth of them, chosen by `seed`, are used for validation
    train_captions, val_captions: instead, a captions file for each split; the second one is optional in the same way.
        By default COCO's own of `year`, 2014 or 2017, are downloaded
    out: the data file to write, or None
    image_size, fit: as in `prepare_image`
    num_train, num_val: numbers of pictures, chosen by `seed`; by default all, or at most 10,000 and 500 if downloaded
    min_count: rarer words of the training captions become `<UNK>`
    workers: threads that decode pictures, by default one per core, at most 16; the result does not depend on it

    Each picture has one row: `*_captions` has one of its captions, chosen among those of at most 15 words if there are
    any, and `*_references` all of them, that one first, tokenized and joined by spaces. The vocabulary is that of all
    captions of the training pictures. No picture is in both splits. After an interruption, the same call resumes:
    downloads are kept, and decoded pictures too, in a folder next to `out` until it is written. Raises DataError, and
    DownloadError if a download fails.
    """
    if out is not None:
        _prepare_place(Path(out))  # fail early
    if images is None and val_images is not None:
        raise DataError(f"{val_images}: a folder of validation pictures only; name the training pictures' folder too")
    folders = {Path(folder) for folder in (images, val_images) if folder is not None}
    _check_folders(folders)
    source = _Fetcher(image_url, Path(cache)) if images is None else None
    files = {"captions": captions, "train": train_captions, "val": val_captions}
    train, val, told, listed = _read_pictures(files, split_lists, year, Path(cache))
    for folder in sorted(folders):
        _tell_uncaptioned(folder, listed)
    rng = random.Random(seed)
    train = _shuffle(_locate(train, images, source, told[0]), rng)
    if val is None:
        val = train
        num_val = _limit(max(1, len(train) // 10), "val", source) if num_val is None else num_val
        say(f"{told[0]}: no validation pictures; {num_val} of {len(train)} are chosen for that by seed {seed}")
    else:
        val = _shuffle(_locate(val, val_images or images, source, told[1]), rng)
        num_val = _limit(len(val), "val", source) if num_val is None else num_val
    _check_counts(train, val, num_train, num_val)
    _check_words(train, told[0])

    shards = None if out is None else Path(out).with_name(f".{Path(out).name}.decoded")
    workers = workers or min(16, os.cpu_count() or 1)
    decode = {"image_size": image_size, "fit": fit, "workers": workers, "shards": shards}
    val_pixels, val, tried = _decode(val, num_val, "val", source, **decode)
    train = [picture for picture in train if picture.path not in tried]
    num_train = num_train or _limit(len(train), "train", source)
    train_pixels, train, _ = _decode(train, num_train, "train", source, **decode)
    splits = {"train": (train_pixels, train), "val": (val_pixels, val)}
    data = join_splits(splits, {"image_size": image_size, "fit": fit}, min_count)
    if out is not None:
        save_data(data, out)
        shutil.rmtree(shards, ignore_errors=True)
    return data


def join_splits(splits, preprocessing, min_count):
    """A data file's dict. splits: name -> (pixels (n, 3, H, W), n pictures), where captions[0] goes into the row."""
    words = (text.split() for picture in splits["train"][1] for text in picture.captions)
    data = {"vocab": build_vocabulary(words, min_count), "preprocessing": preprocessing}
    for split, (pixels, pictures) in splits.items():
        data[f"{split}_images"] = pixels
        data[f"{split}_captions"] = encode_captions([p.captions[0].split() for p in pictures], data["vocab"])
        data[f"{split}_image_ids"] = torch.tensor([picture.id for picture in pictures])
        data[f"{split}_references"] = [picture.captions for picture in pictures]
    return data


def _check_words(pictures, told):
    """Reject captions in scripts without spaces, where each sentence would be a single word."""
    found = find_unsegmented(word for picture in pictures for text in picture.captions for word in text.split())
    if found:
        language, example = found
        raise DataError(
            f"{told}: {language} is written without spaces, and {example!r} would be one word; put spaces between "
            "words first, with a segmenter for the language (for Thai, PyThaiNLP's word_tokenize)"
        )


def _prepare_place(out):
    """Check that `out` can be written, and remove partial files of killed builds."""
    folder = out.absolute().parent
    if not os.access(folder, os.W_OK):
        raise DataError(f"{out}: its folder does not exist or is not writable")
    remove_partial(folder, out.name)


# --- the pictures to choose from ----------------------------------------------------------------------------


def _read_pictures(files, split_lists, year, cache):
    """Training pictures, validation pictures or None, the captions file of each, and all file names in NFC.

    files: the captions file or None for each of "captions", "train" and "val", see `build_data`.
    """
    given = [path for path in files.values() if path is not None]
    if (whole := files["captions"]) is not None:
        if len(given) > 1:
            raise DataError(f"{whole}: this file has all captions; give no other captions file with it")
        found = _read_captions_file(whole, split_lists)
        splits = {picture.split for picture in found.pictures} - {""}
        train = select_split(found, "train" if splits else None, whole)
        val = select_split(found, "val", whole) if "val" in splits else None
        listed, told = found.pictures, (whole, whole)
    else:
        if split_lists:
            raise DataError(f"{split_lists[0]}: split lists need one file of all captions, given by --captions")
        if not given:
            files = dict(zip(("train", "val"), fetch_captions(year, cache)))
        if files["train"] is None:
            raise DataError(f"{files['val']}: validation captions without training captions; give both")
        told = (files["train"], files["val"])
        train, val = (path and select_split(_read_captions_file(path, ()), None, path) for path in told)
        listed = [*train, *(val or ())]
    names = {normalize("NFC", picture.file_name) for picture in listed}
    return with_words(train), None if val is None else with_words(val), told, names


def _read_captions_file(path, split_lists):
    """`read_captions_file`, with a summary on standard error."""
    found = read_captions_file(path, split_lists)
    for line in (summarize(found, path), *found.oddities):
        say(line)
    return found


def fetch_captions(year, cache=CACHE, urls=None, **patience):
    """The paths of COCO's official training and validation captions, downloaded to `cache` if needed.

    urls: addresses of the archive; None: COCO's own. patience: as in `download`. Raises DownloadError or DataError.
    """
    if year not in download.COCO_ANNOTATIONS_URLS:
        raise DataError(f"year {year}: wanted {' or '.join(map(str, download.COCO_ANNOTATIONS_URLS))}")
    folder = _make_folder(Path(cache) / "annotations")
    paths = [folder / f"captions_{split}{year}.json" for split in ("train", "val")]
    archive = folder / f"annotations_trainval{year}.zip"
    try:
        if all(path.is_file() for path in paths):
            return paths
        with file_lock(paths[0], "downloading"):
            if not all(path.is_file() for path in paths):
                urls = urls or download.COCO_ANNOTATIONS_URLS[year]
                download.download(urls, archive, sha256=download.COCO_ANNOTATIONS_SHA256[year], **patience)
                _extract(archive, paths)
    except PermissionError as error:
        raise DataError(f"{folder}: this folder must be readable and writable ({shorten_error(error)})") from None
    return paths


def _extract(archive, paths):
    """Extract annotations/NAME for each path from a zip file, which is then removed. Raises DataError."""
    for path in paths:
        try:
            with zipfile.ZipFile(archive) as zipped, zipped.open(f"annotations/{path.name}") as captions:
                write_whole(path, functools.partial(shutil.copyfileobj, captions))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            advice = "free some space there" if isinstance(error, OSError) else "remove it"
            problem = f"{path.name} cannot be extracted ({shorten_error(error)})"
            raise DataError(f"{archive}: {problem}; {advice} and try again") from None
    archive.unlink()


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: this folder cannot be created ({shorten_error(error)})") from None
    return path


def find_pictures(images, captions, split=None, split_lists=None):
    """The pictures of a captions file that are in the folder `images`, with raw captions.

    split: "train", "val" or "test", if the file or its split lists (see `build_data`) define splits. Missing pictures
    and pictures without a caption are counted on standard error. Raises DataError.
    """
    _check_folders([images])
    found = _read_captions_file(captions, split_lists)
    return _locate(with_words(select_split(found, split, captions), as_written=True), images, None, captions)


def _check_folders(folders):
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such folder of pictures")


def _tell_uncaptioned(folder, listed):
    """Print to standard error how many picture files of a folder are in no captions file."""
    names = sorted(filter(is_picture_name, os.listdir(folder)))
    if names := [name for name in names if normalize("NFC", name) not in listed]:
        say(f"{folder}: {len(names):,} pictures have no captions, left out {first_of(names)}")


def _locate(pictures, images, source, name):
    """The pictures that have captions and are in the folder `images` or can be downloaded from `source`.

    The others are counted on standard error. `name` is the captions file, for messages.
    """
    if source is not None:
        there = [picture._replace(path=source.place(picture)) for picture in pictures]
    else:
        there = [p._replace(path=path) for p in pictures if (path := _find(Path(images), p))]
    if not pictures:
        raise DataError(f"{name}: it lists no pictures, wanted at least one")
    if not there:
        raise DataError(f"{images}: holds none of the {len(pictures)} pictures of {name} (first: "
                        f"{pictures[0].file_name})")  # fmt: skip
    usable = [picture for picture in there if picture.captions]
    if not usable:
        raise DataError(f"{name}: none of its {len(there)} pictures has a caption")
    if len(there) < len(pictures):
        ids = {picture.id for picture in there}
        gone = [picture.file_name for picture in pictures if picture.id not in ids]
        say(f"{name}: {len(gone)} of {len(pictures)} pictures are not in {images}, skipped {first_of(gone)}")
    if len(usable) < len(there):
        bare = [picture.file_name for picture in there if not picture.captions]
        say(f"{name}: {len(bare)} pictures have no caption, skipped {first_of(bare)}")
    return usable


def _find(images, picture):
    """A picture's file in `images`, or in its subfolder named as in the official archives; None if missing.

    On a Mac, extracted names may have accents as separate characters (NFD).
    """
    names = dict.fromkeys([picture.file_name, *(normalize(form, picture.file_name) for form in ("NFC", "NFD"))])
    folders = [images, images / picture.folder] if picture.folder else [images]
    return next((path for name in names for folder in folders if _is_file(path := folder / name)), None)


def _is_file(path):
    """Whether a path is a file. A name that the file system does not allow is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


# --- selection ----------------------------------------------------------------------------------------------


def _limit(count, split, source):
    """All pictures of a folder, but at most as many as in the course's own file if they are downloaded."""
    return count if source is None else min(count, COURSE_COUNTS[split])


def _shuffle(pictures, rng):
    """The pictures in random order, each with the caption for its row first."""
    shuffled = []
    for picture in rng.sample(pictures, len(pictures)):
        fitting = [text for text in picture.captions if len(text.split()) <= MAX_WORDS]
        first = picture.captions.index(rng.choice(fitting or picture.captions))
        others = picture.captions[:first] + picture.captions[first + 1 :]
        shuffled.append(picture._replace(captions=[picture.captions[first], *others]))
    return shuffled


def _check_counts(train, val, num_train, num_val):
    """Reject numbers of pictures that are too large, before any picture is decoded."""
    if not 1 <= num_val <= len(val):
        raise DataError(f"{num_val} validation pictures wanted, of {len(val)}; choose 1 to {len(val)}")
    chosen = {picture.path for picture in val[:num_val]}
    left = sum(picture.path not in chosen for picture in train)
    if not left:
        raise DataError(f"all {len(train)} training pictures are among the {num_val} for validation")
    if num_train is not None and not 1 <= num_train <= left:
        seen = f"{left} of {len(train)} are left beside the {num_val} for validation"
        raise DataError(f"{num_train} training pictures wanted, but {seen}; choose 1 to {left}")


# --- downloading and decoding -------------------------------------------------------------------------------


class _Fetcher:
    """Downloads pictures from `image_url`, see `build_data`, to the folder `cache`."""

    def __init__(self, image_url, cache):
        self.urls, self.cache = [image_url] if isinstance(image_url, str) else list(image_url), cache
        for url in self.urls:
            try:
                url.format(folder="train2014", file_name="1.jpg")
            except (KeyError, IndexError, ValueError):
                raise DataError(f"{url!r}: wanted an address like {download.COCO_IMAGE_URL}") from None

    def place(self, picture):
        """The path of a picture in the cache. Raises DataError if its name would lead outside of it."""
        path = Path(picture.folder, picture.file_name)
        names = picture.folder + picture.file_name  # as they were given: Windows joins them by a backslash
        if path.is_absolute() or ".." in path.parts or any(sign in names for sign in ":\\\0"):
            raise DataError(f"picture {picture.id}: {str(path)!r:.80} is not a plain file name to download")
        if not picture.folder and any("{folder}" in url for url in self.urls):
            known = "neither its file name nor a coco_url has its folder on the image host"
            raise DataError(f"picture {picture.id} ({picture.file_name}): {known}; name a folder with --images")
        return self.cache / path

    def fetch(self, pictures, first=True):
        """Download pictures that are not in the cache, and return those that are in it afterwards.

        Pictures missing on the host are named on standard error. Any other problem raises DownloadError, so that a
        bad connection never changes the selection of pictures. So does a host that has none of the `first` pictures.
        """
        wanted = {p.path: p for p in pictures if not _is_file(p.path)}
        for folder in {path.parent for path in wanted}:
            _make_folder(folder)
        failed = download.fetch_many([self._job(*item) for item in wanted.items()], check=_check_picture)
        failed = {path: error for path, error in failed if error}
        broken = [error for error in failed.values() if error.reason != "missing"]
        if broken or (first and len(failed) == len(pictures)):
            error = (broken or list(failed.values()))[0]
            message = f"{len(failed)} of {len(wanted)} pictures could not be downloaded; the first: {error}"
            raise download.DownloadError(message, error.reason)
        for error in failed.values():
            say(f"skipped {error}")
        return [picture for picture in pictures if picture.path not in failed]

    def _job(self, path, picture):
        names = {"folder": quote(picture.folder), "file_name": quote(picture.file_name)}
        return path, [url.format(**names) for url in self.urls], path


def _check_picture(path):
    """Reject a file that is not a picture, such as a login page."""
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:
        raise DataError(f"{path}: not a picture ({shorten_error(error)})") from None


def _decode(pictures, count, split, source, **options):
    """The first `count` available and readable pictures: uint8 (n, 3, S, S), these pictures, and all paths tried.

    An unreadable picture is named on standard error and replaced by the next one.
    """
    size = options["image_size"]
    try:
        pixels = np.empty((count, 3, size, size), dtype=np.uint8)
    except (MemoryError, ValueError):
        raise DataError(f"{count} pictures of {size} x {size} do not fit in memory; take fewer") from None
    kept, tried = [], 0
    while len(kept) < count and tried < len(pictures):
        batch = pictures[tried : tried + count - len(kept)]
        tried += len(batch)
        if source is not None:
            batch = source.fetch(batch, first=not kept)
        with tqdm(total=count, initial=len(kept), desc=f"{split} pictures", unit="picture") as bar:
            for picture, prepared in _prepare(batch, **options):
                if isinstance(prepared, str):
                    say(f"skipped {prepared}")
                    continue
                pixels[len(kept)] = prepared
                kept.append(picture)
                bar.update()
    if not kept:
        raise DataError(f"none of the {tried} {split} pictures could be read; see the lines above")
    if tried > len(kept):
        say(f"{tried - len(kept)} {split} pictures could not be read, skipped; {len(kept)} are kept")
    if len(kept) < count:
        say(f"{len(kept)} {split} pictures instead of {count}: no more can be used")
    pixels.resize((len(kept), 3, size, size), refcheck=False)  # in place: a slice would be copied when saved
    return torch.from_numpy(pixels), kept, {picture.path for picture in pictures[:tried]}


def _prepare(pictures, image_size, fit, workers, shards):
    """Yield (picture, its tensor or an error message) in order.

    Every SHARD pictures are saved in the folder `shards`, if any, for a later call.
    """
    for start in range(0, len(pictures), SHARD):
        part = pictures[start : start + SHARD]
        shard = shards and shards / f"{_shard_name(part, image_size, fit)}.pt"
        prepared = _load_shard(shard)
        if prepared is None:
            results = prepare_in_order(part, image_size, fit, workers)
            prepared = [str(result) if isinstance(result, DataError) else result for result in results]
            if shards is not None:
                with contextlib.suppress(OSError):  # if the disk is full, a later call decodes them again
                    shards.mkdir(exist_ok=True)
                    save_whole(prepared, shard)
        yield from zip(part, prepared)


def _shard_name(pictures, image_size, fit):
    """A name for these pictures as they are on disk now, with this preprocessing."""
    facts = [(str(p.path), p.path.stat().st_size, p.path.stat().st_mtime_ns) for p in pictures]
    return hashlib.sha256(repr((facts, image_size, fit)).encode()).hexdigest()[:24]


def _load_shard(shard):
    """The contents of a saved shard; None if it is missing or damaged."""
    try:
        return torch.load(shard, weights_only=True) if shard and shard.exists() else None
    except Exception:  # damaged files may raise anything
        return None
