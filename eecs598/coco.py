"""The data file: build one from photographs and COCO-format captions, write it, read it back, check it.

    python -m eecs598.coco build --images DIR --train-captions JSON --val-captions JSON --out FILE
    python -m eecs598.coco check FILE

`datasets/README.md` describes the file. Every complaint is a `DataError`, whose message is one line.
"""

import argparse
import json
import os
import pickle
import random
import re
import sys
import unicodedata
import warnings
import zipfile
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from eecs598.files import save_whole

NULL, START, END, UNK = SPECIAL_TOKENS = ("<NULL>", "<START>", "<END>", "<UNK>")
MAX_WORDS = 15
CAPTION_LENGTH = MAX_WORDS + 2  # <START>, at most 15 words, <END>
FITS = ("stretch", "crop")
HOW_TO_MAKE = "make one with `python -m eecs598.scenes FILE` or `python -m eecs598.coco build`"

# The clitics that the Penn Treebank splits off the end of a word: do|n't, dog|'s, should|n't|'ve
_LETTER, _CLITICS = r"[^\W_]", r"(?:n't|'(?:s|m|d|re|ve|ll))"
_CLITIC = rf"{_CLITICS}(?={_CLITICS}*(?!{_LETTER}))"
_SPLIT_CLITIC = re.compile(rf"(?<={_LETTER})({_CLITIC})")
_TOKEN = re.compile(rf"{_CLITIC}|{_LETTER}+(?:['-]{_LETTER}+)*")


class DataError(ValueError):
    """A data file, picture or caption file that cannot be used; the message is one line."""


# --- words --------------------------------------------------------------------------------------------------


def tokenize(caption):
    """The words of a caption: lower case, punctuation dropped, a list of strings without empty ones.

    Digits, letters of any script and the hyphens and apostrophes inside a word stay ("t-shirt", "o'clock").
    Clitics are split off as in the Penn Treebank, and so by the field's PTBTokenizer: "don't" gives
    ["do", "n't"], "a dog's" gives ["a", "dog", "'s"]. Tokenizing the joined tokens again changes nothing.
    """
    text = unicodedata.normalize("NFC", caption).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return _TOKEN.findall(_SPLIT_CLITIC.sub(r" \1", text))


def build_vocabulary(captions, min_count=1):
    """The vocabulary of the words that occur at least `min_count` times in `captions` (token lists).

    Returns {"idx_to_token": list, "token_to_idx": dict}. `<NULL> <START> <END> <UNK>` are 0 to 3; the words
    follow by descending count, ties in alphabetical order, so equal captions give an equal vocabulary.
    """
    counts = Counter(word for words in captions for word in words)
    kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL_TOKENS]
    tokens = [*SPECIAL_TOKENS, *sorted(kept, key=lambda word: (-counts[word], word))]
    return {"idx_to_token": tokens, "token_to_idx": {token: i for i, token in enumerate(tokens)}}


def encode_captions(captions, vocab, max_words=MAX_WORDS):
    """Token lists as an int64 tensor (n, max_words + 2): `<START>`, the words, `<END>`, then `<NULL>`.

    A word outside the vocabulary becomes `<UNK>`; a longer caption is cut after `max_words` words.
    """
    ids = vocab["token_to_idx"]
    encoded = torch.full((len(captions), max_words + 2), ids[NULL], dtype=torch.int64)
    for row, words in zip(encoded, captions):
        line = [ids[START], *(ids.get(word, ids[UNK]) for word in words[:max_words]), ids[END]]
        row[: len(line)] = torch.tensor(line)
    return encoded


# --- checks -------------------------------------------------------------------------------------------------


def validate_data(data, name="data"):
    """Raise DataError unless `data` is a data file's dict (`datasets/README.md`); `name` opens the message.

    All captions are read, no picture's bytes are, so that checking a memory-mapped file costs little.
    """
    wanted = ["train_images", "val_images", "train_captions", "val_captions", "vocab"]
    if not isinstance(data, dict):
        raise DataError(f"{name}: holds {_describe(data)}, wanted a dict with the keys {', '.join(wanted)}")
    missing = [key for key in wanted if key not in data]
    if missing:
        seen = ", ".join(map(str, list(data)[:10])) or "none"
        raise DataError(f"{name}: lacks {', '.join(missing)}; keys seen: {seen}; wanted: {', '.join(wanted)}")
    _check_vocabulary(data["vocab"], f"{name}: vocab")
    for split in ("train", "val"):
        _check_images(data, split, name)
        _check_captions(data, split, name)
        _check_extras(data, split, name)


