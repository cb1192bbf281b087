"""The embedded data set: pictures drawn and captioned by a program, in the data file's format.

    python -m eecs598.scenes FILE [--train N] [--val N] [--seed S] [--image-size P]

A scene is a dict of facts: one or two kinds of thing with their counts, colours, sizes and boxes, the
relation between them, the background. It is drawn, a grammar writes five captions that are true of it, and
`judge_caption` reads any caption back and says which of its statements hold. Some (colour, noun) pairs and
(noun, relation, noun) triples never occur in training, so that the val scenes ask for new combinations.
"""

import math
import os
import random
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tqdm import tqdm

from eecs598.coco import DataError, build_vocabulary, encode_captions, save_data
from eecs598.commands import Parser

# --- drawing ------------------------------------------------------------------------------------------------

COLOURS = {
    "red": (214, 48, 49), "orange": (245, 135, 31), "yellow": (250, 211, 50), "green": (46, 160, 67),
    "blue": (41, 98, 210), "purple": (126, 60, 170), "pink": (245, 130, 180), "brown": (128, 80, 45),
    "white": (246, 246, 242), "black": (40, 40, 46),
}  # fmt: skip
INKS = {"ink": (45, 45, 55), "wood": (120, 78, 48), "leaf": (70, 140, 60), "glass": (196, 226, 240),
        "cream": (244, 232, 208), "gold": (240, 170, 40)}  # fmt: skip
SUPERSAMPLING = 3  # pictures are drawn this many times too large, then averaged: smooth edges


class Pen:
    """Draws in a thing's own unit square, (0, 0) top left and (1, 1) bottom right, mirrored where `flip`."""

    def __init__(self, draw, box, colour, flip=False):
        self.draw, self.box, self.flip = draw, box, flip
        self.scale = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        self.paint = {**INKS, "main": colour, "dark": tuple(int(0.6 * c) for c in colour),
                      "light": tuple(int(c + 0.5 * (255 - c)) for c in colour)}  # fmt: skip

    def points(self, numbers):
        x0, y0, x1, y1 = self.box
        pairs = zip(numbers[::2], numbers[1::2])
        return [(x0 + (x1 - x0) * (1 - u if self.flip else u), y0 + (y1 - y0) * v) for u, v in pairs]

    def line(self, paint, width, *numbers):
        width = max(1, round(width * self.scale))
        self.draw.line(self.points(numbers), self.paint[paint], width, joint="curve")

    def shape(self, paint, *numbers):
        self.draw.polygon(self.points(numbers), self.paint[paint])
        self.line("dark", 0.03, *numbers, *numbers[:4])

    def rectangle(self, paint, u0, v0, u1, v1):
        self.shape(paint, u0, v0, u1, v0, u1, v1, u0, v1)

    def oval(self, paint, u0, v0, u1, v1):
        (x0, y0), (x1, y1) = self.points((u0, v0, u1, v1))
        corners = (min(x0, x1), y0, max(x0, x1), y1)
        edge = paint if paint == "light" else "dark"  # a highlight has no outline
        self.draw.ellipse(corners, self.paint[paint], self.paint[edge], max(1, round(0.03 * self.scale)))

    def dome(self, paint, u0, v0, u1, v1):
        """The upper half of an oval, its flat side at v1."""
        numbers = []
        for angle in (math.pi * k / 12 for k in range(13)):
            numbers += [(u0 + u1 - (u1 - u0) * math.cos(angle)) / 2, v1 - (v1 - v0) * math.sin(angle)]
        self.shape(paint, *numbers)


def draw_ball(p):
    p.oval("main", 0, 0, 1, 1)
    p.oval("light", 0.32, 0, 0.68, 1)
    p.oval("main", 0.42, 0, 0.58, 0.1)


