"""Inspecting a data file: `check` reports its contents and likely problems, `show` makes a sheet of pictures."""

import random
from pathlib import Path

import torch
from torch.nn.functional import adaptive_avg_pool2d

from eecs598.coco.captions import END, MAX_WORDS, NULL, UNK, DataError, decode_captions, shorten_error
from eecs598.coco.datafile import check_whole, count_words, describe_data, load_data
from eecs598.files import page_releaser

SHEET_DPI = 120  # shows a picture of 224 x 224 at its full size

# Thresholds for warnings. In Flickr8k, 0.9% of the val captions are also training captions, and 3% of words are <UNK>.
MOST_SHARED, MOST_CUT, MOST_UNKNOWN = 0.05, 0.01, 0.1
ONE_COLOUR = 8  # largest range of each channel, out of 255, in a picture of a single colour
# Near-duplicates: at most this many of the 64 hash bits differ, and the values of the thumbnails by at most this much.
HASH_DISTANCE, COLOUR_DISTANCE = 8, 45


def check(path, quick=False):
    """Verify the data file at `path` and describe its contents as lines of text.

    The last lines, which begin with "warning: ", are those of `find_problems`. quick: do not read the pictures, which
    takes a second instead of reading the whole file. Raises DataError.
    """
    path = Path(path)
    data = load_data(path)
    if not quick:
        check_whole(path)
    whole = "not checked byte for byte" if quick else "whole"
    warnings = [f"warning: {line}" for line in find_problems(data, quick)]
    first = f"{path}: a data file of {path.stat().st_size / 2**20:.1f} MiB, {whole}"
    return "\n".join([first, describe_data(data), *warnings])


# --- problems that spoil training or scores without an error --------------------------------------------------


def find_problems(data, quick=False):
    """Problems in a data file's dict that spoil training or scores without an error, one line each, with remedies.

    quick: check only captions, not pictures.
    """
    lines = [] if quick else _check_pictures(data)
    lines += [*_check_shared_captions(data), *_check_cut_captions(data)]
    return lines + [line for split in ("train", "val") for line in _check_unknown_words(data, split)]


def _check_pictures(data):
    """Warnings about pictures of a single colour, and about pictures in both splits."""
    lines, thumbnails, textured = [], {}, {}
    for split in ("train", "val"):
        thumbnails[split], plain = _shrink(data[f"{split}_images"])
        textured[split] = (~plain).nonzero().flatten()
        if rows := plain.nonzero().flatten().tolist():
            first = _name_row(data, split, rows[0])
            lines.append(
                f"{split}: {len(rows):,} pictures have a single colour (first: {first}): damaged files or placeholders "
                "for missing ones; remove them and build again"
            )
    same = _match(thumbnails["train"][textured["train"]], thumbnails["val"][textured["val"]])
    pairs = [(textured["val"][val].item(), textured["train"][train].item()) for val, train in same]
    if pairs:
        exact = sum(torch.equal(data["val_images"][val], data["train_images"][train]) for val, train in pairs)
        first = f"{_name_row(data, 'val', pairs[0][0])} is {_name_row(data, 'train', pairs[0][1])}"
        count = f"{exact:,} exactly, {len(pairs) - exact:,} nearly"
        lines.append(
            f"{len(pairs):,} of {len(data['val_images']):,} val pictures are also training pictures ({count}; "
            f"first: {first}): scores on val are too good; remove them from one split and build again"
        )
    return lines


def _name_row(data, split, row):
    """A picture's row, and its id in the captions file if known."""
    ids = data.get(f"{split}_image_ids")
    return f"{split} row {row}" + ("" if ids is None else f", id {ids[row].item()}")


