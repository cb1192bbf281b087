"""In a real browser: the attention viewer by itself, the notebook run in JupyterLab, and its exported HTML.

Takes Debian's Chromium (or another one that is found) by Playwright. Screenshots go to build/browser-*.png.
"""

import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT

from eecs598.vis import attention_overlay
from eecs598.vis.viewer import attention_viewer

NOTEBOOK = "rnn_lstm_captioning.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
RUN_SECONDS = 400  # for the notebook on its quick setting, at most; it takes about 60
MARKUP = '</script><img src=x onerror="top.hacked = hacked = 1"><script>top.hacked = hacked = 1</script>'


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("Chromium is missing: apt-get install chromium, or playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens a page by its address, without a network; what goes wrong in it is in `page.wrong`."""
    with contextlib.ExitStack() as stack:

        def open_page(address, width=900, height=460, **options):
            context = browser.new_context(
                viewport={"width": width, "height": height}, **{"reduced_motion": "reduce", **options}
            )
            stack.callback(context.close)
            page = context.new_page()
            page.wrong = []
            local = ("file:", "data:", "blob:", "about:", "http://127.0.0.1")
            context.route(lambda url: not url.startswith(local), lambda route: route.abort())
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.on("dialog", lambda dialog: (page.wrong.append(dialog.message), dialog.dismiss()))
            page.goto(address)
            return page

        yield open_page


def take_screenshot(target, name):
    """A screenshot of a page or an element to build/, as numpy (H, W, 3)."""
    path = ROOT / "build" / f"browser-{name}.png"
    path.parent.mkdir(exist_ok=True)
    return np.asarray(Image.open(io.BytesIO(target.screenshot(path=path))).convert("RGB"))


def assert_not_blank(picture):
    assert Image.fromarray(np.asarray(picture)).getcolors(10) is None, "ten colours or fewer"


# --- the viewer by itself ---------------------------------------------------------------------------------

GRID = (3, 5)
CORNERS = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]


def plant_peaks():
    """A map for each of CORNERS, all its weight there."""
    maps = torch.zeros(len(CORNERS), *GRID)
    for heat, place in zip(maps, CORNERS):
        heat[place] = 0.8
    return maps


@pytest.fixture
def view(open_page, tmp_path):
    """Opens a viewer's page."""

    def view(viewer, **options):
        viewer.save(tmp_path / "page.html")
        return open_page((tmp_path / "page.html").as_uri(), **options)

    return view


def make_viewer(words=("one", "two", "three", "four", "five"), **options):
    """Two pictures, wide and high, with a peak in each corner and in the middle."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (3, 50, 120), dtype=np.uint8), rng.integers(0, 256, (3, 90, 40), dtype=np.uint8)]
    return attention_viewer(
        pictures, [words, words[:3]], [plant_peaks()] * 2, references=["a big cat", []],
        probabilities=[[0.5, 0.25, 0.1, 0.5, 0.6], [0.5] * 3],
        alternatives=[[[("six", 0.25), ("seven", 0.15)]] * 5, [[]] * 3], **options,
    )  # fmt: skip


def read_heat(frame):
    """What the script drew over the picture that is seen: RGBA (H, W, 4), as float."""
    data = frame.locator("section:not([hidden]) canvas").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1])))).astype(float)


def find_peak(frame):
    """The cell of GRID in which the tint's centre of mass lies."""
    alpha = read_heat(frame)[..., 3]
    y, x = np.mgrid[: alpha.shape[0], : alpha.shape[1]] / np.array(alpha.shape).reshape(2, 1, 1)
    assert alpha.sum() > 0
    return int(GRID[0] * (alpha * y).sum() / alpha.sum()), int(GRID[1] * (alpha * x).sum() / alpha.sum())


def read_said(frame):
    return frame.locator("#said").text_content()


def test_keys_move_the_heat_map_and_are_told(view):
    page = view(make_viewer())
    assert find_peak(page) == CORNERS[0] and read_said(page) == ""
    for _ in range(3):
        page.keyboard.press("Tab")  # past the two buttons, to the first word
    peaks, said = [find_peak(page)], []
    for _ in CORNERS[1:]:
        page.keyboard.press("ArrowRight")
        peaks.append(find_peak(page))
        said.append(read_said(page))
    assert peaks == CORNERS
    assert said[0].startswith("two, word 2 of 5. looked most at the top right, largest weight 0.8. probability 0.25")
    assert [text.split(",")[0] for text in said] == ["two", "three", "four", "five"]
    expected = {"ArrowRight": "five", "Home": "one", "ArrowLeft": "one", "ArrowDown": "two", "End": "five",
                "ArrowUp": "four"}  # fmt: skip
    for key, word in expected.items():
        page.keyboard.press(key)
        chosen = page.locator("li[aria-selected=true]:visible")
        assert chosen.inner_text().split()[0] == word == page.evaluate("document.activeElement.innerText").split()[0]
    assert page.wrong == []


