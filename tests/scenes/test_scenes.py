"""The embedded data set: what is drawn, what the captions say of it, and the judge that reads them back."""

import copy
import math
import os
import random
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from support import ROOT

from eecs598.coco import DataError, load_data, save_data, validate_data
from eecs598.scenes import ATTENTION_ROWS, dataset, judge_caption, make_scenes, score_attention, score_captions
from eecs598.scenes.__main__ import main
from eecs598.scenes.caption import LARGER_FIRST, PLACES, SIZE_WORDS, write_captions
from eecs598.scenes.compose import RELATIONS, RESERVED_PAIRS, RESERVED_TRIPLES, SIZES, compose_scene
from eecs598.scenes.draw import BACKGROUNDS, COLOURS, THINGS, Pen
from eecs598.scenes.judge import LEXICON

NUMBER_WORDS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
OPPOSITES = [("left", "right"), ("above", "beneath"), ("over", "under"), ("under", "above"), ("below", "over"),
             ("beneath", "above"), ("beside", "over"), ("right", "left")]  # fmt: skip
GROUNDS = {"grass": "sand", "lawn": "beach", "sand": "snow", "beach": "water", "water": "road", "sea": "street",
           "snow": "grass", "road": "lawn", "street": "sea", "floor": "sand"}  # fmt: skip


def compose(number, unseen=False):
    """Scenes and their captions without pictures."""
    for i in range(number):
        rng = random.Random(f"test {unseen} {i}")
        scene = compose_scene(rng, unseen, 112)
        yield scene, write_captions(scene, rng)


@pytest.fixture(scope="module")
def data():
    return make_scenes(300, 90, seed=3, workers=1, progress=False)


@pytest.fixture(scope="module")
def composed():
    return list(compose(1500))


# --- the data file ------------------------------------------------------------------------------------------


def test_data_file(data, tmp_path):
    save_data(data, tmp_path / "scenes.pt")
    loaded = load_data(tmp_path / "scenes.pt")  # weights_only: plain values throughout
    validate_data(data)
    assert loaded.keys() == data.keys()
    for key, value in data.items():
        assert torch.equal(loaded[key], value) if isinstance(value, torch.Tensor) else loaded[key] == value
    assert data["train_images"].shape == (300, 3, 112, 112)
    ids = torch.cat([data["train_image_ids"], data["val_image_ids"]])
    assert len(ids.unique()) == 390


def test_caption_rows_are_one_of_the_references(data):
    words = data["vocab"]["idx_to_token"]
    for split in ("train", "val"):
        for row, references in zip(data[f"{split}_captions"], data[f"{split}_references"]):
            text = " ".join(words[i] for i in row)
            assert text.replace(" <NULL>", "") in [f"<START> {caption} <END>" for caption in references]


def test_same_seed_same_data_for_any_number_of_workers():
    one, two = (make_scenes(160, 60, seed=5, image_size=32, workers=n, progress=False) for n in (1, 2))
    for key, value in one.items():
        assert torch.equal(two[key], value) if isinstance(value, torch.Tensor) else two[key] == value


def test_each_scene_depends_on_seed_and_index_alone(data):
    few = make_scenes(7, 3, seed=3, workers=1, progress=False)
    assert torch.equal(few["train_images"], data["train_images"][:7])
    assert few["val_scenes"] == data["val_scenes"][:3]
    assert make_scenes(7, 3, seed=4, workers=1, progress=False)["train_scenes"] != few["train_scenes"]


@pytest.mark.parametrize("size", [64, 224])
def test_other_picture_sizes_show_the_same_scenes(data, size):
    other = make_scenes(8, 8, seed=3, image_size=size, workers=1, progress=False)
    assert other["train_references"] == data["train_references"][:8]
    for mine, reference in zip(other["train_scenes"], data["train_scenes"]):
        for word, boxes in reference["boxes"].items():
            np.testing.assert_allclose(mine["boxes"][word], np.array(boxes) * size / 112, atol=0.2)
    for mine, reference in zip(other["train_images"], data["train_images"]):
        small, big = (torch.nn.functional.adaptive_avg_pool2d(x.float(), 8) for x in (mine, reference))
        assert (small - big).abs().mean() < 6


