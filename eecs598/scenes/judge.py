"""The judge: parses any caption, decides which of its statements are true, and scores attention maps."""

import torch
import torch.nn.functional as F

from eecs598.coco import DataError
from eecs598.scenes.caption import COUNTS, PLACES, RELATION_WORDS, SIZE_WORDS, TEMPLATES, is_placed
from eecs598.scenes.compose import RELATIONS
from eecs598.scenes.draw import COLOURS, THINGS


def _make_lexicon():
    """{phrase as a tuple of words: (kind, meaning)} for all phrases of the grammar."""
    fillers = " ".join(template for templates in TEMPLATES.values() for template in templates).split()
    lexicon = {word: ("filler", None) for word in (*fillers, "is", "are", "the") if "{" not in word}
    lexicon |= {phrase: ("count", count) for count, phrases in COUNTS.items() for phrase in phrases}
    lexicon |= {"an": ("count", 1)} | {colour: ("colour", colour) for colour in COLOURS}
    lexicon |= {word: ("size", size) for size, words in SIZE_WORDS.items() for word in words}
    lexicon |= {phrase: ("relation", name) for name, phrases in RELATION_WORDS.items() for phrase in phrases}
    lexicon |= {phrase: ("place", phrase) for phrase in PLACES}
    for noun, (plural, *_) in THINGS.items():
        one, many = ({1, 2, 3, 4},) * 2 if plural == noun else ({1}, {2, 3, 4})
        lexicon |= {plural: ("noun", (noun, many)), noun: ("noun", (noun, one))}
    return {tuple(phrase.split()): entry for phrase, entry in lexicon.items()}


LEXICON = _make_lexicon()


def _parse(words):
    """The statements of a caption as (kind, meaning), of kind thing, relation or place; and whether it parsed fully.

    A thing is a dict of noun, numbers (the counts that the form of the noun allows) and, if stated, count, size and
    colour.
    """
    items, said, clean, i = [], {}, True, 0
    while i < len(words):
        lengths = [n for n in range(min(5, len(words) - i), 0, -1) if tuple(words[i : i + n]) in LEXICON]
        length = lengths[0] if lengths else 1  # the longest phrase, or an unknown word
        kind, meaning = LEXICON.get(tuple(words[i : i + length]), ("unknown", None))
        i += length
        if kind in ("count", "size", "colour"):
            clean = clean and kind not in said
            said[kind] = meaning
        elif kind == "noun":
            items.append(("thing", {**said, "noun": meaning[0], "numbers": meaning[1]}))
            said = {}
        else:
            clean = clean and kind != "unknown" and not said  # "a red" without a noun is not a statement
            said = {}
            items += [(kind, meaning)] if kind in ("relation", "place") else []
    return items, clean and not said


def _holds(relation, before, after, scene):
    """Whether the relation is true of the nouns before and after it ("to the left of B there is A" has none before)."""
    subject, other = (before[-1:], after[:1]) if before else (after[1:2], after[:1])
    if not subject or not other or scene["relation"] is None:
        return False
    nouns, (forward, backward) = [thing["noun"] for thing in scene["objects"]], RELATIONS[scene["relation"]]
    pair = subject + other
    return (pair == nouns and relation in forward) or (pair == nouns[::-1] and relation in backward)


def judge_caption(caption, scene):
    """Judge which statements of a caption (a string or a list of words) are true of the scene.

    Returns a dict. `nouns`, `counts`, `sizes`, `colours`, `relation`, `background`: the fraction of the caption's
    statements of this kind that are true, or None if there are none (statements about absent objects are false).
    `named`: the fraction of the scene's objects that the caption names. `right`: it names at least one, every statement
    is true, and all of it can be parsed. Any words are allowed; special tokens, and everything after `<END>`, are
    ignored.
    """
    words = caption.lower().split() if isinstance(caption, str) else [str(word).lower() for word in caption]
    words = words[: words.index("<end>")] if "<end>" in words else words
    items, clean = _parse([word for word in words if word not in ("<start>", "<null>")])
    objects = {thing["noun"]: thing for thing in scene["objects"]}
    held = {kind: [] for kind in ("nouns", "counts", "sizes", "colours", "relation", "background")}
    before, clause = [], []  # the nouns so far, and those since the last relation or place
    for i, (kind, meaning) in enumerate(items):
        after = [said["noun"] for later, said in items[i + 1 :] if later == "thing"]
        if kind == "thing":
            _judge_thing(meaning, objects.get(meaning["noun"]), meaning["noun"] in before, held)
            before, clause = [*before, meaning["noun"]], [*clause, meaning["noun"]]
        elif kind == "relation":
            held["relation"].append(_holds(meaning, before, after, scene))
            clause = []
        else:
            placed = [objects.get(noun) for noun in clause or after[:1]]
            true = [thing is not None and is_placed(thing, meaning, scene) for thing in placed]
            held["background"].append(bool(true) and all(true))
            clause = []
    named = len(objects.keys() & set(before)) / len(objects)
    report = {kind: sum(truths) / len(truths) if truths else None for kind, truths in held.items()}
    return {**report, "named": named, "right": clean and named > 0 and all(map(all, held.values()))}


