"""Pictures as files of their own, with a list of what they are: for metrics over folders, such as
FID, and for model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from branchgrpo.data.records import row_of
from branchgrpo.files.whole import write_whole, written_aside
from branchgrpo.types import F32, U8, Sample

LIST = "samples.jsonl"
FRAMES_A_SECOND = 16
"""Of a video, as on contact sheets."""


def file_of(index: int, frames: int) -> str:
    """Name of a picture's file, or a video's."""
    return f"{index:06d}.{'png' if frames == 1 else 'webp'}"


def save(folder: Path, index: int, frames: U8) -> None:
    """Write frames [F, H, W, 3] as they are: a PNG, or of a video (F > 1) an animated WebP without
    loss."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / file_of(index, len(frames))) as place:
        if len(pictures) == 1:
            pictures[0].save(place, "PNG", compress_level=1)
            return
        pictures[0].save(
            place,
            "WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 / FRAMES_A_SECOND),
            loop=0,
            lossless=True,
            quality=0,
            method=0,
        )


class SavedPictures:
    """Pictures of records in a folder: `save` them one after another, then `write` the list."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[int, str] = {}

    def save(self, index: int, frames: U8) -> None:
        """The picture of the record at this place: frames [F, H, W, 3]."""
        save(self.folder, index, frames)
        self._files[index] = file_of(index, len(frames))

    def write(self, samples: Sequence[Sample], scores: Mapping[str, F32], seed: int) -> None:
        """Write samples.jsonl, a line for each file. seed: of the noise that they were drawn from.
        scores: [P] by reward/score."""
        rows = [
            {"file": name}
            | row_of(samples[index])
            | {"file": name, "seed": seed}
            | {"scores": {score: float(own[index]) for score, own in scores.items()}}
            for index, name in sorted(self._files.items())
        ]
        write_list(self.folder, rows)


def write_list(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write samples.jsonl: a line for each file."""
    lines = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / LIST, lines)
