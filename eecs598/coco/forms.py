"""Captions files as people have them: each form is recognised by its content, and all give the same `Picture`s.

    COCO's JSON                {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}
    Karpathy's JSON            {"images": [{"imgid" or "cocoid", "filename", "split", "sentences": [{"raw"}]}, ...]}
    Flickr's token file        1000268201_693b08cb0e.jpg#0<tab>A child ...
    Flickr30k's results.csv    1000092795.jpg| 0| Two young guys ...
    a table                    file name and caption by comma, semicolon, tab or |, with or without a header

and split lists, which have a file name a line. Every complaint is a `DataError`, whose message is one line.
"""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from eecs598.coco.captions import DataError, shorten_error, tokenize

SPLITS = {"train": "train", "restval": "train", "dev": "val", "val": "val", "test": "test"}  # as named -> as used
WANTED = (
    "wanted COCO's or Karpathy's JSON, lines like name.jpg#0<tab>caption or name.jpg| 0| caption, "
    "or a table of file name and caption (docs/photographs.md)"
)


class Picture(NamedTuple):
    """A picture of a captions file: its id, its file name, and all its captions.

    `folder` is the folder of the official archives that it lies in ("train2014"), "" where the file tells none.
    `path` is None until the picture is found. `split` is "train", "val" or "test", "" where the file tells none.
    """

    id: int
    file_name: str
    folder: str
    captions: list
    path: Path | None = None
    split: str = ""


class CaptionsFile(NamedTuple):
    """What a captions file holds: its form in words, its pictures, and a line on each oddity that was passed over."""

    form: str
    pictures: list
    oddities: list


# --- reading --------------------------------------------------------------------------------------------------


def read_captions_file(path, split_lists=()):
    """The CaptionsFile of `path`, in any of the forms above: its pictures by their ids, captions as people wrote them.

    Pictures have the id that the file gives them, or else their number in the order of the file, from 0.
    split_lists: text files, or folders of them, that tell which picture is in which split; None takes Flickr8k's own
    where they lie beside the file. Raises DataError.
    """
    text = read_text(path)
    found = (_read_json if text.lstrip()[:1] in ("{", "[") else _read_lines)(path, text)
    found.pictures.sort(key=lambda picture: picture.id)
    if split_lists is None:
        split_lists = _find_split_lists(found, path)
    return _divide(found, split_lists, path) if split_lists else found


def read_captions(path, as_written=False):
    """The pictures of a captions file that tells no splits, by their ids, with their captions as `with_words` has them.

    Raises DataError, also where the file tells splits.
    """
    return with_words(select_split(read_captions_file(path), None, path), as_written)


def read_karpathy(path):
    """The training and the validation pictures of a Karpathy split file (`dataset_coco.json` and its like).

    As is the field's custom, "restval" is trained on too. Each list is by the pictures' ids (`cocoid`, or `imgid`
    where there is none), with captions as `with_words` has them. Raises DataError.
    """
    pictures = read_captions_file(path).pictures
    if not any(picture.split for picture in pictures):
        raise DataError(f"{path}: not a Karpathy split file, whose images have a split and sentences each")
    return tuple(with_words([p for p in pictures if p.split == split]) for split in ("train", "val"))


def select_split(found, split, path):
    """The pictures of a CaptionsFile that are in `split`; all of them for None, where it tells no splits.

    Raises DataError where the file has no such split, or where it has splits and None is wanted.
    """
    there = [name for name in ("train", "val", "test") if any(p.split == name for p in found.pictures)]
    if split is None and there:
        raise DataError(f"{path}: {found.form}, tells splits ({', '.join(there)}); say which one (--split), "
                        "or build from all of it (--captions)")  # fmt: skip
    if split is not None and not there:
        raise DataError(f"{path}: {found.form}, tells no splits; give split lists (--split-lists), or no split")
    if split is not None and split not in there:
        raise DataError(f"{path}: no pictures of split {split!r}; its splits: {', '.join(there)}")
    return found.pictures if split is None else [p for p in found.pictures if p.split == split]


def with_words(pictures, as_written=False):
    """The pictures with their captions tokenized and joined by spaces, or `as_written`; those without a word dropped.

    So a picture may have no caption.
    """
    kept = []
    for picture in pictures:
        tokenized = [(text, " ".join(tokenize(text))) for text in picture.captions]
        kept.append(picture._replace(captions=[text if as_written else words for text, words in tokenized if words]))
    return kept


