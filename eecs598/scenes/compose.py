"""Composing a scene: objects with counts, sizes and positions, and combinations reserved for validation."""

import math

from eecs598.scenes.draw import BACKGROUNDS, COLOURS, THINGS

SIZES = {"small": (0.23, 0.245), "medium": (0.27, 0.32), "big": (0.36, 0.4)}  # square root of the area, picture = 1
# relation: true relations of the first object to the second, and of the second to the first
RELATIONS = {
    "left": (("left", "beside"), ("right", "beside")),
    "above": (("above",), ("below",)),
    "on": (("on",), ("below",)),
}
# Combinations reserved for validation: one in eight. "b right of a" is the triple (a, left, b).
RESERVED_PAIRS = {
    (colour, noun)
    for i, colour in enumerate(COLOURS) for j, noun in enumerate(THINGS)
    if (3 * i + j) % 8 == 0
}  # fmt: skip
RESERVED_TRIPLES = {
    (a, relation, b)
    for i, a in enumerate(THINGS) for j, b in enumerate(THINGS) for k, relation in enumerate(RELATIONS)
    if (i + 3 * j + k) % 8 == 0
}  # fmt: skip


def has_reserved(scene):
    """Whether the scene contains a combination in RESERVED_PAIRS or RESERVED_TRIPLES."""
    objects = scene["objects"]
    triple = (objects[0]["noun"], scene["relation"], objects[-1]["noun"])
    return triple in RESERVED_TRIPLES or any((o["colour"], o["noun"]) in RESERVED_PAIRS for o in objects)


def compose_scene(rng, unseen, image_size):
    """A random scene. unseen: whether it must contain a reserved combination, or none.

    Returns a dict of plain values: objects, each a dict with noun, count, colour, size ("small", "medium",
    "big"), where ("air", "ground", or "top" of the other object) and boxes [[x0, y0, x1, y1], ...] in pixels;
    relation, of the first object to the second ("left", "above", "on", or None with one object); background;
    horizon, as a fraction of the height; unseen.
    """
    relation = rng.choices([None, "left", "above", "on"], [25, 35, 22, 18])[0]
    while True:
        scene = _propose(rng, relation)
        if scene is not None and has_reserved(scene) == unseen:
            break
    for thing in scene["objects"]:
        thing["boxes"] = [[round(image_size * side, 1) for side in box] for box in thing["boxes"]]
    return {**scene, "unseen": unseen}


def _propose(rng, relation):
    """A scene with boxes in units of the picture, or None if the random choices do not fit together."""
    background = rng.choice(list(BACKGROUNDS))
    ground = "air" if background == "sky" else "ground"
    row = "air" if rng.random() < 0.25 else ground
    wheres = {None: (row,), "left": (row, row), "above": ("air", ground), "on": ("top", ground)}[relation]
    objects = []
    for where in wheres:
        fitting = {noun: 1 / len(able.split()) for noun, (*_, able) in THINGS.items()
                   if _can_be(able, where, background, relation) and noun not in (o["noun"] for o in objects)}
        if not fitting:
            return None
        # Nouns that fit in fewer places are chosen more often there, so that all nouns are about equally frequent.
        noun = rng.choices(list(fitting), list(fitting.values()))[0]
        colour = rng.choice([colour for colour in COLOURS if colour not in BACKGROUNDS[background][4]])
        count = 1 if relation == "on" and where != "top" else rng.randint(1, 4)
        size = rng.choice(list(SIZES))
        objects.append({"noun": noun, "count": count, "colour": colour, "size": size, "where": where})
    low = 0.46 if relation == "above" else 0.36 if "ground" in wheres else 0.72
    horizon = 1.0 if background == "sky" else rng.uniform(low, low + 0.08)
    if sum(thing["count"] for thing in objects) > 5 or not _arrange(rng, objects, relation, horizon):
        return None
    return {"objects": objects, "relation": relation, "background": background, "horizon": horizon}


def _can_be(able, where, background, relation):
    stand = "swim" if background == "water" else "stand"
    needed = {{"air": "fly", "top": "ride", "ground": stand}[where]}
    if relation == "on" and where != "top":
        needed.add("carry")
    return needed <= set(able.split())


def _arrange(rng, objects, relation, horizon):
    """Assign boxes (in units of the picture) without overlap to each object; False if they do not fit."""
    sides = []
    for thing in objects:
        scale, aspect = rng.uniform(*SIZES[thing["size"]]), math.sqrt(THINGS[thing["noun"]][2])
        sides.append((scale * aspect, scale / aspect))
    if relation == "on":
        return _stack(rng, objects, sides)
    top, foot = (0.03, horizon - 0.03) if objects[0]["where"] == "air" else (horizon - 0.08, 0.98)
    zones = [(0.02, top, 0.98, foot)]
    if relation == "left":
        split = min(0.64, max(0.36, objects[0]["count"] / (objects[0]["count"] + objects[1]["count"])))
        zones = [(0.02, top, split - 0.01, foot), (split + 0.01, top, 0.98, foot)]
    elif relation == "above":
        left, width = rng.choice([(0.02, 0.96), (rng.uniform(0.02, 0.4), 0.58)])
        middle = min(horizon, 0.5)
        zones = [(left, 0.02, left + width, middle - 0.02), (left, middle, left + width, 0.98)]
    for thing, (width, height), zone in zip(objects, sides, zones):
        thing["boxes"] = _fill(rng, thing["count"], width, height, zone)
    return all(thing["boxes"] for thing in objects)


def _fill(rng, count, width, height, zone):
    """`count` boxes inside the zone, near the centres of the cells of a random grid; [] if they do not fit."""
    x0, y0, x1, y1 = zone
    most_columns, most_rows = int((x1 - x0) / (1.04 * width)), int((y1 - y0) / (1.04 * height))
    grids = [(m, n) for m in range(1, most_columns + 1) for n in range(1, most_rows + 1)]
    grids = [(m, n) for m, n in grids if count <= m * n <= count + 1]
    if not grids:
        return []
    columns, rows = rng.choice(grids)
    across, down = (x1 - x0) / columns, (y1 - y0) / rows
    boxes = []
    for cell in sorted(rng.sample(range(columns * rows), count)):
        x = x0 + (cell % columns + 0.5) * across + rng.uniform(-0.5, 0.5) * min(across - width, 0.16)
        y = y0 + (cell // columns + 0.5) * down + rng.uniform(-0.5, 0.5) * min(down - height, 0.16)
        boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return boxes


def _stack(rng, objects, sides):
    """Place the first objects side by side on top of the second one."""
    (width, height), (below_width, below_height) = sides
    number = objects[0]["count"]
    middle, foot = rng.uniform(0.3, 0.7), rng.uniform(0.84, 0.97)
    head, left = foot - below_height, middle - number * width / 2
    seat = head + (0.04 if objects[1]["noun"] == "box" else 0.01)  # a box's lid is seen from above
    if number * width > 1.2 * below_width or seat - height < 0.02:
        return False
    lefts = [left + k * width for k in range(number)]
    objects[0]["boxes"] = [[x, seat - height, x + width, seat] for x in lefts]
    objects[1]["boxes"] = [[middle - below_width / 2, head, middle + below_width / 2, foot]]
    return True
