"""The figures: where the tint lands, what is drawn, what is written, and that nothing overlaps or leaks."""

import io
import itertools
import json
import os
import random
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager, style
from PIL import Image
from support.drawing import draw_maps, draw_picture

from eecs598 import vis
from eecs598.utils import attention_visualizer, reset_seed
from eecs598.vis import text
from eecs598.vis.figures import with_palette

AWKWARD = ["", "a cat", "$x_1$ or $\\frac{$", "<UNK> <b>b</b>", "w" * 90, "WWW MMM " * 9, "é ö a\nb"]
SHAPES = [(112, 112), (60, 131), (127, 48)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_png(fig, **options):
    data = io.BytesIO()
    fig.savefig(data, format="png", **options)
    return data.getvalue()


# ---- pictures ----


def test_to_display_reads_every_accepted_kind_alike(rng):
    picture = draw_picture(rng)
    expected = picture.transpose(1, 2, 0)
    kinds = [picture, expected, torch.tensor(picture), picture / 255, torch.tensor(picture / 255).float()]
    kinds += [torch.tensor(picture / 255, requires_grad=True), torch.tensor(expected).permute(2, 0, 1)]
    for kind in kinds:
        shown = vis.to_display(kind)
        assert shown.dtype == np.uint8 and np.array_equal(shown, expected)
    half = vis.to_display(torch.tensor(picture / 255, dtype=torch.bfloat16))
    assert np.abs(half.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "image, seen",
    [
        (np.zeros((4, 5), np.uint8), "(4, 5)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "(2, 3, 8, 8)"),
        (np.zeros((1, 8, 8), np.uint8), "(1, 8, 8)"),
        (np.zeros((3, 0, 8), np.uint8), "(3, 0, 8)"),
        (np.zeros((3, 8, 8), np.int64), "int64"),
        (np.full((3, 8, 8), 255.0), "255"),
        (np.full((3, 8, 8), -1.5), "-1.5"),
        (np.full((3, 8, 8), np.nan), "nan"),
    ],
)
def test_bad_picture_is_a_one_line_error(image, seen):
    with pytest.raises(ValueError) as error:
        vis.to_display(image)
    assert seen in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "weights, seen",
    [
        (np.ones(49), "(49,)"),
        (np.ones((1, 7, 7)), "(1, 7, 7)"),
        (np.ones((0, 7)), "(0, 7)"),
        (np.full((7, 7), np.nan), "nan"),
        (np.full((7, 7), np.inf), "inf to inf"),
        (np.eye(7) - 0.5, "-0.5 to 0.5"),
    ],
)
def test_bad_map_is_a_one_line_error(rng, weights, seen):
    for call in (lambda: vis.attention_overlay(draw_picture(rng), weights),
                 lambda: attention_visualizer(draw_picture(rng), weights, "dog"),
                 lambda: vis.show_attention(draw_picture(rng), ["dog"], [weights])):  # fmt: skip
        with pytest.raises(ValueError) as error:
            call()
        assert seen in str(error.value) and "\n" not in str(error.value)


def overlay_below_token(picture, weights):
    return attention_visualizer(picture, weights, "dog")[25:]


@pytest.mark.parametrize("overlay", [vis.attention_overlay, overlay_below_token])
@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (4, 9), (6, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_planted_peak_lands_in_its_corner(rng, overlay, grid, shape):
    (height, width), (h, w) = shape, grid
    picture = rng.integers(60, 120, (3, height, width), dtype=np.uint8)
    before = picture.transpose(1, 2, 0).astype(int)
    y, x = np.mgrid[:height, :width]
    for i, j in itertools.product((0, h - 1), (0, w - 1)):
        weights = torch.zeros(grid)
        weights[i, j] = 0.7
        after = overlay(picture, weights).astype(int)
        change = np.abs(after - before).sum(2)
        row, column = ((change * at).sum() / change.sum() for at in (y * h / height, x * w / width))
        assert i <= row <= i + 1 and j <= column <= j + 1
        centre = int((i + 0.5) * height / h), int((j + 0.5) * width / w)
        assert after[centre].sum() > before[centre].sum() + 100  # a bright patch
        # the bicubic kernel ends within two cells of the peak's centre
        far = (np.abs(y * h / height - i - 0.5) > 2.1) | (np.abs(x * w / width - j - 0.5) > 2.1)
        assert not change[far].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_cells_are_aligned_by_their_centres(shape):
    (height, width), (h, w) = shape, (5, 7)
    grey = np.full((3, height, width), 100, np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    for i, j in itertools.product(range(1, h - 1), range(1, w - 1)):
        weights = np.zeros((h, w))
        weights[i, j] = 1
        change = np.abs(vis.attention_overlay(grey, weights).astype(int) - 100).sum(2)
        row, column = (change * y).sum() / change.sum(), (change * x).sum() / change.sum()
        assert row * h / height == pytest.approx(i + 0.5, abs=0.1)
        assert column * w / width == pytest.approx(j + 0.5, abs=0.1)
        assert len(np.unique(change)) > 20  # a smooth patch, not a square


def test_no_weight_leaves_the_picture_and_flat_weight_tints_it_evenly(rng):
    picture = draw_picture(rng)
    shown = vis.to_display(picture)
    assert np.array_equal(vis.attention_overlay(picture, np.zeros((3, 4))), shown)
    yellow = np.array(mpl.colormaps["plasma"](1.0)[:3]) * 255
    for level in (1e-30, 1 / 12, 5.0):
        flat = vis.attention_overlay(picture, np.full((3, 4), level), strength=0.5)
        assert np.abs(flat - (0.5 * shown + 0.5 * yellow)).max() <= 1


def test_weights_are_scaled_by_their_maximum_and_small_ones_hardly_dim(rng):
    picture, weights = draw_picture(rng), rng.random((4, 4))
    seen = vis.attention_overlay(picture, weights)
    assert np.array_equal(seen, vis.attention_overlay(picture, 7 * weights))
    weights[:] = 0.1
    weights[0, 0] = 1
    shown, seen = vis.to_display(picture).astype(int), vis.attention_overlay(picture, weights).astype(int)
    assert np.abs(seen - shown)[20:, 30:].max() <= 0.1 * 0.6 * 255 + 1


# ---- the published names ----


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_visualizer_as_published(rng, shape):
    picture, weights = torch.tensor(draw_picture(rng, *shape)), torch.rand(7, 7)
    kept = picture.clone(), weights.clone()
    tokens = ["a", "dog", "<END>", "$x_y$", "incomprehensibility" * 4, ""]
    views = [attention_visualizer(picture, weights, token) for token in tokens]
    assert {(v.shape, v.dtype) for v in views} == {((shape[0] + 25, shape[1], 3), np.dtype(np.uint8))}
    assert len({v[:25].tobytes() for v in views}) == len(tokens)  # each token is written
    assert all(np.array_equal(v[25:], vis.attention_overlay(picture, weights)) for v in views)
    assert torch.equal(picture, kept[0]) and torch.equal(weights, kept[1])
    ink = views[4][:25, [0, 1, -2, -1]]
    assert (ink == 255).all()  # the longest token is cut with an ellipsis, not by the picture's edge


@pytest.mark.parametrize("seed", [0, 598, -3, 2**40])
def test_reset_seed_reaches_all_three_generators(seed):
    def draw(seed):
        reset_seed(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draw(seed)
    assert draw(seed) == first
    assert all(a != b for a, b in zip(draw(seed + 1), first))


# ---- captions beside pictures ----


def assert_nothing_overlaps(fig):
    """No text touches another, or a picture, or the figure's edge."""
    with style.context(["default", {"text.hinting": "none"}]):
        renderer = fig.canvas.get_renderer()
        fig.draw(renderer)
        texts = [t for t in fig.findobj(mpl.text.Text) if t.get_text() and t.get_visible()]
        boxes = [(repr(t.get_text()), t.get_window_extent(renderer)) for t in texts]
    boxes += [("axes", ax.get_window_extent(renderer)) for ax in fig.axes]
    for name, box in boxes:
        assert min(box.x0, box.y0) >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1, f"{name} is cut"
    for (a, one), (b, two) in itertools.combinations(boxes, 2):
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        down = min(one.y1, two.y1) - max(one.y0, two.y0)
        assert across < 1 or down < 1, f"{a} overlaps {b}"


def assert_text_is_literal(fig):
    marked = [t for t in fig.findobj(mpl.text.Text) if "$" in t.get_text() and "mathdefault" not in t.get_text()]
    assert marked and not any(t.get_parse_math() for t in marked)


def read_texts(fig):
    return ["".join(t.get_text().split()) for t in fig.texts]


def test_strip_has_one_view_for_each_word(rng):
    picture, words = draw_picture(rng), ["a", "big", "<UNK>", "co$t_x", "<END>"]
    maps, sure = draw_maps(rng, 5), [0.9, 0.5, 0.25, 0.125, 1.0]
    fig = vis.show_attention(picture, words, maps, ["a large cat", "$5"], sure, columns=4, title="a big cat")
    assert [ax.get_title() for ax in fig.axes] == ["(picture)", *words]
    for ax, weights, p in zip(fig.axes[1:], maps, sure):
        assert ax.get_xlabel() == f"p {p:.2f}, max {weights.max():.2f}"
        assert np.array_equal(ax.images[0].get_array(), vis.attention_overlay(picture, weights))
    assert np.array_equal(fig.axes[0].images[0].get_array(), vis.to_display(picture))
    lefts = [round(ax.get_position().x0, 3) for ax in fig.axes]
    assert lefts[:3] == lefts[3:] and len(set(lefts)) == 3  # six views, at most four in a row: two rows of three
    text = " ".join(read_texts(fig))
    assert "abigcat" in text and "–alargecat" in text and "–$5" in text
    assert_nothing_overlaps(fig)


@pytest.mark.parametrize("shape", [*SHAPES, (200, 30), (20, 300)])
def test_strip_is_legible_with_awkward_words(rng, shape):
    words = [word or "-" for word in AWKWARD]
    picture, maps = draw_picture(rng, *shape), draw_maps(rng, len(words))
    fig = vis.show_attention(picture, words, maps, AWKWARD, columns=3, title="t " * 90)
    assert_nothing_overlaps(fig)
    assert_text_is_literal(fig)
    for ax in fig.axes:
        box = ax.get_window_extent()
        assert box.height / box.width == pytest.approx(shape[0] / shape[1])


def test_strip_of_an_empty_caption_shows_the_picture(rng):
    assert len(vis.show_attention(draw_picture(rng), [], torch.zeros(0, 7, 7), "one reference").axes) == 1


texts = st.sampled_from(AWKWARD) | st.text("Wil$_ xé", max_size=60)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 2)), min_size=1, max_size=6), st.integers(1, 4))
def test_grid_of_captions_overlaps_nowhere_and_loses_nothing(cells, columns):
    rng = np.random.default_rng(0)
    pictures = [draw_picture(rng, *SHAPES[kind]) for _, kind in cells]
    captions = [text for text, _ in cells]
    marks = [(True, False, None)[kind] for _, kind in cells]
    fig = vis.show_captions(pictures, captions, [AWKWARD[: k + 1] for _, k in cells], columns, marks)
    assert_nothing_overlaps(fig)
    assert not any(t.get_parse_math() for t in fig.texts)
    texts = read_texts(fig)
    assert all(("".join(text.split()) or "(nowords)") in texts for text in captions)
    assert texts.count("✓") == marks.count(True) and texts.count("✗") == marks.count(False)
    assert all("".join(f"–{AWKWARD[1]}".split()) in texts[-1] for _, k in cells[-1:] if k)


