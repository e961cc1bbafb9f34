"""Pairwise preference: the share of the other pictures of its prompt that a picture is put above
(Pref-GRPO, arXiv 2508.20751)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field

from branchgrpo.rewards.base import (
    AnyReward,
    Footprint,
    Refusal,
    Resources,
    RewardOptions,
    Scorer,
)
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from torch import nn


class PairwiseReward(RewardOptions):
    """Score: the mean probability that it is better than another picture of its prompt, 0 … 1; of a
    picture that stands alone ½. A judge is asked about pairs, with its template's `pair`; of other
    rewards the score decides, ties count half."""

    name: Literal["pairwise"] = Field("pairwise", description="the reward")
    of: AnyReward = Field(description="who compares: a judge, or any other reward")
    rivals: int = Field(
        0,
        ge=0,
        description="how many others each picture is compared with, the next ones of its group in "
        "a circle; 0 = all",
    )

    @property
    def grouped(self) -> bool:
        return True

    @property
    def elsewhere(self) -> bool:
        return self.of.elsewhere

    def check(self) -> None:
        self.of.check()

    def needed_files(self) -> list[str]:
        return self.of.needed_files()

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        return self.of.refusal(sample, height, width)

    def footprint(self, frames: int) -> Footprint | None:
        return self.of.footprint(frames)

    def shrunk(self, folder: Path) -> Self | None:
        small = self.of.shrunk(folder)
        return None if small is None else self.model_copy(update={"of": small})

    def build(self, resources: Resources) -> Pairwise:
        return Pairwise(self, self.of.build(resources))


class Pairwise(Scorer):
    """Compares the pictures of a record."""

    def __init__(self, options: PairwiseReward, inner: Scorer):
        self.options, self.inner = options, inner
        self.max_ratio = inner.max_ratio

    def networks(self) -> Iterable[nn.Module]:
        return self.inner.networks()

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        count = len(pixels)
        if count == 1:
            return {"score": np.array([0.5], np.float32)}
        pairs = pairs_of(count, self.options.rivals)
        better = self.inner.preferences(pixels, samples[0], pairs)
        if better is None:
            scores = np.asarray(self.inner.score(pixels, samples)[self.inner.trains_on], np.float32)
            better = np.array([compared(scores[one], scores[other]) for one, other in pairs])
        won, met = np.zeros(count), np.zeros(count)
        for (one, other), share in zip(pairs, better, strict=True):
            won[one] += share
            won[other] += 1 - share
            met[[one, other]] += 1
        return {"score": (won / met).astype(np.float32)}


def pairs_of(count: int, rivals: int) -> list[tuple[int, int]]:
    """Pairs of `count` pictures: all, or each with the next `rivals` in a circle, once each."""
    if not 0 < rivals < count:
        rivals = count - 1
    found = {
        tuple(sorted((one, (one + step) % count)))
        for one in range(count)
        for step in range(1, rivals + 1)
    }
    return [(one, other) for one, other in sorted(found)]


def compared(one: float, other: float) -> float:
    """1 where the first score is higher, ½ for equal ones; not a number where one is none."""
    return float(np.nan) if np.isnan(one + other) else (np.sign(one - other) + 1) / 2
