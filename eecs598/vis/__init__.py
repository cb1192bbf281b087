"""Figures of the lesson: captions beside pictures, attention over pictures, losses, gates, gradient norms.

Every `show_*` and `plot_*` function returns a matplotlib Figure that pyplot knows nothing of: as a cell's
last expression it is displayed once, `display(fig)` shows it inside a loop, `fig.savefig(path)` writes it.
The user's own matplotlib settings neither change a figure nor are changed by one. All text is drawn
literally: `$`, `_` and `<END>` are not markup.
"""

import io
from functools import cache

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import font_manager, style, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageFilter, ImageFont

DPI = 75  # of the figures as displayed: small enough for a notebook that holds dozens of them
INK, GREY, GOOD, BAD = "black", "#595959", "#00734d", "#b32d00"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, 2008
LINES = ("-", "--", "-.", ":", "-", "--")  # lines and markers differ too, for whoever sees no colours
MARKERS = ("o", "s", "^", "D", "v", "P")
FONT = "DejaVu Sans"  # ships with matplotlib; it and no hinting make text equally wide everywhere
_styled = style.context(["default", {"font.family": FONT, "font.size": 9, "text.hinting": "none"}])


def to_display(image):
    """The picture as numpy uint8 (H, W, 3), ready for imshow.

    image: (3, H, W) or (H, W, 3), tensor or array, uint8 or float in [0, 1]; a shape that fits both readings
    is read channels first. Raises ValueError on anything else.
    """
    picture = _to_numpy(image)
    if picture.ndim != 3 or 3 not in (picture.shape[0], picture.shape[2]) or picture.size == 0:
        raise ValueError(f"a picture is (3, H, W) or (H, W, 3), got {picture.shape}: pass one RGB picture")
    if picture.shape[0] == 3:
        picture = picture.transpose(1, 2, 0)
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(picture)
    if picture.dtype.kind != "f":
        raise ValueError(f"a picture is uint8 or float in [0, 1], got {picture.dtype}: convert it first")
    low, high = picture.min(), picture.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails too
        raise ValueError(f"a float picture lies in [0, 1], got {low:.3g} to {high:.3g}: divide by 255, once")
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8)