def draw_balloon(p):
    p.line("ink", 0.03, 0.5, 0.72, 0.44, 0.85, 0.55, 1)
    p.shape("dark", 0.5, 0.68, 0.6, 0.78, 0.4, 0.78)
    p.oval("main", 0, 0, 1, 0.73)
    p.oval("light", 0.22, 0.1, 0.42, 0.3)


def draw_bird(p):
    p.line("gold", 0.05, 0.45, 0.8, 0.42, 1)
    p.line("gold", 0.05, 0.58, 0.8, 0.58, 1)
    p.shape("dark", 0, 0.4, 0.35, 0.45, 0.28, 0.75, 0.02, 0.55)
    p.oval("main", 0.14, 0.3, 0.82, 0.88)
    p.shape("gold", 0.86, 0.16, 1, 0.27, 0.86, 0.34)
    p.oval("main", 0.52, 0, 0.92, 0.46)
    p.shape("light", 0.24, 0.48, 0.62, 0.5, 0.5, 0.72, 0.32, 0.7)
    p.oval("ink", 0.72, 0.13, 0.8, 0.22)


def draw_boat(p):
    p.shape("light", 0.52, 0, 0.52, 0.6, 0.98, 0.6)
    p.shape("main", 0.44, 0.08, 0.44, 0.6, 0.06, 0.6)
    p.line("wood", 0.05, 0.48, 0, 0.48, 0.7)
    p.shape("main", 0, 0.66, 1, 0.66, 0.82, 1, 0.18, 1)


def draw_box(p):
    p.shape("light", 0, 0.25, 0.22, 0, 1, 0, 0.78, 0.25)
    p.shape("dark", 0.78, 0.25, 1, 0, 1, 0.75, 0.78, 1)
    p.rectangle("main", 0, 0.25, 0.78, 1)
    p.line("light", 0.07, 0.39, 0.25, 0.39, 0.6)


def draw_car(p):
    p.shape("main", 0.2, 0.4, 0.32, 0, 0.68, 0, 0.84, 0.4)
    p.shape("glass", 0.29, 0.38, 0.36, 0.1, 0.48, 0.1, 0.48, 0.38)
    p.shape("glass", 0.54, 0.38, 0.54, 0.1, 0.65, 0.1, 0.75, 0.38)
    p.shape("main", 0, 0.46, 0.06, 0.38, 0.9, 0.38, 1, 0.52, 1, 0.8, 0, 0.8)
    for u in (0.12, 0.62):
        p.oval("ink", u, 0.58, u + 0.27, 1)
        p.oval("cream", u + 0.08, 0.71, u + 0.19, 0.87)


def draw_cat(p):
    p.line("dark", 0.1, 0.14, 0.9, 0.04, 0.66, 0.12, 0.46)
    p.oval("main", 0.1, 0.42, 0.84, 1)
    p.shape("main", 0.5, 0.22, 0.52, 0, 0.7, 0.14)
    p.shape("main", 0.78, 0.14, 0.96, 0, 0.98, 0.24)
    p.oval("main", 0.46, 0.08, 1, 0.6)
    for u in (0.58, 0.79):
        p.oval("cream", u, 0.24, u + 0.11, 0.38)
        p.oval("ink", u + 0.03, 0.26, u + 0.08, 0.37)
    p.shape("light", 0.69, 0.42, 0.79, 0.42, 0.74, 0.48)


def draw_cup(p):
    p.oval("dark", 0.6, 0.25, 1, 0.75)
    p.oval("cream", 0.68, 0.36, 0.91, 0.64)
    p.shape("main", 0, 0.1, 0.8, 0.1, 0.68, 1, 0.12, 1)
    p.oval("light", 0, 0, 0.8, 0.22)


def draw_fish(p):
    p.shape("dark", 0.3, 0.2, 0.55, 0, 0.65, 0.25)
    p.shape("main", 0, 0.14, 0.34, 0.54, 0, 0.96)
    p.oval("main", 0.22, 0.12, 1, 1)
    p.shape("light", 0.42, 0.52, 0.62, 0.44, 0.58, 0.76)
    p.oval("cream", 0.76, 0.34, 0.9, 0.52)
    p.oval("ink", 0.81, 0.38, 0.88, 0.48)


