"""Plots: losses, gates, word vector similarities, gradient norms, benchmarks."""

import numpy as np
from matplotlib import ticker

from eecs598.vis.arrays import to_numpy
from eecs598.vis.figures import BAD, GOOD, GREY, INK, new_figure, place_axes, styled, write_lines
from eecs598.vis.text import clean, text_height, text_width, wrap

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, 2008
LINES = ("-", "--", "-.", ":", "-", "--")  # not only colours differ, for readers with colour blindness
MARKERS = ("o", "s", "^", "D", "v", "P")


@styled
def plot_losses(history, val=None, smooth=None, label="loss"):
    """Training loss by iteration (thin), its running mean (thick), and validation loss (markers).

    history: a loss for each iteration, or a dict from names of runs to such lists. val: a loss for each epoch, or a
    dict with the same names; epochs are assumed to have equal lengths, so the last marker is at the last iteration.
    smooth: window of the centred running mean in iterations; by default a 25th of the longest run, at most 101. The y
    axis is logarithmic if the means span more than a factor of 20. Values that are not finite leave a gap. label: of
    the y axis, for another quantity, such as the reward. Raises ValueError for a run without losses or an unknown name
    in val.
    """
    runs = history if isinstance(history, dict) else {"training": history}
    runs = {name: _finite(losses) for name, losses in runs.items()}
    vals = val if isinstance(val, dict) else {} if val is None else dict.fromkeys(runs, val)
    if not isinstance(val, dict) and len(vals) > 1:
        raise ValueError(f"val is one list for {len(runs)} runs: pass a dict with the values of each, {list(runs)}")
    if not runs or not all(map(len, runs.values())) or set(vals) - set(runs):
        seen = {name: len(losses) for name, losses in runs.items()}
        raise ValueError(f"got losses {seen}, val {list(vals)}: pass losses for each run, and val under its name")
    half = (smooth or min(101, max(map(len, runs.values())) // 25)) // 2
    fig, ax = _new_plot("iteration", f"{label} (thick: mean of {2 * half + 1})" if half else label)
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


@styled
def plot_gates(gates, words, title=None):
    """The gates and states of an LSTM over one caption, as heat maps.

    gates: dict of name -> (T, H), such as i, f, o, g, c, h for a caption of T steps and H hidden units; if H exceeds
    the rows of pixels, evenly spaced units are shown. words: T strings, for the x axis. Values in [0, 1] share one
    scale; others have their own, symmetric about 0. Raises ValueError.
    """
    maps = {name: to_numpy(values) for name, values in gates.items()}
    T = len(words)
    if not maps or not T:
        raise ValueError(f"got {len(maps)} gates and {T} words: pass at least one of each")
    for name, values in maps.items():
        if values.ndim != 2 or len(values) != T or values.size == 0 or not np.isfinite(values).all():
            raise ValueError(f"gate {name!r}, {values.shape}, is not ({T}, H), finite: pass one caption's")
    width = T * float(np.clip(7 / T, 0.4, 0.9))
    ticks, head = [wrap(word, 1.4, 9) for word in words], wrap(title, width + 1.6, 11)
    longest = max(text_width(line, 9) for lines in ticks for line in [*lines, ""])
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > width / T - 0.06 else {}
    top = 0.12 + text_height(head, 11)
    fig = new_figure(width + 1.6, top + len(maps) + (0.75 * longest if turn else 0) + 0.25)
    write_lines(fig, 0.1, 0.04, head, 11)
    for k, (name, values) in enumerate(maps.items()):
        ax = place_axes(fig, 1.0, top + k, width, 0.85)
        drawn = _draw_gate(ax, values)
        ax.set_ylabel("\n".join(wrap(name, 0.85, 10)), rotation=0, ha="right", va="center", parse_math=False)
        ax.set_xticks(range(T), [""] * T)
        low, high = drawn.get_clim()
        bar = place_axes(fig, width + 1.1, top + k, 0.1, 0.85)
        fig.colorbar(drawn, cax=bar, ticks=[low, (low + high) / 2, high], format=lambda v, _: f"{v:.2g}")
    ax.set_xticks(range(T), ["\n".join(lines) for lines in ticks], parse_math=False, **turn)
    return fig


@styled
def plot_similarity(vectors, words):
    """Cosine similarities of word vectors, as a heat map ordered so that similar words are neighbours.

    vectors: (n, W), none of them zero; words: n strings. Starting from the first word, each next one is the remaining
    word that is most similar to the previous one. Raises ValueError.
    """
    vectors, words = to_numpy(vectors).astype(float), list(words)
    if vectors.ndim != 2 or len(vectors) != len(words) or not len(words):
        raise ValueError(f"vectors are {vectors.shape} for {len(words)} words: pass (n, W) and n words, at least one")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = (np.isfinite(lengths) & (lengths > 0))[:, 0]
    if not usable.all():
        raise ValueError(f"the vector of {words[usable.argmin()]!r} is zero or not finite, so it has no direction")
    cosines = (vectors / lengths) @ (vectors / lengths).T
    order = [0]
    while len(order) < len(words):
        order.append(max(set(range(len(words))) - set(order), key=lambda k: (cosines[order[-1], k], -k)))
    names = [clean(words[k]) for k in order]
    side, margin = 0.2 * len(words), max(text_width(name, 9) for name in names) + 0.2
    fig = new_figure(margin + side + 0.8, side + margin + 0.1)
    ax = place_axes(fig, margin, 0.1, side, side)
    drawn = ax.imshow(cosines[np.ix_(order, order)], cmap="PuOr", vmin=-1, vmax=1)
    ax.set_xticks(range(len(words)), names, rotation=90, parse_math=False)
    ax.set_yticks(range(len(words)), names, parse_math=False)
    bar = place_axes(fig, margin + side + 0.15, 0.1, 0.1, side)
    fig.colorbar(drawn, cax=bar, ticks=[-1, 0, 1])
    return fig


@styled
def plot_gradient_norms(norms):
    """The norm of the gradient as it is backpropagated through time, on a logarithmic scale.

    norms: dict of name -> list, whose entry k is the norm k steps before the loss. Norms of 0 leave a gap. Raises
    ValueError if no norm is positive.
    """
    runs = {name: _finite(values) for name, values in norms.items()}
    positive = np.concatenate([values[values > 0] for values in runs.values()] or [[]])
    if not len(positive):
        raise ValueError(f"no positive gradient norm in {list(runs)}: a logarithmic scale needs one")
    fig, ax = _new_plot("steps back from the loss", "norm of the gradient")
    lines = {}
    for k, (name, values) in enumerate(runs.items()):
        look = {"color": COLOURS[k % 6], "marker": MARKERS[k % 6], "ls": LINES[k % 6]}
        lines[name] = ax.plot(np.where(values > 0, values, np.nan), ms=4, lw=1.6, **look)[0]
    _add_legend(ax, lines)
    _use_log_axis(ax, positive.max() / positive.min())
    return fig


@styled
def plot_ratios(rows, machine=None):
    """Measured pairs as bars, ours to the other, on a logarithmic scale; left of 1 ours is the faster.

    rows: with name, size, against, ours, other, unit, ratio, low, high (`bench.Row`); the quartiles low and high are
    drawn as whiskers. machine: a line for the title. Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("got no rows: measure some first, with eecs598.bench.run")
    names = [f"{row.name} ({row.size})" if row.size else row.name for row in rows]
    labels = [f"{name}\nagainst {row.against}" for name, row in zip(names, rows)]
    left = 0.15 + max(text_width(line, 8) for label in labels for line in label.split("\n"))
    times = [f"{row.ratio:.2f}: {_three_digits(row.ours)} / {_three_digits(row.other)} {row.unit}" for row in rows]
    right = 4.15 + max(text_width(text, 8) for text in times)
    head = wrap(machine, left + right - 0.4, 9)
    top = 0.12 + text_height(head, 9)
    fig = new_figure(left + right, top + 0.42 * len(rows) + 0.6)
    write_lines(fig, 0.1, 0.04, head, 9)
    ax = place_axes(fig, left, top, 3.9, 0.42 * len(rows))
    places = np.arange(len(rows))[::-1]
    ratios = np.array([row.ratio for row in rows])
    spread = np.array([[row.ratio - row.low, row.high - row.ratio] for row in rows]).T
    colours = [GOOD if ratio <= 1 else BAD for ratio in ratios]
    ax.barh(places, ratios, 0.6, color=colours, xerr=spread, error_kw={"lw": 1.2, "capsize": 2, "ecolor": GREY})
    for place, text in zip(places, times):  # in a column of their own, where they cross neither a bar nor the line at 1
        ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.set_xscale("log")
    ax.set_xlim(min(0.5, 0.7 * ratios.min()), max(1.5, 1.1 * ratios.max(), 1.05 * max(row.high for row in rows)))
    ax.axvline(1, color=INK, lw=1)
    ax.set_yticks(places, labels, fontsize=8, parse_math=False)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("ours / other: left of 1 ours takes less")
    return fig


@styled
def plot_growth(rows):
    """Time against size for two implementations: one panel for each kind of size, on logarithmic axes.

    rows: named "LSTM, H=64" and so on (`bench.pairs.growth_pairs`), with ours, other, unit and against.
    """
    panels = {}
    for row in rows:
        name, value = row.name.split(", ")[-1].split("=")
        panels.setdefault(name, []).append((int(value), row))
    fig = new_figure(0.8 + 3.6 * len(panels), 3.3)
    for k, (name, points) in enumerate(panels.items()):
        ax = place_axes(fig, 0.75 + 3.6 * k, 0.12, 2.75, 2.65)
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


def _three_digits(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _finite(values):
    values = np.array([float(v) for v in values])
    return np.where(np.isfinite(values), values, np.nan)


def _running_mean(values, half):
    """The centred mean over 2 * half + 1 values, fewer at the ends; NaNs are ignored."""
    good, window = np.isfinite(values), np.ones(2 * half + 1)  # a sum for each window: a huge value stays in its own
    total, count = (np.convolve(x, window)[half : half + len(x)] for x in (np.where(good, values, 0), good))
    return total / np.where(count > 0, count, np.nan)


def _new_plot(xlabel, ylabel):
    fig = new_figure(6.8, 3.5)
    ax = place_axes(fig, 0.75, 0.12, 5.9, 2.88)
    ax.grid(True, color="#dddddd")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    return fig, ax


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
    labels = [f" {clean(name)}" for name in lines]
    for text in ax.legend(list(lines.values()), labels, frameon=False).get_texts():
        text.set_parse_math(False)
