"""Captions files in several formats, recognized by their content and read as `Picture`s.

    COCO's JSON                {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}
    Karpathy's JSON            {"images": [{"imgid" or "cocoid", "filename", "split", "sentences": [{"raw"}]}, ...]}
    Flickr's token file        1000268201_693b08cb0e.jpg#0<tab>A child ...
    Flickr30k's results.csv    1000092795.jpg| 0| Two young guys ...
    a table                    file name and caption separated by comma, semicolon, tab or |, header optional

Split lists have one file name per line. All errors are `DataError`s with a one-line message.
"""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import urlsplit

from PIL import Image

from eecs598.coco.captions import DataError, shorten_error, tokenize, unify_spelling

SPLITS = {"train": "train", "restval": "train", "dev": "val", "val": "val", "test": "test"}  # as named -> as used
WANTED = (
    "wanted COCO's or Karpathy's JSON, lines like name.jpg#0<tab>caption or name.jpg| 0| caption, "
    "or a table of file name and caption (docs/photographs.md)"
)


class Picture(NamedTuple):
    """A picture in a captions file: its id, file name, and all its captions.

    folder: the folder in the official archives, such as "train2014", or "" if not given. path: None until the picture
    is found. split: "train", "val" or "test", or "" if not given.
    """

    id: int
    file_name: str
    folder: str
    captions: list
    path: Path | None = None
    split: str = ""


class CaptionsFile(NamedTuple):
    """The contents of a captions file: the name of its format, its pictures, and a line for each ignored oddity."""

    form: str
    pictures: list
    oddities: list


# --- reading --------------------------------------------------------------------------------------------------


def read_captions_file(path, split_lists=()):
    """Read a captions file in any of these formats as a CaptionsFile, with pictures sorted by id and raw captions.

    The ids are those in the file, or else numbers from 0 in the order of the file. split_lists: text files, or folders
    of them, that assign pictures to splits; None means Flickr8k's own lists, if they are next to the file. Raises
    DataError.
    """
    text = read_text(path)
    found = (_read_json if _is_json(text) else _read_lines)(path, text)
    found.pictures.sort(key=lambda picture: picture.id)
    if split_lists is None:
        split_lists = _find_split_lists(found, path)
    return _divide(found, split_lists, path) if split_lists else found


def _is_json(text):
    """Whether a text begins as JSON does. A line of a table may too, as in `[1] dog.jpg,a dog runs`."""
    start = re.split(r"[\t,;|#\n]", text.lstrip(), maxsplit=1)[0]
    return start[:1] in ("{", "[") and not is_picture_name(start)


def select_split(found, split, path):
    """The pictures of a CaptionsFile in `split`, or all of them for None if the file has no splits.

    Raises DataError if the file has no such split, or if it has splits and `split` is None.
    """
    there = [name for name in ("train", "val", "test") if any(p.split == name for p in found.pictures)]
    if split is None and there:
        raise DataError(f"{path}: {found.form}, has splits ({', '.join(there)}); choose one (--split), "
                        "or build from all of them (--captions)")  # fmt: skip
    if split is not None and not there:
        raise DataError(f"{path}: {found.form}, has no splits; give split lists (--split-lists), or no split")
    if split is not None and split not in there:
        raise DataError(f"{path}: no pictures of split {split!r}; its splits: {', '.join(there)}")
    return found.pictures if split is None else [p for p in found.pictures if p.split == split]


def with_words(pictures, as_written=False):
    """The pictures with tokenized captions, joined by spaces, or with raw ones, in one spelling, if `as_written`.

    Captions without a word are dropped, so a picture may have none left.
    """
    kept = []
    for picture in pictures:
        tokenized = [(text, " ".join(tokenize(text))) for text in picture.captions]
        said = [unify_spelling(text) if as_written else words for text, words in tokenized if words]
        kept.append(picture._replace(captions=said))
    return kept


def summarize(found, path):
    """One line: the format of a captions file, and the number of pictures and captions in each split."""
    counts = Counter(picture.split for picture in found.pictures)
    captions = sum(len(picture.captions) for picture in found.pictures)
    line = f"{path}: {found.form}, {len(found.pictures):,} pictures with {captions:,} captions"
    if set(counts) <= {""}:
        return line
    splits = [f"{split} {counts[split]:,}" for split in ("train", "val", "test") if split in counts]
    return f"{line}: {', '.join(splits)}" + (f", in no split {counts['']:,}" if "" in counts else "")