def summarize(found, path):
    """One line: which form a captions file has, and how many pictures and captions in which splits."""
    counts = Counter(picture.split for picture in found.pictures)
    captions = sum(len(picture.captions) for picture in found.pictures)
    line = f"{path}: {found.form}, {len(found.pictures):,} pictures with {captions:,} captions"
    if set(counts) <= {""}:
        return line
    splits = [f"{split} {counts[split]:,}" for split in ("train", "val", "test") if split in counts]
    return f"{line}: {', '.join(splits)}" + (f", in no split {counts['']:,}" if "" in counts else "")


def first_of(names):
    """The first three of some names in brackets, for a message."""
    return f"(first: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def is_picture_name(name):
    """Whether a file name ends as pictures' do that Pillow reads."""
    return Path(name.strip()).suffix.lower() in Image.registered_extensions()


def read_text(path):
    """The text of a file in UTF-8, with a byte order mark or without. Raises DataError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({shorten_error(error)})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        seen = f"byte {content[error.start]:#04x} in line {line}"
        raise DataError(f"{path}: not a text in UTF-8 ({seen}); save it as UTF-8, and give the file again") from None


# --- JSON -----------------------------------------------------------------------------------------------------


def _read_json(path, text):
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({shorten_error(error)})") from None
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(first, dict) and {"split", "sentences"} <= first.keys():
        return _read_karpathy(path, images)
    if not isinstance(images, list) or not isinstance(content.get("annotations"), list):
        seen = f"the keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, dict) else "a list"
        wanted = "the lists images and annotations, or images with a split and sentences each (Karpathy)"
        raise DataError(f"{path}: not a COCO captions file: JSON with {seen:.80}, wanted {wanted}")
    return _read_coco(path, content)


def _read_coco(path, content):
    """COCO's official captions file."""
    pictures = {}
    for i, entry in enumerate(content["images"]):
        number, name = _fields(entry, f"{path}: images[{i}]", {"id": int, "file_name": str})
        found = pictures.setdefault(number, Picture(number, name, _official_folder(entry, name), []))
        if found.file_name != name:
            seen = f"id {number} stands for {found.file_name} and for {name}"
            raise DataError(f"{path}: {seen}, wanted one picture an id")
    for i, entry in enumerate(content["annotations"]):
        number, text = _fields(entry, f"{path}: annotations[{i}]", {"image_id": int, "caption": str})
        if number in pictures:
            pictures[number].captions.append(text)
    return CaptionsFile("COCO's captions file", list(pictures.values()), [])


def _read_karpathy(path, images):
    """A Karpathy split file: `dataset_flickr8k.json`, `dataset_flickr30k.json`, `dataset_coco.json`."""
    pictures = {}
    for i, entry in enumerate(images):
        name = f"{path}: images[{i}]"
        number = "cocoid" if "cocoid" in (entry if isinstance(entry, dict) else ()) else "imgid"
        wanted = {number: int, "filename": str, "split": str, "sentences": list}
        number, file_name, split, sentences = _fields(entry, name, wanted)
        if split not in ("train", "restval", "val", "test"):
            raise DataError(f"{name}: split is {split!r:.60}, wanted train, restval, val or test")
        if number in pictures:
            raise DataError(f"{name}: id {number} occurs twice, wanted one picture an id")
        texts = [_fields(s, f"{name}.sentences[{j}]", {"raw": str})[0] for j, s in enumerate(sentences)]
        folder = str(entry.get("filepath", ""))
        pictures[number] = Picture(number, file_name, folder, texts, split=SPLITS[split])
    return CaptionsFile("a Karpathy split file", list(pictures.values()), [])


def _fields(entry, name, fields):
    """The values of `fields` ({key: type}) of an entry of a list; `name` opens the message."""
    for field, kind in fields.items():
        value = entry.get(field) if isinstance(entry, dict) else None
        if type(value) is not kind:
            raise DataError(f"{name}: {field} is {value!r:.60}, wanted {kind.__name__}")
    return [entry[field] for field in fields]


