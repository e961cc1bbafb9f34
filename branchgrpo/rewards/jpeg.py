"""JPEG size: a reward that needs no weights, to see that training works (Black et al. 2023, arXiv
2305.13301)."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from branchgrpo.rewards.base import Footprint, Resources, RewardOptions, Scorer, evenly
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray


class JpegReward(RewardOptions):
    """Score: kilobytes (1000 bytes) of the picture as a JPEG, negative where small is wanted;
    prompts play no part."""

    name: Literal["jpeg"] = Field("jpeg", description="the reward")
    want: Literal["small", "large"] = Field(
        "small", description="small: score −kilobytes; large: score kilobytes"
    )
    quality: int = Field(95, ge=1, le=100, description="JPEG quality")
    frames: int = Field(
        4,
        ge=1,
        description="frames of a video that are scored, evenly spaced; more than it has: all",
    )

    def footprint(self, frames: int) -> Footprint:
        del frames
        return Footprint()

    def build(self, resources: Resources) -> Jpeg:
        return Jpeg(self)


class Jpeg(Scorer):
    """Encodes pictures."""

    def __init__(self, options: JpegReward):
        self.options = options

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        del samples
        chosen = evenly(pixels.shape[1], self.options.frames)
        sizes = np.array(
            [[self.kilobytes(video[frame]) for frame in chosen] for video in pixels], np.float32
        )
        return {"score": (sizes if self.options.want == "large" else -sizes).mean(1)}

    def kilobytes(self, picture: NDArray[np.uint8]) -> float:
        """Size of a picture u8 [H, W, 3] as a JPEG."""
        from PIL import Image

        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=self.options.quality)
        return file.tell() / 1000