def test_hover_and_tap_move_the_heat_map_and_are_told(view):
    page = view(make_viewer(), has_touch=True)
    for way in ("hover", "tap"):
        for word, corner in zip(("two", "four", "one", "three"), (CORNERS[i] for i in (1, 3, 0, 2))):
            getattr(page.get_by_role("option", name=word), way)()
            assert find_peak(page) == corner and read_said(page).startswith(f"{word}, word")
    rows = [row.inner_text().split("\t")[:2] for row in page.locator("section:visible tr").all()]
    assert rows == [["three", "0.10"], ["six", "0.25"], ["seven", "0.15"], ["all other words", "0.50"]]
    assert page.locator(".largest:visible").inner_text() == "0.8"


def test_pictures_take_turns(view):
    page = view(make_viewer())
    following = page.get_by_role("button", name="Next picture")
    assert page.locator("section:visible").count() == 1
    following.press("Enter")
    assert page.locator("section:visible").get_attribute("aria-label") == "Picture 2 of 2"
    assert read_said(page).startswith("Picture 2 of 2: one two three. one, word 1 of 3. looked most at the top left")
    page.get_by_role("option", name="three").hover()
    assert find_peak(page) == CORNERS[2]
    following.click()
    assert page.locator("#place").inner_text() == "picture 1 of 2" and find_peak(page) == CORNERS[0]
    page.get_by_role("button", name="Previous picture").click()
    assert page.locator("#place").inner_text() == "picture 2 of 2"
    assert page.locator("li[aria-selected=true]:visible").inner_text().split()[0] == "three"  # as it was left


def test_heat_map_is_the_figures(view):
    """The same colours at the same places as in the strips, but for the outline's last pixel."""
    grey = np.full((3, 320, 480), 120, np.uint8)
    maps = torch.softmax(3 * torch.randn(2, 35, generator=torch.Generator().manual_seed(0)), 1).view(2, 5, 7)
    page = view(attention_viewer([grey], ["a b"], [maps]))
    for word, heat in zip("ab", maps):
        page.get_by_role("option", name=word).hover()
        drawn, expected = read_heat(page), attention_overlay(grey, heat).astype(float)
        assert drawn.shape == (320, 480, 4)
        seen = 120 + (drawn[..., :3] - 120) * drawn[..., 3:] / 255
        outline = (drawn.min(2) == 255) | (expected.min(2) == 255)
        assert 0.002 < outline.mean() < 0.05
        assert np.abs(seen - expected)[~outline].max() < 5  # of 255


def test_map_glides_unless_motion_is_unwanted(view):
    page = view(make_viewer(), reduced_motion="no-preference")
    seen = page.evaluate("""async () => {
        document.querySelectorAll("li")[1].click();
        const seen = [];
        for (let frame = 0; frame < 120 && !(seen.length && seen.at(-1)[4] >= 1); frame++) {
            await new Promise(requestAnimationFrame);
            seen.push([...document.querySelector("section").grid]);
        }
        return seen;
    }""")
    assert [grid for grid in seen if 0 < grid[0] < 1 and 0 < grid[4] < 1], seen
    page.wait_for_timeout(500)
    assert find_peak(page) == CORNERS[1]


def test_markup_in_a_caption_does_not_run(view, open_page, tmp_path):
    words = (MARKUP, "two", MARKUP, "four", "{{data}}")
    viewer = make_viewer(words, title=MARKUP)
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!DOCTYPE html><meta charset='utf-8'>{viewer._repr_html_()}", encoding="utf-8")
    alone, framed = view(viewer), open_page(notebook.as_uri())
    for page, frame in [(alone, alone.main_frame), (framed, framed.frames[1])]:
        option = frame.get_by_role("option").nth(2)
        option.hover()
        page.wait_for_timeout(300)
        assert option.evaluate("li => li.firstChild.data") == MARKUP and read_said(frame).startswith(MARKUP)
        assert frame.locator("tr.said th:visible").inner_text() == MARKUP
        assert page.evaluate("window.hacked") is None and frame.evaluate("window.hacked") is None and page.wrong == []


