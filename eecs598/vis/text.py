"""Text in figures: fonts, sizes and line breaks."""

import itertools
import sys
import unicodedata
from functools import cache

from matplotlib import font_manager
from PIL import ImageFont

FONT = "DejaVu Sans"  # comes with matplotlib; without hinting, text has the same width on all systems


def clean(text):
    return " ".join(str(text).split())


def fonts_for(text):
    """Font families that together have all characters of a text: FONT, then others for what FONT lacks."""
    return list(dict.fromkeys([FONT, *(_family_with(char) for char in text if not char.isspace())]))


@cache
def load_font(size, family=FONT):
    """A font for Pillow, by default that of the figures, `size` pixels high."""
    return ImageFont.truetype(font_manager.findfont(family), size, layout_engine=ImageFont.Layout.BASIC)


def text_width(text, size):
    """The width of a text in inches, for a font size in points."""
    runs = itertools.groupby(text, key=_family_with)
    return sum(load_font(100, family).getlength("".join(run)) for family, run in runs) * size / 100 / 72


@cache
def _family_with(char):
    """An installed family that has the character: preferably FONT, then a sans serif. If there is none, FONT."""
    if _has(FONT, char):
        return FONT
    # Last Resort has a box for every character
    installed = sorted({entry.name for entry in font_manager.fontManager.ttflist if "last" not in entry.name.lower()})
    for family in sorted(installed, key=lambda name: "sans" not in name.lower()):
        if _has(family, char):
            return family
    _note_missing(unicodedata.name(char, "a character").split()[0].title())
    return FONT


@cache
def _has(family, char):
    return bool(font_manager.get_font(font_manager.findfont(family)).get_char_index(ord(char)))


@cache
def _note_missing(script):
    print(f"note: figures show boxes for characters that no installed font has ({script}): install a font for them, "
          "such as one of the Noto Sans family", file=sys.stderr)  # fmt: skip


def text_height(lines, size):
    return len(lines) * size * 1.35 / 72


def wrap(text, width, size):
    """Break a text into lines of at most `width` inches, inside a word if necessary."""
    lines, room = [""], 0.99 * width  # because of rounding, drawn text can be 0.5% wider
    for word in clean("" if text is None else text).split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= room:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            lines += [""] if lines[-1] and text_width(lines[-1] + letter, size) > room else []
            lines[-1] += letter
    return lines if lines[0] else []


def list_references(references, width, size):
    references = [references] if isinstance(references, str) else references
    return [line for each in references for line in wrap(f"– {each}", width, size)]