def attention_overlay(image, weights, strength=0.6):
    """The picture with a tint, and a white outline, where the model looked: uint8 (H, W, 3).

    image: see `to_display`. weights: (h, w), any grid; cell (0, 0) covers the picture's top left corner. The
    map is divided by its own maximum and enlarged with cell centres aligned. Weight 0 leaves a pixel as it
    was, the maximum blends `strength` of bright yellow into it; between them the tint passes through purple
    and orange, growing lighter with the weight, and the outline runs where the map has fallen to half its
    maximum: both read without colour vision. A flat map tints evenly, an all-zero map not at all. Raises
    ValueError.
    """
    picture = to_display(image)
    heat = _check_map(weights)
    heat = heat / (heat.max() or 1.0)
    height, width = picture.shape[:2]
    large = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.asarray(large).clip(0, 1)  # bicubic overshoots a little on both sides of an edge
    tint = mpl.colormaps["plasma"](heat)[..., :3] * 255
    alpha = strength * heat[..., None]
    seen = (1 - alpha) * picture + alpha * tint

    core = Image.fromarray(np.where(heat > 0.5, 255, 0).astype(np.uint8))
    grown = core.filter(ImageFilter.MaxFilter(1 + 2 * max(1, min(height, width) // 150)))
    seen[np.asarray(grown) != np.asarray(core)] = 255
    return np.rint(seen).astype(np.uint8)


@_styled
def show_attention(image, words, weights, references=(), probabilities=None, columns=7, title=None):
    """One caption as a strip: the picture, then for each word where the model looked.

    image: one picture, see `to_display`. words: T strings. weights: (T, h, w), or T maps; each has its own
    colour scale, whose maximum stands below it. probabilities: T numbers, the model's own for each word.
    references: what people said, listed below. Raises ValueError where lengths differ or a picture or map is
    malformed.
    """
    _check_lengths(f"{len(words)} words", len(words), weights=weights, probabilities=probabilities)
    picture, maps = to_display(image), [_check_map(w) for w in weights]
    notes = [f"max {m.max():.2f}" for m in maps]
    if probabilities is not None:
        notes = [f"p {float(p):.2f}, {note}" for p, note in zip(probabilities, notes)]
    views = [picture] + [attention_overlay(picture, m) for m in maps]
    heads = [_wrap(word, 1.38, 10) for word in ("(picture)", *words)]
    cells = list(zip(views, heads, ["", *notes]))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    width = 1.47 * max(4, min(columns, len(cells)))  # at least 4, for the sentences above and below
    top, said = _wrap(title, width, 11), _list_references(references, width, 9)

    above = [max(_height(head, 10) for _, head, _ in row) + 0.08 for row in rows]
    tall = _fit(picture, 1.38, 1.9)[1]
    tops = np.cumsum([_height(top, 11) + 0.04] + [a + tall + 0.25 for a in above])
    fig = _new_figure(width + 0.1, tops[-1] + _height(said, 9) + 0.05)
    _write(fig, 0.1, 0.04, top, 11)
    for i, (row, y) in enumerate(zip(rows, tops)):
        for j, (view, head, note) in enumerate(row):
            ax = _place_picture(fig, view, 0.1 + 1.47 * j, y + above[i], 1.38, tall)
            ax.set_title("\n".join(head), fontsize=10, pad=3, linespacing=1.2, parse_math=False)
            ax.set_xlabel(note, fontsize=8, color=GREY, labelpad=3)
    _write(fig, 0.1, tops[-1] + 0.02, said, 9, color=GREY)
    return fig


@_styled
def show_captions(images, captions, references=None, columns=4, judgements=None):
    """A grid of pictures, each with the generated caption and, in grey, what people said.

    images: (n, 3, H, W), or n pictures of any sizes. captions: n strings. references: for each picture a
    string or a list of them. judgements: for each picture True (a tick), False (a cross) or None (no mark).
    Raises ValueError where lengths differ or a picture is malformed.
    """
    n = len(images)
    _check_lengths(f"{n} pictures", n, captions=captions, references=references, judgements=judgements)
    if n == 0:
        raise ValueError("no pictures to show: images is empty, pass at least one")
    pictures = [to_display(image) for image in images]
    marks = [None] * n if judgements is None else judgements
    indent = 0.0 if judgements is None else 0.2  # room for the mark, left of the caption
    generated = [_wrap(_clean(caption) or "(no words)", 2.4 - indent, 10) for caption in captions]
    said = [_list_references(each, 2.4, 8.5) for each in (references or [()] * n)]

    rows = [range(i, min(i + columns, n)) for i in range(0, n, columns)]
    tall = [max(_fit(pictures[i], 2.4, 2.4)[1] for i in row) for row in rows]
    text = [max(_height(generated[i], 10) + _height(said[i], 8.5) for i in row) for row in rows]
    tops = np.cumsum([0.08] + [a + b + 0.24 for a, b in zip(tall, text)])
    fig = _new_figure(0.05 + 2.55 * min(columns, n), tops[-1])
    for row, top, height in zip(rows, tops, tall):
        for j, i in enumerate(row):
            left, below = 0.1 + 2.55 * j, top + height + 0.05
            _place_picture(fig, pictures[i], left, top, 2.4, height)
            if marks[i] is not None:
                mark, colour = ("✓", GOOD) if marks[i] else ("✗", BAD)
                _write(fig, left, below, mark, 10, color=colour, weight="bold")
            _write(fig, left + indent, below, generated[i], 10)
            _write(fig, left, below + _height(generated[i], 10), said[i], 8.5, color=GREY)
    return fig


@_styled
def plot_losses(history, val=None, smooth=None):
    """Training loss by iteration (thin) with its running mean (thick), and validation loss as dots.

    history: a loss for each iteration, or a dict of such lists by the run's name. val: a loss for each epoch,
    or a dict by the same names; epochs are taken to be equally long, so the last dot lies at the last
    iteration. smooth: how many iterations, centred, the mean runs over; by default a 25th of the longest run,
    at most 101. The y axis is logarithmic where the means span a factor above 20. A loss that is not finite
    leaves a gap. Raises ValueError for a run without losses or a name in val that is no run's.
    """
    runs = history if isinstance(history, dict) else {"training": history}
    runs = {name: _finite(losses) for name, losses in runs.items()}
    vals = val if isinstance(val, dict) else {} if val is None else dict.fromkeys(runs, val)
    if not runs or not all(map(len, runs.values())) or set(vals) - set(runs):
        seen = {name: len(losses) for name, losses in runs.items()}
        raise ValueError(f"got losses {seen}, val {list(vals)}: pass some for each run, val by its name")
    half = (smooth or min(101, max(map(len, runs.values())) // 25)) // 2
    fig, ax = _new_plot("iteration", f"loss (thick: mean of {2 * half + 1})" if half else "loss")
    lines, means = {}, {name: _running_mean(losses, half) for name, losses in runs.items()}
    for k, (name, losses) in enumerate(runs.items()):
        steps, look = np.arange(1, len(losses) + 1), {"color": COLOURS[k % 6]}
        ax.plot(steps, losses, marker="." if len(losses) < 30 else "", alpha=0.35, lw=0.8, **look)
        lines[name] = ax.plot(steps, means[name], LINES[k % 6], lw=2, **look)[0]
        dots = _finite(vals.get(name, ()))
        if len(dots):
            at = len(losses) * np.arange(1, len(dots) + 1) / len(dots)
            look |= {"ms": 5.5, "mec": "white", "mew": 0.7, "zorder": 3}
            label = f"{name}, validation" if isinstance(val, dict) else "validation"
            lines[label] = ax.plot(at, dots, MARKERS[k % 6], **look)[0]
    if len(lines) > 1:
        _add_legend(ax, lines)
    level = np.concatenate([mean[mean > 0] for mean in means.values()])
    if len(level) and level.max() > 20 * level.min():
        _use_log_axis(ax, level.max() / level.min())
    return fig


@_styled
def plot_gates(gates, words, title=None):
    """What goes on inside an LSTM over one caption: a heat map for each of its quantities.

    gates: dict of name -> (T, H), such as i, f, o, g, c, h for one caption of T steps and H hidden units;
    where H is more than the rows of pixels, evenly spaced units are seen. words: T strings, the x axis.
    Quantities within [0, 1] share that scale; each other one has its own, symmetric about 0. Raises
    ValueError.
    """
    maps = {name: _to_numpy(values) for name, values in gates.items()}
    T = len(words)
    if not maps or not T:
        raise ValueError(f"got {len(maps)} gates and {T} words: pass at least one of each")
    for name, values in maps.items():
        if values.ndim != 2 or len(values) != T or values.size == 0 or not np.isfinite(values).all():
            raise ValueError(f"gate {name!r}, {values.shape}, is not ({T}, H), finite: pass one caption's")
    width = T * float(np.clip(7 / T, 0.4, 0.9))
    ticks, head = [_wrap(word, 1.4, 9) for word in words], _wrap(title, width + 1.6, 11)
    longest = max(_text_width(line, 9) for lines in ticks for line in [*lines, ""])
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > width / T - 0.06 else {}
    top = 0.12 + _height(head, 11)
    fig = _new_figure(width + 1.6, top + len(maps) + (0.75 * longest if turn else 0) + 0.25)
    _write(fig, 0.1, 0.04, head, 11)
    for k, (name, values) in enumerate(maps.items()):
        ax = _place_axes(fig, 1.0, top + k, width, 0.85)
        drawn = _draw_gate(ax, values)
        ax.set_ylabel("\n".join(_wrap(name, 0.85, 10)), rotation=0, ha="right", va="center", parse_math=False)
        ax.set_xticks(range(T), [""] * T)
        low, high = drawn.get_clim()
        bar = _place_axes(fig, width + 1.1, top + k, 0.1, 0.85)
        fig.colorbar(drawn, cax=bar, ticks=[low, (low + high) / 2, high], format=lambda v, _: f"{v:.2g}")
    ax.set_xticks(range(T), ["\n".join(lines) for lines in ticks], parse_math=False, **turn)
    return fig


@_styled
def plot_similarity(vectors, words):
    """Which words became alike: the cosines of their vectors, each word beside one that it is like.

    vectors: (n, W), none of them zero; words: n strings. The order begins with the first word, and goes on with the one
    most like the one before of those that are left. Raises ValueError.
    """
    vectors, words = _to_numpy(vectors).astype(float), list(words)
    if vectors.ndim != 2 or len(vectors) != len(words) or not len(words):
        raise ValueError(f"vectors are {vectors.shape} for {len(words)} words: pass (n, W) and n words, at least one")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("a word's vector is zero or not finite: it has no direction to compare")
    cosines = (vectors / lengths) @ (vectors / lengths).T
    order = [0]
    while len(order) < len(words):
        order.append(max(set(range(len(words))) - set(order), key=lambda k: (cosines[order[-1], k], -k)))
    names = [_clean(words[k]) for k in order]
    side, margin = 0.2 * len(words), max(_text_width(name, 9) for name in names) + 0.2
    fig = _new_figure(margin + side + 0.8, side + margin + 0.1)
    ax = _place_axes(fig, margin, 0.1, side, side)
    drawn = ax.imshow(cosines[np.ix_(order, order)], cmap="PuOr", vmin=-1, vmax=1)
    ax.set_xticks(range(len(words)), names, rotation=90, parse_math=False)
    ax.set_yticks(range(len(words)), names, parse_math=False)
    bar = _place_axes(fig, margin + side + 0.15, 0.1, 0.1, side)
    fig.colorbar(drawn, cax=bar, ticks=[-1, 0, 1])
    return fig


@_styled
def plot_gradient_norms(norms):
    """How the gradient's norm changes on its way back through time, on a logarithmic scale.

    norms: dict of name -> list, whose entry k is the norm k steps back from the loss. A norm of 0 has no
    place on the scale and leaves a gap. Raises ValueError where no norm is above 0.
    """
    runs = {name: _finite(values) for name, values in norms.items()}
    positive = np.concatenate([values[values > 0] for values in runs.values()] or [[]])
    if not len(positive):
        raise ValueError(f"no gradient norm above 0 in {list(runs)}: pass some, a logarithmic scale has no 0")
    fig, ax = _new_plot("steps back from the loss", "norm of the gradient")
    lines = {}
    for k, (name, values) in enumerate(runs.items()):
        look = {"color": COLOURS[k % 6], "marker": MARKERS[k % 6], "ls": LINES[k % 6]}
        lines[name] = ax.plot(np.where(values > 0, values, np.nan), ms=4, lw=1.6, **look)[0]
    _add_legend(ax, lines)
    _use_log_axis(ax, positive.max() / positive.min())
    return fig


@_styled
def plot_ratios(rows, machine=None):
    """Measured pairs as bars, ours to the other, on a logarithmic scale; left of 1 ours is the faster.

    rows: with name, size, against, ours, other, unit, ratio, low, high (`bench.Row`), the quartiles low and high drawn
    as whiskers. machine: a line for the title. Raises ValueError where there are none.
    """
    if not rows:
        raise ValueError("got no rows: measure some first, with eecs598.bench.run")
    names = [f"{row.name} ({row.size})" if row.size else row.name for row in rows]
    labels = [f"{name}\nagainst {row.against}" for name, row in zip(names, rows)]
    left = 0.15 + max(_text_width(line, 8) for label in labels for line in label.split("\n"))
    head = _wrap(machine, left + 5, 9)
    top = 0.12 + _height(head, 9)
    fig = _new_figure(left + 5.4, top + 0.42 * len(rows) + 0.6)
    _write(fig, 0.1, 0.04, head, 9)
    ax = _place_axes(fig, left, top, 3.9, 0.42 * len(rows))
    places = np.arange(len(rows))[::-1]
    ratios = np.array([row.ratio for row in rows])
    spread = np.array([[row.ratio - row.low, row.high - row.ratio] for row in rows]).T
    colours = [GOOD if ratio <= 1 else BAD for ratio in ratios]
    ax.barh(places, ratios, 0.6, color=colours, xerr=spread, error_kw={"lw": 1.2, "capsize": 2, "ecolor": GREY})
    for place, row in zip(places, rows):
        text = f" {row.ratio:.2f}: {row.ours:,.3g} / {row.other:,.3g} {row.unit}"
        ax.annotate(text, (max(row.high, row.ratio), place), va="center", fontsize=8, annotation_clip=False)
    ax.set_xscale("log")
    ax.set_xlim(min(0.5, 0.7 * ratios.min()), max(1.5, 1.3 * ratios.max()))
    ax.axvline(1, color=INK, lw=1)
    ax.set_yticks(places, labels, fontsize=8, parse_math=False)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("ours / other: left of 1 ours takes less")
    return fig


@_styled
def plot_growth(rows):
    """How the time of two ways grows with one size at a time: a panel for each size, both axes logarithmic.

    rows: named "LSTM, H=64" and so on (`bench.growth_pairs`), with ours, other, unit and against.
    """
    panels = {}
    for row in rows:
        name, value = row.name.split(", ")[-1].split("=")
        panels.setdefault(name, []).append((int(value), row))
    fig = _new_figure(0.8 + 3.6 * len(panels), 3.3)
    for k, (name, points) in enumerate(panels.items()):
        ax = _place_axes(fig, 0.75 + 3.6 * k, 0.12, 2.75, 2.65)
        sizes = [value for value, _ in points]
        for side, label, mark in (("ours", "by hand", 0), ("other", points[0][1].against, 1)):
            times = [getattr(row, side) for _, row in points]
            ax.plot(sizes, times, LINES[mark], marker=MARKERS[mark], color=COLOURS[mark], label=label)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [str(size) for size in sizes])
        _use_log_axis(ax, max(times) / min(times))
        ax.grid(True, color="#dddddd")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(xlabel=name, ylabel=f"{points[0][1].unit}, forward and backward" if k == 0 else "")
        ax.legend(frameon=False)
    return fig


# ---- arrays ----


def _to_numpy(values):
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _check_map(weights):
    heat = _to_numpy(weights)
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(f"attention weights are (h, w), got {heat.shape}: pass one picture's, for one word")
    heat = heat.astype(np.float64)
    if not (np.isfinite(heat).all() and heat.min() >= 0):
        raise ValueError(f"attention weights are finite and >= 0, got {heat.min():.3g}: apply softmax")
    return heat


def _check_lengths(wanted, n, **given):
    for name, values in given.items():
        if values is not None and len(values) != n:
            raise ValueError(f"{name} has {len(values)} entries for {wanted}: pass one for each")


def _finite(values):
    values = np.array([float(v) for v in values])
    return np.where(np.isfinite(values), values, np.nan)


def _running_mean(values, half):
    """The mean from `half` before to `half` after each value, as far as there are any; NaN is passed over."""
    good = np.isfinite(values)
    first = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    total, count = (np.append(0, np.cumsum(x)) for x in (np.where(good, values, 0), good))
    count = count[end] - count[first]
    return (total[end] - total[first]) / np.where(count > 0, count, np.nan)


# ---- figures and axes, placed in inches from the top left ----


class _Canvas(FigureCanvasAgg):
    """At the notebook's resolution, writes PNG with a palette of 256 colours, a third of the size."""

    def print_png(self, file, *, metadata=None, pil_kwargs=None, **_):
        if self.figure.dpi != DPI:
            return super().print_png(file, metadata=metadata, pil_kwargs=pil_kwargs)
        self.draw()
        picture = Image.fromarray(np.asarray(self.buffer_rgba())).convert("RGB")
        # refined by k-means, or small marks lose their colour to the photographs
        picture.quantize(256, kmeans=1).save(file, "png", optimize=True, dpi=(DPI, DPI))


class _NotebookFigure(Figure):
    """A figure that a notebook displays even where nothing has switched pyplot's inline backend on."""

    @_styled
    def draw(self, renderer):
        super().draw(renderer)

    @_styled
    def savefig(self, *args, **options):
        super().savefig(*args, **options)

    def _repr_png_(self):
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


def _new_figure(width, height):
    fig = _NotebookFigure(figsize=(width, height), dpi=DPI, facecolor="white")
    _Canvas(fig)
    return fig


def _new_plot(xlabel, ylabel):
    fig = _new_figure(6.8, 3.5)
    ax = _place_axes(fig, 0.75, 0.12, 5.9, 2.88)
    ax.grid(True, color="#dddddd")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    return fig, ax


def _place_axes(fig, left, top, width, height):
    W, H = fig.get_size_inches()
    return fig.add_axes((left / W, 1 - (top + height) / H, width / W, height / H))


def _place_picture(fig, picture, left, top, width, height):
    """Axes of the picture's own shape, as large as the box allows, centred and standing on its lower edge."""
    w, h = _fit(picture, width, height)
    ax = _place_axes(fig, left + (width - w) / 2, top + height - h, w, h)
    ax.imshow(picture, aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def _fit(picture, width, height):
    h, w = picture.shape[:2]
    scale = min(width / w, height / h)
    return w * scale, h * scale


def _draw_gate(ax, values):
    ax.set_yticks([])
    within = values.min() >= 0 and values.max() <= 1
    limit = 1 if within else np.abs(values).max()
    look = {"cmap": "cividis", "vmin": 0} if within else {"cmap": "PuOr", "vmin": -limit}
    return ax.imshow(values.T, aspect="auto", interpolation="nearest", vmax=limit, **look)


def _use_log_axis(ax, span):
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if span < 300 else (1,), numticks=12))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def _add_legend(ax, lines):
    # matplotlib before 3.10 leaves out labels that begin with an underscore: hence the space
    labels = [f" {_clean(name)}" for name in lines]
    for text in ax.legend(list(lines.values()), labels, frameon=False).get_texts():
        text.set_parse_math(False)


# ---- text ----


def _clean(text):
    return " ".join(str(text).split())


@cache
def load_font(size):
    """The figures' font for Pillow, `size` pixels high."""
    return ImageFont.truetype(font_manager.findfont(FONT), size, layout_engine=ImageFont.Layout.BASIC)


def _text_width(text, size):
    """In inches, for a size in points."""
    return load_font(100).getlength(text) * size / 100 / 72


def _height(lines, size):
    return len(lines) * size * 1.35 / 72


def _wrap(text, width, size):
    """Lines no wider than `width` inches; a word that is wider is broken."""
    lines, room = [""], 0.99 * width  # for rounding: drawn text is up to 0.5% wider
    for word in _clean("" if text is None else text).split():
        longer = f"{lines[-1]} {word}".strip()
        if _text_width(longer, size) <= room:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            lines += [""] if lines[-1] and _text_width(lines[-1] + letter, size) > room else []
            lines[-1] += letter
    return lines if lines[0] else []


def _list_references(references, width, size):
    references = [references] if isinstance(references, str) else references
    return [line for each in references for line in _wrap(f"– {each}", width, size)]


def _write(fig, left, top, lines, size, color=INK, **options):
    W, H = fig.get_size_inches()
    options |= {"fontsize": size, "color": color, "va": "top", "linespacing": 1.2, "parse_math": False}
    fig.text(left / W, 1 - top / H, "\n".join(lines), **options)