class NoPool:
    """Stands for ProcessPoolExecutor where processes cannot be had, or die after the first result."""

    def __init__(self, results, error):
        self.results, self.error = results, error

    def __call__(self, workers):
        return self

    def __enter__(self):
        if not self.results:
            raise self.error
        return self

    def __exit__(self, *_):
        return False

    def map(self, function, jobs):
        yield from map(function, jobs[: self.results])
        raise self.error


@pytest.mark.parametrize("pool", [NoPool(0, OSError("no semaphores")), NoPool(0, NotImplementedError()),
                                  NoPool(1, BrokenProcessPool("killed"))])  # fmt: skip
def test_without_a_pool_one_process_draws_the_same(monkeypatch, pool):
    expected = make_scenes(110, 60, image_size=32, workers=1, progress=False)
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", pool)
    found = make_scenes(110, 60, image_size=32, workers=2, progress=False)
    assert torch.equal(found["train_images"], expected["train_images"])
    assert found["val_scenes"] == expected["val_scenes"]


def test_spawned_workers(tmp_path):
    """macOS and Windows start workers afresh: they import the module instead of inheriting it."""
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing\nfrom eecs598.scenes import dataset\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    jobs = [(0, 'train', k, k + 2, 32) for k in (0, 2)]\n"
        "    with dataset.ProcessPoolExecutor(1) as pool:\n"
        "        print(*(captions[0][0] for _, _, captions in pool.map(dataset._draw_chunk, jobs)), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    expected = make_scenes(4, 1, image_size=32, workers=1, progress=False)["train_references"]
    assert done.stdout.splitlines() == [expected[0][0], expected[2][0]], done.stderr


@pytest.mark.parametrize("arguments, named", [
    ({"num_train": 0}, "num_train is 0"), ({"num_val": -3}, "num_val is -3"), ({"image_size": 8}, "image_size is 8"),
    ({"workers": 0}, "workers is 0"), ({"num_train": 2.5}, "num_train is 2.5"),
])  # fmt: skip
def test_wrong_arguments(arguments, named):
    with pytest.raises(DataError, match=named) as caught:
        make_scenes(**{"num_train": 2, "num_val": 1, "progress": False, **arguments})
    assert "\n" not in str(caught.value)


