"""Pictures with their captions."""

import numpy as np

from eecs598.vis.arrays import check_lengths, to_display
from eecs598.vis.figures import BAD, GOOD, GREY, fit_picture, new_figure, place_picture, styled, write_lines
from eecs598.vis.text import clean, list_references, text_height, wrap


@styled
def show_captions(images, captions, references=None, columns=4, judgements=None):
    """A grid of pictures, each with its generated caption and, in grey, the references.

    images: (n, 3, H, W), or n pictures of any sizes. captions: n strings. references: a string or a list of strings
    for each picture. judgements: for each picture True (a tick), False (a cross) or None (no mark). Raises ValueError
    if lengths differ or a picture is invalid.
    """
    n = len(images)
    check_lengths(f"{n} pictures", n, captions=captions, references=references, judgements=judgements)
    if n == 0:
        raise ValueError("no pictures to show: images is empty, pass at least one")
    pictures = [to_display(image) for image in images]
    marks = [None] * n if judgements is None else judgements
    indent = 0.0 if judgements is None else 0.2  # room for the mark, left of the caption
    generated = [wrap(clean(caption) or "(no words)", 2.4 - indent, 10) for caption in captions]
    said = [list_references(each, 2.4, 8.5) for each in (references or [()] * n)]

    rows = [range(i, min(i + columns, n)) for i in range(0, n, columns)]
    tall = [max(fit_picture(pictures[i], 2.4, 2.4)[1] for i in row) for row in rows]
    text = [max(text_height(generated[i], 10) + text_height(said[i], 8.5) for i in row) for row in rows]
    tops = np.cumsum([0.08] + [a + b + 0.24 for a, b in zip(tall, text)])
    fig = new_figure(0.05 + 2.55 * min(columns, n), tops[-1])
    for row, top, height in zip(rows, tops, tall):
        for j, i in enumerate(row):
            left, below = 0.1 + 2.55 * j, top + height + 0.05
            place_picture(fig, pictures[i], left, top, 2.4, height)
            if marks[i] is not None:
                mark, colour = ("✓", GOOD) if marks[i] else ("✗", BAD)
                write_lines(fig, left, below, mark, 10, color=colour, weight="bold")
            write_lines(fig, left + indent, below, generated[i], 10)
            write_lines(fig, left, below + text_height(generated[i], 10), said[i], 8.5, color=GREY)
    return fig