def draw_flower(p):
    p.line("leaf", 0.06, 0.5, 0.5, 0.5, 1)
    p.oval("leaf", 0.52, 0.76, 0.84, 0.92)
    for k in range(6):
        u, v = 0.5 + 0.34 * math.sin(k * math.pi / 3), 0.33 - 0.21 * math.cos(k * math.pi / 3)
        p.oval("main", u - 0.2, v - 0.13, u + 0.2, v + 0.13)
    p.oval("cream", 0.36, 0.23, 0.64, 0.43)


def draw_heart(p):
    numbers = []
    for t in (2 * math.pi * k / 32 for k in range(32)):
        v = 12 - 13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t)
        numbers += [0.5 + 0.5 * math.sin(t) ** 3, v / 29]
    p.shape("main", *numbers)
    p.oval("light", 0.18, 0.14, 0.36, 0.34)


def draw_house(p):
    p.rectangle("dark", 0.7, 0.06, 0.82, 0.4)
    p.rectangle("main", 0.06, 0.36, 0.94, 1)
    p.shape("dark", 0, 0.4, 0.5, 0, 1, 0.4)
    p.rectangle("wood", 0.24, 0.64, 0.42, 1)
    p.rectangle("glass", 0.58, 0.54, 0.8, 0.76)


def draw_kite(p):
    p.line("ink", 0.03, 0.5, 0.7, 0.62, 0.82, 0.4, 0.9, 0.5, 1)
    for u, v in ((0.6, 0.82), (0.42, 0.9)):
        p.shape("light", u - 0.09, v - 0.05, u + 0.09, v + 0.05, u + 0.09, v - 0.05, u - 0.09, v + 0.05)
    p.shape("main", 0.5, 0, 1, 0.3, 0.5, 0.74, 0, 0.3)
    p.shape("light", 0.5, 0, 0.5, 0.3, 0, 0.3)
    p.line("dark", 0.03, 0, 0.3, 1, 0.3)


def draw_mushroom(p):
    p.shape("cream", 0.36, 0.5, 0.64, 0.5, 0.7, 1, 0.3, 1)
    p.dome("main", 0, 0, 1, 0.58)
    for u, v in ((0.18, 0.32), (0.44, 0.1), (0.66, 0.32)):
        p.oval("cream", u, v, u + 0.16, v + 0.16)


def draw_star(p):
    numbers = []
    for k in range(10):
        radius, angle = (1, 0.45)[k % 2], k * math.pi / 5
        numbers.append(0.5 + 0.5 * radius * math.sin(angle) / math.sin(0.4 * math.pi))
        numbers.append((1 - radius * math.cos(angle)) / (1 + math.cos(0.2 * math.pi)))
    p.shape("main", *numbers)


def draw_table(p):
    for u in (0.08, 0.8):
        p.rectangle("dark", u, 0.3, u + 0.12, 1)
    p.rectangle("main", 0.04, 0.22, 0.96, 0.46)
    p.rectangle("main", 0, 0, 1, 0.24)


def draw_tree(p):
    p.rectangle("wood", 0.42, 0.8, 0.58, 1)
    for top, half in ((0.42, 0.5), (0.2, 0.42), (0, 0.32)):
        p.shape("main", 0.5, top, 0.5 + half, top + 0.42, 0.5 - half, top + 0.42)


def draw_umbrella(p):
    p.line("ink", 0.06, 0.5, 0.4, 0.5, 0.9, 0.56, 0.97, 0.66, 0.96, 0.7, 0.86)
    p.dome("main", 0, 0.04, 1, 0.56)
    p.dome("light", 0.33, 0.04, 0.67, 0.56)
    p.line("ink", 0.06, 0.5, 0, 0.5, 0.06)