def _shrink(images):
    """Average-pooled thumbnails (n, 3, 8, 9) of pictures, and whether each picture has a single colour (n,)."""
    thumbnails, plain, release = [], [], page_releaser(images)
    for some in images.split(256):
        thumbnails.append(adaptive_avg_pool2d(some.float(), (8, 9)))
        plain.append((some.amax((2, 3)) - some.amin((2, 3))).amax(1) <= ONE_COLOUR)
        release()
    return torch.cat(thumbnails), torch.cat(plain)


def _match(train, val, block=4096):
    """Pairs (val row, train row) of exact or near duplicates among thumbnails (n, 3, 8, 9), at most one per val row.

    The 64 bits of the difference hash say whether a grey pixel is lighter than its left neighbour. With bits as 1 and
    -1, a matrix product gives the distances of all pairs: the dot product of two hashes is 64 - 2 * (differing bits).
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
    """A warning about val captions that are identical to training captions."""
    known, val = {*_captions(data, "train")}, list(_captions(data, "val"))
    shared = [caption for caption in val if caption in known]
    if len(shared) <= MOST_SHARED * len(val):
        return []
    return [
        f"{len(shared):,} of {len(val):,} val captions ({len(shared) / len(val):.1%}) are also training captions "
        f"(first: {shared[0]:.60}): scores on val are too good if they were copied; split by picture, not by caption"
    ]


def _captions(data, split):
    """All captions of a split as text, from the references or else from the rows."""
    if references := data.get(f"{split}_references"):
        return (text for texts in references for text in texts)
    return decode_captions(data[f"{split}_captions"], data["vocab"]["idx_to_token"], specials=False)


def _check_cut_captions(data):
    """A warning about training captions that are longer than a row, or may be, if there are no references."""
    if references := data.get("train_references"):
        cut = [len(text.split()) > MAX_WORDS for texts in references for text in texts]
        seen = f"have more than {MAX_WORDS} words and are cut"
    else:
        ids, captions = data["vocab"]["token_to_idx"], data["train_captions"]
        cut = ((captions != ids[NULL]).all(1) | (captions != ids[END]).all(1)).tolist()
        seen = f"have {MAX_WORDS} words or no {END} and may be cut"
    if sum(cut) <= MOST_CUT * len(cut):
        return []
    return [
        f"train: {sum(cut):,} of {len(cut):,} captions ({sum(cut) / len(cut):.1%}) {seen}: models trained on them may "
        "stop in mid-sentence; remove them from the captions file, or shorten them"
    ]


def _check_unknown_words(data, split):
    """A warning about words outside the vocabulary."""
    _, share = count_words(data[f"{split}_captions"], data["vocab"]["token_to_idx"])
    if share <= MOST_UNKNOWN:
        return []
    return [f"{split}: {share:.1%} of the words are {UNK}: build with a lower --min-count, or from more captions"]


# --- a sheet of pictures --------------------------------------------------------------------------------------


def show(path, out=None, *, split="val", number=12, seed=0):
    """A contact sheet of `number` random pictures of a data file: a matplotlib Figure.

    Below each picture are its caption as a model sees it, with `<UNK>`, and its other captions in grey. path: the
    file, or its dict. out: an image file to write (PNG, PDF, ...), or None. Raises DataError.
    """
    from eecs598.vis import show_captions  # here, since matplotlib is slow to import

    data = path if isinstance(path, dict) else load_data(path)
    images, captions = data[f"{split}_images"], data[f"{split}_captions"]
    rows = sorted(random.Random(seed).sample(range(len(images)), min(number, len(images))))
    texts = decode_captions(captions[rows], data["vocab"]["idx_to_token"], specials=False)
    references = [data[f"{split}_references"][row][1:] for row in rows] if f"{split}_references" in data else None
    figure = show_captions([images[row] for row in rows], texts, references)
    if out is not None:
        try:
            figure.savefig(out, dpi=SHEET_DPI)
        except (OSError, ValueError) as error:  # ValueError: a format that matplotlib does not write
            raise DataError(f"{out}: cannot be written ({shorten_error(error)})") from None
    return figure
