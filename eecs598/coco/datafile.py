"""Validate, read, write and describe data files, whose format is in `datasets/README.md`.

All errors are `DataError`s with a one-line message.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from eecs598.coco.captions import (
    CAPTION_LENGTH,
    END,
    NULL,
    SPECIAL_TOKENS,
    START,
    UNK,
    DataError,
    decode_captions,
    shorten_error,
)
from eecs598.coco.pictures import FITS
from eecs598.files import save_whole

HOW_TO_MAKE = (
    "download the course's with `python -m eecs598.coco download`, or make one with `python -m eecs598.scenes FILE` "
    "or `python -m eecs598.coco build`"
)


# --- checks -------------------------------------------------------------------------------------------------


def validate_data(data, name="data"):
    """Raise DataError unless `data` is a data file's dict (`datasets/README.md`). `name` is the start of the message.

    All captions are checked, but no pixels are read, so that validating a memory-mapped file is fast.
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
    _check_preprocessing(data.get("preprocessing"), f"{name}: preprocessing")


def _check_preprocessing(used, name):
    if used is None:
        return
    good = isinstance(used, dict) and used.keys() == {"image_size", "fit"}
    if not good or type(used["image_size"]) is not int or used["image_size"] < 1 or used["fit"] not in FITS:
        raise DataError(f"{name}: is {used!r:.60}, wanted a dict with image_size, at least 1, and fit, "
                        f"{' or '.join(FITS)}")  # fmt: skip


def _describe(value):
    """The type of a value, and its size if it has one, for an error message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def _check_vocabulary(vocab, name):
    """Check that the two tables exist, agree and contain the special tokens."""
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
    """Check the optional keys: an id and a list of captions for each picture."""
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
            wanted = "a list of strings, at least one"
            raise DataError(f"{name}: {split}_references[{row}] is {captions!r:.60}, wanted {wanted}")


# --- reading and writing ------------------------------------------------------------------------------------


def load_data(path):
    """Load and validate the data file at `path`, as a dict with memory-mapped pictures.

    Only tensors and plain values are read; a file that contains code is rejected. Raises DataError.
    """
    path = Path(path)
    _check_signature(path)
    try:
        # A file in torch's format from before version 1.6 is not a zip archive and cannot be mapped.
        mapped = _is_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are rejected anyway
            data = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the unpickler may raise anything
        seen = f"foreign or damaged ({shorten_error(error)})"
        if isinstance(error, pickle.UnpicklingError):  # torch's own message suggests running it
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            seen = f"refused, since it holds code{f' ({code[1]})' if code else ' or is damaged'}"
        raise DataError(f"{path}: not a data file: {seen}; {HOW_TO_MAKE}") from None
    validate_data(data, str(path))
    return data


def check_whole(path):
    """Verify the CRCs of the data file, a zip archive. Raises DataError.

    This reads the whole file, with a progress bar. Files in torch's older format have no CRCs and pass.
    """
    path = Path(path)
    _check_signature(path)
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            file.seek(-22 - len(archive.comment), os.SEEK_END)  # the record that ends an archive
            if file.read(4) != b"PK\5\6":
                raise ValueError("extra bytes at the end")
            entries = archive.infolist()
            style = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
            total = sum(entry.file_size for entry in entries)
            with tqdm(total=total, desc=f"checking {path.name}", **style) as bar:
                for entry in entries:
                    with archive.open(entry) as member:
                        while block := member.read(2**20):
                            bar.update(len(block))
    except Exception as error:  # zipfile, zlib and struct raise errors of their own
        raise DataError(f"{path}: damaged ({shorten_error(error)}); {HOW_TO_MAKE}") from None


def _is_zip(path):
    """Whether the file ends like a zip archive. zipfile raises an error for some damaged ends."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _check_signature(path):
    """Detect a missing, truncated or foreign file by its first bytes. Raises DataError."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {HOW_TO_MAKE}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({shorten_error(error)})") from None
    if head.startswith(b"PK\x03\x04"):  # a zip archive, which is read from its end
        if not _is_zip(path):
            raise DataError(f"{path}: truncated: its end is missing; {HOW_TO_MAKE}")
    elif not head.startswith(b"\x80"):  # a pickle: torch's older format
        web_page = head.lstrip().startswith(b"<")
        seen = "a web page" if web_page else f"it begins with {head!r}" if head else "it is empty"
        raise DataError(f"{path}: not a data file: {seen}; {HOW_TO_MAKE}")


def save_data(data, path):
    """Validate `data` and write it to `path` atomically. Raises DataError if it is invalid or cannot be written."""
    path = Path(path)
    validate_data(data, str(path))
    try:
        save_whole({key: _compact(value) for key, value in data.items()}, path)
    except OSError as error:
        message = f"{path}: cannot be written ({error.strerror})" if error.strerror else str(error)
        raise DataError(message) from None


def _compact(value):
    """A copy of a tensor that is a slice of a larger storage, all of which torch.save would write."""
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() != value.nbytes:
        return value.clone(memory_format=torch.contiguous_format)
    return value


# --- describing --------------------------------------------------------------------------------------------


def describe_data(data):
    """A description of a data file's dict, as lines of text: counts, sizes, vocabulary, captions, other keys."""
    tokens, ids = data["vocab"]["idx_to_token"], data["vocab"]["token_to_idx"]
    lines = []
    for split in ("train", "val"):
        images, captions = data[f"{split}_images"], data[f"{split}_captions"]
        words, unknown = count_words(captions, ids)
        lengths = f"{words.min()} to {words.max()}, mean {words.double().mean():.1f}"
        lines += [
            f"{split}: {len(images)} pictures of {images.shape[2]} x {images.shape[3]}, a caption each",
            f"  words a caption: {lengths}; {UNK} among them: {unknown:.1%}",
            f"  first caption: {decode_captions(captions[0], tokens)}",
        ]
    named = ", ".join(f"{token} {ids[token]}" for token in SPECIAL_TOKENS)
    extra = data.keys() - {f"{split}_{kind}" for split in ("train", "val") for kind in ("images", "captions")}
    lines.append(f"vocabulary: {len(tokens)} tokens ({named})")
    lines.append(f"other keys: {', '.join(sorted(map(str, extra - {'vocab'}))) or 'none'}")
    return "\n".join(lines)


def count_words(captions, ids):
    """The number of words of each caption, (n,), and the fraction of all words that are `<UNK>`.

    captions (n, T) int64. ids: {token: id}.
    """
    words = (~torch.isin(captions, torch.tensor([ids[NULL], ids[START], ids[END]]))).sum(1)
    return words, (captions == ids[UNK]).sum().item() / max(1, words.sum().item())