def test_page_runs_no_script_but_its_own(view, tmp_path):
    """Were a caption ever to get in as markup, the page's policy would still stop it."""
    viewer = make_viewer()
    viewer.page = viewer.page.replace("<main>", f"<main>{MARKUP.removeprefix('</script>')}")
    page = view(viewer)
    page.wait_for_timeout(300)
    assert page.locator("main > script").count() == 1  # it is there
    assert page.evaluate("window.hacked") is None and page.locator("li[aria-selected=true]").count() == 2


def test_without_scripts_the_picture_and_its_words_are_seen(view):
    page = view(make_viewer(), java_script_enabled=False)
    for i in range(2):
        assert page.locator("section").nth(i).is_visible()
    assert page.locator("li").first.inner_text().split() == ["one", "0.50"]
    assert "scripts are disabled here" in page.locator("noscript").inner_text()
    assert not page.locator("figcaption").first.is_visible() and not page.locator("nav").is_visible()
    assert_not_blank(take_screenshot(page.locator("img").first, "without-scripts"))


def test_screen_readers_find_names_and_roles(view):
    page = view(make_viewer())
    page.get_by_role("option", name="two").click()
    tree = page.locator("main").aria_snapshot()
    for part in ('navigation "Pictures"', 'button "Previous picture"', 'region "Picture 1 of 2"', 'img "a big cat"',
                 'listbox "Words of the caption"', 'option "two 0.25" [selected]', "two, word 2 of 5"):  # fmt: skip
        assert part in tree
    assert page.get_by_role("listbox").get_attribute("aria-orientation") == "horizontal"


def luminance(colour):
    """Relative luminance as WCAG defines it, of a computed colour such as rgb(1, 2, 3)."""
    parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark_mode(view, scheme):
    page = view(make_viewer(title="Where it looked"), color_scheme=scheme)
    page.get_by_role("option", name="four").click()
    page.keyboard.press("ArrowRight")  # by the keyboard, so that the focus is marked
    back = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert back > 0.9 if scheme == "light" else back < 0.05
    for part in ("h1", "[aria-selected=true]", "[aria-selected=false]", "small", "figcaption", ".people", "caption"):
        ink = luminance(page.locator(part).first.evaluate("part => getComputedStyle(part).color"))
        assert (max(ink, back) + 0.05) / (min(ink, back) + 0.05) >= 4.5, part
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    assert_not_blank(take_screenshot(page, f"viewer-{scheme}"))


def test_narrow_frames_scroll_down_only(view):
    words = ("one", "t" * 60, "three", "four", "five")
    page = view(make_viewer(words, title="Where it looked " * 5), width=360, height=440)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [page.locator(f"section:visible {part}").bounding_box() for part in (".stage", ".words")]
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
    assert boxes[1]["x"] == boxes[0]["x"] and boxes[0]["width"] > 200  # one below the other, not side by side
    take_screenshot(page, "viewer-narrow")


# --- the notebook -----------------------------------------------------------------------------------------