def test_pictures_that_do_not_fit_in_memory(monkeypatch):
    """As PyTorch says it; whether the system itself refuses is a matter of its settings."""
    def allocate(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(dataset.torch, "empty", allocate)
    with pytest.raises(DataError, match="do not fit in memory") as caught:
        make_scenes(10**7, 1, image_size=1024, progress=False)
    assert "\n" not in str(caught.value)


# --- scenes and pictures ------------------------------------------------------------------------------------


def test_val_holds_combinations_that_training_never_does(data, composed):
    train = data["train_scenes"] + [scene for scene, _ in composed]
    for scene in train:
        first, last = scene["objects"][0], scene["objects"][-1]
        assert not scene["unseen"]
        assert not {(thing["colour"], thing["noun"]) for thing in scene["objects"]} & RESERVED_PAIRS
        assert (first["noun"], scene["relation"], last["noun"]) not in RESERVED_TRIPLES
    unseen = [scene for scene in data["val_scenes"] if scene["unseen"]]
    assert len(unseen) >= len(data["val_scenes"]) / 2
    for scene in data["val_scenes"]:
        pairs = {(thing["colour"], thing["noun"]) for thing in scene["objects"]}
        triple = (scene["objects"][0]["noun"], scene["relation"], scene["objects"][-1]["noun"])
        assert scene["unseen"] == bool(pairs & RESERVED_PAIRS or triple in RESERVED_TRIPLES)


def test_each_noun_colour_and_relation_by_itself_is_in_training(composed):
    objects = [thing for scene, _ in composed for thing in scene["objects"]]
    assert {thing["noun"] for thing in objects} == set(THINGS)
    assert {thing["colour"] for thing in objects} == set(COLOURS)
    assert {thing["size"] for thing in objects} == set(SIZES)
    assert {thing["count"] for thing in objects} == {1, 2, 3, 4}
    assert {scene["relation"] for scene, _ in composed} == {None, *RELATIONS}
    assert {scene["background"] for scene, _ in composed} == set(BACKGROUNDS)
    assert {noun for _, noun in RESERVED_PAIRS} == set(THINGS) and {c for c, _ in RESERVED_PAIRS} == set(COLOURS)


def test_boxes_lie_in_the_picture_and_apart(composed):
    for scene, _ in composed:
        boxes = [box for thing in scene["objects"] for box in thing["boxes"]]
        assert [len(thing["boxes"]) for thing in scene["objects"]] == [thing["count"] for thing in scene["objects"]]
        for x0, y0, x1, y1 in boxes:
            assert min(x0, y0) >= 0 and max(x1, y1) <= 112
            assert min(x1 - x0, y1 - y0) >= 22
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            for u0, v0, u1, v1 in boxes[:k]:
                across, down = min(x1, u1) - max(x0, u0), min(y1, v1) - max(y0, v0)
                assert min(across, down) < (5 if scene["relation"] == "on" else 0.01)


def test_relations_hold_of_the_boxes(composed):
    for scene, _ in composed:
        if scene["relation"] is None:
            continue
        a, b = (np.array(thing["boxes"]) for thing in scene["objects"])
        if scene["relation"] == "left":
            assert a[:, 2].max() < b[:, 0].min()
        else:
            assert (a[:, 1] + a[:, 3]).max() < (b[:, 1] + b[:, 3]).min()
        if scene["relation"] == "above":
            assert a[:, 3].max() < b[:, 1].min()
        if scene["relation"] == "on":
            assert np.abs(a[:, 3] - b[:, 1]).max() < 5
            middles = (a[:, 0] + a[:, 2]) / 2
            assert (b[:, 0] < middles).all() and (middles < b[:, 2]).all()


def nearest_colours(pixels):
    """The name of the colour nearest to each pixel of (..., 3)."""
    palette = np.array(list(COLOURS.values()), dtype=np.float64)
    return np.array(list(COLOURS))[((pixels[..., None, :] - palette) ** 2).sum(-1).argmin(-1)]


def test_pen_draws_in_its_box_and_mirrors():
    pens = [Pen(None, (20, 10, 120, 60), COLOURS["red"], flip) for flip in (False, True)]
    assert [pen.points((0.1, 0.2, 0.5, 1)) for pen in pens] == [[(30, 20), (70, 60)], [(110, 20), (70, 60)]]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("noun", THINGS)
def test_drawings_fill_their_box_and_show_their_colour(noun, flip):
    for colour, rgb in COLOURS.items():
        picture = Image.new("RGB", (140, 120), (1, 254, 255))
        THINGS[noun][1](Pen(ImageDraw.Draw(picture), (20, 10, 120, 110), rgb, flip))
        pixels = np.asarray(picture)
        drawn = (pixels != (1, 254, 255)).any(-1)
        rows, columns = np.nonzero(drawn.any(1))[0], np.nonzero(drawn.any(0))[0]
        found = columns[0], rows[0], columns[-1], rows[-1]
        assert np.abs(np.array(found) - (20, 10, 120, 110)).max() <= 4, found
        assert (nearest_colours(pixels[drawn]) == colour).mean() > 0.4, colour


def test_colours_show_where_the_boxes_are(data):
    """In the pictures as they are, with light and noise, a thing's colour is commoner in its boxes than outside."""
    gains = []
    for image, scene in zip(data["train_images"][:60], data["train_scenes"]):
        names = nearest_colours(image.permute(1, 2, 0).numpy().astype(np.float64))
        for thing in scene["objects"]:
            others = [other for other in scene["objects"] if other is not thing]
            if thing["colour"] in ("black", "white", "brown") or thing["colour"] in (o["colour"] for o in others):
                continue  # light and shadow make these of others
            inside = np.zeros(names.shape, dtype=bool)
            for x0, y0, x1, y1 in thing["boxes"]:
                inside[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
            hits = names == thing["colour"]
            gains.append(hits[inside].mean() - hits[~inside].mean())
            assert gains[-1] > 0, (thing, scene["background"])
    assert np.mean(gains) > 0.3


def test_pictures_vary(data):
    images = data["train_images"].float()
    assert images.mean((1, 2, 3)).std() > 20
    assert images.amax() > 240 and images.amin() < 20
    noise = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().flatten(1).median(1).values
    assert noise.min() >= 1  # every picture is noisy: neighbouring pixels differ


# --- captions -----------------------------------------------------------------------------------------------


def test_captions(data, composed):
    captions = [caption for _, five in composed for caption in five]
    assert 80 <= len({word for caption in captions for word in caption.split()}) <= 110
    assert max(len(caption.split()) for caption in captions) <= 15
    assert set(" ".join(captions)) <= set("abcdefghijklmnopqrstuvwxyz ")
    for _, five in composed:
        assert len(set(five)) == 5
    assert not any(f" a {vowel}" in f" {caption}" for caption in captions for vowel in "aeiou")


def test_what_takes_more_room_mostly_comes_first(composed):
    """Not always: both orders are to be learned. Captions that begin with a relation turn the order round."""
    larger_first = []
    for scene, captions in composed:
        if len(scene["objects"]) == 2:
            room = {thing["noun"]: sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in thing["boxes"])
                    for thing in scene["objects"]}  # fmt: skip
            for words in map(str.split, captions):
                named = [meaning[0] for kind, meaning in (LEXICON.get((word,), ("", ())) for word in words)
                         if kind == "noun"]  # fmt: skip
                if words[0] in ("a", "an", "one", "two", "three", "four", "we"):
                    larger_first.append(room[named[0]] > room[named[1]])
    assert len(larger_first) > 1000 and abs(sum(larger_first) / len(larger_first) - LARGER_FIRST) < 0.05


def test_captions_are_judged_right_and_name_all_things(data, composed):
    pairs = composed + list(compose(500, unseen=True)) + list(zip(data["val_scenes"], data["val_references"]))
    for scene, five in pairs:
        for caption in five:
            report = judge_caption(caption, scene)
            assert report["right"] and report["named"] == 1, (caption, report)


def test_words_have_boxes(data):
    nouns = {form: noun for noun, (plural, *_) in THINGS.items() for form in (noun, plural)}
    for scene, five in zip(data["train_scenes"], data["train_references"]):
        objects = {thing["noun"]: thing for thing in scene["objects"]}
        said = {word for caption in five for word in caption.split()}
        assert scene["boxes"].keys() <= said
        for word in said & nouns.keys():
            assert scene["boxes"][word] == objects[nouns[word]]["boxes"]
        for word in said & (GROUNDS.keys() | {"sky"}):
            [(x0, y0, x1, y1)] = scene["boxes"][word]
            horizon = scene["horizon"] * 112
            assert (x0, x1) == (0, 112)
            assert (y0, y1) == pytest.approx((0, horizon) if word == "sky" else (horizon, 112), abs=0.1)
        assert "pair" not in said or len(scene["boxes"]["pair"]) in (2, 4)


# --- the judge ----------------------------------------------------------------------------------------------


SCENE = {
    "objects": [{"noun": "boat", "count": 1, "colour": "red", "size": "small", "where": "ground"},
                {"noun": "star", "count": 2, "colour": "yellow", "size": "medium", "where": "ground"}],
    "relation": "left", "background": "night", "horizon": 0.4, "unseen": False, "boxes": {},
}  # fmt: skip


@pytest.mark.parametrize("caption, right", [
    ("a small red boat to the left of two yellow stars at night", True),
    ("two yellow stars on the right side of a tiny red boat", True),
    ("to the right of the boat there are two stars", True),
    ("at night there is a boat and a pair of stars", True),
    ("boat", True), ("<START> a red boat <END> a blue house", True), ("a boat beside stars", True),
    ("a big red boat", False), ("a green boat", False), ("two red boats", False), ("red boats", False),
    ("two yellow star", False), ("a yellow boat", False), ("a boat to the right of two stars", False),
    ("to the right of two stars there is a boat", False), ("a boat above two stars", False),
    ("a boat on two stars", False), ("a boat on the sand", False), ("a boat in the night sky", False),
    ("a boat at night and two stars in the night sky", False), ("a boat and a house at night", False),
    ("a boat and a boat", False), ("a boat next to a boat", False), ("a boat to the left of", False),
    ("a red", False), ("a boat and a red", False),
    ("a red red boat", False), ("two a boat", False), ("a boat <UNK>", False), ("", False),
    ("at night", False), ("a boat to the left of a house", False), ("zebra boat", False), ("red a boat and", True),
])  # fmt: skip
def test_judge_by_example(caption, right):
    assert judge_caption(caption, SCENE)["right"] is right
    assert judge_caption(caption.split(), SCENE) == judge_caption(caption, SCENE)


@pytest.mark.parametrize("caption, right", [
    ("a kite above a house on the lawn", True), ("in the sky there is a kite over a house", True),
    ("a kite over the grass and a house on the grass", True), ("a kite and a house on the lawn", False),
    ("a house and a kite on the lawn", False), ("on the lawn there is a kite", False), ("a house in the sky", False),
    ("above the lawn there is a kite above a house", True), ("a kite on a house", False),
])  # fmt: skip
def test_judge_knows_who_is_where(caption, right):
    kite = {"noun": "kite", "count": 1, "colour": "pink", "size": "big", "where": "air"}
    house = {"noun": "house", "count": 1, "colour": "blue", "size": "big", "where": "ground"}
    scene = {**SCENE, "objects": [kite, house], "relation": "above", "background": "grass"}
    assert judge_caption(caption, scene)["right"] is right


def test_judge_counts_statements():
    report = judge_caption("three green boats to the left of a small yellow house on the sand", SCENE)
    assert report == {"nouns": 0.5, "counts": 0, "sizes": 0, "colours": 0, "relation": 0, "background": 0,
                      "named": 0.5, "right": False}  # fmt: skip
    report = judge_caption("a boat and two red stars", SCENE)
    assert report == {"nouns": 1, "counts": 1, "sizes": None, "colours": 0, "relation": None, "background": None,
                      "named": 1, "right": False}  # fmt: skip


def swapped(caption):
    """The caption with one word exchanged for another of its kind, in every way that makes it false."""
    words, size_of = caption.split(), {word: size for size, several in SIZE_WORDS.items() for word in several}
    plurals = {plural: noun for noun, (plural, *_) in THINGS.items()}
    for i, word in enumerate(words):
        others = []
        if word in COLOURS:
            others = [colour for colour in COLOURS if colour != word]
        elif word in size_of:
            others = [other for other in size_of if size_of[other] != size_of[word]]
        elif word in THINGS or word in plurals:
            others = [noun for noun in THINGS if noun not in words and THINGS[noun][0] not in words]
            others = others if word in THINGS else [THINGS[noun][0] for noun in others]
        elif word in NUMBER_WORDS and words[i + 1] not in ("pair", "wooden"):
            others = [other for other in NUMBER_WORDS if NUMBER_WORDS[other] != NUMBER_WORDS[word]]
        elif word in GROUNDS:
            others = [GROUNDS[word]]
        elif word in dict(OPPOSITES) and "the" not in words[i + 1 : i + 2] and words[i + 1 : i + 3] != ["a", "wooden"]:
            others = [dict(OPPOSITES)[word]]
        yield from (" ".join([*words[:i], other, *words[i + 1 :]]) for other in others)


def test_a_caption_with_one_word_exchanged_is_wrong(composed):
    kinds = set()
    for scene, five in composed[:120]:
        for caption in five:
            for wrong in swapped(caption):
                assert not judge_caption(wrong, scene)["right"], (caption, wrong)
                kinds |= set(wrong.split()) - set(caption.split())
    assert len(kinds) > 70  # colours, sizes, nouns, numbers, relations and grounds were all exchanged


def changes(scene):
    """(what a caption must state to become wrong, the scene with that one fact changed)."""
    for i, thing in enumerate(scene["objects"]):
        for key, values in (("colour", COLOURS), ("size", SIZES), ("count", (1, 2, 3, 4)), ("noun", THINGS)):
            taken = {other[key] for other in scene["objects"]}
            changed = copy.deepcopy(scene)
            changed["objects"][i][key] = next(value for value in values if value not in taken)
            yield (thing["noun"], key), changed
    for relation in {"left", "above", "on", None} - {scene["relation"]}:
        yield ("relation", None), {**scene, "relation": relation}
    if scene["relation"]:
        yield ("relation", None), {**scene, "objects": scene["objects"][::-1]}
    for background in BACKGROUNDS:
        yield ("background", background), {**scene, "background": background}


def states(caption, scene, what):
    """Whether the caption states the fact `what`, read off its words without the judge's parser."""
    words, (subject, key) = caption.split(), what
    if subject == "background":
        phrases = [place for place in PLACES if f" {place} " in f" {caption} "]
        return any(key not in PLACES[place][0] for place in phrases)
    if subject == "relation":
        rest = caption
        for place in sorted(PLACES, key=len, reverse=True):
            rest = rest.replace(place, "")
        found = [word for word in rest.split() if word in dict(OPPOSITES) or word in ("on", "next")]
        return bool(found) and not {"beside", "next", "under", "below", "beneath"} & set(found)
    forms = (subject, THINGS[subject][0])
    place = next(i for i, word in enumerate(words) if word in forms)
    if key in ("noun", "count"):
        return key == "noun" or subject != "fish"
    near = words[max(0, place - 2) : place]
    kinds = COLOURS if key == "colour" else [word for several in SIZE_WORDS.values() for word in several]
    return any(word in kinds for word in near)


def test_a_caption_is_wrong_of_a_scene_that_differs_in_what_it_states(composed):
    checked = set()
    for scene, five in composed[:120]:
        for what, changed in changes(scene):
            for caption in five:
                if states(caption, scene, what):
                    assert not judge_caption(caption, changed)["right"], (caption, what)
                    checked.add(what[1] if what[0] in THINGS else what[0])
    assert checked == {"colour", "size", "count", "noun", "relation", "background"}


VOCABULARY = sorted({word for phrase in LEXICON for word in phrase} | {"<UNK>", "<NULL>", "<END>", "zebra"})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), max_size=20) | st.text(max_size=40), st.integers(0, 40))
def test_any_words_are_judged(words, seed):
    scene = compose_scene(random.Random(seed), False, 112)
    report = judge_caption(words, scene)
    shares = [value for key, value in report.items() if key != "right" and value is not None]
    assert all(0 <= share <= 1 for share in shares)
    assert type(report["right"]) is bool
    if report["right"]:
        assert report["named"] > 0 and min(shares[:-1]) == 1


