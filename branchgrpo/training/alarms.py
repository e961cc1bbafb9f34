"""Is the trained reward hacked? What is measured alone tells: it falls while the reward rises. And
the size of velocities, which such training inflates (arXiv 2606.27771)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from branchgrpo.rewards.base import RewardOptions
from branchgrpo.types import F32

FIGURE = "alarm/hacking"
"""How many measured scores fell while the trained reward rose."""
NORM, NORM_FIGURE = "update/velocity_norm", "alarm/norm"
"""‖v‖ ÷ what it was when the run began; and whether that is too far from 1: 1 or 0."""


@dataclass(frozen=True)
class Change:
    """Of a score, by the same prompts before and now."""

    score: str
    mean: float
    error: float  # standard error of the mean, over prompts

    def passes(self, errors: float) -> bool:
        """Is it further from 0 than so many standard errors?"""
        return abs(self.mean) > errors * self.error

    def __str__(self) -> str:
        return f"{self.score} {self.mean:+.3g} ± {self.error:.2g}"


def change(score: str, before: F32, now: F32) -> Change:
    """before: [P or more] scores of prompts, now: [P] of the first ones, P ≥ 2."""
    difference = now.astype(np.float64) - before[: len(now)]
    error = difference.std(ddof=1) / np.sqrt(len(now))
    return Change(score, float(difference.mean()), float(error))


def measured(rewards: Iterable[RewardOptions], before: Mapping[str, F32]) -> list[str]:
    """Scores of rewards that are only measured, which are known from before training."""
    names = [f"{reward.title}/{score}" for reward in rewards for score in reward.reported()]
    return [name for name in names if name in before]


def hacked(
    before: Mapping[str, F32], now: Mapping[str, F32], measured: Sequence[str], errors: float
) -> tuple[Change, list[Change]]:
    """(how what is trained on changed, which of the measured scores fell while it rose), both by
    more than so many standard errors of the paired difference."""
    total = change("total", before["total"], now["total"])
    if not (total.mean > 0 and total.passes(errors)):
        return total, []
    others = [change(score, before[score], now[score]) for score in measured]
    return total, [one for one in others if one.mean < 0 and one.passes(errors)]


def words(total: Change, fell: Sequence[Change]) -> str:
    """What `hacked` found."""
    told = ", ".join(map(str, fell))
    return f"held-out {total} since the start, but of what is only measured: {told}"


def inflated(ratio: float, bound: float) -> bool:
    """Is ‖v‖ ÷ what it was further from 1 than so much? What is not finite is."""
    return not abs(ratio - 1.0) <= bound
