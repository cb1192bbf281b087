"""An interactive attention viewer in HTML: choosing a word of a caption shows its attention map.

The page (the template `viewer.html`, with the script `viewer.js`) is self-contained: pictures, words and weights are in
it. A notebook shows it in a sandboxed `<iframe srcdoc>` (`viewer_cell.html`), which Colab, JupyterLab, VS Code and
nbviewer support. The styles and keyboard shortcuts of page and notebook do not interfere, and the page's content
security policy allows only its own script, whatever a caption contains. Where frames are removed, as in a notebook that
is not trusted, a static picture with its caption is shown instead; so it is by the page itself if scripts are disabled.
"""

import base64
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from PIL import Image

from eecs598.files import write_text
from eecs598.vis.arrays import check_weights, to_display, to_numpy
from eecs598.vis.attention import COLOUR_MAP, STRENGTH
from eecs598.vis.text import clean

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
SCRIPT = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
SCRIPT_HASH = f"sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode('utf-8')).digest()).decode('ascii')}"
COLOURS = np.rint(mpl.colormaps[COLOUR_MAP](np.linspace(0, 1, 17))[:, :3] * 255).astype(int).tolist()
SIDE, JPEG_BYTES = 640, 100_000  # maximum size of a picture in the page
STILL_SIDE, STILL_BYTES = 240, 15_000  # maximum size of the static picture
GRID_NUMBERS = 20_000  # maximum number of weights for a picture; finer grids are averaged


class AttentionViewer:
    """The result of `attention_viewer`, which a notebook displays as a cell's last expression or with `display`."""

    def __init__(self, page, cell, name):
        self.page = page  # the whole HTML document
        self._cell, self._name = cell, name

    def __repr__(self):
        return f"{self._name}: displayed in a notebook; save(path) saves it as a page"

    def _repr_html_(self):
        return self._cell

    def save(self, path):
        """Save the page as a file for any browser. Raises OSError."""
        write_text(path, self.page)


def attention_viewer(
    images, captions, weights, *, probabilities=None, alternatives=None, references=None, title=None, height=440
):
    """Pictures with captions whose words show their attention maps on hover, tap or with the arrow keys.

    images: (N, 3, H, W), or N pictures of any sizes, see `vis.to_display`. captions: N strings, or N lists of words.
    weights: (N, T, h, w), or N stacks of maps (T, h, w), with T at least the number of words; extra maps are ignored.
    Each map has its own colour scale from 0 to its maximum, which is shown. probabilities: for each picture, a number
    for each word. alternatives: for each picture and word, pairs (word, probability). references: for each picture, a
    string or a list of strings. height: of the frame in a notebook, in pixels. All but the pictures and references are
    what `eecs598.teacher_forcing.explain_captions` returns. A picture takes at most 300 KB. Returns AttentionViewer.
    Raises ValueError if lengths differ, or a picture, map or probability is invalid.
    """
    _check_counts(images, captions=captions, weights=weights, probabilities=probabilities,
                  alternatives=alternatives, references=references)  # fmt: skip
    pictures = []
    for n in range(len(images)):
        try:
            given = (part if part is None else part[n] for part in (probabilities, alternatives, references))
            pictures.append(_read_picture(images[n], captions[n], weights[n], *given))
        except ValueError as error:
            raise ValueError(f"picture {n}: {error}") from None
    name = clean(title or "")
    data = {"pictures": [picture.data for picture in pictures], "colours": COLOURS, "strength": STRENGTH}
    page = TEMPLATES.get_template("viewer.html").render(
        title=name, pictures=pictures, gradient=_gradient(), data=data, script=Markup(SCRIPT), script_hash=SCRIPT_HASH
    )
    label = f"Attention viewer, {len(pictures)} picture{'s' * (len(pictures) > 1)}" + (f": {name}" if name else "")
    cell = TEMPLATES.get_template("viewer_cell.html").render(page=page, pictures=pictures, name=label, height=height)
    return AttentionViewer(page, cell, label)


class _Picture(NamedTuple):
    """One picture, as the templates and the script need it."""

    source: str  # a data URL
    still: str  # a smaller one
    data: dict  # for the script
    references: list


def _read_picture(image, caption, weights, probabilities, alternatives, references):
    words, pixels = _split(caption), to_display(image)
    maps = _read_maps(weights, words)
    probs = _read_probabilities(probabilities, words)
    others = _read_alternatives(alternatives, words)
    largest = [heat.max() for heat in maps]
    coarse = _coarsen(maps)
    read = []
    for t, word in enumerate(words):
        rest = None if probs[t] is None or not others[t] else max(0.0, 1 - probs[t] - sum(p for _, p in others[t]))
        relative = np.rint(999 * coarse[t] / (coarse[t].max() or 1)).astype(int)
        read.append({
            "word": word, "probability": probs[t], "others": others[t], "rest": rest, "largest": f"{largest[t]:.2g}",
            "said": _say(word, t, len(words), maps[t], probs[t], others[t]), "weights": relative.ravel().tolist(),
        })  # fmt: skip
    data = {"ratio": pixels.shape[1] / pixels.shape[0], "grid": coarse.shape[1:], "words": read,
            "caption": " ".join(words) or "no words"}  # fmt: skip
    references = [references] if isinstance(references, str) else references or []
    source, still = _to_jpeg(pixels, SIDE, JPEG_BYTES), _to_jpeg(pixels, STILL_SIDE, STILL_BYTES)
    return _Picture(source, still, data, [clean(text) for text in references])