def first_of(names):
    """The first three of some names in parentheses, for a message."""
    return f"(first: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def is_picture_name(name):
    """Whether a file name has the suffix of an image format that Pillow reads."""
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
        raise DataError(f"{path}: not a text file in UTF-8 ({seen}); save it as UTF-8 and try again") from None


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
            raise DataError(f"{path}: {seen}, wanted one picture per id")
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
            raise DataError(f"{name}: id {number} occurs twice, wanted one picture per id")
        texts = [_fields(s, f"{name}.sentences[{j}]", {"raw": str})[0] for j, s in enumerate(sentences)]
        folder = str(entry.get("filepath", ""))
        pictures[number] = Picture(number, file_name, folder, texts, split=SPLITS[split])
    return CaptionsFile("a Karpathy split file", list(pictures.values()), [])


def _fields(entry, name, fields):
    """The values of `fields` ({key: type}) of an entry of a list. `name` is the start of the message."""
    for field, kind in fields.items():
        value = entry.get(field) if isinstance(entry, dict) else None
        if type(value) is not kind:
            raise DataError(f"{name}: {field} is {value!r:.60}, wanted {kind.__name__}")
        if kind is int and not -(2**63) <= value < 2**63:
            raise DataError(f"{name}: {field} is {value!r:.60}, wanted an int of at most 64 bits")
    return [entry[field] for field in fields]


def _official_folder(entry, name):
    """The folder of a picture on the official image host, from its address or its file name of 2014."""
    parts = urlsplit(url).path.split("/") if isinstance(url := entry.get("coco_url"), str) else []
    named = re.match(r"COCO_([a-z]+\d{4})_", name)
    return parts[-2] if len(parts) > 1 else named[1] if named else ""


# --- lines ----------------------------------------------------------------------------------------------------

_TOKEN_LINE = re.compile(r"(.+?)#(\d+)\t(.*)")
_RESULTS_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment\s*")
_RESULTS_LINE = re.compile(r"([^|]+)\|\s*(\d+)\s*\|(.*)")
_RESULTS_LINE_MENDED = re.compile(r"([^|]+)\|\s*(\d+)\s*(?:\||\s)(.*)")  # results.csv lacks one "|", at 2199200615.jpg


def _read_lines(path, text):
    """Read a captions file that is not JSON; the format is recognized by the first line."""
    first = next((line.strip("\r ") for line in text.split("\n") if line.strip()), "")
    if _TOKEN_LINE.fullmatch(first):
        return _read_numbered(path, text, _TOKEN_LINE, "name.jpg#0<tab>caption", "Flickr's token file")
    if _RESULTS_HEADER.fullmatch(first) or _RESULTS_LINE.fullmatch(first):
        return _read_numbered(path, text, _RESULTS_LINE_MENDED, "name.jpg| 0| caption", "Flickr30k's results.csv")
    return _read_table(path, text, first)


def _read_numbered(path, text, pattern, wanted, form):
    """Read lines of file name, caption number and caption, as in Flickr8k and Flickr30k."""
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
    oddities = [f"{path}: {repeated:,} duplicate lines are ignored"] if repeated else []
    return CaptionsFile(form, _gather((name, caption) for name, _, caption in rows), oddities)


# Column names, in order of preference.
_FILE_COLUMNS = ("file_name", "filename", "image_name", "image_file", "image", "image_path", "filepath", "file_path",
                 "path", "file", "img", "photo", "picture", "name")  # fmt: skip
_CAPTION_COLUMNS = ("caption", "captions", "comment", "text", "sentence", "description")


def _read_table(path, text, first):
    """Read a table with a column of file names and one of captions, such as Kaggle's `captions.txt`: image,caption."""
    delimiter = re.match(r'\s*(?:"(?:[^"]|"")*"|[^"\t,;|]*)\s*([\t,;|])', first)
    if not delimiter:
        raise DataError(f"{path}: not a captions file: its first line is {first!r:.60}, {WANTED}")
    before_tab, tab, _ = first.partition("\t")
    delimiter = tab if tab and is_picture_name(before_tab) else delimiter[1]  # the name may contain a comma
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
        remedy = 'write quotes in a caption as in "a ""big"" dog"'
        raise DataError(f"{path}: line {table.line_num}: the quotes do not match ({error}); {remedy}") from None
    separator = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "|"}[delimiter]
    form = f"a table separated by {separator}, {'with' if is_header else 'without'} a header"
    return CaptionsFile(form, _gather(rows), [])