def _official_folder(entry, name):
    """The folder that the official image host keeps a picture in, by its address or its 2014 name."""
    parts = urlsplit(url).path.split("/") if isinstance(url := entry.get("coco_url"), str) else []
    named = re.match(r"COCO_([a-z]+\d{4})_", name)
    return parts[-2] if len(parts) > 1 else named[1] if named else ""


# --- lines ----------------------------------------------------------------------------------------------------

_TOKEN_LINE = re.compile(r"(.+?)#(\d+)\t(.*)")
_RESULTS_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment\s*")
_RESULTS_LINE = re.compile(r"([^|]+)\|\s*(\d+)\s*\|(.*)")
_RESULTS_LINE_MENDED = re.compile(r"([^|]+)\|\s*(\d+)\s*(?:\||\s)(.*)")  # results.csv lacks one "|", at 2199200615.jpg


def _read_lines(path, text):
    """A captions file that is no JSON, told by its first line."""
    first = next((line.strip("\r ") for line in text.split("\n") if line.strip()), "")
    if _TOKEN_LINE.fullmatch(first):
        return _read_numbered(path, text, _TOKEN_LINE, "name.jpg#0<tab>caption", "Flickr's token file")
    if _RESULTS_HEADER.fullmatch(first) or _RESULTS_LINE.fullmatch(first):
        return _read_numbered(path, text, _RESULTS_LINE_MENDED, "name.jpg| 0| caption", "Flickr30k's results.csv")
    return _read_table(path, text, first)


def _read_numbered(path, text, pattern, wanted, form):
    """Lines of a file name, the number of its caption and the caption, as Flickr8k and Flickr30k come."""
    rows, repeated = {}, 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or _RESULTS_HEADER.fullmatch(line.strip()):
            continue
        found = pattern.fullmatch(line)
        if not found:
            raise DataError(f"{path}: line {number} is {line.strip()!r:.60}, wanted {wanted}")
        row = tuple(field.strip() for field in found.groups())
        repeated += row in rows
        rows[row] = None
    oddities = [f"{path}: {repeated:,} lines are there twice, and count once"] if repeated else []
    return CaptionsFile(form, _gather((name, caption) for name, _, caption in rows), oddities)


# The names of a table's columns, in order of preference.
_FILE_COLUMNS = ("file_name", "filename", "image_name", "image_file", "image", "image_path", "filepath", "file_path",
                 "path", "file", "img", "photo", "picture", "name")  # fmt: skip
_CAPTION_COLUMNS = ("caption", "captions", "comment", "text", "sentence", "description")


def _read_table(path, text, first):
    """A table with a column of file names and one of captions, as Kaggle's `captions.txt`: image,caption."""
    delimiter = re.match(r'\s*(?:"(?:[^"]|"")*"|[^"\t,;|]*)\s*([\t,;|])', first)
    if not delimiter:
        raise DataError(f"{path}: not a captions file: its first line is {first!r:.60}, {WANTED}")
    delimiter = delimiter[1]
    quoting = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
    lines = io.StringIO(text, newline="")
    table = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    rows, columns, is_header = [], None, False
    try:
        for row in table:
            if not any(field.strip() for field in row):
                continue
            if columns is None:
                columns, is_header = _find_columns(path, row)
                if is_header:
                    continue
            rows.append(_read_row(f"{path}: line {table.line_num}", row, delimiter, *columns))
    except csv.Error as error:
        told = 'a caption that holds quotes is written "a ""big"" dog"'
        raise DataError(f"{path}: line {table.line_num}: the quotes do not match ({error}); {told}") from None
    separator = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "|"}[delimiter]
    form = f"a table by {separator}, {'with' if is_header else 'without'} a header"
    return CaptionsFile(form, _gather(rows), [])


def _find_columns(path, first):
    """((column of the file names, column of the captions, how many columns), whether this first row is a header).

    Without a header the file name comes first and the caption last; a number may stand between them.
    """
    if is_picture_name(first[0]):
        numbered = len(first) > 2 and first[1].strip().isdecimal()
        return (0, 2 if numbered else 1, 3 if numbered else 2), False
    names = [re.sub(r"\W+", "_", field.strip().lower()) for field in first]
    columns = [next((names.index(name) for name in known if name in names), None)
               for known in (_FILE_COLUMNS, _CAPTION_COLUMNS)]  # fmt: skip
    if None in columns:
        wanted = "a header with image (or file_name) and caption, or a picture's file name first"
        raise DataError(f"{path}: not a captions file: its first line is {', '.join(first)!r:.60}, wanted {wanted}, "
                        "or COCO's or Karpathy's JSON (docs/photographs.md)")  # fmt: skip
    return (*columns, len(names)), True


