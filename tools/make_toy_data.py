"""Write three small generated data sets in the folder layouts that OpenMMLab's datasets read.

    DIR/coco/{annotations,train2017,val2017}                          objects with boxes and masks
    DIR/ade/ADEChallengeData2016/{images,annotations}/{training,validation}      labelled scenes
    DIR/imagenet/{train,val}/WNID                                     one object per picture

The same seed writes the same bytes (under the same versions of NumPy, OpenCV and Pillow): every
picture has its own random stream, which follows from the seed, the data set, the split and the
picture's number alone.
"""

import argparse
import colorsys
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from rich.progress import track

# Raise it whenever the same settings give other files, so that older data is made again.
VERSION = 1
GENERATOR = 'tools/make_toy_data.py'
RECORD = 'toy.json'

# The ids and names are those of the real data sets, so a subset is chosen with
# `metainfo=dict(classes=...)` exactly as on the real data.
COCO_CLASSES = {6: 'bus', 13: 'stop sign', 28: 'umbrella', 37: 'sports ball', 38: 'kite'}
ADE_CLASSES = {
    2: 'building',
    3: 'sky',
    5: 'tree',
    7: 'road',
    10: 'grass',
    17: 'mountain',
    21: 'car',
    22: 'water',
}
IMAGENET_CLASSES = {
    'n02165456': 'ladybug',
    'n02317335': 'starfish',
    'n02782093': 'balloon',
    'n04548280': 'wall clock',
    'n06785654': 'crossword puzzle',
    'n11939491': 'daisy',
}

UNLABELLED = 0
BUILDING, SKY, TREE, ROAD, GRASS, MOUNTAIN, CAR, WATER = ADE_CLASSES

# Pictures are drawn this many times larger and averaged down, which smooths every edge.
SUPERSAMPLING = 3

# Arrays named u and v hold the place of every pixel relative to one object: u to the right, v
# down, 1 at the object's radius. A painter returns the object's silhouette and its colours.
Painter = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Layer(NamedTuple):
    """One object, painted but not yet laid on a picture."""

    window: tuple[slice, slice]
    mask: np.ndarray
    colour: np.ndarray


# ---------------------------------------------------------------------------------------------
# Colours and textures. Colours are RGB in 0..1, and float64 all through, so that the last bit's
# differences between processors do not reach the 8-bit pixels.


def random_colour(
    rng: np.random.Generator,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> np.ndarray:
    """Draw one colour from ranges of hue, saturation and value."""
    h, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v))