def test_grid_takes_a_batch_and_plain_references(rng):
    batch = torch.rand(5, 3, 24, 24)
    fig = vis.show_captions(batch, list("abcde"), ["one", "two", "three", "four", "five"], columns=2)
    assert [t for t in read_texts(fig) if t[0] == "–"] == ["–one", "–two", "–three", "–four", "–five"]
    for ax, image in zip(fig.axes, batch):
        assert np.array_equal(ax.images[0].get_array(), vis.to_display(image))


@pytest.mark.parametrize(
    "call, seen",
    [
        (lambda p: vis.show_attention(p, ["a", "b"], np.ones((3, 7, 7))), "weights has 3 entries for 2"),
        (lambda p: vis.show_attention(p, ["a"], np.ones((1, 7, 7)), probabilities=[]), "probabilities has 0"),
        (lambda p: vis.show_captions([p], ["a", "b"]), "captions has 2 entries for 1 pictures"),
        (lambda p: vis.show_captions([p], ["a"], references=[]), "references has 0"),
        (lambda p: vis.show_captions([p], ["a"], judgements=[True, False]), "judgements has 2"),
        (lambda p: vis.show_captions([], []), "no pictures"),
        (lambda p: vis.plot_losses([]), "got losses {'training': 0}"),
        (lambda p: vis.plot_losses({"rnn": [1.0]}, {"lstm": [1.0]}), "val ['lstm']"),
        (lambda p: vis.plot_losses({"rnn": [1.0], "lstm": [1.0]}, [1.0]), "val is one list for 2 runs"),
        (lambda p: vis.plot_gates({"i": np.ones((4, 2))}, ["a", "b"]), "(4, 2)"),
        (lambda p: vis.plot_gates({"i": np.full((1, 2), np.nan)}, ["a"]), "finite"),
        (lambda p: vis.plot_gates({}, ["a"]), "0 gates"),
        (lambda p: vis.plot_similarity(np.ones((2, 3)), ["a"]), "(2, 3) for 1 words"),
        (lambda p: vis.plot_similarity(np.zeros((1, 3)), ["a"]), "zero or not finite"),
        (lambda p: vis.plot_gradient_norms({"RNN": [0.0, 0.0]}), "gradient norm in ['RNN']"),
        (lambda p: vis.plot_gradient_norms({}), "gradient norm in []"),
    ],
)
def test_bad_call_is_a_one_line_error(rng, call, seen):
    with pytest.raises(ValueError) as error:
        call(draw_picture(rng))
    assert seen in str(error.value) and "\n" not in str(error.value)


