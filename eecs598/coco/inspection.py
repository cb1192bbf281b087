"""What is in a data file: said in lines of text by `check`, and as a sheet of pictures by `show`."""

import contextlib
import io
import os
import random
from pathlib import Path

from eecs598.coco.captions import END, NULL, START, DataError, shorten_error
from eecs598.coco.datafile import check_whole, describe_data, load_data

SHEET_DPI = 120  # shows a picture of 224 x 224 at its full size


def check(path, quick=False):
    """What is in the data file at `path`, as lines of text, after its shapes and all its bytes are checked.

    quick: trust the pictures' bytes, which takes a second instead of reading the whole file. Raises DataError.
    """
    path = Path(path)
    data = load_data(path)
    if not quick:
        check_whole(path)
    whole = "not checked byte for byte" if quick else "whole"
    return f"{path}: a data file of {path.stat().st_size / 2**20:.1f} MiB, {whole}\n{describe_data(data)}"


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