# noun: plural, drawing, width / height, where it can be: in the air ("fly"), on the ground ("stand"), afloat
# ("swim"), on top of a thing ("ride"), under one ("carry").
THINGS = {
    "ball": ("balls", draw_ball, 1.0, "stand swim ride"),
    "balloon": ("balloons", draw_balloon, 0.75, "fly"),
    "bird": ("birds", draw_bird, 1.1, "fly stand swim ride"),
    "boat": ("boats", draw_boat, 1.0, "stand swim"),
    "box": ("boxes", draw_box, 1.05, "stand swim ride carry"),
    "car": ("cars", draw_car, 1.3, "stand carry"),
    "cat": ("cats", draw_cat, 1.05, "stand ride"),
    "cup": ("cups", draw_cup, 1.1, "stand ride"),
    "fish": ("fish", draw_fish, 1.3, "stand swim"),
    "flower": ("flowers", draw_flower, 0.75, "stand"),
    "heart": ("hearts", draw_heart, 1.05, "fly ride"),
    "house": ("houses", draw_house, 1.0, "stand"),
    "kite": ("kites", draw_kite, 0.75, "fly"),
    "mushroom": ("mushrooms", draw_mushroom, 1.05, "stand"),
    "star": ("stars", draw_star, 1.05, "fly stand ride"),
    "table": ("tables", draw_table, 1.3, "stand carry"),
    "tree": ("trees", draw_tree, 0.75, "stand"),
    "umbrella": ("umbrellas", draw_umbrella, 1.05, "stand"),
}

# background: colours of the sky's top and foot and of the ground's top and foot, colours of things that would
# hide in it, and marks: how many, where, width and height of one (parts of the picture), colour.
BACKGROUNDS = {
    "sky": ((110, 180, 240), (200, 230, 250), (0, 0, 0), (0, 0, 0), ("blue",), []),  # no ground
    "grass": ((135, 195, 242), (214, 236, 250), (160, 206, 110), (98, 160, 72), ("green",),
              [(70, "ground", 0.004, -0.035, (74, 138, 58)), (25, "ground", 0.004, -0.03, (178, 218, 120))]),
    "sand": ((150, 208, 240), (235, 240, 236), (240, 218, 168), (222, 190, 130), ("yellow", "orange"),
             [(60, "ground", 0.006, 0, (190, 158, 100)), (8, "ground", 0.14, 0.01, (208, 176, 118))]),
    "water": ((165, 212, 242), (232, 242, 248), (90, 170, 205), (36, 112, 168), ("blue",),
              [(26, "ground", 0.09, 0, (150, 208, 228)), (10, "ground", 0.05, 0, (28, 96, 150))]),
    "snow": ((170, 190, 212), (222, 230, 238), (238, 242, 248), (216, 226, 240), ("white",),
             [(50, "sky", 0.008, 0.008, (255, 255, 255)), (8, "ground", 0.16, 0.01, (202, 214, 232))]),
    "night": ((12, 16, 48), (44, 52, 104), (46, 58, 66), (24, 32, 42), ("black",),
              [(40, "sky", 0.006, 0, (236, 236, 210)), (30, "ground", 0.005, -0.02, (62, 78, 84))]),
    "floor": ((240, 226, 204), (226, 208, 182), (190, 136, 84), (162, 108, 62), ("brown", "orange"),
              [(7, "ground", 3.0, 0, (128, 82, 46)), (14, "ground", 0.004, 0.07, (128, 82, 46))]),
    "road": ((186, 208, 224), (228, 234, 236), (136, 138, 144), (100, 102, 110), ("black",),
             [(40, "ground", 0.006, 0, (88, 90, 96)), (6, "ground", 0.12, 0, (226, 220, 200))]),
}  # fmt: skip