# ---- curves and heat maps ----


@pytest.mark.parametrize("n, smooth", [(1, None), (7, 3), (200, None), (90, 11), (40, 400)])
def test_losses_and_their_running_mean(rng, n, smooth):
    losses = rng.random(n) + 1
    losses[n // 2 : n // 2 + n // 5] = np.nan
    ax = vis.plot_losses(list(losses), smooth=smooth).axes[0]
    half = (smooth or n // 25) // 2
    windows = [losses[max(0, i - half) : i + half + 1] for i in range(n)]
    mean = [w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows]
    thin, thick = ax.lines
    np.testing.assert_array_equal(thin.get_ydata(), losses)
    np.testing.assert_allclose(thick.get_ydata(), mean)
    assert list(thin.get_xdata()) == list(range(1, n + 1)) and thin.get_linewidth() < thick.get_linewidth()


def test_another_quantity_is_named_on_the_axis():
    assert vis.plot_losses([1.0] * 40, smooth=1, label="reward").axes[0].get_ylabel() == "reward"
    assert vis.plot_losses([1.0] * 40, smooth=3, label="reward").axes[0].get_ylabel() == "reward (thick: mean of 3)"


def test_one_huge_loss_does_not_change_the_means_of_later_ones():
    axes = vis.plot_losses([60.0] * 5 + [3e19] + [2.5] * 94, smooth=3).axes[0]
    mean = axes.lines[1].get_ydata()
    assert mean[10:] == pytest.approx(2.5) and mean[0] == 60 and mean[5] == pytest.approx(1e19)


def test_metadata_of_a_figure_is_text_or_left_out(tmp_path):
    vis.plot_losses([1.0, 2.0]).savefig(tmp_path / "a.png", metadata={"Software": None, "Seed": 3})
    with Image.open(tmp_path / "a.png") as figure:
        assert figure.text == {"Seed": "3"}


def test_validation_dots_lie_at_their_iterations():
    ax = vis.plot_losses([torch.tensor(3.0)] * 40, val=[3, 2, 1, float("inf")]).axes[0]
    assert list(ax.lines[-1].get_xdata()) == [10, 20, 30, 40]
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), [3, 2, 1, np.nan])
    assert [t.get_text().strip() for t in ax.get_legend().get_texts()] == ["training", "validation"]


