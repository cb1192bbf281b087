"""Tokenizing scripts other than the Latin one: combining marks, and text without spaces between words."""

import re
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