def _describe(value):
    """What a value is, for an error message: its type, and its size where it has one."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def _check_vocabulary(vocab, name):
    """The two tables exist, agree and hold the special tokens."""
    if not isinstance(vocab, dict) or not {"idx_to_token", "token_to_idx"} <= vocab.keys():
        raise DataError(f"{name}: is {_describe(vocab)}, wanted a dict with idx_to_token and token_to_idx")
    tokens, ids = vocab["idx_to_token"], vocab["token_to_idx"]
    if not isinstance(tokens, list) or not isinstance(ids, dict):
        seen = f"idx_to_token is {_describe(tokens)} and token_to_idx {_describe(ids)}"
        raise DataError(f"{name}: {seen}, wanted a list and a dict")
    odd = next((i for i, token in enumerate(tokens) if not isinstance(token, str)), None)
    if odd is not None:
        raise DataError(f"{name}: idx_to_token[{odd}] is {_describe(tokens[odd])}, wanted a string")
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise DataError(f"{name}: idx_to_token holds {twice[0]!r} twice, wanted each token once")
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise DataError(f"{name}: lacks {' '.join(missing)}, wanted all of {' '.join(SPECIAL_TOKENS)}")
    for i, token in enumerate(tokens):
        if (found := ids.get(token)) != i or type(found) is not int:
            seen = f"idx_to_token[{i}] is {token!r}, but token_to_idx[{token!r}] is {found!r}"
            raise DataError(f"{name}: {seen}, wanted {i}")
    if len(ids) != len(tokens):
        extra = next(iter(ids.keys() - set(tokens)))
        raise DataError(f"{name}: token_to_idx holds {extra!r}, which idx_to_token lacks")


def _check_images(data, split, name):
    images, first = data[f"{split}_images"], data["train_images"]
    good = isinstance(images, torch.Tensor) and images.dtype == torch.uint8 and images.ndim == 4
    if not good or images.shape[1] != 3 or 0 in images.shape:
        wanted = "a tensor (n, 3, height, width) of uint8, nowhere 0"
    elif images.shape[2:] != first.shape[2:]:
        wanted = f"pictures of {first.shape[2]} x {first.shape[3]} as in train_images"
    else:
        return
    raise DataError(f"{name}: {split}_images is {_describe(images)}, wanted {wanted}")


def _check_captions(data, split, name):
    key, captions, tokens = f"{split}_captions", data[f"{split}_captions"], data["vocab"]["idx_to_token"]
    rows = len(data[f"{split}_images"])
    wanted = f"a tensor ({rows}, {CAPTION_LENGTH}) of int64, a row for each of {split}_images"
    good = isinstance(captions, torch.Tensor) and captions.dtype == torch.int64
    if not good or tuple(captions.shape) != (rows, CAPTION_LENGTH):
        raise DataError(f"{name}: {key} is {_describe(captions)}, wanted {wanted}")
    outside = ((captions < 0) | (captions >= len(tokens))).nonzero()
    if len(outside):
        row, column = outside[0].tolist()
        raise DataError(
            f"{name}: {key} row {row} holds id {captions[row, column].item()}, "
            f"but the vocabulary has {len(tokens)} tokens (ids 0 to {len(tokens) - 1})"
        )
    unstarted = (captions[:, 0] != data["vocab"]["token_to_idx"][START]).nonzero()
    if len(unstarted):
        row = unstarted[0].item()
        raise DataError(f"{name}: {key} row {row} begins with {tokens[captions[row, 0]]!r}, wanted {START!r}")


def _check_extras(data, split, name):
    """The optional keys, where present: one id and one list of captions for each picture."""
    rows = len(data[f"{split}_images"])
    ids = data.get(f"{split}_image_ids", torch.empty(rows, dtype=torch.int64))
    if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64 or tuple(ids.shape) != (rows,):
        raise DataError(f"{name}: {split}_image_ids is {_describe(ids)}, wanted a tensor ({rows},) of int64")
    references = data.get(f"{split}_references")
    if references is None:
        return
    if not isinstance(references, list) or len(references) != rows:
        wanted = f"a list of {rows}, one for each of {split}_images"
        raise DataError(f"{name}: {split}_references is {_describe(references)}, wanted {wanted}")
    for row, captions in enumerate(references):
        if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
            raise DataError(f"{name}: {split}_references row {row} is not a list of one or more strings")


# --- reading and writing ------------------------------------------------------------------------------------


def load_data(path):
    """The data file at `path`, checked, as a dict; pictures stay on disk until they are used (memory-mapped).

    Only tensors and plain values are read: a file that holds code is refused. Raises DataError.
    """
    path = Path(path)
    _check_signature(path)
    try:
        # A file in torch's format from before version 1.6 is no zip archive and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle of a file that is refused next
            data = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever the unpickler raises on bytes that it does not understand
        seen = f"foreign or damaged ({_reason(error)})"
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to run it
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            seen = f"refused, since it holds code{f' ({code[1]})' if code else ' or is damaged'}"
        raise DataError(f"{path}: not a data file: {seen}; {HOW_TO_MAKE}") from None
    validate_data(data, str(path))
    return data


def _check_signature(path):
    """Tell a missing, truncated or foreign file by its first bytes, before torch is asked."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {HOW_TO_MAKE}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    if head.startswith(b"PK\x03\x04"):  # a zip archive, which is read from its end
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: truncated: its end is missing; get it again, or {HOW_TO_MAKE}")
    elif not head.startswith(b"\x80"):  # a pickle: torch's older format
        web_page = head.lstrip().startswith(b"<")
        seen = "a web page" if web_page else f"it begins with {head!r}" if head else "it is empty"
        raise DataError(f"{path}: not a data file: {seen}; {HOW_TO_MAKE}")