def test_several_runs_are_named_and_differ_without_colour():
    runs = {"rnn": [3, 2], "_lstm": [4, 2], "$at$t_n": [4, 3, 2]}
    fig = vis.plot_losses(runs, {"rnn": [2.5], "_lstm": [2.5]})
    legend = fig.axes[0].get_legend()
    names = [t.get_text().strip() for t in legend.get_texts()]
    assert names == ["rnn", "rnn, validation", "_lstm", "_lstm, validation", "$at$t_n"]
    looks = [(line.get_linestyle(), line.get_marker()) for line in legend.get_lines()]
    assert len(set(looks)) == len(looks)
    assert_text_is_literal(fig)
    assert_png(fig)


@pytest.mark.parametrize("low, scale", [(1, "log"), (10, "linear"), (-1, "linear"), (np.nan, "linear")])
def test_losses_are_logarithmic_when_their_range_asks_for_it(low, scale):
    assert vis.plot_losses([60.0] * 5 + [low] * 5).axes[0].get_yscale() == scale


def test_gates_are_drawn_over_their_words(rng):
    words = ["<START>", "a", "incomprehensibilities", "$c$t_"]
    gates = {"i": torch.rand(4, 6), "c": 3 * torch.randn(4, 6), "long_name of $h$": np.zeros((4, 6))}
    fig = vis.plot_gates(gates, words, title="one $caption_")
    maps = [ax for ax in fig.axes if ax.get_ylabel()]
    assert ["".join(ax.get_ylabel().split()) for ax in maps] == ["i", "c", "long_nameof$h$"]
    for ax, values in zip(maps, gates.values()):
        np.testing.assert_allclose(ax.images[0].get_array(), np.asarray(values).T)
    low, high = maps[1].images[0].get_clim()
    assert low == -high and high == pytest.approx(float(gates["c"].abs().max()))
    assert maps[0].images[0].get_clim() == maps[2].images[0].get_clim() == (0, 1)
    assert ["".join(t.get_text().split()) for t in maps[-1].get_xticklabels()] == words
    assert_text_is_literal(fig)
    assert_png(fig)