def test_scores(data):
    captions = [five[0] for five in data["val_references"]]
    perfect = score_captions(captions, data["val_scenes"])
    assert set(perfect.values()) == {1.0}
    others = score_captions(captions[1:] + captions[:1], data["val_scenes"])
    assert all(0 <= share <= 0.6 for share in others.values()) and others["right"] < 0.1
    half = score_captions([captions[0], ""], data["val_scenes"][:2])
    assert half["right"] == 0.5 and half["nouns"] == 1
    assert set(score_captions([], []).values()) == {0.0}
    with pytest.raises(DataError, match="1 captions and 2 scenes"):
        score_captions(["a ball"], data["val_scenes"][:2])


def planted(row, column, T=5, grid=(3, 5)):
    """Maps that are even but for a peak in one cell at each word."""
    maps = torch.full((1, T, *grid), 0.01)
    maps[:, :, row, column] = 1
    return maps / maps.sum((2, 3), keepdim=True)


LOOKED_AT = {"objects": [{"noun": "ball", "boxes": [[40.0, 0.0, 60.0, 20.0], [44.0, 44.0, 60.0, 60.0]]},
                         {"noun": "car", "boxes": [[0.0, 40.0, 30.0, 60.0]]}]}  # in a picture of 60 x 60


@pytest.mark.parametrize("row, column, caption, hit", [
    (0, 4, "two balls", 1), (0, 4, "a ball", 1), (0, 4, "a red car", 0), (0, 4, "a ball and a car", 0.5),
    (2, 0, "a red car", 1), (2, 0, "a red ball", 0), (2, 4, "a red ball", 1), (0, 0, "a red car", 0),
])
def test_a_planted_peak_is_found_in_the_right_box(row, column, caption, hit):
    found = score_attention([caption], planted(row, column), [LOOKED_AT], image_size=60)
    assert found["model"]["peak"] == hit and found["mean map"]["peak"] == hit
    assert (found["model"]["mass"] > 0.4) == (hit > 0.4)