def _reason(error):
    """An exception as a short phrase of one line, without the path that the caller names itself."""
    text = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
    return f"{text:.150}" or type(error).__name__


def save_data(data, path):
    """Check `data` and write it to `path`, whole or not at all: a failure leaves what was there before.

    Raises DataError when the data are wrong or the file cannot be written.
    """
    path = Path(path)
    validate_data(data, str(path))
    try:
        save_whole({key: _compact(value) for key, value in data.items()}, path)
    except OSError as error:
        told = f"{path}: cannot be written ({error.strerror})" if error.strerror else str(error)
        raise DataError(told) from None


def _compact(value):
    """A tensor without the rest of the storage that it is a slice of: torch.save would write all of it."""
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() != value.nbytes:
        return value.clone(memory_format=torch.contiguous_format)
    return value


# --- pictures ----------------------------------------------------------------------------------------------


def prepare_image(picture, image_size=112, fit="stretch"):
    """A picture as a model sees it: a uint8 tensor (3, image_size, image_size), RGB.

    `picture` is a path, a binary file or a PIL image, of any mode and shape: turned as its EXIF entry says,
    the first frame of an animation, transparency over white, 16-bit grey scaled to 8. `fit` is "stretch" (all
    of the picture, its aspect ratio lost) or "crop" (the largest centred square). Raises DataError.
    """
    if fit not in FITS or image_size < 1:
        raise DataError(f"image_size {image_size}, fit {fit!r}: wanted 1 or more and {' or '.join(FITS)}")
    given = isinstance(picture, Image.Image)
    name = (getattr(picture, "filename", "") or "the picture") if given else picture
    place = ImageOps.fit if fit == "crop" else Image.Image.resize
    try:
        if given:
            rgb = _to_rgb(picture)
        else:
            with Image.open(picture) as opened:
                rgb = _to_rgb(opened)
        placed = place(rgb, (image_size, image_size), Image.Resampling.BILINEAR)  # antialiased
    except UnidentifiedImageError:
        raise DataError(f"{name}: not a picture in a format that Pillow reads") from None
    except Exception as error:  # a damaged picture raises anything: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: cannot be read as a picture ({_reason(error)})") from None
    return torch.from_numpy(np.array(placed)).permute(2, 0, 1).contiguous()