def _find_columns(path, first):
    """((column of file names, column of captions, number of columns), whether this first row is a header).

    Without a header, the file name is first and the caption last, with an optional number between them.
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
    """The file name and the caption of a row. A caption in the last column may contain the delimiter unquoted."""
    if len(row) > width and caption_column == width - 1:
        row = [*row[:caption_column], delimiter.join(row[caption_column:])]
    if len(row) != width:
        raise DataError(f"{name}: {len(row)} fields, wanted {width}; quote fields that contain {delimiter!r}")
    if not row[file_column].strip():
        raise DataError(f"{name}: no file name, wanted one before each caption")
    return row[file_column].strip(), row[caption_column].strip()


def _gather(rows):
    """The Pictures of (file name, caption) pairs, numbered from 0 in order of first occurrence."""
    captions = {}
    for name, caption in rows:
        captions.setdefault(name, []).append(caption)
    return [Picture(i, name, _official_folder({}, name), texts) for i, (name, texts) in enumerate(captions.items())]


# --- split lists ----------------------------------------------------------------------------------------------

_FLICKR8K_LISTS = tuple(f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test"))


def _find_split_lists(found, path):
    """Flickr8k's own split lists next to a captions file without splits, if they list any of its pictures."""
    lists = [place for name in _FLICKR8K_LISTS if (place := Path(path).with_name(name)).is_file()]
    if not lists or any(picture.split for picture in found.pictures):
        return []
    listed = _read_split_lists(lists)
    return lists if any(normalize("NFC", picture.file_name) in listed for picture in found.pictures) else []


def _divide(found, split_lists, path):
    """The CaptionsFile with splits assigned by the lists. Pictures in no list have no split."""
    if any(picture.split for picture in found.pictures):
        raise DataError(f"{path}: {found.form} has its own splits; give no split lists with it")
    listed = _read_split_lists(split_lists)
    left, pictures = dict(listed), []
    for picture in found.pictures:
        name = normalize("NFC", picture.file_name)
        name = name if name in listed else Path(name).stem
        left.pop(name, None)
        pictures.append(picture._replace(split=listed.get(name, "")))
    places = ", ".join(map(str, split_lists))
    if not any(picture.split for picture in pictures):
        seen = f"{path} has {found.pictures[0].file_name if found.pictures else 'no pictures'}"
        raise DataError(f"{places}: lists none of the pictures of {path}: first is {next(iter(listed))}, {seen}")
    oddities = found.oddities
    if left:
        oddities = [*oddities, f"{places}: {len(left):,} names have no caption in {path} {first_of(list(left))}"]
    names = ", ".join(Path(place).name for place in split_lists)
    return CaptionsFile(f"{found.form}, split by {names}", pictures, oddities)


def _read_split_lists(places):
    """{file name in NFC: "train", "val" or "test"} from split lists, or from all lists in a folder.

    The name of a list ends in train, dev, val or test, optionally followed by Images: `Flickr_8k.devImages.txt`.
    """
    splits = {}
    for place in map(Path, places):
        lists = sorted(p for p in place.iterdir() if _split_of(p)) if place.is_dir() else [place]
        if not lists:
            raise DataError(f"{place}: no split lists there, wanted files like {', '.join(_FLICKR8K_LISTS)}")
        for path in lists:
            split = _split_of(path)
            if split is None:
                raise DataError(f"{path}: unknown split, wanted a name that ends in train.txt, val.txt or test.txt")
            for name in filter(None, map(str.strip, normalize("NFC", read_text(path)).split("\n"))):
                if splits.setdefault(name, split) != split:
                    seen = f"{name!r:.80} is in {split} and in {splits[name]}"
                    raise DataError(f"{path}: {seen}, wanted one split per picture")
    if not splits:
        raise DataError(f"{', '.join(map(str, places))}: empty, wanted one file name per line")
    return splits


def _split_of(path):
    """The split in the name of a list, or None."""
    found = re.search(r"(?:^|[\W_])(train|dev|val|test)(?:_?images)?\.txt$", path.name, re.IGNORECASE)
    return SPLITS[found[1].lower()] if found else None
