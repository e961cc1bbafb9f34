"""Two rewards of one's own: a function, and a class with options.

    python examples/02_my_reward.py run.iterations=100
    branchgrpo train --rewards.0.name ./examples/02_my_reward.py:background
    branchgrpo train --rewards.0.name ./examples/02_my_reward.py:Ink --rewards.0.wanted 0.4

The file travels to the workers by itself. It may import what is installed there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

import branchgrpo as bg
from branchgrpo.rewards.base import Resources, RewardOptions, Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

    from branchgrpo.types import F32, U8

BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "yellow": (240, 200, 20),
    "cyan": (30, 190, 200),
    "pink": (245, 140, 190),
}


def background(images: list[Image], samples: list[bg.Sample]) -> list[float]:
    """How near the background is to the colour after "on" in the prompt: 1 = it, 0 = far away.

    A function gets pictures (of a video the list of its frames) and what each was drawn for, and
    gives a number for each. Higher is better.
    """
    scores = []
    for image, sample in zip(images, samples, strict=True):
        wanted = BACKGROUNDS[sample.prompt.rpartition(" on ")[2]]
        found = np.median(np.asarray(image).reshape(-1, 3), 0)  # most of a picture is background
        scores.append(1.0 - float(np.abs(found - wanted).mean()) / 255)
    return scores


class Ink(RewardOptions):
    """How near the part of a picture that differs from its background is to what is wanted.

    A class has keys of its own, which the config checks, and may report several scores.
    """

    wanted: float = Field(0.3, gt=0, lt=1, description="part of the pixels")
    threshold: int = Field(60, ge=1, le=255, description="what counts as another colour")

    def reported(self) -> tuple[str, ...]:
        return "score", "ink"

    def build(self, resources: Resources) -> InkScorer:
        """Load what scoring needs: networks, for example, on resources.device."""
        return InkScorer(self)


class InkScorer(Scorer):
    trains_on = "score"
    reports = ("score", "ink")

    def __init__(self, options: Ink):
        self.options = options

    def score(self, pixels: U8, samples: list[bg.Sample]) -> dict[str, F32]:
        """Scores [L] of pixels u8 [L, F, H, W, 3]."""
        flat = pixels.reshape(len(pixels), -1, 3).astype(np.float32)
        distance = np.abs(flat - np.median(flat, 1, keepdims=True)).max(-1)
        ink = (distance > self.options.threshold).mean(1, dtype=np.float32)
        return {"score": 1 - np.abs(ink - self.options.wanted), "ink": ink}


def main() -> None:
    overrides = dict(argument.split("=", 1) for argument in sys.argv[1:])
    config = bg.load_config("quickstart", overrides=overrides)
    # by themselves or with a weight; "ocr" is the config's own
    result = bg.train(config, rewards=[background, (Ink(wanted=0.25), 0.5), ("ocr", 1.0)])
    for name, score in result.summary["held_out"].items():
        print(f"{name}: {score['before']:.3f} → {score['after']:.3f}")
    print(Path(result.folder) / "samples" / "after.png")


if __name__ == "__main__":
    main()
