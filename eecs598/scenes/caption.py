"""The grammar: true captions of a scene, and the regions of the picture that their words refer to."""

import re

from eecs598.scenes.compose import RELATIONS
from eecs598.scenes.draw import BACKGROUNDS, THINGS

LARGER_FIRST = 0.85  # probability that of two objects the one with the larger area is named first
COUNTS = {1: ("a", "a", "a", "one"), 2: ("two", "two", "a pair of"), 3: ("three",), 4: ("four",)}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": (), "big": ("big", "large")}
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left side of"), "beside": ("beside", "next to"),
    "right": ("to the right of", "right of", "on the right side of"), "above": ("above", "over"),
    "below": ("below", "under", "beneath"), "on": ("on", "on top of"),
}  # fmt: skip
REFERENCES = 5  # captions of a scene
GROUNDS = {
    "grass": ("the grass", "the lawn"), "sand": ("the sand", "the beach"), "water": ("the water", "the sea"),
    "snow": ("the snow",), "floor": ("the floor", "a wooden floor"), "road": ("the road", "the street"),
}  # fmt: skip
# phrase: the backgrounds for which it is true, and the location of the objects (None: anywhere)
PLACES = {
    **{f"on {ground}": ({name}, "ground") for name in GROUNDS for ground in GROUNDS[name]},
    **{f"above {ground}": ({name}, "air") for name in GROUNDS for ground in GROUNDS[name]},
    **{f"over {ground}": ({name}, "air") for name in GROUNDS for ground in GROUNDS[name]},
    "in the sky": (set(BACKGROUNDS) - {"floor"}, "air"), "in the night sky": ({"night"}, "air"),
    "at night": ({"night"}, None), "in the dark": ({"night"}, None),
}  # fmt: skip
# {A} and {B}: the objects; {rel}: the relation of A to B; {at}, {at_A}, {at_B}: a place of both, of A, of B.
TEMPLATES = {
    1: ("{A}", "{A} {at}", "{A} {at}", "there {is} {A}", "there {is} {A} {at}", "we see {A} {at}",
        "{at} there {is} {A}", "here {is} {A} {at}"),
    2: ("{A} {rel} {B}", "{A} {rel} {B} {at_B}", "there {is} {A} {rel} {B}", "{A} {is} {rel} {B}",
        "we see {A} {rel} {B}", "{rel} {B} there {is} {A}", "{at_A} there {is} {A} {rel} {B}",
        "there {is} {A} and {B} {at}", "{A} and {B} {at}", "{A} {at_A} and {B} {at_B}", "we see {A} and {B}"),
}  # fmt: skip
# word: the part of the picture that it refers to
REGIONS = {
    **{ground.split()[-1]: "ground" for grounds in GROUNDS.values() for ground in grounds},
    "sky": "sky", "night": "all", "dark": "all",
}  # fmt: skip


def write_captions(scene, rng):
    """True captions that name all objects of the scene, as many as REFERENCES, different ones if possible."""
    captions = []
    for _ in range(40 * REFERENCES):
        caption = _phrase(scene, rng)
        if caption not in (None, *captions) and len(caption.split()) <= 15:
            captions.append(caption)
        if len(captions) == REFERENCES:
            return captions
    return [captions[k % len(captions)] for k in range(REFERENCES)]


def _phrase(scene, rng):
    """One caption, or None if the template needs a place that the grammar cannot name."""
    order = _order(scene["objects"], rng)
    first, last = scene["objects"][::order][0], scene["objects"][::order][-1]
    template = rng.choice(TEMPLATES[len(scene["objects"])])
    words = {"A": _name(first, rng), "B": _name(last, rng)}
    words["is"] = "is" if words["A"].split()[0] in ("a", "one") else "are"
    if scene["relation"]:
        words["rel"] = rng.choice(RELATION_WORDS[rng.choice(RELATIONS[scene["relation"]][order < 0])])
    for slot, things in (("at", (first, last)), ("at_A", (first,)), ("at_B", (last,))):
        if f"{{{slot}}}" in template:
            fitting = [place for place in PLACES if all(is_placed(thing, place, scene) for thing in things)]
            if not fitting:
                return None
            words[slot] = rng.choice(fitting)
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format(**words))


def _order(things, rng):
    """1 or -1: the objects in their order or reversed. The one with the larger area mostly comes first."""
    if len(things) == 1:
        return 1
    room = [sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in thing["boxes"]) for thing in things]
    larger_first = rng.random() < LARGER_FIRST
    return 1 if (room[0] > room[1]) == larger_first else -1


def _name(thing, rng):
    size = [rng.choice(SIZE_WORDS[thing["size"]])] if thing["size"] != "medium" and rng.random() < 0.6 else []
    colour = [thing["colour"]] if rng.random() < 0.9 else []
    return " ".join([rng.choice(COUNTS[thing["count"]]), *size, *colour, _noun(thing)])


def _noun(thing):
    return thing["noun"] if thing["count"] == 1 else THINGS[thing["noun"]][0]


def is_placed(thing, place, scene):
    """Whether the place (a phrase of PLACES) is true of the object."""
    backgrounds, where = PLACES[place]
    return scene["background"] in backgrounds and where in (None, thing["where"])


def locate_words(scene, captions, side):
    """{word: boxes in pixels} for the words of the captions that refer to an object, a pair or the background."""
    found, level = {}, round(scene["horizon"] * side, 1)
    for thing in scene["objects"]:
        for word in (_noun(thing), "pair") if thing["count"] == 2 else (_noun(thing),):
            found[word] = found.get(word, []) + thing["boxes"]
    tops = {"sky": (0.0, level), "ground": (level, side), "all": (0.0, side)}
    found |= {word: [[0.0, tops[part][0], side, tops[part][1]]] for word, part in REGIONS.items()}
    used = {word for caption in captions for word in caption.split()}
    return {word: boxes for word, boxes in found.items() if word in used}
