"""The attention viewer without a browser: what is in the page, and what stays out of it."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT
from support.drawing import draw_maps, draw_picture

from eecs598.vis.viewer import attention_viewer

MARKUP = '</script><img src=x onerror="alert(1)"><b>&amp;'
VOID = {"img", "br", "meta", "link", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: every tag with its attributes, and the text inside the innermost of some tags."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append((self.inside[-1] if self.inside else "", data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text(self, tag):
        return [text for inside, text in self.texts if inside == tag]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def read_data(viewer):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', viewer.page)[1])


def read_jpeg(url):
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))


# --- the page ---------------------------------------------------------------------------------------------


def test_page_holds_pictures_words_and_weights(rng):
    pictures = [draw_picture(rng), torch.rand(3, 30, 90), draw_picture(rng, 80, 20).transpose(1, 2, 0)]
    captions = ["a cat", ["two", "dogs", "<END>"], ""]
    maps = [draw_maps(rng, 5), draw_maps(rng, 3, 7, 7), draw_maps(rng, 1)]
    viewer = attention_viewer(pictures, captions, maps, references=["the cat", ["dogs", "two of them"], []])
    page, data = Page(viewer.page), read_data(viewer)["pictures"]
    assert page.text("li") == ["a", "cat", "the cat", "two", "dogs", "<END>", "dogs", "two of them"]
    assert [len(picture["words"]) for picture in data] == [2, 3, 0]
    for picture, size, img in zip(data, [(60, 40), (90, 30), (20, 80)], page.all("img")):
        assert picture["ratio"] == pytest.approx(size[0] / size[1]) and read_jpeg(img["src"]).size == size
    for picture, maps_of in zip(data, maps):
        assert picture["grid"] == list(maps_of.shape[1:])
        for word, heat in zip(picture["words"], maps_of):
            np.testing.assert_allclose(np.array(word["weights"]) / 999, (heat / heat.max()).flatten(), atol=6e-4)
            assert float(word["largest"]) == pytest.approx(float(heat.max()), rel=0.06)
    assert [img["alt"] for img in page.all("img")] == ["the cat", "dogs", "picture 3"]


def test_page_shows_the_picture_as_it_is():
    y, x = np.mgrid[:60, :80]
    picture = np.stack([3 * x, 4 * y, 255 - 3 * x]).astype(np.uint8)
    viewer = attention_viewer([picture], ["a"], torch.ones(1, 1, 2, 2))
    (img,) = Page(viewer.page).all("img")
    shown = np.asarray(read_jpeg(img["src"])).astype(int)
    assert np.abs(shown - picture.transpose(1, 2, 0)).mean() < 2


def test_sent_in_batches_or_in_lists_the_page_is_the_same(rng):
    pictures, maps = torch.rand(2, 3, 20, 30), torch.stack([draw_maps(rng, 4), draw_maps(rng, 4)])
    as_arrays = attention_viewer(pictures, ["a b", "c"], maps)
    as_lists = attention_viewer(list(pictures.numpy()), [["a", "b"], ["c"]], [each.numpy() for each in maps])
    assert as_arrays.page == as_lists.page


@pytest.mark.parametrize("grid", [(7, 7), (2, 5), (6, 3)])
def test_place_of_the_peak_is_told_in_words(rng, grid):
    h, w = grid
    places = {(0, 0): "top left", (0, w - 1): "top right", (h - 1, 0): "bottom left", (h - 1, w - 1): "bottom right"}
    maps = torch.full((len(places), h, w), 0.01)
    for heat, place in zip(maps, places):
        heat[place] = 0.5
    data = read_data(attention_viewer([draw_picture(rng)], ["a b c d"], maps[None]))["pictures"][0]
    for word, (i, j), name in zip(data["words"], places, places.values()):
        assert f"most at the {name}, largest weight 0.5" in word["said"]
        assert word["weights"].index(999) == i * w + j


def test_flat_and_empty_maps_have_no_peak(rng):
    maps = torch.stack([torch.full((3, 3), 1 / 9), torch.zeros(3, 3), torch.eye(3) * 0])
    maps[2, 1, 1] = 1
    words = read_data(attention_viewer([draw_picture(rng)], ["a b c"], [maps]))["pictures"][0]["words"]
    said = [re.search("looked (.*), largest weight (.*)", word["said"]).groups() for word in words]
    assert said == [("everywhere equally", "0.11"), ("nowhere", "0"), ("most at the centre", "1")]
    assert set(words[0]["weights"]) == {999} and set(words[1]["weights"]) == {0}


def test_probabilities_and_alternatives_are_told(rng):
    others = [[("a", 0.25), ("cat", 0.5)], [], [("one", 0.0)]]
    viewer = attention_viewer([draw_picture(rng)], ["a dog x"], [draw_maps(rng, 3)], alternatives=[others],
                              probabilities=[torch.tensor([0.25, 1.0, 0.125])])  # fmt: skip
    words = read_data(viewer)["pictures"][0]["words"]
    assert [word["probability"] for word in words] == [0.25, 1.0, 0.125]
    assert [word["others"] for word in words] == [[["cat", 0.5]], [], [["one", 0.0]]]  # not the word itself
    assert [word["rest"] for word in words] == [0.25, None, 0.875]
    assert "a, word 1 of 3." in words[0]["said"] and "probability 0.25. other words: cat 0.50" in words[0]["said"]
    assert Page(viewer.page).text("small") == ["0.25", "1.00", "0.12"]


# --- what stays out ---------------------------------------------------------------------------------------


def view_markup(rng):
    return attention_viewer(
        [draw_picture(rng)] * 2, [[MARKUP, "{{data}}"], MARKUP], [draw_maps(rng, 9)] * 2, title=MARKUP,
        references=[[MARKUP], MARKUP], alternatives=[[[(MARKUP, 0.5)]] * 2, [[(MARKUP, 0.5)]] * 3],
        probabilities=[[0.5] * 2, [0.5] * 3],
    )  # fmt: skip


def test_markup_stays_text_in_the_page(rng):
    viewer = view_markup(rng)
    page, plain = Page(viewer.page), Page(attention_viewer([draw_picture(rng)] * 2, ["a b", "a b c"],
                                                           [draw_maps(rng, 9)] * 2).page)  # fmt: skip
    assert [img["src"][:5] for img in page.all("img")] == ["data:"] * 2 and "b" not in page.text("p")
    assert len(page.all("script")) == len(plain.all("script")) == 2
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"ul", "small"}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text("li")[:3] == [MARKUP, "{{data}}", MARKUP] and MARKUP in page.text("h1")
    words = read_data(viewer)["pictures"][0]["words"]
    assert [word["word"] for word in words] == [MARKUP, "{{data}}"] and words[1]["others"] == [[MARKUP, 0.5]]


def test_markup_stays_text_in_the_notebook(rng):
    viewer = view_markup(rng)
    page = Page(viewer._repr_html_())
    (frame,) = page.all("iframe")
    assert frame["srcdoc"] == viewer.page and frame["sandbox"] == "allow-scripts" and MARKUP in frame["title"]
    assert {tag for tag, _ in page.tags} == {"iframe", "div", "p", "img", "br", "i", "style"}
    assert [img["src"][:5] for img in page.all("img")] == ["data:"] * 2
    assert MARKUP + " {{data}}" in page.text("p")


def test_page_takes_nothing_from_the_network_and_runs_one_script(rng):
    viewer = attention_viewer([draw_picture(rng)], ["a"], [draw_maps(rng, 1)])
    page = Page(viewer.page)
    (policy,) = [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs]
    (script,) = re.findall(r"<script>(.*?)</script>", viewer.page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                      f"script-src 'sha256-{digest}'")  # fmt: skip
    assert "://" not in viewer.page and not page.all("link") and "{{" not in viewer.page


def test_a_picture_takes_at_most_300_kb(rng):
    noise = rng.integers(0, 256, (3, 1500, 2000), dtype=np.uint8)
    words = ["incomprehensibilities"] * 30
    options = {"probabilities": [[0.5] * 30], "alternatives": [[[("unlikely", 0.1)] * 10] * 30]}
    viewer = attention_viewer([noise], [words], [draw_maps(rng, 30, 64, 48)], references=["x " * 100], **options)
    assert len(viewer._repr_html_()) < 300_000
    assert attention_viewer([noise[:, :1]], ["a"], [draw_maps(rng, 1)])  # a line of pixels, much wider than high


def test_fine_grids_are_averaged_in_place(rng):
    maps = torch.zeros(20, 90, 60)
    for t, heat in enumerate(maps):
        heat[4 * t : 4 * t + 3, 3 * t] = 0.2
    picture = read_data(attention_viewer([draw_picture(rng)], [["w"] * 20], [maps]))["pictures"][0]
    h, w = picture["grid"]
    assert h * w * 20 <= 20_000 and h / w == pytest.approx(1.5, rel=0.1)
    for t, word in enumerate(picture["words"]):
        i, j = divmod(word["weights"].index(999), w)
        assert abs((i + 0.5) * 90 / h - (4 * t + 1.5)) <= 90 / h and abs((j + 0.5) * 60 / w - (3 * t + 0.5)) <= 60 / w
        assert word["largest"] == "0.2"


# --- bad input --------------------------------------------------------------------------------------------

PICTURE, HEAT = np.zeros((3, 8, 8), np.uint8), np.full((2, 3, 3), 1 / 9)


@pytest.mark.parametrize(
    "change, seen",
    [
        ({"images": PICTURE}, "(3, 8, 8)"),
        ({"images": []}, "empty"),
        ({"images": [PICTURE[0]]}, "picture 0: a picture is"),
        ({"captions": "a cat"}, "captions: 'a cat' for 1 pictures"),
        ({"captions": ["a", "b"]}, "captions: 2 entries for 1 pictures"),
        ({"captions": None}, "captions is None"),
        ({"weights": None}, "weights is None"),
        ({"weights": [HEAT, HEAT]}, "weights: 2 entries"),
        ({"weights": [HEAT[0]]}, "(3, 3)"),
        ({"weights": [HEAT[:, :0]]}, "(2, 0, 3)"),
        ({"weights": [HEAT > 0]}, "bool"),
        ({"captions": ["a big cat"]}, "picture 0: 3 words but 2 maps"),
        ({"weights": [HEAT * np.nan]}, "weights at 'a' are nan"),
        ({"weights": [HEAT - 0.5]}, "-0.389"),
        ({"references": "a cat"}, "references: 'a cat'"),
        ({"probabilities": [[0.5]]}, "1 probabilities for 2 words"),
        ({"probabilities": [[0.5, float("nan")]]}, "probability of 'cat' is nan"),
        ({"probabilities": [[-0.7, 0.5]]}, "probability of 'a' is -0.7"),
        ({"alternatives": [[[]]]}, "alternatives for 1 of 2 words"),
        ({"alternatives": [[["dog"], []]]}, "alternatives at 'a' are ['dog']"),
        ({"alternatives": [[[("dog", 1.5)], []]]}, "probability of 'dog' is 1.5"),
    ],
)
def test_bad_input_is_a_one_line_error(change, seen):
    given = {"images": [PICTURE], "captions": ["a cat"], "weights": [HEAT]} | change
    with pytest.raises(ValueError) as error:
        attention_viewer(**given)
    assert seen in str(error.value) and "\n" not in str(error.value)


# --- where it is shown ------------------------------------------------------------------------------------


def test_a_notebook_displays_it(rng):
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython is not installed")
    viewer = attention_viewer([draw_picture(rng)] * 2, ["a", "b"], [draw_maps(rng, 1)] * 2, title="two <b>", height=321)
    data, _ = formatters.DisplayFormatter().format(viewer)
    assert data["text/html"] == viewer._repr_html_() and "height: 321px" in data["text/html"]
    assert "Attention viewer, 2 pictures: two <b>" in data["text/plain"]


def test_save_writes_the_page_or_leaves_what_was_there(rng, tmp_path):
    viewer = attention_viewer([draw_picture(rng)], [["Füße"]], [draw_maps(rng, 1)])
    viewer.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == viewer.page
    with pytest.raises(OSError, match="nowhere"):
        viewer.save(tmp_path / "nowhere" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


VIEW = """
import numpy as np, eecs598.vis.viewer
page = eecs598.vis.viewer.attention_viewer([np.zeros((3, 8, 8), np.uint8)], ["one"], np.ones((1, 1, 2, 2))).page
assert "<script>" in page and "one" in page
print(eecs598.vis.viewer.__file__)
"""


def test_the_page_comes_with_an_installed_wheel(tmp_path):
    """Built and installed without a network, then imported far from the project's folder."""
    source = tmp_path / "source"  # a build writes into its folder
    shutil.copytree(ROOT / "eecs598", source / "eecs598", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "helpers.py", "rnn_lstm_captioning.py"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "-w", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", *options, "--target", tmp_path / "site", wheel], check=True, capture_output=True)
    shutil.rmtree(source)
    result = subprocess.run([sys.executable, "-c", VIEW], cwd=tmp_path, env=os.environ | {"PYTHONPATH": "site"},
                            capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert Path(tmp_path, result.stdout.strip()).is_relative_to(tmp_path / "site")
