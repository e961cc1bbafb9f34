"""Captions and the 32x32 pictures they describe, drawn with PIL.

Three in five show a two-digit number ("the number 38 in black on yellow"), the others one or two
coloured shapes ("a red circle left of a blue square on white"). Fonts are the DejaVu fonts that the
matplotlib package carries.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from branchgrpo.models.small.flux import PIXELS

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 20),
    "purple": (140, 60, 180),
    "orange": (250, 130, 20),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "pink": (245, 140, 190),
    "cyan": (30, 190, 200),
}
BACKGROUNDS = ("white", "black", "yellow", "cyan", "pink")
FOREGROUNDS = ("red", "green", "blue", "purple", "orange", "black", "white")
SHAPES = ("circle", "square", "triangle", "star")

NUMBER_SHARE = 0.6
TWO_SHAPES_SHARE = 0.7
CANVAS = 2 * PIXELS  # pictures are drawn at twice their size and averaged down
COLOUR_JITTER = 14
FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono-Bold.ttf",
)
FONT_SIZES = (34, 38, 42)


@dataclass(frozen=True)
class Drawing:
    """A caption and its picture; ``number`` is None where the picture shows shapes."""

    caption: str
    picture: Image.Image
    number: str | None = None


@dataclass(frozen=True)
class DrawingSet:
    """Many drawings; ``pictures`` holds them as uint8, ``[count, PIXELS, PIXELS, 3]``."""

    captions: list[str]
    pictures: np.ndarray
    numbers: list[str | None]


def number_caption(number: str, foreground: str, background: str) -> str:
    return f"the number {number} in {foreground} on {background}"


def colour_pairs() -> list[tuple[str, str]]:
    """Return every (foreground, background) pair of two different colours."""
    return [(fg, bg) for bg in BACKGROUNDS for fg in FOREGROUNDS if fg != bg]


def draw_set(count: int, seed: int) -> DrawingSet:
    """Draw ``count`` captions with their pictures; the same seed draws the same set."""
    rng = random.Random(seed)
    captions: list[str] = []
    numbers: list[str | None] = []
    pictures = np.empty((count, PIXELS, PIXELS, 3), np.uint8)
    for index in range(count):
        drawing = draw_number(rng) if rng.random() < NUMBER_SHARE else draw_shapes(rng)
        captions.append(drawing.caption)
        numbers.append(drawing.number)
        pictures[index] = np.asarray(drawing.picture)
    return DrawingSet(captions, pictures, numbers)


def draw_number(rng: random.Random) -> Drawing:
    """Draw a random two-digit number in random colours, font and place."""
    number = f"{rng.randint(0, 99):02d}"
    foreground, background = _two_colours(rng)
    image, pen = _canvas(rng, background)
    middle = CANVAS // 2
    position = (middle + rng.randint(-4, 4), middle + rng.randint(-8, 8))
    pen.text(
        position, number, font=rng.choice(_fonts()), fill=_jittered(rng, foreground), anchor="mm"
    )
    return Drawing(number_caption(number, foreground, background), _shrunk(image), number)


def draw_shapes(rng: random.Random) -> Drawing:
    """Draw one shape, or two beside or above each other."""
    background = rng.choice(BACKGROUNDS)
    first, second = _coloured_shape(rng, background), _coloured_shape(rng, background)
    image, pen = _canvas(rng, background)
    middle = CANVAS // 2
    near = CANVAS // 4
    far = 3 * CANVAS // 4

    def put(shape: tuple[str, str], x: int, y: int, radius: int) -> None:
        _SHAPE_PAINTERS[shape[1]](pen, x, y, radius, _jittered(rng, shape[0]))

    if rng.random() >= TWO_SHAPES_SHARE:
        put(first, middle + rng.randint(-8, 8), middle + rng.randint(-8, 8), rng.randint(14, 20))
        return Drawing(f"a {first[0]} {first[1]} on {background}", _shrunk(image))

    relation = rng.choice(("left of", "above"))
    for shape, along in ((first, near), (second, far)):
        along += rng.randint(-2, 2)
        across = middle + rng.randint(-10, 10)
        x, y = (along, across) if relation == "left of" else (across, along)
        put(shape, x, y, rng.randint(10, 13))
    caption = f"a {first[0]} {first[1]} {relation} a {second[0]} {second[1]} on {background}"
    return Drawing(caption, _shrunk(image))


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the matplotlib package, which carries the DejaVu fonts, is not installed"
        )
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return [
        ImageFont.truetype(str(folder / name), size) for name in FONT_FILES for size in FONT_SIZES
    ]


def _two_colours(rng: random.Random) -> tuple[str, str]:
    background = rng.choice(BACKGROUNDS)
    return rng.choice([colour for colour in FOREGROUNDS if colour != background]), background


def _coloured_shape(rng: random.Random, background: str) -> tuple[str, str]:
    return rng.choice([colour for colour in FOREGROUNDS if colour != background]), rng.choice(
        SHAPES
    )


def _jittered(rng: random.Random, colour: str) -> Rgb:
    red, green, blue = (
        min(255, max(0, value + rng.randint(-COLOUR_JITTER, COLOUR_JITTER)))
        for value in COLOURS[colour]
    )
    return red, green, blue


def _canvas(rng: random.Random, background: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (CANVAS, CANVAS), _jittered(rng, background))
    return image, ImageDraw.Draw(image)


def _shrunk(image: Image.Image) -> Image.Image:
    return image.resize((PIXELS, PIXELS), Image.Resampling.BOX)


def _circle(pen: ImageDraw.ImageDraw, x: int, y: int, radius: int, fill: Rgb) -> None:
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)


def _square(pen: ImageDraw.ImageDraw, x: int, y: int, radius: int, fill: Rgb) -> None:
    half = 0.88 * radius
    pen.rectangle([x - half, y - half, x + half, y + half], fill=fill)


def _triangle(pen: ImageDraw.ImageDraw, x: int, y: int, radius: int, fill: Rgb) -> None:
    base = y + 0.85 * radius
    pen.polygon([(x, y - radius), (x + radius, base), (x - radius, base)], fill=fill)


def _star(pen: ImageDraw.ImageDraw, x: int, y: int, radius: int, fill: Rgb) -> None:
    points = []
    for corner in range(10):
        angle = -math.pi / 2 + corner * math.pi / 5
        distance = radius * (1.1 if corner % 2 == 0 else 0.45)
        points.append((x + distance * math.cos(angle), y + distance * math.sin(angle)))
    pen.polygon(points, fill=fill)


_SHAPE_PAINTERS: dict[str, Callable[[ImageDraw.ImageDraw, int, int, int, Rgb], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
}
