"""Tokenizing non-Latin scripts: combining marks, and text without spaces between words."""

import itertools
import re
import statistics
import unicodedata


def _find_marks():
    """Unicode's combining marks and its two joiners, as ranges of a regular expression's character class."""
    codes = itertools.chain(range(0x300, 0x20000), range(0xE0000, 0xE0200))  # in between are ideographs only
    marks = [code for code in codes if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    ranges = []
    for code in [0x200C, 0x200D, *marks]:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


MARKS = _find_marks()
_WITHOUT_SPACES = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")  # kana and Han


def split_characters(text):
    """Put spaces around each Chinese or Japanese character, so that each is a word."""
    return text if text.isascii() else _WITHOUT_SPACES.sub(r" \1 ", text)


# Also written without spaces, but words have several characters, and segmentation needs a dictionary.
_UNSEGMENTED = {
    "Thai": "[\u0e00-\u0e7f]", "Lao": "[\u0e80-\u0eff]", "Burmese": "[\u1000-\u109f]", "Khmer": "[\u1780-\u17ff]",
}  # fmt: skip
_LONG = 12  # characters, with vowel and tone marks: longer than most words


def find_unsegmented(words):
    """(language, an example) if most words are whole sentences in a script without spaces, else None."""
    words = [word for word in words if not word.isascii()]
    for language, script in _UNSEGMENTED.items():
        written = [word for word in words if re.match(script, word)]
        if written and statistics.median(map(len, written)) > _LONG:
            return language, max(written, key=len)
    return None