def test_attention_that_is_even_has_the_mass_of_chance():
    even = torch.full((1, 2, 3, 6), 1 / 18)  # a cell is 10 x 20 pixels: the boxes end where cells do
    found = score_attention(["a car"], even, [LOOKED_AT], image_size=60)
    assert found["chance"]["mass"] == found["chance"]["peak"] == pytest.approx(30 * 20 / 60**2)
    assert found["model"]["mass"] == found["mean map"]["mass"] == pytest.approx(30 * 20 / 60**2)


def test_the_map_that_counts_is_the_one_at_the_noun():
    maps = planted(2, 4)
    maps[0, 2] = planted(2, 0)[0, 2]
    found = score_attention(["a red car"], maps, [LOOKED_AT], image_size=60)
    assert found["model"]["peak"] == 1 and found["mean map"]["peak"] == 0


def test_first_and_second_nouns_are_counted_by_themselves():
    """The peak is at the car: right where the car is named, first or second; a scene of one thing has no place."""
    maps, alone = planted(2, 0), {"objects": LOOKED_AT["objects"][1:]}
    found = score_attention(["a car and a ball", "a ball and a ball", "a car"], maps.repeat(3, 1, 1, 1),
                                   [LOOKED_AT, LOOKED_AT, alone], 60)  # fmt: skip
    peaks = {row: shares["peak"] for row, shares in found.items()}
    assert tuple(peaks) == ATTENTION_ROWS
    assert (peaks["first of 2"], peaks["second of 2"]) == (0.5, 0) and peaks["model"] == pytest.approx(2 / 5)
    assert "first of 2" not in score_attention(["a car"], maps, [alone], 60)


