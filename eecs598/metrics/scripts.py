"""Tokenizing scripts other than the Latin one: combining marks, and text without spaces between words."""

import re
import statistics
import sys
import unicodedata


def _find_marks():
    """The ranges of a regular expression's character class: Unicode's combining marks, and its two joiners."""
    marks = [code for code in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
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
    """Chinese and Japanese are written without spaces: put one around each character, so that it is a word."""
    return text if text.isascii() else _WITHOUT_SPACES.sub(r" \1 ", text)


# Written without spaces, too, but in words of several characters, which take a dictionary to find.
_UNDIVIDED = {
    "Thai": "[\u0e00-\u0e7f]", "Lao": "[\u0e80-\u0eff]", "Burmese": "[\u1000-\u109f]", "Khmer": "[\u1780-\u17ff]",
}  # fmt: skip
_LONG = 12  # characters, vowels and tones counted: longer than most words


def find_undivided(words):
    """(language, an example) where most words are whole sentences of a script without spaces; else None."""
    words = [word for word in words if not word.isascii()]
    for language, sign in _UNDIVIDED.items():
        written = [word for word in words if re.match(sign, word)]
        if written and statistics.median(map(len, written)) > _LONG:
            return language, max(written, key=len)
    return None