def paint_background(background, horizon, rng, side):
    """An RGB picture of side x side pixels: sky above the horizon (a part of the height), ground below.

    Marks of the background, and clutter that no caption mentions (clouds, pebbles), are strewn over it.
    """
    *colours, _, marks = BACKGROUNDS[background]
    level = round(horizon * side)
    rows = np.concatenate([_fade(*colours[:2], level), _fade(*colours[2:], side - level)])
    picture = Image.fromarray(rows[:, None]).resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture, "RGBA")
    for number, where, width, height, colour in marks:
        low, high = (0, horizon) if where == "sky" else (horizon + 0.03, 1)
        for _ in range(number):
            x, y = rng.uniform(-width / 2, 1) * side, rng.uniform(low, high) * side
            draw.line((x, y, x + width * side, y + height * side), colour, max(1, round(0.007 * side)))
    for _ in range(0 if background in ("night", "floor") else rng.randint(0, 3)):
        x, y = rng.uniform(0, 1) * side, rng.uniform(0.03, horizon - 0.1) * side
        r = rng.uniform(0.03, 0.06) * side
        for middle, height in ((x - 1.3 * r, 0.7 * r), (x, r), (x + 1.3 * r, 0.75 * r)):
            draw.ellipse((middle - 1.3 * r, y - height, middle + 1.3 * r, y + 0.6 * r), (255, 255, 255, 120))
    for _ in range(rng.randint(0, 5) if level < side else 0):
        x, y = rng.uniform(0, 1) * side, rng.uniform(horizon + 0.06, 0.98) * side
        r, grey = rng.uniform(0.012, 0.03) * side, rng.randint(110, 180)
        draw.ellipse((x - 1.4 * r, y - r, x + 1.4 * r, y + r), (grey, grey, grey, 220))
    return picture


def _fade(first, last, number):
    """`number` colours from the first to the last, uint8 (number, 3)."""
    part = np.linspace(0, 1, number)[:, None]
    return ((1 - part) * first + part * last).astype(np.uint8)


def draw_scene(scene, rng, image_size):
    """The scene's picture, uint8 (3, image_size, image_size): antialiased, unevenly lit, with pixel noise."""
    factor = SUPERSAMPLING
    picture = paint_background(scene["background"], scene["horizon"], rng, image_size * factor)
    draw = ImageDraw.Draw(picture, "RGBA")
    for thing in reversed(scene["objects"]):  # what carries comes before what sits on it
        for box in thing["boxes"]:
            x0, y0, x1, y1 = box = [factor * side for side in box]
            if thing["where"] == "ground":  # a shadow, so that it stands
                draw.ellipse((x0, y1 - 0.06 * (y1 - y0), x1, y1 + 0.07 * (y1 - y0)), (0, 0, 0, 60))
            colour = tuple(min(255, max(0, c + rng.randint(-10, 10))) for c in COLOURS[thing["colour"]])
            THINGS[thing["noun"]][1](Pen(draw, box, colour, flip=rng.random() < 0.5))
    pixels = np.asarray(picture.reduce(factor), dtype=np.float32)
    ramp = np.linspace(-0.1, 0.1, image_size, dtype=np.float32)
    light = rng.uniform(0.88, 1.08) + rng.uniform(-1, 1) * ramp[:, None] + rng.uniform(-1, 1) * ramp
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(pixels.shape, dtype=np.float32)
    pixels = pixels * light[:, :, None] + rng.uniform(1, 6) * noise
    return np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))


# --- composing a scene --------------------------------------------------------------------------------------

SIZES = {"small": (0.23, 0.245), "medium": (0.27, 0.32), "big": (0.36, 0.4)}  # root of the area, picture = 1
# relation: what is true of the first thing towards the second, and of the second towards the first
RELATIONS = {
    "left": (("left", "beside"), ("right", "beside")),
    "above": (("above",), ("below",)),
    "on": (("on",), ("below",)),
}
# Combinations kept for the val scenes: one in eight of all. "b right of a" is the triple (a, left, b).
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
    """Whether the scene holds a combination of RESERVED_PAIRS or RESERVED_TRIPLES."""
    objects = scene["objects"]
    triple = (objects[0]["noun"], scene["relation"], objects[-1]["noun"])
    return triple in RESERVED_TRIPLES or any((o["colour"], o["noun"]) in RESERVED_PAIRS for o in objects)