def test_attention_is_judged_where_a_thing_is_named():
    maps = planted(2, 0)
    alone = score_attention(["a car"], maps, [LOOKED_AT], 60)
    assert alone == score_attention(["a car and a cat", ""], maps.repeat(2, 1, 1, 1), [LOOKED_AT] * 2, 60)
    with pytest.raises(DataError, match="no caption names an object of its scene"):
        score_attention(["a cat"], maps, [LOOKED_AT], 60)
    with pytest.raises(DataError, match="1 captions, 1 maps and 2 scenes"):
        score_attention(["a car"], maps, [LOOKED_AT] * 2, 60)


def test_maps_without_weights_or_for_too_few_words_are_told():
    maps = planted(2, 0)
    with pytest.raises(DataError, match="all attention weights are zero"):
        score_attention(["a car"], torch.zeros_like(maps), [LOOKED_AT], 60)
    with pytest.raises(DataError, match=rf"a caption has 9 words, but {maps.shape[1]} maps"):
        score_attention(["a " * 8 + "car"], maps, [LOOKED_AT], 60)
    empty = score_attention(["a car"] * 2, torch.cat([maps, torch.zeros_like(maps)]), [LOOKED_AT] * 2, 60)
    assert empty["model"]["mass"] == score_attention(["a car"], maps, [LOOKED_AT], 60)["model"]["mass"] / 2


# --- the command --------------------------------------------------------------------------------------------


def test_command_writes_a_data_file(tmp_path, capsys):
    path = tmp_path / "scenes.pt"
    arguments = [str(path), "--train", "12", "--val", "6", "--seed", "2", "--image-size", "48"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "12 train + 6 val pictures of 48 x 48" in out and "words" in out
    assert "scenes: 100%" in err
    assert torch.equal(load_data(path)["val_images"], make_scenes(12, 6, 2, 48, progress=False)["val_images"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("arguments, named", [
    (["{}/x.pt", "--train", "-1"], "'-1', wanted a whole number"), (["{}/x.pt", "--seed", "x"], "'x', wanted"),
    (["{}/x.pt", "--image-size", "8"], "image_size is 8"),
    (["{}/x.pt", "--val", "many"], "'many'"), (["{}"], "name a file to write"),
    ([], "FILE"), (["{}/x.pt", "--colour", "red"], "--colour"),
])  # fmt: skip
def test_command_errors_are_one_line(tmp_path, capsys, arguments, named):
    try:
        status = main([argument.format(tmp_path) for argument in arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    assert status in (1, 2) and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err
    assert not list(tmp_path.iterdir())
