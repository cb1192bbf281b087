"""The judge: reads any caption back, says which of its statements hold, and whether attention is on what it names."""

import torch
import torch.nn.functional as F

from eecs598.coco import DataError
from eecs598.scenes.caption import COUNTS, PLACES, RELATION_WORDS, SIZE_WORDS, TEMPLATES, is_placed
from eecs598.scenes.compose import RELATIONS
from eecs598.scenes.draw import COLOURS, THINGS


def _make_lexicon():
    """{phrase as a tuple of words: (kind, meaning)}, all that the grammar can say."""
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
    """The caption's statements as (kind, meaning): thing, relation or place; and whether all was understood.

    A thing is a dict of noun, numbers (the counts that its form allows) and, if said, count, size, colour.
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
            clean = clean and kind != "unknown" and not said  # "a red" without a noun says nothing
            said = {}
            items += [(kind, meaning)] if kind in ("relation", "place") else []
    return items, clean and not said


def _holds(relation, before, after, scene):
    """Whether the relation is true of the nouns before and after it; "to the left of B there is A" has none
    before."""
    subject, other = (before[-1:], after[:1]) if before else (after[1:2], after[:1])
    if not subject or not other or scene["relation"] is None:
        return False
    nouns, (forward, backward) = [thing["noun"] for thing in scene["objects"]], RELATIONS[scene["relation"]]
    pair = subject + other
    return (pair == nouns and relation in forward) or (pair == nouns[::-1] and relation in backward)


def judge_caption(caption, scene):
    """What a caption (a string or a list of words) says, and how much of it is true of the scene.

    Returns a dict. `nouns`, `counts`, `sizes`, `colours`, `relation`, `background`: the share of the
    caption's statements of that kind that are true, None where it makes none (what it says of a thing that is
    not there is false). `named`: the share of the scene's objects that it names. `right`: it names at least
    one, nothing that it states is false, and the grammar can read all of it.
    Any words will do; special tokens are dropped, and what follows `<END>` is not read.
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
    """Note in `held` what is true of a thing said; one named `again` ("a ball and a ball") is not there."""
    thing = thing or {"count": 0, "size": None, "colour": None}
    held["nouns"].append(thing["count"] > 0 and not again)
    numbers = said["numbers"] & {said.get("count", thing["count"])}
    held["counts"].append(thing["count"] in numbers)
    for key in ("size", "colour"):
        if key in said:
            held[f"{key}s"].append(said[key] == thing[key])


def score_captions(captions, scenes):
    """The means of `judge_caption`'s values over captions and their scenes, all in [0, 1].

    Each mean is over the captions that state something of the kind, and 0 if none does.
    """
    if len(captions) != len(scenes):
        raise DataError(f"{len(captions)} captions and {len(scenes)} scenes, wanted a scene for each caption")
    reports = [judge_caption(caption, scene) for caption, scene in zip(captions, scenes)]
    keys = ("right", "named", "nouns", "counts", "sizes", "colours", "relation", "background")
    stated = {key: [report[key] for report in reports if report[key] is not None] for key in keys}
    return {key: sum(values) / len(values) if values else 0.0 for key, values in stated.items()}


ATTENTION_ROWS = ("model", "first of 2", "second of 2", "mean map", "chance")


def score_attention(captions, maps, scenes, image_size=112):
    """Whether an attention model looks at what it names.

    captions: n strings or lists of words; maps (n, T, h, w): the weights at each word; scenes: n of `compose_scene`,
    in pictures of image_size pixels a side. Counted is each noun of a caption that names a thing of its scene.
    Returns {row: {"peak": share, "mass": share}}. peak: the centre of the cell with the largest weight lies in one of
    the thing's boxes; mass: the weight that falls on the boxes. Rows: "model", the map at the noun; of these, "first
    of 2" and "second of 2", nouns of captions of two things by their place; "mean map", the model's mean map over all
    words of all pictures, which knows nothing of this one; "chance", the boxes' share of the picture. Raises DataError
    for numbers that do not fit, or where no thing is named.
    """
    if not len(captions) == len(maps) == len(scenes):
        raise DataError(f"{len(captions)} captions, {len(maps)} maps and {len(scenes)} scenes, wanted as many of each")
    mean, looks = maps.sum((0, 1)) / maps.sum(), {row: [] for row in ATTENTION_ROWS}
    for caption, weights, scene in zip(captions, maps, scenes):
        words, seen = caption.split() if isinstance(caption, str) else caption, 0
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
        raise DataError("no caption names a thing of its scene, so there is no noun to judge the attention at")
    means = {row: torch.tensor(found).mean(0).tolist() for row, found in looks.items() if found}
    return {row: dict(zip(("peak", "mass"), pair)) for row, pair in means.items()}


def _mask(boxes, side):
    """(side, side): 1 for the pixels in a box."""
    mask = torch.zeros(side, side)
    for x0, y0, x1, y1 in ([round(edge) for edge in box] for box in boxes):
        mask[y0:y1, x0:x1] = 1
    return mask


def _look(weights, inside):
    """Of a map (h, w): 1 if its peak's centre is inside, else 0; and the share of its weight that is inside."""
    (h, w), (height, width) = weights.shape, inside.shape
    row, column = divmod(int(weights.argmax()), w)
    peak = inside[int((row + 0.5) * height / h), int((column + 0.5) * width / w)].item()
    cells = F.adaptive_avg_pool2d(inside[None], (h, w))[0]  # the part of each cell that is inside
    return peak, ((weights * cells).sum() / weights.sum()).item()
