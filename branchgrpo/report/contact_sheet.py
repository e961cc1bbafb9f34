"""A sheet of pictures with their captions and scores; of videos, film strips and an animation
beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.rewards.base import evenly
from branchgrpo.types import F32, U8

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

STRIP = 4
"""Frames of a video on the sheet, evenly spaced."""

MOVING = 12
"""Videos that the animation shows: the first ones."""

MOVING_FRAMES = 41
"""Frames of the animation at most; it then plays fewer of them a second, as long as the video
is."""

KEPT = 8
"""Prompts whose pictures a run keeps as they are, so that sheets of several runs can be drawn."""

BETWEEN = 6
"""Pixels between the pictures before and what was drawn after them."""

GAP, LINE = 18, 17  # between tiles, and from line to line of small text
COLUMNS = ((160, 8), (384, 4), (math.inf, 2))
"""Width of a tile in pixels, at most, and how many such tiles a line has."""


def pictures(
    path: Path,
    pixels: U8,
    captions: list[str],
    scores: F32 | None,
    metric: str,
    title: str,
    fps: float = 16.0,
    sources: Sequence[Sequence[Image]] = (),
) -> None:
    """A PNG sheet of P pictures or videos, each with its caption and score, and left of it the
    pictures that it was made of, where `sources` has some: before and after.

    pixels: [P, F, H, W, 3]; scores: [P], or None where there are none. Of videos (F > 1) the sheet
    shows a few frames side by side, and an animated WebP under the same name shows the first of
    them moving, at `fps` frames a second (Wan's own rate unless told otherwise). Small pictures are
    enlarged by a whole factor without smoothing, so that every pixel stays what it is; large ones
    are reduced. Raises ValueError when the counts differ or are 0.
    """
    counts = [len(pixels), len(captions), len(pixels if scores is None else scores)]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            "pictures: expected as many captions and scores as pictures, got "
            f"{', '.join(map(str, counts))}"
        )
    frames = pixels.shape[1]
    size = tile_size(pixels.shape[2], pixels.shape[3], 384 if frames == 1 else 192)
    before = _before(sources, len(pixels), size)
    strips = [
        beside(first, strip(one[evenly(frames, STRIP)], size))
        for first, one in zip(before, pixels, strict=True)
    ]
    what = "pictures" if frames == 1 else "videos"
    what += ", each right of what it was made of" if any(before) else ""
    sheet, _ = _sheet(
        strips, captions=captions, scores=scores, metric=metric, title=title, what=what
    )
    sheet.save(path)
    if frames > 1:
        shown = slice(MOVING)
        times = evenly(frames, MOVING_FRAMES)
        pairs = list(zip(before[shown], pixels[shown], strict=True))
        tiles = [[beside(own, strip(one[[time]], size)) for own, one in pairs] for time in times]
        base, corners = _sheet(
            tiles[0],
            captions=captions[shown],
            scores=None if scores is None else scores[shown],
            metric=metric,
            title=title,
            what=what,
        )
        _animate(
            path.with_suffix(".webp"),
            base=base,
            corners=corners,
            tiles=tiles,
            milliseconds=1000 * frames / fps / len(times),
        )


def keep(path: Path, pixels: U8, captions: list[str], scores: F32) -> None:
    """The first pictures [P, F, H, W, 3] without loss, of videos a few frames, with caption and
    score: an .npz file."""
    shown = pixels[:KEPT, few(pixels.shape[1])]
    np.savez_compressed(
        path, pixels=shown, captions=np.array(captions[:KEPT]), scores=np.asarray(scores[:KEPT])
    )


def few(frames: int) -> list[int]:
    """Which of so many frames are kept."""
    return evenly(frames, STRIP)


def kept(path: Path) -> tuple[U8, list[str], F32]:
    """(pixels, captions, scores) of `keep`."""
    with np.load(path, allow_pickle=False) as found:
        return found["pixels"], found["captions"].tolist(), found["scores"]


def _animate(
    path: Path,
    base: Image,
    corners: list[tuple[int, int]],
    tiles: list[list[Image]],
    milliseconds: float,
) -> None:
    """The sheet `base` with other tiles at its corners at every time, over and over."""
    whole = []
    for row in tiles:
        picture = base.copy()
        for tile, corner in zip(row, corners, strict=True):
            picture.paste(tile, corner)
        whole.append(picture)
    whole[0].save(
        path,
        save_all=True,
        append_images=whole[1:],
        duration=round(milliseconds),
        loop=0,
        quality=60,
        method=2,
    )


def strip(frames: U8, size: tuple[int, int]) -> Image:
    """Frames [k, H, W, 3], each drawn at `size` (height, width), side by side."""
    from PIL import Image

    height, width = size
    enlarged = height > frames.shape[1]
    found = Image.new("RGB", (len(frames) * (width + 2) - 2, height), "white")
    for number, frame in enumerate(frames):
        drawn = Image.fromarray(frame).resize(
            (width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        )
        found.paste(drawn, (number * (width + 2), 0))
    return found


def _before(
    sources: Sequence[Sequence[Image]], count: int, size: tuple[int, int]
) -> list[list[Image]]:
    """For each of so many pictures those that it was made of, whole within `size` (height, width);
    as many for all: blank ones after."""
    from PIL import Image, ImageOps

    columns, (height, width) = max(map(len, sources), default=0), size
    found = []
    for row in sources or [()] * count:
        tiles = [ImageOps.pad(one, (width, height), color="#eeeeee") for one in row]
        blank = Image.new("RGB", (width, height), "white")
        found.append(tiles + [blank] * (columns - len(tiles)))
    return found


def beside(before: Sequence[Image], drawn: Image) -> Image:
    """Pictures of one height, from left to right, what was drawn last."""
    from PIL import Image

    if not before:
        return drawn
    places, right = [], 0
    for one in before:
        places.append(right)
        right += one.width + 2
    right += BETWEEN - 2
    found = Image.new("RGB", (right + drawn.width, drawn.height), "white")
    for place, one in zip((*places, right), (*before, drawn), strict=True):
        found.paste(one, (place, 0))
    return found


def _sheet(
    tiles: list[Image],
    captions: list[str],
    scores: F32 | None,
    metric: str,
    title: str,
    what: str,
) -> tuple[Image, list[tuple[int, int]]]:
    """Equally large tiles with a title, captions and scores, and the upper left corner of each."""
    from PIL import Image, ImageDraw

    width, height = tiles[0].size
    columns = min(len(tiles), next(most for widest, most in COLUMNS if width <= widest))
    rows = math.ceil(len(tiles) / columns)
    small = font(13)
    bold = font(13, bold=True)
    large = font(20, bold=True)
    wrapped = [wrap(caption, small, width) for caption in captions]
    pitch = height + 6 + LINE * (max(map(len, wrapped)) + 1) + GAP
    total = max(420, columns * (width + GAP) + GAP)  # room for the title over a single picture
    head = [
        *wrap(title, large, total - 2 * GAP, most=2),
        f"{len(tiles)} {what}"
        if scores is None
        else f"mean {metric} {scores.mean():.3f} of {len(scores)} {what}",
    ]
    top = GAP + 26 * (len(head) - 1) + LINE + GAP
    sheet = Image.new("RGB", (total, top + rows * pitch), "white")
    draw = ImageDraw.Draw(sheet)
    for index, text in enumerate(head):
        last = index == len(head) - 1
        draw.text(
            (GAP, GAP + 26 * index),
            text,
            fill="#555555" if last else "black",
            font=small if last else large,
        )
    corners = []
    for index, (tile, caption) in enumerate(zip(tiles, wrapped, strict=True)):
        x, y = GAP + index % columns * (width + GAP), top + index // columns * pitch
        corners.append((x, y))
        sheet.paste(tile, (x, y))
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline="#bbbbbb")
        for number, words in enumerate(caption):
            draw.text((x, y + height + 5 + number * LINE), words, fill="black", font=small)
        if scores is None:
            continue
        draw.text(
            (x, y + height + 5 + len(caption) * LINE),
            f"{metric.split('/')[-1]} {scores[index]:.3f}",
            fill="#1f4e8c",
            font=bold,
        )
    return sheet, corners


def tile_size(height: int, width: int, most: int) -> tuple[int, int]:
    """Height and width at which a picture is drawn: the longer side is at least 128 and at most
    `most` pixels."""
    longer = max(height, width)
    if longer < 128:
        factor = math.ceil(128 / longer)
        return height * factor, width * factor
    scale = min(1.0, most / longer)
    return max(1, round(height * scale)), max(1, round(width * scale))


def font(size: int, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and so is there on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(
        Path(matplotlib.get_data_path())
        / "fonts"
        / "ttf"
        / f"DejaVuSans{'-Bold' if bold else ''}.ttf",
        size,
    )


def wrap(text: str, font: FreeTypeFont, width: int, most: int = 3) -> list[str]:
    """Lines of at most `width` pixels; what does not fit into `most` lines becomes an ellipsis.
    Long words are cut."""
    lines, rest = [""], " ".join(text.split())
    for character in rest:
        if font.getlength(lines[-1] + character) <= width:
            lines[-1] += character
            continue
        head, space, tail = lines[-1].rpartition(" ")
        if character == " ":
            lines.append("")
        elif space:
            lines[-1:] = [head, tail + character]
        else:
            lines.append(character)
    if len(lines) > most:
        last = lines[most - 1]
        while font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "…"]
    return lines
