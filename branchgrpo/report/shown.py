"""Pictures as sinks get them: drawn once, for a person to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.report.contact_sheet import LINE, STRIP, font, strip, tile_size, wrap
from branchgrpo.rewards.base import evenly
from branchgrpo.sinks.base import Shown
from branchgrpo.types import F32, U8

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 256
"""Pixels of the longer side of a picture."""


def shown(pixels: U8, captions: Sequence[str]) -> list[Shown]:
    """P pictures or videos with their captions. pixels: [P, F, H, W, 3].

    Small ones are enlarged by a whole factor, large ones reduced; videos are strips of a few
    frames. Raises ValueError when the counts differ.
    """
    if len(pixels) != len(captions):
        raise ValueError(
            f"pictures: expected as many captions as pictures, got {len(captions)} of {len(pixels)}"
        )
    frames = pixels.shape[1]
    size = _size(pixels.shape[2], pixels.shape[3], moving=frames > 1)
    times = evenly(frames, STRIP)
    return [
        Shown(frames=one, caption=caption, tile=tile, labelled=labelled(tile, caption))
        for one, caption in zip(pixels, captions, strict=True)
        for tile in [strip(one[times], size)]
    ]


def _size(height: int, width: int, moving: bool) -> tuple[int, int]:
    """Height and width of a tile: of pictures, the longer side has 256 to 384 pixels or so, since
    dashboards draw them in that size and would blur the letters of a smaller one's caption."""
    longer = max(height, width)
    if moving or longer >= LEAST:
        return tile_size(height, width, 192 if moving else 384)
    factor = math.ceil(LEAST / longer)
    return height * factor, width * factor


def labelled(tile: Image, caption: str) -> Image:
    """The tile with its caption below it, in three lines at most: as high for all captions."""
    from PIL import Image, ImageDraw

    small = font(13)
    found = Image.new("RGB", (tile.width, tile.height + 3 * LINE + 8), "white")
    found.paste(tile, (0, 0))
    draw = ImageDraw.Draw(found)
    for number, words in enumerate(wrap(caption, small, tile.width - 4)):
        draw.text((2, tile.height + 4 + number * LINE), words, fill="black", font=small)
    return found


def captions(prompts: Sequence[str], scores: F32, metric: str) -> list[str]:
    """Score and prompt of each picture. The score comes first: long prompts are cut."""
    name = metric.rpartition("/")[2]
    return [
        f"{name} {score:.3f} · {prompt}"
        for prompt, score in zip(prompts, np.asarray(scores).tolist(), strict=True)
    ]
