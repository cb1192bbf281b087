"""What is in a data file: said in lines of text by `check`, and as a sheet of pictures by `show`."""

import contextlib
import io
import os
import random
from pathlib import Path

import torch
from torch.nn.functional import adaptive_avg_pool2d

from eecs598.coco.captions import END, MAX_WORDS, NULL, START, UNK, DataError, shorten_error
from eecs598.coco.datafile import check_whole, describe_data, load_data
from eecs598.files import page_releaser

SHEET_DPI = 120  # shows a picture of 224 x 224 at its full size

# Less than this is usual. Of Flickr8k 0.9% of the val captions are training captions too, and 3% of the words are rare.
MOST_SHARED, MOST_CUT, MOST_UNKNOWN = 0.05, 0.01, 0.1
ONE_COLOUR = 8  # a picture whose channels each span at most so many of 255
# Two pictures are nearly the same where at most so many of the 64 bits of their hashes differ, and no value of their
# thumbnails by more than this of 255.
HASH_DISTANCE, COLOUR_DISTANCE = 8, 45


def check(path, quick=False):
    """What is in the data file at `path`, as lines of text, after its shapes and all its bytes are checked.

    The last lines, which begin with "warning: ", are those of `find_spoils`.
    quick: trust the pictures, which takes a second instead of reading the whole file. Raises DataError.
    """
    path = Path(path)
    data = load_data(path)
    if not quick:
        check_whole(path)
    whole = "not checked byte for byte" if quick else "whole"
    warnings = [f"warning: {line}" for line in find_spoils(data, quick)]
    first = f"{path}: a data file of {path.stat().st_size / 2**20:.1f} MiB, {whole}"
    return "\n".join([first, describe_data(data), *warnings])


# --- what spoils training or scores in silence ----------------------------------------------------------------


def find_spoils(data, quick=False):
    """Lines on what silently spoils a data file's dict, each with its number and what to do; none for a clean one.

    quick: the captions only, no picture is read.
    """
    lines = [] if quick else _check_pictures(data)
    lines += [*_check_shared_captions(data), *_check_cut_captions(data)]
    return lines + [line for split in ("train", "val") for line in _check_unknown_words(data, split)]


def _check_pictures(data):
    """Lines on the pictures of one colour, and on those that are in train and in val."""
    lines, thumbnails, textured = [], {}, {}
    for split in ("train", "val"):
        thumbnails[split], plain = _shrink(data[f"{split}_images"])
        textured[split] = (~plain).nonzero().flatten()
        if rows := plain.nonzero().flatten().tolist():
            first = _name_row(data, split, rows[0])
            lines.append(
                f"{split}: {len(rows):,} pictures are of one colour (first: {first}): damaged files, or stand-ins for "
                "missing ones; take them out and build again"
            )
    same = _match(thumbnails["train"][textured["train"]], thumbnails["val"][textured["val"]])
    pairs = [(textured["val"][val].item(), textured["train"][train].item()) for val, train in same]
    if pairs:
        exact = sum(torch.equal(data["val_images"][val], data["train_images"][train]) for val, train in pairs)
        first = f"{_name_row(data, 'val', pairs[0][0])} is {_name_row(data, 'train', pairs[0][1])}"
        count = f"{exact:,} to the byte, {len(pairs) - exact:,} nearly"
        lines.append(
            f"{len(pairs):,} of {len(data['val_images']):,} val pictures are training pictures too ({count}; "
            f"first: {first}): scores on val are too good; take them out of one split and build again"
        )
    return lines


def _name_row(data, split, row):
    """A picture by its row, and by its id in the captions file where that is known."""
    ids = data.get(f"{split}_image_ids")
    return f"{split} row {row}" + ("" if ids is None else f", id {ids[row].item()}")


def _shrink(images):
    """Thumbnails (n, 3, 8, 9) of pictures, each pixel the mean of its part, and whether each is of one colour (n,)."""
    thumbnails, plain, release = [], [], page_releaser(images)
    for some in images.split(256):
        thumbnails.append(adaptive_avg_pool2d(some.float(), (8, 9)))
        plain.append((some.amax((2, 3)) - some.amin((2, 3))).amax(1) <= ONE_COLOUR)
        release()
    return torch.cat(thumbnails), torch.cat(plain)