SETTINGS = {
    # all cells in the page, or those out of sight could not be looked at
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    # saved beside Control+S, the file would count as changed by another program, and a dialog would cover the page
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
}
PROMPTS = "nodes => nodes.map(node => node.innerText.trim())"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, so that running its notebook changes nothing in it."""
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("JupyterLab is missing: pip install -e .")
    folder = tmp_path_factory.mktemp("project")
    for name in ("rnn_lstm_captioning.py", "helpers.py", "datasets/README.md", f"notebooks/{NOTEBOOK}"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "eecs598", folder / "eecs598", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def lab(browser, project, tmp_path_factory):
    """JupyterLab on the copied project; its address, ending in the token's query."""
    home, token = tmp_path_factory.mktemp("jupyter"), secrets.token_hex(16)
    folders = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
    environment = os.environ | {f"JUPYTER{'' if name.startswith('LAB') else '_'}{name}": str(home / name)
                                for name in folders}  # fmt: skip
    environment |= {"EECS598_QUICK": "1", "EECS598_DATA": "scenes", "IPYTHONDIR": str(home / "ipython")}
    environment["OMP_NUM_THREADS"] = "1"  # beside the browser, a second thread would mostly wait for its turn
    for plugin, settings in SETTINGS.items():
        name, _, part = plugin.partition(":")
        path = home / "LAB_SETTINGS_DIR" / name / f"{part}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={project}"]  # fmt: skip
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for_server(server, f"{address}/api?token={token}", home / "log")
        # a workspace for each, or one page would open what another has open
        yield lambda path: f"{address}/lab/workspaces/{Path(path).stem}/tree/{path}?token={token}"
    finally:
        server.terminate()  # it ends its kernels too
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for_server(server, address, log):
    for _ in range(120):
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()[-2000:]}"
        time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def run_notebook(browser, lab, project):
    """The page of JupyterLab in which every cell of the notebook was run, and then saved."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.goto(lab(f"notebooks/{NOTEBOOK}"))
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    prompts.first.wait_for(timeout=60_000)
    # without a kernel the indicator says idle too
    page.locator(".jp-KernelName", has_text="Python 3").wait_for(timeout=60_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=60_000)
    clear_and_run_all(page)
    page.locator("text=[*]:").first.wait_for(timeout=20_000)
    until = time.monotonic() + RUN_SECONDS
    while any("*" in text for text in prompts.evaluate_all(PROMPTS)):
        assert time.monotonic() < until, f"the notebook runs for more than {RUN_SECONDS} s"
        page.wait_for_timeout(1000)
    page.keyboard.press("Control+s")
    page.locator(".jp-mod-dirty").first.wait_for(state="detached", timeout=20_000)
    yield page
    context.close()


def clear_and_run_all(page):
    for menu, entry in [("Edit", "Clear Outputs of All Cells"), ("Run", "Run All Cells")]:
        page.get_by_role("menuitem", name=menu, exact=True).click()
        page.get_by_role("menuitem", name=entry, exact=True).click()


def assert_figures(page):
    """The figures in a page are there, as many as the committed notebook shows, and none of them is blank."""
    cells = json.loads((ROOT / "notebooks" / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    shown = [cell for cell in cells if not cell["id"].startswith("photos-")]  # which are left out here
    expected = sum("image/png" in output.get("data", {}) for cell in shown for output in cell.get("outputs", []))
    figures = page.locator("img[src^='data:image/png']")
    sources = figures.evaluate_all("figures => figures.map(figure => [figure.src, figure.naturalWidth])")
    assert len(sources) == expected >= 10
    for source, width in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB")
        assert picture.width == width
        assert_not_blank(picture)
    return figures


def assert_viewer_answers(page, name):
    """The first viewer in a page follows hover and keys."""
    element = page.locator("iframe.attention-viewer").first
    element.scroll_into_view_if_needed()
    frame = element.element_handle().content_frame()
    words = frame.get_by_role("option")
    before, said = read_heat(frame), []
    words.last.hover()
    assert np.abs(read_heat(frame) - before).max() > 0
    said.append(read_said(frame))
    words.first.click()
    said.append(read_said(frame))
    if words.count() > 1:
        page.keyboard.press("ArrowRight")
        said.append(read_said(frame))
        assert said[-1].split(", word")[1].startswith(" 2 of")
    assert len(set(said)) >= 2 and all("looked" in text for text in said)
    assert page.locator(".attention-still").first.is_hidden()
    assert_not_blank(take_screenshot(element, name))


def test_every_cell_runs_in_jupyterlab(run_notebook, project):
    cells = json.loads((project / "notebooks" / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    errors = ["\n".join(output["traceback"]) for cell in cells for output in cell["outputs"]
              if output["output_type"] == "error"]  # fmt: skip
    assert not errors, errors[0]
    prompts = run_notebook.locator(".jp-CodeCell .jp-InputPrompt").evaluate_all(PROMPTS)
    assert prompts == [f"[{i}]:" for i in range(1, len(cells) + 1)]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def test_figures_are_seen_in_jupyterlab(run_notebook):
    figures = assert_figures(run_notebook)
    for i, name in [(0, "first"), (figures.count() - 1, "last")]:
        figures.nth(i).scroll_into_view_if_needed()
        assert_not_blank(take_screenshot(figures.nth(i), f"lab-{name}-figure"))
    take_screenshot(run_notebook, "lab")


def test_viewer_answers_in_jupyterlab(run_notebook):
    assert_viewer_answers(run_notebook, "lab-viewer")


def test_exported_html_shows_the_same(run_notebook, project, open_page):
    page = open_page(export(project / "notebooks" / NOTEBOOK).as_uri(), 1200, 900)
    take_screenshot(page, "exported")
    seen = [other.locator("img[src^='data:image/png']").count() for other in (run_notebook, page)]
    assert seen[0] == seen[1]
    assert_figures(page)
    assert_viewer_answers(page, "exported-viewer")


# --- the page that `make run` writes ------------------------------------------------------------------------


def export(notebook):
    """The notebook's page, as `make run` writes it."""
    pytest.importorskip("latex2mathml", reason="latex2mathml is missing: pip install -e '.[dev]'")
    command = [sys.executable, "-m", "nbconvert", "--to", "eecs598.vis.page.Page", str(notebook)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return notebook.with_suffix(".html")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The page of the committed notebook."""
    return export(Path(shutil.copy(ROOT / "notebooks" / NOTEBOOK, tmp_path_factory.mktemp("page"))))


def test_the_page_stands_alone(browser, exported):
    """No request leaves it, and every formula is drawn: no dollar sign and no backslash is left in the prose."""
    assert exported.stat().st_size < 4e6
    with browser.new_context(offline=True) as context:
        page, requests = context.new_page(), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(exported.as_uri())
        assert [url for url in requests if url.startswith("http")] == []
        prose = page.locator(".jp-MarkdownCell").evaluate_all(
            "cells => cells.map(cell => { const copy = cell.cloneNode(true);"
            " copy.querySelectorAll('code, pre').forEach(node => node.remove()); return copy.textContent; })")
        assert [text for text in prose if "$" in text or "\\" in text] == []
        sizes = page.locator("math").evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
        assert len(sizes) > 150 and sum(width > 3 for width in sizes) > 0.9 * len(sizes)  # the others are folded away


@pytest.mark.parametrize("scheme, width", [("light", 800), ("dark", 1400)])
def test_the_page_can_be_read_in_light_and_dark_wide_and_narrow(open_page, exported, scheme, width):
    page = open_page(exported.as_uri(), width, 900, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert back > 0.9 if scheme == "light" else back < 0.05
    for part in ("h1", ".jp-MarkdownCell p", "math", ".jp-InputArea pre", ".jp-OutputArea pre"):
        ink = luminance(page.locator(part).first.evaluate("part => getComputedStyle(part).color"))
        assert (max(ink, back) + 0.05) / (min(ink, back) + 0.05) >= 4.5, part
    assert_not_blank(take_screenshot(page, f"page-{scheme}-{width}"))


def test_the_page_shows_sources_in_a_fixed_width_font_and_progress_bars_as_they_ended(open_page, exported):
    page = open_page(exported.as_uri(), 1200, 900)
    sources = page.locator(".jp-OutputArea .jp-RenderedMarkdown pre")
    fonts = sources.evaluate_all("all => all.map(each => getComputedStyle(each).fontFamily)")
    assert len(fonts) > 20 and all(font.endswith("monospace") for font in fonts)
    widths = sources.first.evaluate("""pre => { pre.style.display = "inline-block"; return ["iiiiiiii", "mmmmmmmm"].map(
        text => { pre.textContent = text; return pre.getBoundingClientRect().width; }); }""")
    assert widths[0] == widths[1]
    bars = page.get_by_text("batch/s").all_inner_texts()
    assert all(text.count("%|") == 1 and "100%|" in text for text in bars) and len(bars) >= 5


def test_a_notebook_that_is_not_trusted_shows_the_still_picture(lab, project, open_page):
    """JupyterLab takes frames, scripts and styles out of what it did not run itself."""
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": make_viewer()._repr_html_()}}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1, "source": "", "outputs": [output]}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (project / "foreign.ipynb").write_text(json.dumps(notebook))
    page = open_page(lab("foreign.ipynb"), 1000, 700)
    still = page.locator(".jp-OutputArea-output img").first
    still.wait_for(timeout=60_000)
    assert still.evaluate("img => img.naturalWidth") == 120 and page.locator("iframe.attention-viewer").count() == 0
    text = page.locator(".jp-OutputArea-output").inner_text()
    assert "one two three four five" in text and "trust the notebook" in text and "attention-still" not in text
    assert_not_blank(take_screenshot(page, "lab-not-trusted"))