def assert_all_inside(fig):
    """No text or axis of a figure is cut off at its edge."""
    with style.context(["default", {"text.hinting": "none"}]):
        fig.draw(fig.canvas.get_renderer())
        box = fig.get_tightbbox(fig.canvas.get_renderer())
    width, height = fig.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


@pytest.mark.parametrize("words", [["a"], ["word"] * 25, ["incomprehensibilities" * 3, "b"]])
def test_gates_stay_inside_the_figure(words):
    fig = vis.plot_gates({name: torch.rand(len(words), 3) for name in "ifog"}, words)
    assert_all_inside(fig)


def test_similar_words_lie_side_by_side():
    """Two groups, planted: the vectors of one are nearly parallel, those of the other at right angles to them."""
    vectors = torch.tensor([[1, 0.1, 0], [0, 0, 2.0], [3, 0.2, 0], [0, 0.1, 1.0], [-1, 0.1, 0]])
    words = ["red", "dog", "$blue_", "cat", "not red"]
    fig = vis.plot_similarity(vectors, words)
    ax = fig.axes[0]
    seen = [label.get_text() for label in ax.get_yticklabels()]
    assert seen == ["red", "$blue_", "cat", "dog", "not red"]
    assert [label.get_text() for label in ax.get_xticklabels()] == seen
    drawn, order = ax.images[0], torch.tensor([words.index(word) for word in seen])
    wanted = torch.nn.functional.cosine_similarity(vectors[order, None], vectors[None, order], dim=2)
    np.testing.assert_allclose(drawn.get_array(), wanted, atol=1e-6)
    assert drawn.get_clim() == (-1, 1)
    assert_text_is_literal(fig)
    assert_png(fig)