def _match(train, val, block=4096):
    """Pairs (val row, train row) of thumbnails (n, 3, 8, 9) of the same picture, or nearly; one a val row at most.

    The difference hash, 64 bits a picture, tells where a grey pixel is lighter than the one on its left. Bits as 1 and
    -1 make the distance of all pairs a product of matrices: of two hashes it is 64 - 2 * (the bits that differ).
    """
    if not len(train) or not len(val):
        return []
    train_bits, val_bits = ((t.mean(1).diff(dim=2) > 0).flatten(1).float() * 2 - 1 for t in (train, val))
    rows_of = {thumbnail.numpy().tobytes(): row for row, thumbnail in enumerate(train)}
    keys = [thumbnail.numpy().tobytes() for thumbnail in val]
    found = {row: [(0.0, rows_of[key])] for row, key in enumerate(keys) if key in rows_of}
    for start in range(0, len(train), block):
        candidates = train_bits[start : start + block]
        for first in range(0, len(val), block):
            rows = torch.arange(first, min(first + block, len(val)))
            products, near = (val_bits[rows] @ candidates.T).topk(min(3, len(candidates)))  # (n, 3)
            apart = (train[start + near] - val[rows, None]).abs().amax((2, 3, 4))  # (n, 3, 3, 8, 9) -> (n, 3)
            apart[products < 64 - 2 * HASH_DISTANCE] = torch.inf
            least, which = apart.min(1)
            for i in (least <= COLOUR_DISTANCE).nonzero().flatten().tolist():
                found.setdefault(first + i, []).append((least[i].item(), start + near[i, which[i]].item()))
    return [(row, min(trains)[1]) for row, trains in sorted(found.items())]


def _check_shared_captions(data):
    """A line on the val captions that are training captions, word for word."""
    known, val = {*_captions(data, "train")}, list(_captions(data, "val"))
    shared = [caption for caption in val if caption in known]
    if len(shared) <= MOST_SHARED * len(val):
        return []
    return [
        f"{len(shared):,} of {len(val):,} val captions ({len(shared) / len(val):.1%}) are training captions too "
        f"(first: {shared[0]:.60}): scores on val are too good where they were copied; divide by picture, not caption"
    ]


def _captions(data, split):
    """All captions of a split, as text; the rows' own where the file holds no others."""
    if references := data.get(f"{split}_references"):
        return (text for texts in references for text in texts)
    tokens, hidden = data["vocab"]["idx_to_token"], {NULL, START, END}
    rows = data[f"{split}_captions"].tolist()
    return (" ".join(tokens[i] for i in row if tokens[i] not in hidden) for row in rows)


def _check_cut_captions(data):
    """A line on the training captions that are longer than a row; where only the rows are there, that may be."""
    if references := data.get("train_references"):
        cut = [len(text.split()) > MAX_WORDS for texts in references for text in texts]
        seen = f"have more than {MAX_WORDS} words, and are cut there"
    else:
        ids, captions = data["vocab"]["token_to_idx"], data["train_captions"]
        cut = ((captions != ids[NULL]).all(1) | (captions != ids[END]).all(1)).tolist()
        seen = f"have all {MAX_WORDS} words or no {END}, and may be cut"
    if sum(cut) <= MOST_CUT * len(cut):
        return []
    return [
        f"train: {sum(cut):,} of {len(cut):,} captions ({sum(cut) / len(cut):.1%}) {seen}: what learns from them ends "
        "in mid-sentence; leave them out of the captions file, or shorten them"
    ]


def _check_unknown_words(data, split):
    """A line on the words that are outside the vocabulary."""
    ids, captions = data["vocab"]["token_to_idx"], data[f"{split}_captions"]
    words = ~torch.isin(captions, torch.tensor([ids[NULL], ids[START], ids[END]]))
    share = (captions == ids[UNK]).sum().item() / max(1, words.sum().item())
    if share <= MOST_UNKNOWN:
        return []
    return [f"{split}: {share:.1%} of the words are {UNK}: build with a lower --min-count, or from more captions"]


# --- a sheet of pictures --------------------------------------------------------------------------------------


def show(path, out=None, *, split="val", number=12, seed=0):
    """A contact sheet of `number` pictures of a data file, chosen by `seed`: a matplotlib Figure.

    Each picture stands over its caption as the model will see it, `<UNK>` included, and its other captions in
    grey. path: the file, or its dict. out: the picture file to write, if any (PNG, PDF, ...). Raises DataError.
    """
    from eecs598.vis import show_captions  # matplotlib is slow to import, and nothing else here needs it

    data = path if isinstance(path, dict) else load_data(path)
    images, captions = data[f"{split}_images"], data[f"{split}_captions"]
    rows = sorted(random.Random(seed).sample(range(len(images)), min(number, len(images))))
    tokens, hidden = data["vocab"]["idx_to_token"], {NULL, START, END}
    texts = [" ".join(tokens[i] for i in captions[row].tolist() if tokens[i] not in hidden) for row in rows]
    references = [data[f"{split}_references"][row][1:] for row in rows] if f"{split}_references" in data else None
    figure = show_captions([images[row] for row in rows], texts, references)
    if out is not None:
        _save_figure(figure, Path(out))
    return figure


def _save_figure(figure, path):
    drawn, part = io.BytesIO(), path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(drawn, format=path.suffix.removeprefix(".") or "png", dpi=SHEET_DPI)
        part.write_bytes(drawn.getvalue())
        os.replace(part, path)
    except (OSError, ValueError) as error:  # ValueError: a format that matplotlib does not write
        raise DataError(f"{path}: cannot be written ({shorten_error(error)})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