def _to_rgb(image):
    """An upright RGB copy of a PIL image of any mode."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it at 255
        grey = np.asarray(image, dtype=np.float64) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class Picture(NamedTuple):
    """A picture of a captions file: its id, its file, all its captions as token lists."""

    id: int
    path: Path
    captions: list


def read_captions(path, images):
    """The pictures of the captions file `path` (official COCO format) that lie in the folder `images`.

    Returns a list of `Picture` in the order of their ids. Pictures without a file and pictures without a
    caption are left out, counted in a line on standard error. Raises DataError.
    """
    listed, captions = _parse_captions(Path(path))
    if not Path(images).is_dir():
        raise DataError(f"{images}: no such folder of pictures")
    pictures = [Picture(i, Path(images) / name, captions[i]) for i, name in sorted(listed.items())]
    there = [picture for picture in pictures if picture.path.is_file()]
    if not there:
        example = pictures[0].path.name if pictures else "none"
        raise DataError(f"{images}: holds none of the {len(pictures)} pictures of {path} (first: {example})")
    usable = [picture for picture in there if picture.captions]
    if not usable:
        raise DataError(f"{path}: none of its {len(there)} pictures has a caption")
    if len(there) < len(pictures):
        gone = next(picture.path.name for picture in pictures if not picture.path.is_file())
        count = f"{len(pictures) - len(there)} of {len(pictures)} pictures"
        _say(f"{path}: {count} are not in {images}, skipped (first: {gone})")
    if len(usable) < len(there):
        _say(f"{path}: {len(there) - len(usable)} pictures have no caption, skipped")
    return usable


def _parse_captions(path):
    """File names by picture id, and token lists by picture id; captions without a word are dropped."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({_reason(error)})") from None
    listed = {}
    for i, name in _entries(content, path, "images", {"id": int, "file_name": str}):
        if listed.setdefault(i, name) != name:
            raise DataError(f"{path}: id {i} stands for {listed[i]} and for {name}, wanted one picture an id")
    captions = {i: [] for i in listed}
    for i, caption in _entries(content, path, "annotations", {"image_id": int, "caption": str}):
        words = tokenize(caption)
        if words and i in captions:
            captions[i].append(words)
    return listed, captions