@pytest.mark.parametrize("n", [1, 30])
def test_similarities_stay_inside_the_figure(n):
    fig = vis.plot_similarity(torch.randn(n, 4), [f"word number {k}" for k in range(n)])
    assert_all_inside(fig)


def test_gradient_norms_by_distance():
    norms = {"RNN": [1, 0.1, 0.0, 1e-9], "LSTM": [1, 0.9, 0.8, float("nan")]}
    fig = vis.plot_gradient_norms(norms)
    ax = fig.axes[0]
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 0.1, np.nan, 1e-9])
    assert list(ax.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert_png(fig)


# ---- figures in a notebook ----


def assert_png(fig):
    data = fig._repr_png_()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    assert picture.getpixel((0, 0)) == (255, 255, 255) and len(data) < 40_000
    assert len(picture.getcolors(1 << 20)) > 10


def draw_each(rng):
    picture = draw_picture(rng)
    return [
        vis.show_attention(picture, ["a", "cat"], draw_maps(rng, 2)),
        vis.show_captions([picture], ["a cat"], ["the cat"], judgements=[False]),
        vis.plot_losses(range(1, 90), [3, 2]),
        vis.plot_gates({"i": torch.rand(2, 3), "c": torch.randn(2, 3)}, ["a", "cat"]),
        vis.plot_gradient_norms({"RNN": [1, 0.1, 0.001]}),
    ]


def test_user_settings_neither_matter_nor_change():
    plt = pytest.importorskip("matplotlib.pyplot")
    torch.manual_seed(0)
    plain = [write_png(fig) for fig in draw_each(np.random.default_rng(0))]
    torch.manual_seed(0)
    own = {"font.size": 30, "lines.linewidth": 9, "font.family": "serif", "savefig.facecolor": "black"}
    with style.context(["dark_background", own]):
        before = dict(mpl.rcParams)
        dark = [write_png(fig) for fig in draw_each(np.random.default_rng(0))]
        assert dict(mpl.rcParams) == before
    assert [one == other for one, other in zip(dark, plain)] == [True] * 5
    assert plt.get_fignums() == []  # or a notebook would display each figure twice


def test_a_figure_is_written_whole_or_not_at_all(rng, tmp_path, monkeypatch):
    fig, path = next(iter(draw_each(rng))), tmp_path / "maps.png"
    for name in (path, str(tmp_path / "maps"), tmp_path / "maps.pdf"):
        fig.savefig(name, dpi=20)
    before = path.read_bytes()
    assert before[1:4] == b"PNG" and (tmp_path / "maps.pdf").read_bytes()[:4] == b"%PDF"
    assert {p.name for p in tmp_path.iterdir()} == {"maps.png", "maps", "maps.pdf"}

    def fail(figure, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mpl.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match=r"No space left on device.*maps\.png"):
        fig.savefig(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 3


def test_a_notebook_displays_figures_without_pyplot(rng):
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython is not installed")
    for fig in draw_each(rng):
        data, _ = formatters.DisplayFormatter().format(fig)
        assert Image.open(io.BytesIO(data["image/png"])).size == pytest.approx(fig.bbox.size, abs=1)


# --- other scripts -----------------------------------------------------------------------------------------


@pytest.fixture
def new_fonts(monkeypatch, tmp_path):
    """A function that installs a font, "Squares", in which each of some characters is a black square, for this test."""
    forget_fonts()
    ours = [entry for entry in font_manager.fontManager.ttflist if entry.name == text.FONT]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", ours)

    def install(characters):
        builder, pen = FontBuilder(1000), TTGlyphPen(None)
        pen.moveTo((0, 0)), pen.lineTo((0, 800)), pen.lineTo((800, 800)), pen.lineTo((800, 0)), pen.closePath()
        builder.setupGlyphOrder([".notdef", "square"])
        builder.setupCharacterMap(dict.fromkeys(map(ord, characters), "square"))
        builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
        builder.setupHorizontalMetrics({".notdef": (800, 0), "square": (800, 0)})
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(tmp_path / "squares.ttf")
        font_manager.fontManager.addfont(tmp_path / "squares.ttf")

    yield install
    forget_fonts()


def forget_fonts():
    for known in (text._family_with, text._has, text._note_missing):
        known.cache_clear()


HINDI = "दो कुत्ते"


def test_a_script_that_the_font_lacks_is_written_in_an_installed_one(new_fonts, capsys):
    new_fonts(HINDI)
    white = np.full((30, 30, 3), 255, dtype=np.uint8)
    fig = vis.show_captions([white], [f"two: {HINDI}"])
    ink = np.asarray(Image.open(io.BytesIO(write_png(fig))).convert("L")) < 128
    assert ink.sum() > 7 * 60  # the eight signs, each a square of 0.8 x 10 points at 75 dots an inch: 8 x 8 pixels
    assert not capsys.readouterr().err
    assert text.text_width("द", 10) == pytest.approx(8 / 72)
    assert (attention_visualizer(white, np.ones((1, 1)), "द")[:25] < 128).mean() > 0.05


@pytest.mark.filterwarnings("error")
def test_a_script_that_no_font_has_is_noted_once(new_fonts, capsys):
    fig = vis.show_captions([np.zeros((30, 30, 3), dtype=np.uint8)] * 2, [HINDI, HINDI])
    assert_png(fig)
    assert_png(fig)
    (note,) = capsys.readouterr().err.splitlines()
    assert "no installed font has (Devanagari)" in note and "Noto Sans" in note


def test_palette_is_for_the_notebook_only(rng):
    fig = draw_each(rng)[1]
    small, large = Image.open(io.BytesIO(write_png(fig))), Image.open(io.BytesIO(write_png(fig, dpi=150)))
    assert small.mode == "P" and large.mode == "RGBA" and large.width >= 2 * small.width - 1
    red = [c for _, c in small.convert("RGB").getcolors() if c[0] > 130 and c[1] < 80 and c[2] < 60]
    assert red  # the cross keeps its colour


def test_a_palette_shows_a_picture_as_well_as_one_found_on_all_its_pixels(rng):
    blurred = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((160, 120)))
    ours, theirs = (np.asarray(picture.convert("RGB")).astype(int) for picture in
                    (with_palette(blurred), Image.fromarray(blurred).quantize(256, kmeans=1)))  # fmt: skip
    assert np.abs(ours - blurred).mean() < 1.1 * np.abs(theirs - blurred).mean() < 10


@pytest.mark.parametrize("down, along", [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_a_line_of_one_pixel_keeps_its_colour(down, along):
    pixels = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 200, 3))
    for k in range(100):
        pixels[50 + down * k, 99 + along * (k - 50)] = 200, 30, 30
    r, g, b = np.moveaxis(np.asarray(with_palette(pixels).convert("RGB")).astype(int), -1, 0)
    assert ((r > 150) & (g < 80) & (b < 80)).sum() == 100


def test_real_photographs_make_small_figures():
    root = Path(os.environ.get("EECS598_REAL_DATA", "")) / "coco_sample"
    if not (root / "captions.json").is_file():
        pytest.skip("EECS598_REAL_DATA names no folder with coco_sample/captions.json")
    data = json.loads((root / "captions.json").read_text(encoding="utf-8"))
    said = {}
    for note in data["annotations"]:
        said.setdefault(note["image_id"], []).append(note["caption"])
    entries = data["images"][:4]
    pictures = [np.asarray(Image.open(root / "images" / e["file_name"]).convert("RGB")) for e in entries]
    references = [said[e["id"]] for e in entries]
    captions, marks = [each[0] for each in references], [True, False, None, True]
    fig = vis.show_captions(pictures, captions, references, judgements=marks)
    assert_nothing_overlaps(fig)
    assert len(write_png(fig)) < 130_000
    assert all(np.array_equal(ax.images[0].get_array(), p) for ax, p in zip(fig.axes, pictures))