def _coarsen(maps):
    """The maps, average-pooled so that they have at most GRID_NUMBERS values in total."""
    T, h, w = maps.shape
    shrink = (GRID_NUMBERS / max(1, maps.size)) ** 0.5
    if shrink >= 1:
        return maps
    size = (max(1, int(w * shrink)), max(1, int(h * shrink)))
    return np.stack([np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BOX)) for heat in maps])


def _say(word, t, T, heat, probability, others):
    """The text for screen readers when a word is chosen."""
    parts = [f"{word}, word {t + 1} of {T}", f"looked {_name_place(heat)}, largest weight {heat.max():.2g}"]
    if probability is not None:
        parts.append(f"probability {probability:.2f}")
    if others:
        parts.append("other words: " + ", ".join(f"{other} {p:.2f}" for other, p in others))
    return ". ".join(parts)


def _name_place(heat):
    """The position of the map's largest weight, in words."""
    if np.ptp(heat) <= 1e-3 * heat.max():
        return "everywhere equally" if heat.max() > 0 else "nowhere"
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    down = ("top", "middle", "bottom")[int(3 * (row + 0.5) / heat.shape[0])]
    across = ("left", "centre", "right")[int(3 * (column + 0.5) / heat.shape[1])]
    return f"most at the {down} {across}".replace("middle centre", "centre")


def _gradient():
    """The colour map in CSS, over a neutral grey."""
    stops = ", ".join(f"rgba({r}, {g}, {b}, {STRENGTH * k / (len(COLOURS) - 1):.3f})"
                      for k, (r, g, b) in enumerate(COLOURS))  # fmt: skip
    return f"linear-gradient(to right, {stops}), #999"


def _to_jpeg(pixels, side, limit):
    """A picture as a data URL: at most `side` pixels on each side, and at most `limit` bytes of JPEG."""
    image = Image.fromarray(pixels)
    while True:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in (92, 80, 65, 50):
            file = io.BytesIO()
            image.save(file, "jpeg", quality=quality, subsampling=0 if quality > 90 else -1)
            if file.tell() <= limit:
                return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
        side = max(image.size) * 3 // 4


# ---- inputs ----


def _split(caption):
    """The words of a caption, with white space inside a word as a single space."""
    return caption.split() if isinstance(caption, str) else [clean(word) for word in caption]


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_counts(images, **given):
    if getattr(images, "ndim", 4) != 4:
        raise ValueError(f"images are {tuple(images.shape)}: pass (N, 3, H, W), or a list of pictures")
    if len(images) == 0:
        raise ValueError("images is empty: pass at least one picture")
    for name in ("captions", "weights"):
        if given[name] is None:
            raise ValueError(f"{name} is None: pass one entry for each picture (only an attn model has weights)")
    for name, values in given.items():
        if values is not None and (isinstance(values, str) or len(values) != len(images)):
            seen = _short(values) if isinstance(values, str) else f"{len(values)} entries"
            raise ValueError(f"{name}: {seen} for {len(images)} pictures: pass a list with one entry for each")


def _read_maps(weights, words):
    """The maps of the words as numpy, (T, h, w), float32."""
    heat = to_numpy(weights)
    if heat.ndim != 3 or 0 in heat.shape[1:] or heat.dtype.kind not in "fiu":
        raise ValueError(f"weights are {heat.shape} {heat.dtype}: pass numbers (T, h, w), a map for each word")
    if len(heat) < len(words):
        raise ValueError(f"{len(words)} words but {len(heat)} maps: pass weights (T, h, w) with T at least the words")
    heat = heat[: len(words)].astype(np.float32)
    for word, each in zip(words, heat):
        check_weights(each, f"weights at {_short(word)}")
    return heat


def _read_probabilities(probabilities, words):
    if probabilities is None:
        return [None] * len(words)
    if len(probabilities) != len(words):
        raise ValueError(f"{len(probabilities)} probabilities for {len(words)} words: pass one for each")
    return [_read_probability(p, word) for p, word in zip(probabilities, words)]


def _read_probability(value, word):
    value = float(value)
    if not -1e-6 <= value <= 1 + 1e-6:  # written so that NaN fails too
        raise ValueError(f"the probability of {_short(word)} is {value:.3g}: it must be in [0, 1], not its logarithm")
    return round(min(1.0, max(0.0, value)), 5)


def _read_alternatives(alternatives, words):
    """For each word pairs [other word, probability]."""
    if alternatives is None:
        return [[] for _ in words]
    if len(alternatives) != len(words):
        raise ValueError(f"alternatives for {len(alternatives)} of {len(words)} words: pass a list for each")
    read = []
    for word, pairs in zip(words, alternatives):
        try:
            pairs = [(str(other), p) for other, p in pairs]
        except (TypeError, ValueError):
            seen = f"alternatives at {_short(word)} are {_short(pairs)}"
            raise ValueError(f"{seen}: pass pairs (word, probability)") from None
        read.append([[other, _read_probability(p, other)] for other, p in pairs if other != word])
    return read