def plain(like: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return one colour for every pixel of `like`, (H, W) -> (H, W, 3)."""
    return np.broadcast_to(colour, (*like.shape, 3)).copy()


def blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mix two colours, or arrays of them, with the second's share (H, W) in 0..1."""
    mixed = np.clip(share, 0, 1)[..., None] * (second - first)
    mixed += first
    return mixed


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Return smooth noise in 0..1 whose largest spots are about `cell` pixels wide."""
    height, width = shape
    total = np.zeros(shape)
    for octave in range(3):
        step = max(cell / 2**octave, 1)
        grid = rng.random((int(height / step) + 2, int(width / step) + 2))
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.clip(total / 1.75, 0, 1)


def ball_shade(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness of a ball of radius 1 that is lit from the upper left."""
    depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    return 0.5 + 0.5 * np.clip(-0.45 * u - 0.6 * v + 0.66 * depth, 0, 1)


def disc(u: np.ndarray, v: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(u - x, v - y) < radius


def rounded_box(u: np.ndarray, v: np.ndarray, right: float, bottom: float, r: float) -> np.ndarray:
    """Return the inside of a box around the origin whose corners are rounded with radius `r`."""
    return np.hypot(np.maximum(abs(u) - right + r, 0), np.maximum(abs(v) - bottom + r, 0)) < r


# ---------------------------------------------------------------------------------------------
# Objects of the COCO set


def paint_bus(u, v, rng):
    if rng.random() < 0.5:
        u = -u
    paint = random_colour(rng, (0.09, 0.15), (0.75, 0.95), (0.85, 1.0))
    glass = random_colour(rng, (0.55, 0.62), (0.3, 0.5), (0.25, 0.4))
    body = rounded_box(u, v + 0.06, 0.98, 0.5, 0.12)
    wheels = disc(abs(u), v, 0.56, 0.42, 0.2)
    colour = plain(u, paint) * (1 - 0.3 * v)[..., None]
    windows = (abs(v + 0.27) < 0.16) & (abs(u) < 0.88) & ((u + 0.88) % 0.293 > 0.05)
    colour[windows] = glass
    colour[windows & ((u + v) % 0.5 < 0.12)] = glass + 0.25
    colour[abs(v - 0.06) < 0.045] = 0.97
    colour[abs(v - 0.17) < 0.035] = 0.15
    colour[disc(u, v, 0.9, 0.3, 0.06)] = (1.0, 0.97, 0.75)
    colour[wheels] = 0.12
    colour[disc(abs(u), v, 0.56, 0.42, 0.09)] = 0.7
    return body | wheels, colour


def paint_stop_sign(u, v, rng):
    octagon = np.maximum(np.maximum(abs(u), abs(v)), (abs(u) + abs(v)) / np.sqrt(2))
    red = random_colour(rng, (0.97, 1.01), (0.8, 0.95), (0.7, 0.85))
    colour = plain(u, red) * (1 - 0.15 * (u + v))[..., None]
    height, width = STOP_LETTERS.shape
    row = np.clip((v / 0.36 + 1) / 2 * height, 0, height - 1).astype(int)
    column = np.clip((u / 0.72 + 1) / 2 * width, 0, width - 1).astype(int)
    colour[STOP_LETTERS[row, column] | (octagon > 0.84)] = 0.97
    return octagon < 0.95, colour


def stop_letters() -> np.ndarray:
    text, font, scale, thickness = 'STOP', cv2.FONT_HERSHEY_SIMPLEX, 4, 20
    (width, height), _ = cv2.getTextSize(text, font, scale, thickness)
    letters = np.zeros((height + 2 * thickness, width + thickness), np.uint8)
    cv2.putText(letters, text, (thickness // 2, height + thickness), font, scale, 255, thickness)
    return letters > 0


STOP_LETTERS = stop_letters()


def paint_umbrella(u, v, rng):
    panels = int(rng.integers(5, 8))
    top, bottom = v + 0.12, 0.12
    dome_width = np.sqrt(np.clip(1 - (top / 0.85) ** 2, 1e-6, 1))
    across = (u / dome_width + 1) / 2 * panels
    hem = bottom - 0.1 * abs(np.sin(np.pi * (u + 1) / 2 * panels))
    canopy = (u**2 + (top / 0.85) ** 2 < 1) & (v < hem)
    shaft = (abs(u) < 0.055) & (v > -0.1) & (v < 0.78)
    hook = (abs(np.hypot(u - 0.15, v - 0.78) - 0.15) < 0.06) & (v >= 0.78)
    dark = random_colour(rng, (0.76, 0.9), (0.65, 0.9), (0.5, 0.75))
    light = random_colour(rng, (0.83, 0.93), (0.15, 0.45), (0.92, 1.0))
    colour = np.where((np.floor(across) % 2 == 0)[..., None], dark, light)
    colour *= (1 - 0.22 * abs(across % 1 - 0.5) - 0.25 * abs(u))[..., None]
    colour[~canopy] = (0.25, 0.16, 0.1)
    return canopy | shaft | hook, colour


def paint_sports_ball(u, v, rng):
    """Paint a beach ball: its stripes run from a pole that faces the viewer more or less."""
    tilt = rng.uniform(0.4, 1.1)
    depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    pole = depth * np.cos(tilt) - v * np.sin(tilt)
    longitude = np.arctan2(depth * np.sin(tilt) + v * np.cos(tilt), u)
    green = random_colour(rng, (0.28, 0.42), (0.7, 0.95), (0.45, 0.75))
    stripes = np.floor(longitude / (np.pi / 4)) % 2 == 0
    colour = np.where(stripes[..., None], green, 0.96)
    colour[pole > 0.95] = green * 0.6
    return np.hypot(u, v) < 0.97, colour * ball_shade(u, v)[..., None]


def paint_kite(u, v, rng):
    cross = -0.25
    edge = np.where(v < cross, (v + 0.97) / (0.97 + cross), (0.97 - v) / (0.97 - cross))
    half_width = 0.72 * np.clip(edge, 0, 1)
    blue = random_colour(rng, (0.57, 0.65), (0.7, 0.95), (0.6, 0.9))
    cyan = random_colour(rng, (0.48, 0.54), (0.35, 0.8), (0.85, 1.0))
    checks = (np.floor(u / 0.24) + np.floor((v - cross) / 0.24)) % 2 == 0
    colour = np.where(checks[..., None], blue, cyan)
    colour *= (1 - 0.25 * (u > 0))[..., None]
    colour[(abs(u) < 0.035) | (abs(v - cross) < 0.035)] = 0.15
    return abs(u) < half_width, colour


# The painter and the largest tilt, in degrees, of each class.
COCO_PAINTERS = {
    'bus': (paint_bus, 12),
    'stop sign': (paint_stop_sign, 15),
    'umbrella': (paint_umbrella, 25),
    'sports ball': (paint_sports_ball, 180),
    'kite': (paint_kite, 40),
}


# ---------------------------------------------------------------------------------------------
# Objects of the ImageNet set


def paint_ladybug(u, v, rng):
    red = random_colour(rng, (0.96, 1.03), (0.8, 1.0), (0.75, 0.95))
    head = disc(u, v, 0, -0.66, 0.32)
    body = u**2 / 0.78**2 + (v - 0.13) ** 2 / 0.83**2 < 1
    colour = plain(u, red) * ball_shade(u / 0.85, (v - 0.13) / 0.9)[..., None]
    size = rng.uniform(0.12, 0.17)
    spots = disc(u, v, 0, -0.5, 1.3 * size) | (abs(u) < 0.035)
    for x, y in ((0.33, -0.25), (0.48, 0.15), (0.26, 0.42), (0.2, 0.08)):
        spots |= disc(abs(u), v, x, y, size)
    colour[body & spots] = 0.08
    colour[head & ~body] = 0.08
    colour[disc(abs(u), v, 0.16, -0.78, 0.07)] = 0.95
    return body | head, colour


def paint_starfish(u, v, rng):
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    arm = (np.cos(5 * angle) + 1) / 2
    skin = random_colour(rng, (0.03, 0.09), (0.75, 0.95), (0.8, 1.0))
    reach = 0.36 + 0.6 * arm**1.8
    colour = blend(skin * 0.6, skin, 1.3 - radius / reach)
    colour = blend(colour, skin * 0.45, 1.6 * noise(rng, u.shape, 9) - 0.75)
    colour[(arm > 0.97) & (np.sin(24 * radius) > 0) & (radius < 0.85)] = skin * 0.5 + 0.5
    return radius < reach, colour


def paint_balloon(u, v, rng):
    """Paint a hot-air balloon with upright stripes."""
    taper = np.interp(v, (0.05, 0.62), (0.66, 0.16))
    dome = np.sqrt(np.clip(0.72**2 - (v + 0.25) ** 2, 0, 1))
    half_width = np.where(v < 0.05, dome, np.where(v < 0.62, taper, 0))
    basket = (abs(u) < 0.15) & (abs(v - 0.87) < 0.11)
    ropes = (abs(abs(u) - 0.12) < 0.02) & (v >= 0.62) & (v < 0.8)
    hue = rng.uniform(0.55, 0.75)
    first = random_colour(rng, (hue, hue), (0.75, 0.95), (0.6, 0.9))
    second = random_colour(rng, (0.12, 0.16), (0.5, 0.9), (0.95, 1.0))
    across = np.arcsin(np.clip(u / np.maximum(half_width, 1e-3), -1, 1)) / np.pi + 0.5
    colour = np.where((np.floor(across * 7) % 2 == 0)[..., None], first, second)
    colour *= ball_shade(u / 0.8, (v + 0.2) / 0.9)[..., None]
    colour[ropes] = 0.2
    colour[basket] = (0.45, 0.28, 0.12)
    return (abs(u) < half_width) | basket | ropes, colour


def paint_wall_clock(u, v, rng):
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    frame = random_colour(rng, (0.04, 0.1), (0.4, 0.8), (0.25, 0.5))
    colour = plain(u, np.array([0.96, 0.95, 0.88])) * (1 - 0.1 * (u + v))[..., None]
    off_hour = abs((angle / (np.pi / 6) + 0.5) % 1 - 0.5) * np.pi / 6 * radius
    colour[(off_hour < 0.035) & (radius > 0.6)] = 0.1
    for length, breadth in ((0.42, 0.06), (0.62, 0.04)):
        turn = rng.uniform(0, 2 * np.pi)
        along = u * np.sin(turn) - v * np.cos(turn)
        beside = u * np.cos(turn) + v * np.sin(turn)
        colour[(abs(beside) < breadth) & (along > -0.08) & (along < length)] = 0.1
    rim = radius > 0.8
    colour[rim] = (frame * (1 - 0.35 * (u + v))[..., None])[rim]
    return radius < 0.97, colour


def paint_crossword_puzzle(u, v, rng):
    cells, half = int(rng.integers(5, 8)), 0.84
    black = rng.random((cells, cells)) < 0.35
    across, down = ((w / half + 1) / 2 * cells for w in (u, v))
    column, row = (np.clip(w, 0, cells - 1).astype(int) for w in (across, down))
    colour = plain(u, random_colour(rng, (0.1, 0.16), (0.0, 0.12), (0.93, 1.0)))
    lines = np.minimum(abs((across + 0.5) % 1 - 0.5), abs((down + 0.5) % 1 - 0.5))
    colour[black[row, column] | (lines < 0.06)] = 0.07
    return np.maximum(abs(u), abs(v)) < half, colour


def paint_daisy(u, v, rng):
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    petals = int(rng.integers(8, 12))
    petal = abs(np.cos(petals * angle / 2))
    white = random_colour(rng, (0.8, 0.95), (0.0, 0.15), (0.95, 1.0))
    yellow = random_colour(rng, (0.12, 0.15), (0.85, 1.0), (0.9, 1.0))
    colour = plain(u, white) * (0.62 + 0.38 * petal)[..., None]
    heart = radius < 0.3
    dots = np.sin(40 * u) * np.sin(40 * v) > 0.3
    colour[heart] = yellow * (1 - 0.35 * dots[heart])[..., None]
    return heart | (radius < 0.96 * petal**0.55), colour


# The painter and the largest tilt, in degrees, of each class.
IMAGENET_PAINTERS = {
    'ladybug': (paint_ladybug, 180),
    'starfish': (paint_starfish, 180),
    'balloon': (paint_balloon, 12),
    'wall clock': (paint_wall_clock, 15),
    'crossword puzzle': (paint_crossword_puzzle, 20),
    'daisy': (paint_daisy, 180),
}


# ---------------------------------------------------------------------------------------------
# Objects of the ADE20K set


def paint_car(u, v, rng):
    if rng.random() < 0.5:
        u = -u
    paint = random_colour(rng, (0.95, 1.12), (0.75, 0.95), (0.65, 0.95))
    body = rounded_box(u, v - 0.16, 0.98, 0.26, 0.14)
    cabin = (abs(u + 0.08) < 0.62 + 0.5 * v) & (abs(v + 0.25) < 0.22)
    window = (abs(u + 0.08) < 0.53 + 0.5 * v) & (abs(v + 0.24) < 0.14) & (abs(u + 0.08) > 0.04)
    wheels = disc(abs(u), v, 0.55, 0.38, 0.21)
    colour = plain(u, paint) * (1 - 0.3 * v)[..., None]
    colour[window] = (0.2, 0.25, 0.32)
    colour[disc(u, v, 0.92, 0.1, 0.08)] = (1.0, 0.95, 0.7)
    colour[wheels] = 0.1
    colour[disc(abs(u), v, 0.55, 0.38, 0.1)] = 0.7
    return body | cabin | wheels, colour


def paint_broadleaf(u, v, rng):
    leaf = random_colour(rng, (0.27, 0.38), (0.6, 0.85), (0.22, 0.4))
    radius, angle = np.hypot(u / 0.8, v + 0.35), np.arctan2(v + 0.35, u)
    lobes, phase = rng.integers(6, 10), rng.uniform(0, 2 * np.pi)
    crown = radius < 0.58 + 0.05 * np.sin(lobes * angle + phase)
    trunk = (abs(u) < 0.08) & (v > 0) & (v < 1)
    light = ball_shade(u / 0.8, (v + 0.35) / 0.8) + 0.9 * (noise(rng, u.shape, 9) - 0.5)
    colour = plain(u, leaf) * light[..., None]
    colour[~crown] = (0.3, 0.2, 0.12)
    return crown | trunk, colour


def paint_conifer(u, v, rng):
    leaf = random_colour(rng, (0.35, 0.43), (0.5, 0.8), (0.2, 0.34))
    tier = np.clip((v + 1) / 1.75, 0, 1)
    crown = (abs(u) < 0.12 + 0.28 * tier + 0.14 * (tier * 4 % 1) - 0.12 * (v < -0.9)) & (v < 0.75)
    crown &= v > -1 + abs(u)
    trunk = (abs(u) < 0.07) & (v >= 0.75) & (v < 1)
    light = 0.75 - 0.5 * u + 0.8 * (noise(rng, u.shape, 7) - 0.5) + 0.2 * (tier * 4 % 1)
    colour = plain(u, leaf) * light[..., None]
    colour[~crown] = (0.28, 0.18, 0.1)
    return crown | trunk, colour


def paint_boulder(u, v, rng):
    angle, phase = np.arctan2(v, u), rng.uniform(0, 2 * np.pi)
    mask = np.hypot(u, v / 0.7) < 0.8 + 0.1 * np.sin(3 * angle + phase) - 0.3 * (v > 0.35)
    stone = random_colour(rng, (0.06, 0.12), (0.05, 0.2), (0.5, 0.65))
    light = ball_shade(u, v) + 0.7 * (noise(rng, u.shape, 8) - 0.5)
    return mask, plain(u, stone) * light[..., None]


# ---------------------------------------------------------------------------------------------
# Pictures


def paint_layer(
    painter: Painter,
    rng: np.random.Generator,
    shape: tuple[int, int],
    centre: tuple[float, float],
    radius: float,
    tilt: float = 0,
) -> Layer:
    """Paint one object for a picture of `shape` (H, W); `tilt` is its largest angle in degrees."""
    x, y = centre
    reach = 1.45 * radius
    rows = slice(max(0, int(y - reach)), min(shape[0], int(y + reach) + 1))
    columns = slice(max(0, int(x - reach)), min(shape[1], int(x + reach) + 1))
    down, right = np.mgrid[rows, columns]
    right, down = (right + 0.5 - x) / radius, (down + 0.5 - y) / radius
    angle = np.deg2rad(rng.uniform(-tilt, tilt))
    u = np.cos(angle) * right + np.sin(angle) * down
    v = np.cos(angle) * down - np.sin(angle) * right
    return Layer((rows, columns), *painter(u, v, rng))


def lay_on(image: np.ndarray, layer: Layer, shadow: float = 0) -> None:
    """Copy an object onto the picture, over a soft shadow that falls `shadow` pixels away."""
    if shadow:
        size = 2 * int(shadow) + 1
        full = np.zeros(image.shape[:2])
        full[layer.window] = layer.mask
        shift = np.float64([[1, 0, 0.7 * shadow], [0, 1, shadow]])
        full = cv2.warpAffine(full, shift, full.shape[::-1], flags=cv2.INTER_NEAREST)
        image *= 1 - 0.45 * cv2.blur(full, (size, size))[..., None]
    np.copyto(image[layer.window], layer.colour, where=layer.mask[..., None])


def finish(image: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Average the picture down to its size and add a camera's grain."""
    height, width = (side // SUPERSAMPLING for side in image.shape[:2])
    small = cv2.resize(np.clip(image, 0, 1), (width, height), interpolation=cv2.INTER_AREA)
    small = small * rng.uniform(0.88, 1.05) + rng.normal(0, 0.012, small.shape)
    return Image.fromarray((np.clip(small, 0, 1) * 255).round().astype(np.uint8))


def at_pixel_centres(image: np.ndarray) -> np.ndarray:
    """Read the value at the centre of every pixel of the final picture."""
    middle = SUPERSAMPLING // 2
    return image[middle::SUPERSAMPLING, middle::SUPERSAMPLING]


def save_jpeg(image: Image.Image, path: Path) -> None:
    # Everything that a newer Pillow might default differently is given.
    image.save(path, 'JPEG', quality=92, subsampling=0, optimize=False, progressive=False)


def backdrop(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Paint a background in dull colours, already at the size for drawing objects on it."""
    # Its few edges are soft or straight, so it is painted at its final size, which is faster.
    image = dull_scenery(rng, (height, width))
    return image.repeat(SUPERSAMPLING, 0).repeat(SUPERSAMPLING, 1)


def dull_scenery(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint hills, a brick wall, or uneven ground, (H, W, 3)."""
    height, width = shape
    down, right = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    kind = rng.choice(['hills', 'bricks', 'ground'])
    if kind == 'hills':
        pale = random_colour(rng, (0.05, 0.65), (0.05, 0.15), (0.85, 0.95))
        image = blend(random_colour(rng, (0.52, 0.65), (0.15, 0.3), (0.7, 0.9)), pale, 1.7 * down)
        for base in np.linspace(0.45, 0.85, int(rng.integers(2, 4))):
            crest = base + 0.25 * (noise(rng, (1, width), width / 3) - 0.5)
            hill = random_colour(rng, (0.1, 0.4), (0.15, 0.3), (0.4, 0.65))
            grain = 0.85 + 0.3 * noise(rng, shape, 4)
            image = blend(image, hill * grain[..., None], (down - crest) * height)
        return image
    first = random_colour(rng, (0, 1), (0.05, 0.2), (0.45, 0.8))
    if kind == 'bricks':
        brick_height = height / rng.integers(8, 14)
        row = np.floor(down * height / brick_height)
        along = right * width / (2.4 * brick_height) + row % 2 / 2
        shades = 0.85 + 0.3 * rng.random((int(row.max()) + 1, int(along.max()) + 1))
        image = first * shades[row.astype(int), along.astype(int)][..., None]
        mortar = (down * height % brick_height < 0.12 * brick_height) | (along % 1 < 0.05)
        image[mortar] = 0.5 * first + 0.4
        return image * (0.85 + 0.3 * noise(rng, shape, 30))[..., None]
    second = first * rng.uniform(0.55, 0.8)
    image = blend(first, second, 1.8 * noise(rng, shape, rng.uniform(7, 40)) - 0.4)
    return image * (1.15 - 0.3 * down * rng.choice([-1, 1]))[..., None]


class CocoObject(NamedTuple):
    """One object of the COCO set, or a whole crowd."""

    layer: Layer
    name: str
    crowd: bool


def arrange_objects(
    rng: np.random.Generator, shape: tuple[int, int], count: int, crowd: bool
) -> tuple[list[CocoObject], np.ndarray]:
    """Place up to `count` objects, some of them over others, and a crowd behind them if asked.

    Returns:
        The objects from back to front, and (H, W) their numbers where each is visible, else -1.
    """
    corner = np.array(shape[::-1])
    owner = np.full(shape, -1, np.int16)
    objects: list[CocoObject] = []
    if crowd:
        objects.append(crowd_of_objects(rng, shape))
        owner[objects[0].layer.mask] = 0
    # One in six is small, one in six large; large ones come first and so lie behind.
    sizes = rng.choice([0.12, 0.22, 0.3, 0.36, 0.44, 0.6], count) * rng.uniform(0.8, 1.15, count)
    last_centre = None
    for radius in np.sort(sizes)[::-1] * min(shape) / 2:
        name = str(rng.choice(list(COCO_PAINTERS)))
        painter, tilt = COCO_PAINTERS[name]
        for _ in range(20):
            centre = rng.uniform(0.6 * radius, corner - 0.6 * radius)
            if last_centre is not None and rng.random() < 0.3:
                direction = rng.uniform(0, 2 * np.pi)
                beside = last_centre + 1.3 * radius * np.array(
                    [np.cos(direction), np.sin(direction)]
                )
                centre = np.clip(beside, 0.6 * radius, corner - 0.6 * radius)
            layer = paint_layer(painter, rng, shape, centre, radius, tilt)
            new_objects = [*objects, CocoObject(layer, name, crowd=False)]
            new_owner = owner.copy()
            new_owner[layer.window][layer.mask] = len(objects)
            if all(shows_well(new_owner == i, thing) for i, thing in enumerate(new_objects)):
                objects, owner, last_centre = new_objects, new_owner, centre
                break
    return objects, owner


def shows_well(visible: np.ndarray, thing: CocoObject) -> bool:
    """Whether half of the object is visible, in pieces that polygons without holes describe."""
    if np.count_nonzero(visible) < 0.5 * np.count_nonzero(thing.layer.mask):
        return False
    _, hierarchy = cv2.findContours(
        visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    has_holes = (hierarchy[0, :, 3] >= 0).any()
    return thing.crowd or not has_holes


def crowd_of_objects(rng: np.random.Generator, shape: tuple[int, int]) -> CocoObject:
    """Paint a throng of one class, too dense to be annotated one by one."""
    name = str(rng.choice(list(COCO_PAINTERS)))
    painter, tilt = COCO_PAINTERS[name]
    height, width = shape
    mask, colour = np.zeros(shape, bool), np.zeros((*shape, 3))
    radius = 0.07 * min(shape)
    middle = rng.uniform(0.3, 0.7, 2) * (width, height)
    # From top to bottom, so that nearer ones lie over farther ones.
    for y in np.sort(middle[1] + rng.normal(0, 0.07 * height, 20)):
        x = middle[0] + rng.normal(0, 0.1 * width)
        layer = paint_layer(painter, rng, shape, np.clip((x, y), 0, (width, height)), radius, tilt)
        mask[layer.window] |= layer.mask
        colour[layer.window][layer.mask] = layer.colour[layer.mask] * rng.uniform(0.85, 1)
    return CocoObject(Layer((slice(None), slice(None)), mask, colour), name, True)


def polygons_of(visible: np.ndarray) -> list[np.ndarray]:
    """Outline a mask in supersampled pixels by polygons (N, 2) in pixels of the final picture."""
    # COCO counts from a pixel's corner, while OpenCV walks through pixel centres: walk over the
    # grid of corners instead.
    padded = np.pad(visible, 1)
    corners = padded[1:, 1:] | padded[:-1, 1:] | padded[1:, :-1] | padded[:-1, :-1]
    outlines, _ = cv2.findContours(
        corners.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    smooth = (cv2.approxPolyDP(outline, 0.8, True)[:, 0] for outline in outlines)
    polygons = [np.round(points / SUPERSAMPLING, 2) for points in smooth]
    # Slivers of less than two pixels are left out, as an annotator would.
    return [polygon for polygon in polygons if area_of(polygon) >= 2]


def area_of(polygon: np.ndarray) -> float:
    return cv2.contourArea(polygon.astype(np.float32))


def annotate(thing: CocoObject, visible: np.ndarray) -> dict:
    """Describe an object's visible part in COCO's format."""
    ids = {name: class_id for class_id, name in COCO_CLASSES.items()}
    annotation = {'category_id': ids[thing.name], 'iscrowd': int(thing.crowd)}
    if thing.crowd:
        rle = mask_utils.encode(np.asfortranarray(at_pixel_centres(visible), np.uint8))
        annotation['area'] = float(mask_utils.area(rle))
        annotation['bbox'] = mask_utils.toBbox(rle).tolist()
        annotation['segmentation'] = {'size': rle['size'], 'counts': rle['counts'].decode()}
    else:
        polygons = polygons_of(visible)
        points = np.concatenate(polygons)
        left_top = points.min(0)
        size = points.max(0) - left_top
        annotation['area'] = round(sum(map(area_of, polygons)), 2)
        annotation['bbox'] = np.round((*left_top, *size), 2).tolist()
        annotation['segmentation'] = [polygon.ravel().tolist() for polygon in polygons]
    return annotation


def draw_coco(rng: np.random.Generator, index: int) -> tuple[Image.Image, list[dict]]:
    """Draw picture number `index`; of twenty, the second shows nothing, the third a crowd."""
    width, height = 8 * rng.integers(18, 23), 8 * rng.integers(14, 18)
    if rng.random() < 0.3:
        width, height = height, width
    image = backdrop(rng, height, width)
    count = 0 if index % 20 == 1 else 1 + rng.binomial(4, 0.45)
    objects, owner = arrange_objects(rng, image.shape[:2], count, crowd=index % 20 == 2)
    for thing in objects:
        lay_on(image, thing.layer, shadow=0.02 * min(image.shape[:2]))
    annotations = [annotate(thing, owner == i) for i, thing in enumerate(objects)]
    return finish(image, rng), annotations


class Scene:
    """A landscape or a street, with the id of the class that every pixel shows."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        self.shape = shape
        self.image = np.zeros((*shape, 3))
        self.labels = np.full(shape, UNLABELLED, np.uint8)
        self.down, self.right = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]

    def fill(self, mask: np.ndarray, colour: np.ndarray, class_id: int) -> None:
        np.copyto(self.image, colour, where=mask[..., None])
        self.labels[mask] = class_id

    def stand(self, painter: Painter, class_id: int, x: float, foot: float, size: float) -> None:
        """Stand an object on the line `foot`; all in shares of the picture, `size` the height."""
        height, width = self.shape
        radius = size * height / 2
        layer = paint_layer(
            painter, self.rng, self.shape, (x * width, foot * height - radius), radius
        )
        lay_on(self.image, layer)
        self.labels[layer.window][layer.mask] = class_id

    def noise(self, cell: float) -> np.ndarray:
        return noise(self.rng, self.shape, cell)

    def ridge(self, base: float, height: float) -> np.ndarray:
        """Return the height (1, W) of an uneven line, as a share of the picture."""
        width = self.shape[1]
        return base - height * noise(self.rng, (1, width), width / 3)

    def sky(self) -> None:
        blue = random_colour(self.rng, (0.54, 0.62), (0.4, 0.65), (0.8, 1.0))
        pale = random_colour(self.rng, (0.05, 0.6), (0.05, 0.15), (0.92, 1.0))
        colour = blend(blue, pale, 1.6 * self.down)
        clouds = noise(self.rng, (self.shape[0] // 2, self.shape[1] // 4), 30)
        clouds = cv2.resize(clouds, self.shape[::-1], interpolation=cv2.INTER_CUBIC)
        self.fill(self.down >= 0, blend(colour, np.array([1.0, 1, 1]), 4 * clouds - 2.1), SKY)

    def mountains(self, horizon: float) -> None:
        crest = self.ridge(horizon - 0.02, self.rng.uniform(0.25, 0.4))
        rock = random_colour(self.rng, (0.66, 0.78), (0.15, 0.3), (0.4, 0.55))
        colour = plain(self.down, rock) * (0.7 + 0.6 * self.noise(25))[..., None]
        snow = self.down < crest + 0.05 * self.noise(15) + 0.015
        colour[snow] = (0.93, 0.94, 0.97)
        self.fill((self.down > crest) & (self.down < horizon + 0.05), colour, MOUNTAIN)

    def grass(self, horizon: float) -> None:
        green = random_colour(self.rng, (0.2, 0.27), (0.5, 0.75), (0.6, 0.8))
        blades = noise(self.rng, (self.shape[0] // 4, self.shape[1]), 6)
        blades = cv2.resize(blades, self.shape[::-1], interpolation=cv2.INTER_LINEAR)
        colour = green * (0.7 + 0.4 * blades + 0.25 * self.noise(80))[..., None]
        self.fill(self.down > self.ridge(horizon + 0.02, 0.04), colour, GRASS)

    def water(self, top: np.ndarray, bottom: np.ndarray) -> None:
        deep = random_colour(self.rng, (0.5, 0.56), (0.6, 0.85), (0.35, 0.6))
        waves = np.sin(2 * np.pi * (self.down * 22 + 1.5 * self.noise(60)))
        colour = blend(deep, np.array([0.85, 0.95, 1]), 0.3 * (waves > 0.55) + 0.12 * waves)
        self.fill((self.down > top) & (self.down < bottom), colour, WATER)

    def asphalt(self) -> np.ndarray:
        grey = random_colour(self.rng, (0.6, 0.7), (0.0, 0.08), (0.32, 0.45))
        return plain(self.down, grey) * (0.88 + 0.24 * self.noise(4))[..., None]

    def street(self, top: float, bottom: float) -> None:
        colour = self.asphalt()
        middle = (top + bottom) / 2
        colour[(abs(self.down - middle) < 0.01) & (self.right % 0.2 < 0.12)] = (0.95, 0.93, 0.8)
        for kerb in (top + 0.012, bottom - 0.012):
            colour[abs(self.down - kerb) < 0.01] = 0.75
        self.fill(abs(self.down - middle) < (bottom - top) / 2, colour, ROAD)

    def country_road(self, horizon: float) -> None:
        """Lead a road from the lower edge to a point on the horizon."""
        near = (self.down - horizon) / (1 - horizon)
        aim, start = self.rng.uniform(0.35, 0.65), self.rng.uniform(0.35, 0.65)
        offset = (self.right - aim - (start - aim) * near**2) / np.maximum(0.02 + near * 0.4, 0.01)
        colour = self.asphalt()
        colour[(abs(offset) < 0.05) & (np.maximum(near, 0) ** 0.5 * 9 % 1 < 0.55)] = 0.95
        colour[abs(abs(offset) - 0.9) < 0.05] = 0.85
        self.fill((abs(offset) < 1) & (near > 0.02), colour, ROAD)

    def buildings(self, foot: float) -> None:
        left = self.rng.uniform(0, 0.1)
        while left < 0.95:
            width, height = self.rng.uniform(0.2, 0.36), self.rng.uniform(0.25, 0.48)
            self.building(left, left + width, foot - height, foot)
            left += width + self.rng.choice([0, 0.04, 0.15])

    def building(self, left: float, right: float, top: float, foot: float) -> None:
        height, width = self.shape
        area = (
            slice(int(top * height), int(foot * height)),
            slice(int(left * width), int(right * width)),
        )
        down, right = self.down[area], self.right[area]
        wall = random_colour(self.rng, (0.0, 0.1), (0.3, 0.6), (0.55, 0.85))
        colour = wall * (0.85 + 0.3 * noise(self.rng, down.shape, 10))[..., None]
        bay, storey = self.rng.uniform(0.055, 0.075), self.rng.uniform(0.075, 0.1)
        across, up = (right - left) / bay % 1, (down - top - 0.03) / storey % 1
        panes = (abs(across - 0.5) < 0.27) & (abs(up - 0.5) < 0.28)
        panes &= (down > top + 0.03) & (down < foot - 0.06)
        colour[panes] = self.rng.choice([0.2, 0.9]) * np.array([0.8, 0.95, 1.0])
        colour[down < top + 0.022] = wall * 0.55
        self.image[area] = colour
        self.labels[area] = BUILDING

    def trees(self, foot: float, size: float, most: int) -> None:
        for _ in range(self.rng.integers(1, most + 1)):
            painter = (paint_broadleaf, paint_conifer)[self.rng.integers(2)]
            x, scale, low = self.rng.uniform((0, 0.8, 0), (1, 1.2, 0.05))
            self.stand(painter, TREE, x, foot + low, size * scale)


def draw_ade(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a scene and the map of its class ids."""
    width, height = 8 * rng.integers(16, 21), 128
    scene = Scene(rng, (height * SUPERSAMPLING, width * SUPERSAMPLING))
    horizon = rng.uniform(0.42, 0.52)
    scene.sky()
    if rng.random() < 0.4:
        # Balloons and boulders belong to none of the classes and stay unlabelled.
        scene.stand(paint_balloon, UNLABELLED, rng.uniform(0.15, 0.85), 0.32, 0.26)
    kind = rng.choice(['street', 'lake', 'road'], p=[0.45, 0.3, 0.25])
    if kind != 'street' or rng.random() < 0.4:
        scene.mountains(horizon)
    scene.grass(horizon)
    if kind == 'street':
        kerb = horizon + rng.uniform(0.14, 0.2)
        far_kerb = kerb + rng.uniform(0.24, 0.3)
        scene.buildings(kerb - 0.06)
        scene.trees(kerb - 0.01, 0.36, 2)
        scene.street(kerb, far_kerb)
        for lane, x in zip((kerb + 0.13, far_kerb), rng.uniform(0, 1, 2), strict=True):
            for place in (x, (x + rng.uniform(0.4, 0.6)) % 1)[: rng.integers(1, 3)]:
                scene.stand(paint_car, CAR, place, lane + 0.06, rng.uniform(0.34, 0.42))
        if rng.random() < 0.4:
            scene.stand(paint_boulder, UNLABELLED, rng.uniform(0, 1), 1.02, 0.2)
    elif kind == 'lake':
        scene.trees(horizon + 0.06, 0.25, 4)
        shore = horizon + rng.uniform(0.08, 0.14)
        scene.water(scene.ridge(shore, 0.05), scene.ridge(shore + rng.uniform(0.3, 0.4), 0.12))
        scene.stand(paint_boulder, UNLABELLED, rng.uniform(0, 1), 0.97, 0.2)
        scene.trees(0.95, 0.5, 2)
    else:
        scene.trees(horizon + 0.06, 0.22, 4)
        scene.country_road(horizon)
        for x in (rng.uniform(0, 0.2), rng.uniform(0.8, 1)):
            scene.stand(paint_conifer, TREE, x, rng.uniform(0.8, 0.95), 0.55)
    return finish(scene.image, rng), Image.fromarray(at_pixel_centres(scene.labels))


def draw_imagenet(rng: np.random.Generator, name: str) -> Image.Image:
    """Draw one object of the named class before a varied backdrop."""
    width, height = 8 * rng.integers(8, 13, 2)
    image = backdrop(rng, height, width)
    shape = image.shape[:2]
    painter, tilt = IMAGENET_PAINTERS[name]
    radius = rng.uniform(0.3, 0.5) * min(shape)
    centre = rng.uniform(0.9 * radius, np.array(shape[::-1]) - 0.9 * radius)
    lay_on(image, paint_layer(painter, rng, shape, centre, radius, tilt), shadow=0.1 * radius)
    return finish(image, rng)


# ---------------------------------------------------------------------------------------------
# Files


def stream(seed: int, part: str, index: int) -> np.random.Generator:
    """Return the random stream of one picture, whatever else is drawn before it."""
    return np.random.default_rng([seed, zlib.crc32(part.encode()), index])


def write_coco(root: Path, seed: int, split: str, count: int) -> Iterator[None]:
    images, annotations = [], []
    # COCO's image ids are unique over its splits as well.
    first_id = {'train2017': 1, 'val2017': 500_001}[split]
    (root / split).mkdir(parents=True)
    for index in range(count):
        picture, objects = draw_coco(stream(seed, f'coco/{split}', index), index)
        image_id = first_id + index
        file_name = f'{image_id:012d}.jpg'
        save_jpeg(picture, root / split / file_name)
        images.append(
            {
                'id': image_id,
                'file_name': file_name,
                'width': picture.width,
                'height': picture.height,
            }
        )
        for thing in objects:
            annotations.append({'id': len(annotations) + 1, 'image_id': image_id, **thing})
        yield
    content = {
        'info': {'description': f'generated by {GENERATOR}', 'version': str(VERSION)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': [{'id': class_id, 'name': name} for class_id, name in COCO_CLASSES.items()],
    }
    target = root / 'annotations' / f'instances_{split}.json'
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(content))


def write_ade(root: Path, seed: int, split: str, count: int) -> Iterator[None]:
    for kind in ('images', 'annotations'):
        (root / kind / split).mkdir(parents=True)
    prefix = {'training': 'ADE_train', 'validation': 'ADE_val'}[split]
    for index in range(count):
        picture, labels = draw_ade(stream(seed, f'ade/{split}', index))
        name = f'{prefix}_{index + 1:08d}'
        save_jpeg(picture, root / 'images' / split / f'{name}.jpg')
        labels.save(root / 'annotations' / split / f'{name}.png', 'PNG', compress_level=6)
        yield


def write_imagenet(root: Path, seed: int, split: str, count: int) -> Iterator[None]:
    for wnid, name in IMAGENET_CLASSES.items():
        (root / split / wnid).mkdir(parents=True)
        for index in range(count):
            picture = draw_imagenet(stream(seed, f'imagenet/{split}/{wnid}', index), name)
            save_jpeg(picture, root / split / wnid / f'{wnid}_{split}_{index + 1:04d}.JPEG')
            yield


def files_of(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, except the record of the settings."""
    sizes = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*') if not p.is_dir()}
    return {name: p.stat().st_size for name, p in sorted(sizes.items()) if name != RECORD}


def read_record(folder: Path) -> dict:
    """Return what this tool wrote down about the folder, or nothing if it is not its own."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get('generator') == GENERATOR else {}


def write_record(folder: Path, settings: dict, complete: bool) -> None:
    """Write down the settings and, once all is written, every file's size."""
    files = files_of(folder) if complete else {}
    record = dict(generator=GENERATOR, **settings, complete=complete, files=files)
    (folder / RECORD).write_text(json.dumps(record, indent=1))


def refuse_foreign(folder: Path) -> None:
    """Stop rather than replace anything that this tool did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        sys.exit(f"'{folder}' is a file; give the name of a new folder instead.")
    if not any(folder.iterdir()):
        return
    record = read_record(folder)
    if not record:
        sys.exit(
            f"'{folder}' was not made by {GENERATOR} and is left alone; "
            'remove it, or give the name of a new folder.'
        )
    foreign = sorted(set(files_of(folder)) - set(record['files']))
    if record['complete'] and foreign:
        sys.exit(
            f"'{folder}' also holds '{foreign[0]}', which {GENERATOR} did not write; "
            'move it away, or give the name of a new folder.'
        )


def make_toy_data(folder: Path, seed: int, counts: dict[str, list[int]]) -> bool:
    """Write the three data sets, unless the folder already holds them.

    Args:
        folder: Where to; nothing appears there before everything is written.
        seed: Of all random choices, 0 or more.
        counts: The number of pictures to train and to validate on, under 'coco', 'ade' and
            'imagenet' (there for each class).

    Returns:
        Whether anything was written.

    Raises:
        SystemExit: If the folder holds something that this tool did not write.
    """
    settings = {'version': VERSION, 'seed': seed, 'counts': counts}
    record = read_record(folder)
    same_settings = settings.items() <= record.items() and record['complete']
    if same_settings and record['files'].items() <= files_of(folder).items():
        return False
    refuse_foreign(folder)
    folder = folder.resolve()
    staging = folder.with_name(f'{folder.name}.partial')
    refuse_foreign(staging)
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    write_record(staging, settings, complete=False)

    ade = staging / 'ade' / 'ADEChallengeData2016'
    parts = chain(
        write_coco(staging / 'coco', seed, 'train2017', counts['coco'][0]),
        write_coco(staging / 'coco', seed, 'val2017', counts['coco'][1]),
        write_ade(ade, seed, 'training', counts['ade'][0]),
        write_ade(ade, seed, 'validation', counts['ade'][1]),
        write_imagenet(staging / 'imagenet', seed, 'train', counts['imagenet'][0]),
        write_imagenet(staging / 'imagenet', seed, 'val', counts['imagenet'][1]),
    )
    total = sum(counts['coco'] + counts['ade']) + len(IMAGENET_CLASSES) * sum(counts['imagenet'])
    for _ in track(parts, description='Drawing pictures', total=total):
        pass

    write_record(staging, settings, complete=True)
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    return True


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    def non_negative_integer(text: str) -> int:
        number = int(text)
        if number < 0:
            raise argparse.ArgumentTypeError(f'{number} is negative; give 0 or more')
        return number

    parser = argparse.ArgumentParser(
        description='Write three small generated data sets: COCO, ADE20K and ImageNet layout.'
    )
    parser.add_argument(
        'folder', nargs='?', type=Path, default=Path('data/toy'), help='default: %(default)s'
    )
    parser.add_argument('--seed', type=non_negative_integer, default=0, help='default: %(default)s')
    for name, counts, unit in (
        ('coco', [400, 50], 'pictures'),
        ('ade', [200, 40], 'pictures'),
        ('imagenet', [100, 25], 'pictures of each class'),
    ):
        parser.add_argument(
            f'--{name}',
            nargs=2,
            type=non_negative_integer,
            default=counts,
            metavar=('TRAIN', 'VAL'),
            help=f'number of {unit}, default: {counts[0]} {counts[1]}',
        )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    counts = {'coco': args.coco, 'ade': args.ade, 'imagenet': args.imagenet}
    written = make_toy_data(args.folder, args.seed, counts)
    print(f"The toy data {'is' if written else 'was already'} in '{args.folder}'.")


if __name__ == '__main__':
    main()
