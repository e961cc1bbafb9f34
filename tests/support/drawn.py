"""What the command sample writes, read back."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from branchgrpo.app.main import main


def sampled(run: Path, prompts: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What the command sample writes of these prompts: the first of two pictures each, [P,
    F, H, W, 3]."""
    arguments = ["branchgrpo", "sample", str(run), *prompts, "--n", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 0
    (place,) = (run / "samples").glob("drawn-*")
    lines = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [text for text in prompts for _ in range(2)]
    assert [line["number"] for line in lines] == [0, 1] * len(prompts)
    assert {line["seed"] for line in lines} == {3}  # the run's
    assert (place / "sheet.png").read_bytes().startswith(b"\x89PNG")
    return np.stack([read_frames(place / line["file"]) for line in lines[::2]])


def read_frames(path: Path) -> np.ndarray:
    """[F, H, W, 3] of a picture or a video in a file."""
    picture, found = Image.open(path), []
    for index in range(getattr(picture, "n_frames", 1)):
        picture.seek(index)
        found.append(np.asarray(picture.convert("RGB"), float))
    return np.stack(found)