def _read_row(name, row, delimiter, file_column, caption_column, width):
    """The file name and the caption of a table's row; a caption in the last column may hold the delimiter, unquoted."""
    if len(row) > width and caption_column == width - 1:
        row = [*row[:caption_column], delimiter.join(row[caption_column:])]
    if len(row) != width:
        raise DataError(f"{name}: {len(row)} fields, wanted {width}; quote what holds {delimiter!r}")
    if not row[file_column].strip():
        raise DataError(f"{name}: no file name, wanted one before each caption")
    return row[file_column].strip(), row[caption_column].strip()


def _gather(rows):
    """The Pictures of (file name, caption) pairs, numbered from 0 in the order in which they come first."""
    captions = {}
    for name, caption in rows:
        captions.setdefault(name, []).append(caption)
    return [Picture(i, name, _official_folder({}, name), texts) for i, (name, texts) in enumerate(captions.items())]


# --- split lists ----------------------------------------------------------------------------------------------

_FLICKR8K_LISTS = tuple(f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test"))


def _find_split_lists(found, path):
    """Flickr8k's own split lists beside a captions file that tells no splits, where they name a picture of it."""
    lists = [place for name in _FLICKR8K_LISTS if (place := Path(path).with_name(name)).is_file()]
    if not lists or any(picture.split for picture in found.pictures):
        return []
    listed = _read_split_lists(lists)
    return lists if any(picture.file_name in listed for picture in found.pictures) else []


def _divide(found, split_lists, path):
    """The CaptionsFile, each of its pictures in the split that the lists name; a picture in no list has none."""
    if any(picture.split for picture in found.pictures):
        raise DataError(f"{path}: {found.form} tells its own splits; give no split lists beside it")
    listed = _read_split_lists(split_lists)
    left, pictures = dict(listed), []
    for picture in found.pictures:
        name = picture.file_name if picture.file_name in listed else Path(picture.file_name).stem
        left.pop(name, None)
        pictures.append(picture._replace(split=listed.get(name, "")))
    places = ", ".join(map(str, split_lists))
    if not any(picture.split for picture in pictures):
        seen = f"{path} has {found.pictures[0].file_name if found.pictures else 'no pictures'}"
        raise DataError(f"{places}: names none of the pictures of {path}: first is {next(iter(listed))}, {seen}")
    oddities = found.oddities
    if left:
        oddities = [*oddities, f"{places}: {len(left):,} names have no caption in {path} {first_of(list(left))}"]
    names = ", ".join(Path(place).name for place in split_lists)
    return CaptionsFile(f"{found.form}, divided by {names}", pictures, oddities)


def _read_split_lists(places):
    """{file name: "train", "val" or "test"} of split lists, or of all that lie in a folder.

    A list's own name ends in train, dev, val or test, and maybe Images: `Flickr_8k.devImages.txt`, `val.txt`.
    """
    splits = {}
    for place in map(Path, places):
        lists = sorted(p for p in place.iterdir() if _split_of(p)) if place.is_dir() else [place]
        if not lists:
            raise DataError(f"{place}: no split lists there, wanted files like {', '.join(_FLICKR8K_LISTS)}")
        for path in lists:
            split = _split_of(path)
            if split is None:
                raise DataError(f"{path}: of which split? wanted a name that ends in train.txt, val.txt or test.txt")
            for name in filter(None, map(str.strip, read_text(path).split("\n"))):
                if splits.setdefault(name, split) != split:
                    seen = f"{name!r:.80} is in {split} and in {splits[name]}"
                    raise DataError(f"{path}: {seen}, wanted one split a picture")
    if not splits:
        raise DataError(f"{', '.join(map(str, places))}: empty, wanted a file name a line")
    return splits


def _split_of(path):
    """The split that a list's name tells, None where it tells none."""
    found = re.search(r"(?:^|[\W_])(train|dev|val|test)(?:_?images)?\.txt$", path.name, re.IGNORECASE)
    return SPLITS[found[1].lower()] if found else None