def _judge_thing(said, thing, again, held):
    """Record in `held` which statements about an object are true. One named `again` ("a ball and a ball") is absent."""
    thing = thing or {"count": 0, "size": None, "colour": None}
    held["nouns"].append(thing["count"] > 0 and not again)
    numbers = said["numbers"] & {said.get("count", thing["count"])}
    held["counts"].append(thing["count"] in numbers)
    for key in ("size", "colour"):
        if key in said:
            held[f"{key}s"].append(said[key] == thing[key])


def score_captions(captions, scenes):
    """The means of `judge_caption` over captions and their scenes, all in [0, 1].

    Each mean is over the captions with a statement of that kind, or 0 if there are none.
    """
    if len(captions) != len(scenes):
        raise DataError(f"{len(captions)} captions and {len(scenes)} scenes; give one scene for each caption")
    reports = [judge_caption(caption, scene) for caption, scene in zip(captions, scenes)]
    keys = ("right", "named", "nouns", "counts", "sizes", "colours", "relation", "background")
    stated = {key: [report[key] for report in reports if report[key] is not None] for key in keys}
    return {key: sum(values) / len(values) if values else 0.0 for key, values in stated.items()}


ATTENTION_ROWS = ("model", "first of 2", "second of 2", "mean map", "chance")


def score_attention(captions, maps, scenes, image_size=112):
    """How well attention maps localize the objects that a caption names.

    captions: n strings or lists of words; maps (n, T, h, w): the weights for each word; scenes: n results of
    `compose_scene`, for pictures of image_size x image_size. The scores are means over all nouns in captions that name
    an object of the scene. Returns {row: {"peak": mean, "mass": mean}}. peak: whether the centre of the cell with the
    largest weight lies in one of the object's boxes; mass: the weight on the boxes. Rows: "model", the map for the
    noun; "first of 2" and "second of 2", the same for captions with two objects, by position; "mean map", the model's
    mean map over all words and pictures, as a baseline; "chance", the area of the boxes. Raises DataError for numbers
    that do not match, or if no object is named.
    """
    if not len(captions) == len(maps) == len(scenes):
        raise DataError(f"{len(captions)} captions, {len(maps)} maps and {len(scenes)} scenes; give equal numbers")
    if not maps.any():
        raise DataError("all attention weights are zero: does sample() fill them in at each step?")
    mean, looks = maps.sum((0, 1)) / maps.sum(), {row: [] for row in ATTENTION_ROWS}
    for caption, weights, scene in zip(captions, maps, scenes):
        words, seen = caption.split() if isinstance(caption, str) else caption, 0
        if len(words) > len(weights):
            raise DataError(f"a caption has {len(words)} words, but {len(weights)} maps; give a map for each word")
        boxes = {thing["noun"]: thing["boxes"] for thing in scene["objects"]}
        for t, word in enumerate(words):
            kind, meaning = LEXICON.get((word,), (None, None))
            if kind != "noun":
                continue
            seen += 1
            if meaning[0] in boxes:
                inside = _mask(boxes[meaning[0]], image_size)
                looks["model"].append(_look(weights[t], inside))
                looks["mean map"].append(_look(mean, inside))
                looks["chance"].append([inside.mean().item()] * 2)
                if len(boxes) == 2 and seen <= 2:
                    looks[f"{('first', 'second')[seen - 1]} of 2"].append(looks["model"][-1])
    if not looks["model"]:
        raise DataError("no caption names an object of its scene, so there is no noun for which to score attention")
    means = {row: torch.tensor(found).mean(0).tolist() for row, found in looks.items() if found}
    return {row: dict(zip(("peak", "mass"), pair)) for row, pair in means.items()}


def _mask(boxes, side):
    """(side, side): 1 for pixels inside a box, else 0."""
    mask = torch.zeros(side, side)
    for x0, y0, x1, y1 in ([round(edge) for edge in box] for box in boxes):
        mask[y0:y1, x0:x1] = 1
    return mask


def _look(weights, inside):
    """For a map (h, w): 1 if the centre of its peak is inside, else 0; and the fraction of its weight inside."""
    (h, w), (height, width) = weights.shape, inside.shape
    row, column = divmod(int(weights.argmax()), w)
    peak = inside[int((row + 0.5) * height / h), int((column + 0.5) * width / w)].item()
    cells = F.adaptive_avg_pool2d(inside[None], (h, w))[0]  # the fraction of each cell that is inside
    total = weights.sum().item()
    return (peak, (weights * cells).sum().item() / total) if total else (0.0, 0.0)