def compose_scene(rng, unseen, image_size):
    """A random scene's facts; `unseen` says whether it must hold a reserved combination or none.

    Returns a dict of plain values: objects, each a dict with noun, count, colour, size ("small", "medium",
    "big"), where ("air", "ground", "top" of the other) and boxes [[x0, y0, x1, y1], ...] in pixels; relation,
    of the first object to the second ("left", "above", "on", or None with one object); background; horizon, a
    part of the height; unseen.
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
    """A scene with boxes in parts of the picture, or None where the draw does not fit together."""
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
        # What can be in fewer places is drawn more often there, so that each noun is about as frequent.
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
    """Give each object its boxes (in parts of the picture), none overlapping; False where they do not fit."""
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
    """`count` boxes inside the zone, a little off the middles of a random grid's cells; [] if too many."""
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
    """The first object's things side by side on top of the second's one."""
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


# --- grammar ------------------------------------------------------------------------------------------------

LARGER_FIRST = 0.85  # share of the captions of two things that name the one first that takes more room
COUNTS = {1: ("a", "a", "a", "one"), 2: ("two", "two", "a pair of"), 3: ("three",), 4: ("four",)}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": (), "big": ("big", "large")}
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left side of"), "beside": ("beside", "next to"),
    "right": ("to the right of", "right of", "on the right side of"), "above": ("above", "over"),
    "below": ("below", "under", "beneath"), "on": ("on", "on top of"),
}  # fmt: skip
GROUNDS = {
    "grass": ("the grass", "the lawn"), "sand": ("the sand", "the beach"), "water": ("the water", "the sea"),
    "snow": ("the snow",), "floor": ("the floor", "a wooden floor"), "road": ("the road", "the street"),
}  # fmt: skip
# phrase: the backgrounds that it is true of, and where the things that it places are (None: anywhere)
PLACES = {
    **{f"on {ground}": ({name}, "ground") for name in GROUNDS for ground in GROUNDS[name]},
    **{f"above {ground}": ({name}, "air") for name in GROUNDS for ground in GROUNDS[name]},
    **{f"over {ground}": ({name}, "air") for name in GROUNDS for ground in GROUNDS[name]},
    "in the sky": (set(BACKGROUNDS) - {"floor"}, "air"), "in the night sky": ({"night"}, "air"),
    "at night": ({"night"}, None), "in the dark": ({"night"}, None),
}  # fmt: skip
# {A} and {B}: the things; {rel}: the relation of A to B; {at}, {at_A}, {at_B}: a place of both, of A, of B.
TEMPLATES = {
    1: ("{A}", "{A} {at}", "{A} {at}", "there {is} {A}", "there {is} {A} {at}", "we see {A} {at}",
        "{at} there {is} {A}", "here {is} {A} {at}"),
    2: ("{A} {rel} {B}", "{A} {rel} {B} {at_B}", "there {is} {A} {rel} {B}", "{A} {is} {rel} {B}",
        "we see {A} {rel} {B}", "{rel} {B} there {is} {A}", "{at_A} there {is} {A} {rel} {B}",
        "there {is} {A} and {B} {at}", "{A} and {B} {at}", "{A} {at_A} and {B} {at_B}", "we see {A} and {B}"),
}  # fmt: skip
# word that stands for a part of the picture: which
REGIONS = {
    **{ground.split()[-1]: "ground" for grounds in GROUNDS.values() for ground in grounds},
    "sky": "sky", "night": "all", "dark": "all",
}  # fmt: skip


