"""What scripts other than the Latin one ask of a tokenizer: marks that belong to a letter, and words without spaces."""

import re
import sys
import unicodedata


def _find_marks():
    """The inside of a character class: the marks that Unicode combines with letters, and the joiners between them."""
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


def split_signs(text):
    """Chinese and Japanese, which are written without spaces, with one around each sign: a sign then is a word."""
    return text if text.isascii() else _WITHOUT_SPACES.sub(r" \1 ", text)
