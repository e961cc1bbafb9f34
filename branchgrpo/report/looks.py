"""What a run keeps of its looks on the way: pictures of held-out prompts, leaves of the trees that
it trained on, and figures that are no single numbers.

    FOLDER/looks.jsonl                what was looked at, a line each; those of one iteration belong
                                      together
    FOLDER/samples/way/000020.npz     held-out pictures, in the form of samples/before.npz
    FOLDER/samples/leaves-000020.npz  leaves, likewise
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.files.whole import write_whole
from branchgrpo.report import contact_sheet
from branchgrpo.types import F32, U8

FILE = "looks.jsonl"
WAY = "samples/way/{:06d}.npz"
LEAVES = "samples/leaves-{:06d}.npz"
MOST = 256
"""Pixels of the longer side of a picture that is kept on the way."""
BINS = 24

Look = dict[str, Any]
"""All that was looked at after one iteration: see docs/run-folder.md."""


class Looks:
    """Writes them, in the folder of a run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, iteration: int, values: Mapping[str, Any]) -> None:
        """A line."""
        known = finite({"iteration": iteration, **values})
        line = json.dumps(known, ensure_ascii=False, allow_nan=False)
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def held_out(self, iteration: int, pixels: U8, captions: list[str], scores: F32) -> None:
        """Pictures [P, F, H, W, 3] of the first held-out prompts, and their scores [P]."""
        self._keep(WAY, iteration, pixels, captions, scores)

    def leaves(self, iteration: int, pixels: U8, captions: list[str], rewards: F32) -> None:
        """Leaves [n, F, H, W, 3] of the trees that were trained on, and their rewards [n]."""
        self._keep(LEAVES, iteration, pixels, captions, rewards)

    def _keep(
        self, name: str, iteration: int, pixels: U8, captions: list[str], scores: F32
    ) -> None:
        path = self.folder / name.format(iteration)
        path.parent.mkdir(parents=True, exist_ok=True)
        few = pixels[: contact_sheet.KEPT, contact_sheet.few(pixels.shape[1])]
        contact_sheet.keep(path, reduced(few), captions, scores)

    def rewind(self, iteration: int) -> None:
        """Forget what is of later iterations: they are done again."""
        path = self.folder / FILE
        if not path.is_file():
            return
        lines = _lines(path)
        kept = [line for line in lines if line["iteration"] <= iteration]
        later = {line["iteration"] for line in lines} - {line["iteration"] for line in kept}
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        for number in later:
            for name in (WAY, LEAVES):
                (self.folder / name.format(number)).unlink(missing_ok=True)


def read(folder: Path) -> list[Look]:
    """The looks of a run folder by rising iteration. A line that was cut off is left out."""
    found: dict[int, Look] = {}
    for line in _lines(folder / FILE):
        found.setdefault(line["iteration"], {}).update(line)
    return [found[number] for number in sorted(found)]


def _lines(path: Path) -> list[Look]:
    found = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("iteration"), int):
                found.append(line)
    return found


def finite(value: Any) -> Any:
    """A plain value in which numbers that JSON lacks are null."""
    if isinstance(value, Mapping):
        return {key: finite(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(below) for below in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def histogram(values: F32, low: float | None = None) -> dict[str, list[float]]:
    """`edges` [BINS + 1] and `counts` [BINS] of values [n], n ≥ 1, that are finite; from `low`,
    or their least, to their largest."""
    known = values[np.isfinite(values)].astype(np.float64)
    least = float(known.min(initial=np.inf if low is None else low))
    most = float(known.max(initial=-np.inf))
    if not least < most:  # all are equal, or none is finite
        least, most = (least - 0.5, least + 0.5) if np.isfinite(least) else (0.0, 1.0)
    counts, edges = np.histogram(known, BINS, (least, most))
    return {"edges": [float(f"{one:.5g}") for one in edges], "counts": counts.tolist()}


def standard_error(values: F32) -> dict[str, float]:
    """`mean` of scores [P], P ≥ 2, and its standard `error` over prompts."""
    error = float(values.std(ddof=1, dtype=np.float64)) / len(values) ** 0.5
    return {"mean": float(values.mean(dtype=np.float64)), "error": error}


def reduced(pixels: U8, most: int = MOST) -> U8:
    """Pictures [P, F, H, W, 3] whose longer side has at most so many pixels."""
    from PIL import Image

    height, width = pixels.shape[2:4]
    scale = most / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [
        [
            np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
            for frame in video
        ]
        for video in pixels
    ]
    return np.array(small, np.uint8)