def write_captions(scene, rng, number=5):
    """`number` captions that are true of the scene and name all its objects, different where it allows."""
    captions = []
    for _ in range(40 * number):
        caption = _phrase(scene, rng)
        if caption not in (None, *captions) and len(caption.split()) <= 15:
            captions.append(caption)
        if len(captions) == number:
            return captions
    return [captions[k % len(captions)] for k in range(number)]


def _phrase(scene, rng):
    """One caption, or None where the template drawn asks for a place that the grammar cannot name."""
    order = _order(scene["objects"], rng)
    first, last = scene["objects"][::order][0], scene["objects"][::order][-1]
    template = rng.choice(TEMPLATES[len(scene["objects"])])
    words = {"A": _name(first, rng), "B": _name(last, rng)}
    words["is"] = "is" if words["A"].split()[0] in ("a", "one") else "are"
    if scene["relation"]:
        words["rel"] = rng.choice(RELATION_WORDS[rng.choice(RELATIONS[scene["relation"]][order < 0])])
    for slot, things in (("at", (first, last)), ("at_A", (first,)), ("at_B", (last,))):
        if f"{{{slot}}}" in template:
            fitting = [place for place in PLACES if all(_is_placed(thing, place, scene) for thing in things)]
            if not fitting:
                return None
            words[slot] = rng.choice(fitting)
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format(**words))


def _order(things, rng):
    """1 or -1: the objects as they are, or turned round. What takes more room mostly comes first."""
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


def _is_placed(thing, place, scene):
    backgrounds, where = PLACES[place]
    return scene["background"] in backgrounds and where in (None, thing["where"])


def _locate_words(scene, captions, side):
    """{word: boxes in pixels} for the words of the captions that name a thing, a pair or the background."""
    found, level = {}, round(scene["horizon"] * side, 1)
    for thing in scene["objects"]:
        for word in (_noun(thing), "pair") if thing["count"] == 2 else (_noun(thing),):
            found[word] = found.get(word, []) + thing["boxes"]
    tops = {"sky": (0.0, level), "ground": (level, side), "all": (0.0, side)}
    found |= {word: [[0.0, tops[part][0], side, tops[part][1]]] for word, part in REGIONS.items()}
    used = {word for caption in captions for word in caption.split()}
    return {word: boxes for word, boxes in found.items() if word in used}


# --- judge --------------------------------------------------------------------------------------------------


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
            true = [thing is not None and _is_placed(thing, meaning, scene) for thing in placed]
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


# --- the data set -------------------------------------------------------------------------------------------


def _draw_chunk(job):
    """Pictures, scenes and captions of one run of scenes; each scene has its own generator."""
    seed, split, start, stop, image_size = job
    pictures, scenes, captions = [], [], []
    for i in range(start, stop):
        rng = random.Random(f"{seed} {split} {i}")
        scene = compose_scene(rng, split == "val" and i % 3 != 2, image_size)
        captions.append(write_captions(scene, rng))
        scene["boxes"] = _locate_words(scene, captions[-1], float(image_size))
        scenes.append(scene)
        pictures.append(draw_scene(scene, rng, image_size))
    return np.stack(pictures), scenes, captions


def _draw_chunks(jobs, workers):
    """The results of all jobs in order, from a pool of processes, or from this one where none can be had."""
    done = 0
    try:
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                for result in pool.map(_draw_chunk, jobs):
                    yield result
                    done += 1
    except (OSError, ImportError, NotImplementedError, BrokenProcessPool):
        pass  # no semaphores or no processes here, or they were killed
    yield from map(_draw_chunk, jobs[done:])


