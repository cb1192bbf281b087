"""Drawing objects, backgrounds, and whole scenes, which are described in `compose_scene` in `compose.py`.

An object is drawn with a `Pen` in its own unit square.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 48, 49), "orange": (245, 135, 31), "yellow": (250, 211, 50), "green": (46, 160, 67),
    "blue": (41, 98, 210), "purple": (126, 60, 170), "pink": (245, 130, 180), "brown": (128, 80, 45),
    "white": (246, 246, 242), "black": (40, 40, 46),
}  # fmt: skip
INKS = {"ink": (45, 45, 55), "wood": (120, 78, 48), "leaf": (70, 140, 60), "glass": (196, 226, 240),
        "cream": (244, 232, 208), "gold": (240, 170, 40)}  # fmt: skip
SUPERSAMPLING = 3  # pictures are drawn this many times larger, then averaged for smooth edges


class Pen:
    """Draws in the unit square of an object, from (0, 0) top left to (1, 1) bottom right, mirrored if `flip`."""

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


# noun: plural, drawing function, width / height, possible positions: in the air ("fly"), on the ground ("stand"), on
# water ("swim"), on top of another object ("ride"), below one ("carry").
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

# background: colours of the top and bottom of the sky and of the ground, colours of objects that would be invisible,
# and marks: number, region, width and height (in units of the picture), colour.
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
    """An RGB picture of side x side pixels: sky above the horizon (a fraction of the height), ground below.

    Marks of the background are scattered over it, and clutter that no caption mentions (clouds, pebbles).
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
    """A gradient of `number` colours from the first to the last, uint8 (number, 3)."""
    part = np.linspace(0, 1, number)[:, None]
    return ((1 - part) * first + part * last).astype(np.uint8)


def draw_scene(scene, rng, image_size):
    """The picture of a scene, uint8 (3, image_size, image_size): antialiased, unevenly lit, with pixel noise."""
    factor = SUPERSAMPLING
    picture = paint_background(scene["background"], scene["horizon"], rng, image_size * factor)
    draw = ImageDraw.Draw(picture, "RGBA")
    for thing in reversed(scene["objects"]):  # the lower object first, then the one on top of it
        for box in thing["boxes"]:
            x0, y0, x1, y1 = box = [factor * side for side in box]
            if thing["where"] == "ground":  # a shadow on the ground
                draw.ellipse((x0, y1 - 0.06 * (y1 - y0), x1, y1 + 0.07 * (y1 - y0)), (0, 0, 0, 60))
            colour = tuple(min(255, max(0, c + rng.randint(-10, 10))) for c in COLOURS[thing["colour"]])
            THINGS[thing["noun"]][1](Pen(draw, box, colour, flip=rng.random() < 0.5))
    pixels = np.asarray(picture.reduce(factor), dtype=np.float32)
    ramp = np.linspace(-0.1, 0.1, image_size, dtype=np.float32)
    light = rng.uniform(0.88, 1.08) + rng.uniform(-1, 1) * ramp[:, None] + rng.uniform(-1, 1) * ramp
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(pixels.shape, dtype=np.float32)
    pixels = pixels * light[:, :, None] + rng.uniform(1, 6) * noise
    return np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
