"""Captions as words: tokenizing as the field does, the vocabulary, encoding, and the captions files to read.

Every complaint is a `DataError`, whose message is one line.
"""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch

NULL, START, END, UNK = SPECIAL_TOKENS = ("<NULL>", "<START>", "<END>", "<UNK>")
MAX_WORDS = 15
CAPTION_LENGTH = MAX_WORDS + 2  # <START>, at most 15 words, <END>


class DataError(ValueError):
    """A data file, picture or caption file that cannot be used; the message is one line."""


def shorten_error(error):
    """An exception as a short phrase of one line, without the path that the caller names itself."""
    text = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
    return f"{text:.150}" or type(error).__name__


# --- words --------------------------------------------------------------------------------------------------

# What the Penn Treebank splits: do|n't, dog|'s, should|n't|'ve, and these.
_LETTER, _CLITICS = r"[^\W_]", r"(?:n't|'(?:s|m|d|re|ve|ll))"
_CLITIC = rf"{_CLITICS}(?={_CLITICS}*(?!{_LETTER}))"
_SPLIT_CLITIC = re.compile(rf"(?<={_LETTER})(?={_CLITIC})")
_JOINED = ("can not", "gon na", "wan na", "got ta", "gim me", "lem me", "y' all", "'t is", "'t was")
_JOINED = {pair.replace(" ", ""): pair.split() for pair in _JOINED}
# The words whose full stop Stanford's tokenizer keeps, of those that captions hold.
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|jr|sr|st|mt|ft|ave|blvd|rd|ct|sq|co|inc|ltd|corp|bros|dept|univ|etc|vs|prof|gen|col|capt|lt"
    r"|sgt|rev|gov|sen|rep|pres|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|ph\.d"
)
_TOKEN = re.compile(
    rf"""
    [^\W\d_]+(?=\s)  # most words, before the costly rest
    | {_CLITIC}
    | 'n'? (?!\w) | 'em\b | '\d\ds\b | (?<!\w)'t(?:(?:is|was)\b|(?=\s(?:is|was)\b)) | \by'(?=\sall\b)
    | (?<![^\W\d_]) [^\W\d_] (?:\.[^\W\d_])* \. (?!{_LETTER})          # plan b., u.s., d.c.
    | \b(?:{_ABBREVIATIONS})\.(?!{_LETTER}) | \bno\.(?=\s?\d)          # st., mr.; no. 5
    | (?<!{_LETTER}) \d+ (?:[:]\d+)+                                   # 10:30, also of 10:30pm
    | (?: (?<![\w.,:%$+-]) [-+]?\.? (?=\d) )?                          # -5, .5
      {_LETTER}+ (?: (?: [-_/] | (?<=[^\W\d_])['.](?=[^\W\d_]) | (?<=\d)[.,](?=\d) ) {_LETTER}+ )*
    | [#$%&+/<=>@\\^|~] | \*+
    """,
    re.VERBOSE,
)


def tokenize(caption):
    """The words of a caption: lower case, punctuation dropped, a list of strings without empty ones.

    As the field's PTBTokenizer does (Stanford's tokenizer, then the punctuation list of COCO's evaluation
    code): "don't" gives ["do", "n't"], "a dog's" ["a", "dog", "'s"]; "10:30", "1.5", "t-shirt", "o'clock",
    "and/or" and "u.s." stay one word; "#", "&" and "$" are words of their own. Unlike there, brackets and
    "?!" are dropped too, and "AT&T" is split in upper case as in lower case. Tokenizing the joined tokens again
    changes nothing.
    """
    text = unicodedata.normalize("NFC", caption).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    found = _TOKEN.findall(_SPLIT_CLITIC.sub(" ", text.replace("\N{SOFT HYPHEN}", "")))
    return [word for token in found for word in _JOINED.get(token, (token,))]


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


# --- captions files -----------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A picture of a captions file: its id, its file, and all its captions, tokenized, joined by spaces.

    `folder` is the folder of the official archives that it lies in ("train2014"), "" where the file tells none.
    `path` is None until the picture is found.
    """

    id: int
    file_name: str
    folder: str
    captions: list
    path: Path | None = None


def read_captions(path, as_written=False):
    """The pictures of the captions file `path` (official COCO format), in the order of their ids.

    as_written: their captions as people wrote them, not tokenized. Captions without a word are dropped, so a picture
    may have none. Raises DataError.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        hint = "; it is a Karpathy split file: pass it as such (--karpathy)" if _is_karpathy(content) else ""
        raise DataError(f"{path}: not a COCO captions file, which holds the lists images and annotations{hint}")
    pictures = {}
    for i, entry in enumerate(content["images"]):
        number, name = _fields(entry, f"{path}: images[{i}]", {"id": int, "file_name": str})
        found = pictures.setdefault(number, Picture(number, name, _official_folder(entry, name), []))
        if found.file_name != name:
            seen = f"id {number} stands for {found.file_name} and for {name}"
            raise DataError(f"{path}: {seen}, wanted one picture an id")
    for i, entry in enumerate(content["annotations"]):
        number, text = _fields(entry, f"{path}: annotations[{i}]", {"image_id": int, "caption": str})
        if number in pictures and (words := tokenize(text)):
            pictures[number].captions.append(text if as_written else " ".join(words))
    return [picture for _, picture in sorted(pictures.items())]


def read_karpathy(path):
    """The training and the validation pictures of a Karpathy split file (`dataset_coco.json` and its like).

    As is the field's custom, "restval" is trained on too; "test" is left out. Each list is in the order of the
    pictures' ids (`cocoid`, or `imgid` where there is none). Raises DataError.
    """
    content = _read_json(path)
    if not _is_karpathy(content):
        raise DataError(f"{path}: not a Karpathy split file, whose images have a split and sentences each")
    splits = {"train": {}, "val": {}}
    for i, entry in enumerate(content["images"]):
        name = f"{path}: images[{i}]"
        number = "cocoid" if "cocoid" in (entry if isinstance(entry, dict) else ()) else "imgid"
        wanted = {number: int, "filename": str, "split": str, "sentences": list}
        number, file_name, split, sentences = _fields(entry, name, wanted)
        if split not in ("train", "restval", "val", "test"):
            raise DataError(f"{name}: split is {split!r:.60}, wanted train, restval, val or test")
        if split == "test":
            continue
        texts = [_fields(s, f"{name}.sentences[{j}]", {"raw": str})[0] for j, s in enumerate(sentences)]
        captions = [" ".join(words) for words in map(tokenize, texts) if words]
        picture = Picture(number, file_name, str(entry.get("filepath", "")), captions)
        side = splits["val" if split == "val" else "train"]
        if number in side:
            raise DataError(f"{name}: id {number} occurs twice, wanted one picture an id")
        side[number] = picture
    return tuple([picture for _, picture in sorted(side.items())] for side in splits.values())


def _read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({shorten_error(error)})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({shorten_error(error)})") from None


def _is_karpathy(content):
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and {"split", "sentences"} <= first.keys()


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