def _entries(content, path, key, fields):
    """Yield the values of `fields` ({name: type}) of each entry of the list `content[key]`."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: not a COCO captions file, which holds the lists images and annotations")
    for number, entry in enumerate(content[key]):
        for field, kind in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if type(value) is not kind:
                raise DataError(f"{path}: {key}[{number}]: {field} is {value!r:.60}, wanted {kind.__name__}")
        yield tuple(entry[field] for field in fields)


def _say(line):
    tqdm.write(line, file=sys.stderr)


# --- building ----------------------------------------------------------------------------------------------


def build_data(images, train_captions, val_captions=None, out=None, *, val_images=None, image_size=112,
               fit="stretch", num_train=None, num_val=None, min_count=4, seed=0, workers=None):
    """A data file's dict from a folder of pictures and their captions in the official COCO format.

    images, val_images: folders; `val_images` is `images` unless given
    train_captions, val_captions: JSON files; without the second, `num_val` pictures of the first, or a tenth
        of them, become the validation pictures
    out: the data file to write, if any
    image_size, fit: as for `prepare_image`
    num_train, num_val: how many pictures, chosen by `seed`; all unless given
    min_count: rarer words of the training captions become `<UNK>`
    workers: threads that decode pictures, one a core unless given; the result does not depend on them

    One row for each picture: `*_captions` holds one of its captions, drawn among those of at most 15 words
    where there are any, and `*_references` all of them, that one first, tokenized and joined by spaces. The
    vocabulary counts all captions of the training pictures. No training picture is also a validation picture.
    Raises DataError.
    """
    if out is not None and not os.access(Path(out).absolute().parent, os.W_OK):
        raise DataError(f"{out}: its folder does not exist or cannot be written to")  # told before the long work
    rng = random.Random(seed)
    train = _shuffle(read_captions(train_captions, images), rng)
    if val_captions is None:
        val, num_val = train, max(1, len(train) // 10) if num_val is None else num_val
    else:
        val = _shuffle(read_captions(val_captions, val_images or images), rng)
        num_val = len(val) if num_val is None else num_val
    _check_counts(train, val, num_train, num_val)

    decode = {"image_size": image_size, "fit": fit, "workers": workers or min(16, os.cpu_count() or 1)}
    val_pixels, val, tried = _decode(val, num_val, "val", **decode)
    train = [picture for picture in train if picture.path not in tried]
    train_pixels, train, _ = _decode(train, num_train or len(train), "train", **decode)
    vocab = build_vocabulary((words for picture in train for words in picture.captions), min_count)
    data = {"vocab": vocab, "preprocessing": {"image_size": image_size, "fit": fit}}
    for split, pixels, pictures in (("train", train_pixels, train), ("val", val_pixels, val)):
        data[f"{split}_images"] = pixels
        data[f"{split}_captions"] = encode_captions([picture.captions[0] for picture in pictures], vocab)
        data[f"{split}_image_ids"] = torch.tensor([picture.id for picture in pictures])
        data[f"{split}_references"] = [[" ".join(words) for words in p.captions] for p in pictures]
    if out is not None:
        save_data(data, out)
    return data


def _shuffle(pictures, rng):
    """The pictures in random order, in each the caption that stands for it first."""
    shuffled = []
    for picture in rng.sample(pictures, len(pictures)):
        fitting = [words for words in picture.captions if len(words) <= MAX_WORDS]
        first = picture.captions.index(rng.choice(fitting or picture.captions))
        others = picture.captions[:first] + picture.captions[first + 1 :]
        shuffled.append(picture._replace(captions=[picture.captions[first], *others]))
    return shuffled


def _check_counts(train, val, num_train, num_val):
    """Refuse, before any picture is decoded, to choose more pictures than there are."""
    if not 1 <= num_val <= len(val):
        raise DataError(f"{num_val} validation pictures wanted, of {len(val)}; choose 1 to {len(val)}")
    chosen = {picture.path for picture in val[:num_val]}
    left = sum(picture.path not in chosen for picture in train)
    if not left:
        raise DataError(f"all {len(train)} training pictures are among the {num_val} for validation")
    if num_train is not None and not 1 <= num_train <= left:
        seen = f"{left} of {len(train)} are left beside the {num_val} for validation"
        raise DataError(f"{num_train} training pictures wanted, but {seen}; choose 1 to {left}")


def _decode(pictures, count, split, **options):
    """The first `count` of `pictures` that can be read: uint8 (n, 3, S, S), those pictures, all paths tried.

    A picture that cannot be read is named on standard error, and the next one takes its place.
    """
    size = options["image_size"]
    try:
        pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
    except RuntimeError:
        raise DataError(f"{count} pictures of {size} x {size} do not fit in memory; take fewer") from None
    kept, tried = [], set()
    with tqdm(total=count, desc=f"{split} pictures", unit="picture") as bar:
        for picture, prepared in _prepare_in_order(pictures, **options):
            tried.add(picture.path)
            if isinstance(prepared, DataError):
                _say(f"skipped {prepared}")
                continue
            pixels[len(kept)] = prepared
            kept.append(picture)
            bar.update()
            if len(kept) == count:
                break
    if not kept:
        raise DataError(f"none of the {len(tried)} {split} pictures could be read; see the lines above")
    if len(tried) > len(kept):
        _say(f"{len(tried) - len(kept)} {split} pictures could not be read, skipped; {len(kept)} are kept")
    return pixels[: len(kept)], kept, tried


def _prepare_in_order(pictures, image_size, fit, workers):
    """Yield (picture, its tensor or DataError) in order, while threads work a few pictures ahead.

    Threads suffice, since Pillow decodes and resizes outside Python's lock.
    """

    def prepare(picture):
        try:
            return prepare_image(picture.path, image_size, fit)
        except DataError as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # of odd EXIF entries, in pictures that can be read
        ahead = deque()
        for picture in pictures:
            ahead.append((picture, pool.submit(prepare, picture)))
            if len(ahead) > 2 * workers:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


# --- commands ----------------------------------------------------------------------------------------------


def describe_data(data):
    """What is in a data file's dict, as lines of text: counts, sizes, vocabulary, captions, other keys."""
    tokens, ids = data["vocab"]["idx_to_token"], data["vocab"]["token_to_idx"]
    lines = []
    for split in ("train", "val"):
        images, captions = data[f"{split}_images"], data[f"{split}_captions"]
        is_word = ~torch.isin(captions, torch.tensor([ids[NULL], ids[START], ids[END]]))
        words = is_word.sum(1)
        unknown = (captions == ids[UNK]).sum().item() / max(1, words.sum().item())
        lengths = f"{words.min()} to {words.max()}, mean {words.double().mean():.1f}"
        lines += [
            f"{split}: {len(images)} pictures of {images.shape[2]} x {images.shape[3]}, a caption each",
            f"  words a caption: {lengths}; {UNK} among them: {unknown:.1%}",
            f"  first caption: {' '.join(tokens[i] for i in captions[0] if i != ids[NULL])}",
        ]
    named = ", ".join(f"{token} {ids[token]}" for token in SPECIAL_TOKENS)
    extra = data.keys() - {f"{split}_{kind}" for split in ("train", "val") for kind in ("images", "captions")}
    lines.append(f"vocabulary: {len(tokens)} tokens ({named})")
    lines.append(f"other keys: {', '.join(sorted(map(str, extra - {'vocab'}))) or 'none'}")
    return "\n".join(lines)


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a whole number from 1")
    return int(text)


