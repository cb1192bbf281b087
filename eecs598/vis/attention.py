"""Attention maps over a picture: one map, and one for each word of a caption."""

import math

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageFilter

from eecs598.vis.arrays import check_lengths, check_weights, to_display, to_numpy
from eecs598.vis.figures import GREY, fit_picture, new_figure, place_picture, styled, write_lines
from eecs598.vis.text import list_references, text_height, wrap

STRENGTH = 0.6  # of the tint where the weight is largest
COLOUR_MAP = "plasma"


def attention_overlay(image, weights, strength=STRENGTH):
    """A picture overlaid with an attention map and its white contour at half the maximum: uint8 (H, W, 3).

    image: see `to_display`. weights: (h, w), any grid; cell (0, 0) is at the top left. The map is divided by its
    maximum and upsampled with aligned cell centres. Pixels with weight 0 do not change; at the maximum, bright yellow
    is blended in with weight `strength`. In between, the tint goes through purple and orange and becomes lighter, so
    that it can be read without colour vision, as can the contour. A constant map gives a uniform tint, an all-zero map
    none. Raises ValueError.
    """
    picture = to_display(image)
    heat = _check_map(weights)
    heat = heat / (heat.max() or 1.0)
    height, width = picture.shape[:2]
    large = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(large).clip(0, 1)  # bicubic interpolation overshoots at edges
    tint = mpl.colormaps[COLOUR_MAP](heat)[..., :3] * 255
    alpha = strength * heat[..., None]
    seen = (1 - alpha) * picture + alpha * tint

    core = Image.fromarray(np.where(heat > 0.5, 255, 0).astype(np.uint8))
    grown = core.filter(ImageFilter.MaxFilter(1 + 2 * max(1, min(height, width) // 150)))
    seen[np.asarray(grown) != np.asarray(core)] = 255
    return np.rint(seen).astype(np.uint8)


@styled
def show_attention(image, words, weights, references=(), probabilities=None, columns=7, title=None):
    """A caption as a strip: the picture, then the attention map for each word.

    image: one picture, see `to_display`. words: T strings. weights: (T, h, w), or T maps; each has its own colour
    scale, with the maximum below. probabilities: T numbers, the model's probability of each word. references: human
    captions, listed below. columns: at most that many pictures in a row. Raises ValueError if lengths differ or a
    picture or map is invalid.
    """
    check_lengths(f"{len(words)} words", len(words), weights=weights, probabilities=probabilities)
    picture, maps = to_display(image), [_check_map(w) for w in weights]
    notes = [f"max {m.max():.2f}" for m in maps]
    if probabilities is not None:
        notes = [f"p {float(p):.2f}, {note}" for p, note in zip(probabilities, notes)]
    views = [picture] + [attention_overlay(picture, m) for m in maps]
    heads = [wrap(word, 1.38, 10) for word in ("(picture)", *words)]
    cells = list(zip(views, heads, ["", *notes]))
    columns = math.ceil(len(cells) / math.ceil(len(cells) / columns))  # rows of about the same length
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    width = 1.47 * max(4, min(columns, len(cells)))  # at least 4, for the sentences above and below
    top, said = wrap(title, width, 11), list_references(references, width, 9)

    above = [max(text_height(head, 10) for _, head, _ in row) + 0.08 for row in rows]
    tall = fit_picture(picture, 1.38, 1.9)[1]
    tops = np.cumsum([text_height(top, 11) + 0.04] + [a + tall + 0.25 for a in above])
    fig = new_figure(width + 0.1, tops[-1] + text_height(said, 9) + 0.05)
    write_lines(fig, 0.1, 0.04, top, 11)
    for i, (row, y) in enumerate(zip(rows, tops)):
        for j, (view, head, note) in enumerate(row):
            ax = place_picture(fig, view, 0.1 + 1.47 * j, y + above[i], 1.38, tall)
            ax.set_title("\n".join(head), fontsize=10, pad=3, linespacing=1.2, parse_math=False)
            ax.set_xlabel(note, fontsize=8, color=GREY, labelpad=3)
    write_lines(fig, 0.1, tops[-1] + 0.02, said, 9, color=GREY)
    return fig


def _check_map(weights):
    heat = to_numpy(weights)
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(f"attention weights are (h, w), got {heat.shape}: pass one picture's, for one word")
    check_weights(heat, "attention weights")
    return heat.astype(np.float64)
