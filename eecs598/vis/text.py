"""Text in a figure: the font, how wide and how high lines are, and where they break."""

from functools import cache

from matplotlib import font_manager
from PIL import ImageFont

FONT = "DejaVu Sans"  # ships with matplotlib; it and no hinting make text equally wide everywhere


def clean(text):
    return " ".join(str(text).split())


@cache
def load_font(size):
    """The figures' font for Pillow, `size` pixels high."""
    return ImageFont.truetype(font_manager.findfont(FONT), size, layout_engine=ImageFont.Layout.BASIC)


def text_width(text, size):
    """In inches, for a size in points."""
    return load_font(100).getlength(text) * size / 100 / 72


def text_height(lines, size):
    return len(lines) * size * 1.35 / 72


def wrap(text, width, size):
    """Lines no wider than `width` inches; a word that is wider is broken."""
    lines, room = [""], 0.99 * width  # for rounding: drawn text is up to 0.5% wider
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