EXAMPLES = """examples:
  COCO Captions 2014, 10,000 + 500 pictures of 112 x 112, as in the course's own file:
    python -m eecs598.coco build --images train2014 --val-images val2014 \\
      --train-captions annotations/captions_train2014.json \\
      --val-captions annotations/captions_val2014.json \\
      --num-train 10000 --num-val 500 --out datasets/coco10k.pt
  your own pictures and one captions file, a tenth of the pictures kept for validation:
    python -m eecs598.coco build --images photos --train-captions captions.json --out datasets/photos.pt

Pictures of 112 x 112 are what the course trains an encoder on; for a frozen encoder take --image-size 224.

A captions file is JSON in COCO's format: {"images": [{"id": 1, "file_name": "a.jpg"}, ...],
"annotations": [{"image_id": 1, "caption": "a dog runs"}, ...]}. Each picture gets one row in the
data file, with one of its captions; all its captions are kept beside it, tokenized, as references."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message}; see --help\n")


def _parser():
    parser = _Parser(prog="python -m eecs598.coco", description="Build and check data files.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say what is in a data file, or what is wrong with it")
    check.add_argument("file", type=Path)
    build = commands.add_parser(
        "build",
        help="make a data file from pictures and captions",
        description="Make a data file from a folder of pictures and captions in the official COCO format.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = build.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="the folder of the pictures")
    add("--train-captions", type=Path, required=True, metavar="JSON", help="their captions")
    add("--val-captions", type=Path, metavar="JSON", help="without it, some of the first are set apart")
    add("--val-images", type=Path, metavar="DIR", help="validation pictures, if elsewhere")
    add("--out", type=Path, required=True, metavar="FILE", help="the data file to write")
    add("--image-size", type=_positive, default=112, metavar="S", help="pixels a side (112)")
    add("--fit", choices=FITS, default="stretch", help="make it square so (stretch)")
    add("--num-train", type=_positive, metavar="N", help="how many training pictures (all)")
    add("--num-val", type=_positive, metavar="N", help="how many validation pictures (all, or a tenth)")
    add("--min-count", type=_positive, default=4, metavar="N", help="rarer words become <UNK> (4)")
    add("--seed", type=int, default=0, metavar="N", help="chooses the pictures and their captions (0)")
    add("--workers", type=_positive, metavar="N", help="threads; the file does not depend on it (one a core)")
    return parser


def main(arguments=None):
    """Run a command; returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    try:
        if options.pop("command") == "build":
            data, path = build_data(**options), options["out"]
        else:
            path = options["file"]
            data = load_data(path)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: a data file of {path.stat().st_size / 2**20:.1f} MiB")
    print(describe_data(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