def make_scenes(num_train=10_000, num_val=500, seed=0, image_size=112, workers=None, progress=True):
    """Draw and caption the embedded data set; returns a data file's dict.

    One of each picture's five captions, chosen by the seed, is its row of `*_captions`; `*_references` holds
    all five, `*_scenes` the facts as in `compose_scene`, with `boxes`: for each word of the five captions that
    names a thing, a pair or the background, the boxes [x0, y0, x1, y1] in pixels that it refers to. Two of
    three val scenes are `unseen`: they hold a combination of RESERVED_PAIRS or RESERVED_TRIPLES; no training
    scene is. The same seed gives the same data for any number of `workers` (processes; None: one a core).
    Raises DataError.
    """
    limits = {
        "num_train": (num_train, 1, 10**7), "num_val": (num_val, 1, 10**7), "image_size": (image_size, 32, 1024),
        "workers": (1 if workers is None else workers, 1, 61),
    }  # fmt: skip
    for name, (value, low, high) in limits.items():
        if not isinstance(value, int) or not low <= value <= high:
            raise DataError(f"{name} is {value!r}, wanted a whole number from {low} to {high}")
    counts = {"train": num_train, "val": num_val}
    starts = [(split, k, n) for split, n in counts.items() for k in range(0, n, 50)]
    jobs = [(seed, split, k, min(k + 50, n), image_size) for split, k, n in starts]
    workers = min(workers or os.cpu_count() or 1, 61, len(jobs) // 2)  # Windows allows 61
    shape = (3, image_size, image_size)
    try:
        pixels = {split: torch.empty(n, *shape, dtype=torch.uint8) for split, n in counts.items()}
    except RuntimeError:
        raise DataError(f"{num_train + num_val} pictures of {shape} bytes do not fit in memory") from None
    facts, references = {"train": [], "val": []}, {"train": [], "val": []}
    with tqdm(total=sum(counts.values()), unit="picture", desc="scenes", disable=not progress) as bar:
        for (drawn, scenes, captions), (_, split, start, stop, _) in zip(_draw_chunks(jobs, workers), jobs):
            pixels[split][start:stop] = torch.from_numpy(drawn)
            facts[split] += scenes
            references[split] += captions
            bar.update(stop - start)
    return _assemble(pixels, facts, references, image_size)


def _assemble(pixels, facts, references, image_size):
    vocab = build_vocabulary(caption.split() for captions in references["train"] for caption in captions)
    data, first_id = {"vocab": vocab, "preprocessing": {"image_size": image_size, "fit": "stretch"}}, 0
    for split, captions in references.items():
        data[f"{split}_images"] = pixels[split]
        data[f"{split}_captions"] = encode_captions([five[0].split() for five in captions], vocab)
        data[f"{split}_image_ids"] = torch.arange(first_id, first_id + len(captions))
        data[f"{split}_references"] = captions
        data[f"{split}_scenes"] = facts[split]
        first_id += len(captions)
    return data


# --- command ------------------------------------------------------------------------------------------------


def main(arguments=None):
    """Run the command; returns the exit status."""
    parser = Parser(prog="python -m eecs598.scenes", description="Draw and caption the embedded data set.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the data file to write")
    parser.add_argument("--train", type=int, default=10_000, metavar="N", help="training pictures (10000)")
    parser.add_argument("--val", type=int, default=500, metavar="N", help="validation pictures (500)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other scenes (0)")
    parser.add_argument("--image-size", type=int, default=112, metavar="P", help="pixels a side (112)")
    options = parser.parse_args(arguments)
    folder, size, begin = options.file.absolute().parent, options.image_size, time.perf_counter()
    try:
        if not folder.is_dir() or not os.access(folder, os.W_OK) or options.file.is_dir():
            raise DataError(f"{options.file}: not writable; want the name of a file in a folder that exists")
        data = make_scenes(options.train, options.val, options.seed, size)
        save_data(data, options.file)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    words, seconds = len(data["vocab"]["idx_to_token"]) - 4, time.perf_counter() - begin
    print(f"{options.file}: {options.train} train + {options.val} val pictures of {size} x {size}, "
          f"{words} words, {seconds:.0f} s")  # fmt: skip
    return 0

