"""What a reward is: options that build a scorer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field
from pydantic_core import core_schema
from typing_extensions import TypedDict

from branchgrpo.errors import UserError
from branchgrpo.rewards.http import limits
from branchgrpo.types import F32, U8, Component, Sample

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a reward cannot score a prompt."""

    kind: str  # "a character that …": the same for all prompts of that fault
    detail: str  # what it is in this prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a reward worker lets a reward compute with."""

    # of libraries that are told; torch and OpenMP have as many already
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a reward's networks hold and compute, before they are loaded."""

    weights: float = 0.0  # bytes
    activations: float = 0.0  # bytes of one forward of its batch, about
    flops: float = 0.0  # of one picture or video


class RuntimeEnv(TypedDict, total=False):
    """A Ray runtime_env; Ray checks its other keys."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    env_vars: dict[str, str]


class RewardOptions(Component):
    """Options every reward has."""

    # its scorer gives a network's features of pictures, by which diversity is measured
    has_features: ClassVar[bool] = False

    label: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="what its scores are called in metrics, as label/score; empty: the reward's "
        "name",
    )
    weight: float = Field(1.0, description="factor of its trained score, see combine")
    runtime_env: RuntimeEnv = Field(
        default_factory=RuntimeEnv,
        description="Ray runtime_env of its workers, which then score nothing else; empty: none. "
        "In env_vars, ${NAME} is the variable NAME of the driver",
    )

    @property
    def title(self) -> str:
        """What its scores are called: title/score."""
        return self.label or self.called

    def reported(self) -> tuple[str, ...]:
        """Names of the scores that are reported, the one that decides first."""
        return ("score",)

    def check(self) -> None:
        """Raise UserError for what can be seen to be wrong without loading anything: files that are
        missing."""

    @property
    def grouped(self) -> bool:
        """Its scores compare the pictures of a record: `score` gets all of one record at once,
        whatever workers drew them, tree by tree, leaves by rising number."""
        return False

    @property
    def elsewhere(self) -> bool:
        """Another machine scores: what a worker does by itself says nothing of it."""
        return False

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        """Why the reward cannot score pictures of this record, asked before anything starts; None
        where it can.

        height, width: of the pictures, in pixels; 0 where the model doesn't say.
        """
        del sample, height, width
        return None

    def footprint(self, frames: int) -> Footprint | None:
        """What scoring pictures (frames = 1) or videos of so many frames takes; None where the
        reward does not say."""
        del frames
        return None

    def shrunk(self, folder: Path) -> Self | None:
        """These options on a small random network of the same class, written to `folder`; None
        where the reward makes none."""
        del folder
        return None

    def build(self, resources: Resources) -> Scorer:
        """Load what scoring needs."""
        raise NotImplementedError


class Scorer(ABC):
    """A loaded reward."""

    trains_on: str = "score"  # which of the scores is the reward
    reports: tuple[str, ...] = ("score",)  # which are reported
    # of a picture's longer side to its shorter one; others are refused before they come here
    max_ratio: float = limits.MAX_RATIO

    @abstractmethod
    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        """Named scores [L] of pixels u8 [L, F, H, W, 3], drawn for L records; higher is better.
        Pictures of one record have one object."""

    def preferences(
        self, pixels: U8, sample: Sample, pairs: Sequence[tuple[int, int]]
    ) -> F32 | None:
        """[pairs] how probably the first of two pictures of a record is the better one, 0 … 1; None
        where their scores tell."""
        del pixels, sample, pairs
        return None

    def features(self, pixels: U8) -> F32:
        """Features [L, D] of pixels u8 [L, F, H, W, 3], whose directions tell pictures apart; of
        rewards that have them."""
        raise NotImplementedError(f"{type(self).__name__} has no features")

    def networks(self) -> Iterable[nn.Module]:
        """What it scores with that reward_workers.offload may keep in main memory between calls of
        `score`; their weights stay as they are."""
        return ()


def made_already(value: Any) -> Any:
    """A reward that is one. Raises ValueError for a section of a config."""
    if not isinstance(value, RewardOptions):
        raise ValueError(f"expected a reward, got {value!r}")
    return value


class Nested:
    """Annotates a field that holds any reward. Sections of a config are read by the table, which
    config/registry.py brings: what lies below it cannot know it."""

    validate: ClassVar[Callable[[Any], Any]] = staticmethod(made_already)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        del source, handler
        return core_schema.no_info_plain_validator_function(lambda value: Nested.validate(value))


AnyReward = Annotated[RewardOptions, Nested()]


class PictureOptions(RewardOptions):
    """Options of rewards that score single pictures with a network; a video's score is the mean
    over some of its frames."""

    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="dtype of the weights and of the forward pass"
    )
    batch: int = Field(32, ge=1, description="pictures per forward")
    frames: int = Field(
        4,
        ge=1,
        description="frames of a video that are scored, evenly spaced; more than it has: all",
    )


BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a number."""


class PictureScorer(Scorer):
    """Scores pictures in batches, and videos as the mean over frames."""

    def __init__(self, options: PictureOptions):
        self.picture_options = options

    @abstractmethod
    def pictures(self, pictures: U8, prompts: list[str]) -> F32:
        """Scores [B] of pictures u8 [B, H, W, 3] for their B prompts; at most `batch` of them."""

    def pictured(self, pictures: U8) -> F32:
        """Features [B, D] of length 1 of pictures u8 [B, H, W, 3]; at most `batch` of them; of
        rewards that have them."""
        raise NotImplementedError(f"{type(self).__name__} has no features")

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        frames = len(self._shown(pixels))
        texts = [sample.prompt for sample in samples for _ in range(frames)]
        found = self._by_frame(pixels, lambda part, rows: self.pictures(part, texts[rows]))
        return {"score": found.mean(1)}

    def features(self, pixels: U8) -> F32:
        found: F32 = self._by_frame(pixels, lambda part, _: self.pictured(part)).mean(1)
        return found

    def _shown(self, pixels: U8) -> list[int]:
        return evenly(pixels.shape[1], self.picture_options.frames)

    def _by_frame(self, pixels: U8, each: Callable[[U8, slice], F32]) -> F32:
        """[L, frames, …] of what a batch of the frames that are scored gives."""
        shown = self._shown(pixels)
        flat = pixels[:, shown].reshape(-1, *pixels.shape[2:])
        rows = limits.batches(len(flat), self.picture_options.batch, flat.shape[1] * flat.shape[2])
        found = np.concatenate([each(flat[part], part) for part in rows]).astype(np.float32)
        return found.reshape(len(pixels), len(shown), *found.shape[1:])


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions, evenly spaced, each in the middle of its part."""
    wanted = min(count, wanted)
    return [int((index + 0.5) * count / wanted) for index in range(wanted)]


def existing(key: str, path: str, what: str) -> Path:
    """The file or folder at `path`. Raises UserError, naming the config key and what was expected,
    where there is none."""
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{key}: expected {what}, found nothing at {found}")
    return found
