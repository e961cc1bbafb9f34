"""A reward that is a plain function of the user's own: f(images, samples) → one number each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from branchgrpo.rewards.base import Resources, RewardOptions, Scorer
from branchgrpo.types import F32, U8, Sample

Scoring = Callable[[list[Any], list[Sample]], Iterable[float]]
"""images: of each sample a PIL image, of a video the list of its frames. Higher is better."""


class FunctionReward(RewardOptions):
    """The options that every reward has, and a function. One with a true attribute `grouped` gets
    all pictures of a record at once."""

    function: ClassVar[Scoring]

    @property
    def grouped(self) -> bool:
        return bool(getattr(type(self).function, "grouped", False))

    def build(self, resources: Resources) -> FunctionScorer:
        """The function gets what it needs by itself."""
        return FunctionScorer(type(self).function, self.title)


class FunctionScorer(Scorer):
    """Calls the function."""

    def __init__(self, function: Scoring, title: str):
        self.function, self.title = function, title

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        found = self.function(images(pixels), samples)
        try:
            scores = [float(value) for value in found]
        except TypeError as error:
            raise ValueError(
                f"{self.title}: expected a list of {len(samples)} numbers, got {_shown(found)}"
            ) from error
        if len(scores) != len(samples):
            raise ValueError(f"{self.title}: expected {len(samples)} scores, got {len(scores)}")
        return {"score": np.array(scores, np.float32)}


def images(pixels: U8) -> list[Any]:
    """Pixels u8 [L, F, H, W, 3] as L PIL images, or lists of F of them where F > 1."""
    from PIL import Image

    videos = [[Image.fromarray(frame) for frame in video] for video in pixels]
    return [frames[0] for frames in videos] if pixels.shape[1] == 1 else list(videos)


def component_of(function: Any, name: str) -> type[FunctionReward]:
    """The reward that is this function. Raises ValueError unless it takes images and samples."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise ValueError(
            f"expected a function f(images, samples), got {name}{inspect.signature(function)}"
        ) from None
    except ValueError:  # of C, without a signature: the first call tells
        pass
    members = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": inspect.getdoc(function) or FunctionReward.__doc__,
        "__annotations__": {"function": ClassVar[Any]},
        "function": staticmethod(function),
    }
    metaclass: Any = type(FunctionReward)
    made: type[FunctionReward] = metaclass(name, (FunctionReward,), members)
    return made


def _shown(found: object) -> str:
    if isinstance(found, Sequence) and not isinstance(found, str):
        return f"a list of {', '.join(sorted({type(one).__name__ for one in found}))}"
    return type(found).__name__
