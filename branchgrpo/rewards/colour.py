"""Do the ground and what is drawn on it have the colours that the prompt names? In closed form: for
pictures of flat colours, as the embedded task has them."""

from __future__ import annotations

import re
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Footprint, Refusal, Resources, RewardOptions, Scorer, evenly
from branchgrpo.types import F32, U8, Sample

PALETTE: dict[str, tuple[int, int, int]] = {
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
"""Of the embedded task."""

FAR = 0.7
"""Ink is what differs from the ground by so much of the largest difference: edges are mixtures."""

Rgb = tuple[int, int, int]


class ColourReward(RewardOptions):
    """Scores: `ground` and `ink`, 1 where the colour is nearest to the one that the prompt names,
    of all in the palette, else 0; `score`, both. The ground is the median of the outermost pixels,
    ink the median of those that are unlike it."""

    name: Literal["colour"] = Field("colour", description="the reward")
    target: str = Field(
        r"in (?P<ink>\w+) on (?P<ground>\w+)",
        description="regular expression that finds the names of both colours in a prompt, as "
        "groups ink and ground",
    )
    palette: dict[str, Rgb] = Field(
        default_factory=lambda: dict(PALETTE),
        min_length=2,
        description="the colours' names and their red, green and blue, 0 to 255",
    )
    train_on: Literal["score", "ink", "ground"] = Field(
        "score", description="the score that trains"
    )
    report: tuple[Literal["score", "ink", "ground"], ...] = Field(
        ("score", "ink", "ground"), min_length=1, description="the scores that are reported"
    )
    frames: int = Field(
        1, ge=1, description="frames of a video that are looked at, evenly spaced; scores are means"
    )

    @field_validator("palette")
    @classmethod
    def _bytes(cls, value: dict[str, Rgb]) -> dict[str, Rgb]:
        wrong = {name: rgb for name, rgb in value.items() if not all(0 <= x <= 255 for x in rgb)}
        if wrong:
            raise ValueError(f"expected red, green and blue from 0 to 255, got {wrong}")
        return value

    @model_validator(mode="after")
    def _groups(self) -> Self:
        try:
            groups = re.compile(self.target).groupindex
        except re.error as error:
            raise ValueError(
                f"target: expected a regular expression, got {self.target!r}: {error}"
            ) from error
        if not {"ink", "ground"} <= groups.keys():
            raise ValueError(f"target: expected groups ink and ground, got {self.target!r}")
        return self

    def reported(self) -> tuple[str, ...]:
        return self.report

    def colours(self, prompt: str) -> tuple[str, str] | Refusal:
        """The names of ink and ground in a prompt."""
        found = re.search(self.target, prompt)
        if not found:
            return Refusal("no colours that target finds", repr(prompt))
        names = found["ink"], found["ground"]
        strange = [name for name in names if name not in self.palette]
        if strange:
            return Refusal("a colour that palette lacks", f"{', '.join(strange)} in {prompt!r}")
        return names

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        del height, width
        found = self.colours(sample.prompt)
        return found if isinstance(found, Refusal) else None

    def footprint(self, frames: int) -> Footprint:
        del frames
        return Footprint()

    def build(self, resources: Resources) -> Colour:
        return Colour(self)


class Colour(Scorer):
    """Looks at pictures."""

    def __init__(self, options: ColourReward):
        self.options = options
        self.trains_on, self.reports = options.train_on, options.report
        self.names = list(options.palette)
        self.rgb = np.array(list(options.palette.values()), np.float64)

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        chosen = evenly(pixels.shape[1], self.options.frames)
        found = np.array(
            [
                [self.right(video[frame], sample.prompt) for frame in chosen]
                for video, sample in zip(pixels, samples, strict=True)
            ],
            np.float32,
        ).mean(1)
        return dict(zip(("score", "ink", "ground"), found.T, strict=True))

    def right(self, picture: NDArray[np.uint8], prompt: str) -> tuple[float, float, float]:
        """Both, ink, ground: 1 or 0 for a picture u8 [H, W, 3]. Raises UserError for a prompt that
        names none."""
        wanted = self.options.colours(prompt)
        if isinstance(wanted, Refusal):
            raise UserError(f"rewards.colour.target: got {wanted.kind}: {wanted.detail}")
        ground = np.median(outermost(picture), 0)
        distance = np.linalg.norm(picture.astype(np.float64) - ground, axis=-1)
        far = distance >= FAR * distance.max()
        ink = np.median(picture[far], 0)
        # a picture of one colour has no ink
        right = distance.max() > 0 and self.nearest(ink) == wanted[0]
        under = self.nearest(ground) == wanted[1]
        return float(right and under), float(right), float(under)

    def nearest(self, rgb: NDArray[np.float64]) -> str:
        """The palette's colour at the least distance."""
        return self.names[int(np.linalg.norm(self.rgb - rgb, axis=1).argmin())]


def outermost(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, 3] the pixels of its border."""
    border = np.ones(picture.shape[:2], bool)
    border[1:-1, 1:-1] = False
    found: NDArray[np.uint8] = picture[border]
    return found
