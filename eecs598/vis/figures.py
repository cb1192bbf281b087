"""Figures for notebooks in a fixed style, with positions in inches from the top left."""

import io
import warnings
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eecs598.files import write_whole
from eecs598.vis.text import FONT, fonts_for

DPI = 75  # in the notebook, where dozens of figures should stay small
INK, GREY, GOOD, BAD = "black", "#595959", "#00734d", "#b32d00"
styled = style.context(["default", {"font.family": FONT, "font.size": 9, "text.hinting": "none"}])


class _Canvas(FigureCanvasAgg):
    """Writes PNG files with a palette of 256 colours at the notebook's resolution, at a third of the size."""

    def print_png(self, file, *, metadata=None, pil_kwargs=None, **_):
        if self.figure.dpi != DPI:
            return super().print_png(file, metadata=metadata, pil_kwargs=pil_kwargs)
        self.draw()
        picture = with_palette(np.asarray(self.buffer_rgba())[..., :3])
        texts = PngInfo()
        for name, text in (metadata or {}).items():
            if text is not None:  # as in matplotlib, None leaves an entry out
                texts.add_text(name, str(text))
        picture.save(file, "png", optimize=True, dpi=(DPI, DPI), pnginfo=texts)


def with_palette(pixels):
    """A PIL image with a palette of 256 colours: uint8 (H, W, 3) -> each pixel's nearest colour of the palette.

    The palette is found by k-means, which keeps the colours of small marks next to photographs, on a 17th
    of the pixels: on all of them Pillow takes seconds. Each row, column and diagonal has some of these.
    """
    rows, columns = np.indices(pixels.shape[:2])
    sample = pixels[(columns + 5 * rows) % 17 == 0]
    palette = Image.fromarray(sample[None]).quantize(256, kmeans=1).getpalette()
    centres = np.array(palette, np.float32).reshape(-1, 3)
    codes, where = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1], np.uint32), return_inverse=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1).astype(np.float32)
    nearest = ((centres**2).sum(1) - 2 * colours @ centres.T).argmin(1).astype(np.uint8)
    picture = Image.fromarray(nearest[where].reshape(pixels.shape[:2]))
    picture.putpalette(palette)
    return picture


class _NotebookFigure(Figure):
    """A figure that a notebook displays without pyplot's inline backend."""

    @styled
    def draw(self, renderer):
        for text in self.findobj(Text):
            if not text.get_text().isascii():  # every font has ASCII
                text.set_family(fonts_for(text.get_text()))
        with warnings.catch_warnings():  # `fonts_for` has already printed a note
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            super().draw(renderer)

    @styled
    def savefig(self, target, **options):
        """As matplotlib's; a file is written whole or not at all, see `eecs598.files.write_whole`."""
        if not isinstance(target, (str, Path)):
            super().savefig(target, **options)
            return
        options = {"format": Path(target).suffix.removeprefix(".") or "png"} | options
        write_whole(target, lambda file: super(_NotebookFigure, self).savefig(file, **options))

    def _repr_png_(self):
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


def new_figure(width, height):
    fig = _NotebookFigure(figsize=(width, height), dpi=DPI, facecolor="white")
    _Canvas(fig)
    return fig


def place_axes(fig, left, top, width, height):
    W, H = fig.get_size_inches()
    return fig.add_axes((left / W, 1 - (top + height) / H, width / W, height / H))


def place_picture(fig, picture, left, top, width, height):
    """Axes with the picture's aspect ratio, as large as fits into the box, centred at its bottom."""
    w, h = fit_picture(picture, width, height)
    ax = place_axes(fig, left + (width - w) / 2, top + height - h, w, h)
    ax.imshow(picture, aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def fit_picture(picture, width, height):
    h, w = picture.shape[:2]
    scale = min(width / w, height / h)
    return w * scale, h * scale


def write_lines(fig, left, top, lines, size, color=INK, **options):
    W, H = fig.get_size_inches()
    options |= {"fontsize": size, "color": color, "va": "top", "linespacing": 1.2, "parse_math": False}
    fig.text(left / W, 1 - top / H, "\n".join(lines), **options)
