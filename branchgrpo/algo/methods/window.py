"""A window of denoising steps that moves over training (MixGRPO, arXiv 2507.21802)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class Window(BaseModel):
    """Positions 0, stride, 2·stride, … until the window reaches the last step that may be
    random."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(4, ge=0, description="steps in the window; 0 = none")
    stride: int = Field(1, ge=1, description="steps between its positions")
    interval: int = Field(
        25, ge=1, description="iterations at a position; of the first one for decay and exp_decay"
    )
    strategy: Literal["progressive", "random", "geometric", "decay", "exp_decay"] = Field(
        "progressive",
        description="progressive: interval each; decay, exp_decay: ever fewer; random: anew each "
        "iteration; geometric: so too, early positions more often",
    )
    ratio: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="r of geometric: position i has a probability in proportion to r^i",
    )
    at_end: Literal["stay", "wrap"] = Field(
        "wrap", description="after the last position: stay there, or begin again"
    )
    decay: float = Field(
        0.1, gt=0, description="k of exp_decay: interval·exp(−k·max(0, start − threshold))"
    )
    threshold: int = Field(13, ge=0, description="step from which exp_decay shortens the stay")
    reach: float = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the schedule, from its start, that the window stays in",
    )

    def positions(self, steps: int) -> list[tuple[int, ...]]:
        """Steps of the window at each position, for a schedule of `steps` steps; the last step is
        never among them."""
        end = max(1, min(math.ceil(round(self.reach * steps, 9)), steps - 1))
        found = [tuple(range(min(self.size, end)))]
        while self.size and found[-1][-1] < end - 1:
            start = found[-1][0] + self.stride
            if start >= end:
                break
            found.append(tuple(range(start, min(start + self.size, end))))
        return found

    def stays(self, steps: int) -> list[int]:
        """Iterations spent at each position before the next; at least 1."""
        starts = [position[0] if position else 0 for position in self.positions(steps)]
        if self.strategy == "decay":  # linearly to 0 at the end of the schedule
            stays = [self.interval * (1.0 - start / (steps - 1)) for start in starts]
        elif self.strategy == "exp_decay":
            stays = [
                self.interval * math.exp(-self.decay * max(0, start - self.threshold))
                for start in starts
            ]
        else:
            stays = [float(self.interval)] * len(starts)
        return [max(1, round(stay)) for stay in stays]

    def probabilities(self, steps: int) -> NDArray[np.float64]:
        """Of each position at an iteration, with geometric: (1 − r)·r^i / (1 − r^n) of n (TreeGRPO,
        arXiv 2512.08153)."""
        count = len(self.positions(steps))
        powers = self.ratio ** np.arange(count, dtype=np.float64)
        return np.asarray((1.0 - self.ratio) * powers / (1.0 - self.ratio**count), np.float64)

    def at(self, iteration: int, steps: int, seed: int) -> tuple[int, ...]:
        """Steps of the window at an iteration."""
        positions = self.positions(steps)
        if self.strategy == "random":
            return positions[int(np.random.default_rng((seed, iteration)).integers(len(positions)))]
        if self.strategy == "geometric":
            below = np.cumsum(self.probabilities(steps))[:-1]
            drawn = np.random.default_rng((seed, iteration)).random()
            return positions[int(np.searchsorted(below, drawn, side="right"))]
        ends = np.cumsum(self.stays(steps))
        place = (
            iteration % int(ends[-1])
            if self.at_end == "wrap"
            else min(iteration, int(ends[-1]) - 1)
        )
        return positions[int(np.searchsorted(ends, place, side="right"))]
