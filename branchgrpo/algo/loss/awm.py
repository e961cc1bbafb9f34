"""Advantage weighted matching (arXiv 2509.25050): the policy gradient with the flow-matching loss
in place of a log-prob."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from branchgrpo.algo.loss.base import Second
from branchgrpo.algo.loss.clipped import clipped
from branchgrpo.algo.loss.decay import Decay
from branchgrpo.algo.loss.forward import ForwardLoss, Points, Velocity
from branchgrpo.types import F32

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = 1e-10


class MatchingLoss(ForwardLoss):
    """max(−A·ρ, −A·clip(ρ, 1 ± ε)) with ρ = p/p_old and A in units of advantage_clip;
    + mean_beta·mean‖v − v_mean‖² to an exponential mean of the weights."""

    scored: ClassVar[Literal["never", "iteration", "step"]] = "iteration"

    name: Literal["awm"] = Field("awm", description="the loss")
    weighting: Literal["power", "uniform", "t", "t2"] = Field(
        "power",
        description="log p: −(t/p)·(ℓ^p − 0^p) with 1e-10 added to both; −ℓ; −t·ℓ; or −t²·ℓ",
    )
    power: float = Field(0.25, gt=0, description="p of weighting: power")
    clip_range: float = Field(1.0, gt=0, description="ε")
    times: int = Field(
        6, ge=1, description="levels of each leaf: one drawn in each equal part of the steps"
    )
    share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="part of the sampler's steps, from noise, that is trained; never pure noise",
    )
    kl_beta: float = Field(
        0.001,
        ge=0,
        description="β of the distance to the frozen base, mean‖v − v_base‖²; 0 = none",
    )
    mean_beta: float = Field(
        1.0,
        ge=0,
        description="β of the distance to the exponential mean, mean‖v − v_mean‖²; 0 = none, "
        "which its authors found to collapse",
    )
    mean: Decay = Field(
        Decay(most=0.3), description="how that mean of the weights follows the trained ones"
    )

    @property
    def second(self) -> Second:
        return "mean" if self.mean_beta else "none"

    @property
    def every(self) -> bool:
        return self.kl_beta > 0 or self.mean_beta > 0

    @property
    def needs(self) -> frozenset[Velocity]:
        return frozenset({"second"} if self.mean_beta else ())

    def decay(self, update: int) -> float:
        return self.mean.at(update)

    def levels(self, sigmas: F32, draw: np.random.Generator) -> F32:
        """[times] one in each equal part of steps 1 … ⌈share·T⌉ − 1."""
        steps = len(sigmas) - 1
        stop = max(2, int(np.ceil(round(self.share * steps, 9))))
        bounds = np.linspace(1, stop, self.times + 1)
        at = np.floor(draw.uniform(bounds[:-1], bounds[1:])).astype(int)
        found: F32 = sigmas[np.minimum(at, steps - 1)]
        return found

    def score(self, points: Points) -> Tensor:
        """[n] log p."""
        error = points.error(points.v)
        if self.weighting == "uniform":
            return -error
        if self.weighting != "power":
            return -error * points.t ** (1 if self.weighting == "t" else 2)
        p = self.power
        found: Tensor = -points.t / p * ((error + _FLOOR) ** p - _FLOOR**p)
        return found

    def __call__(self, batch: Points) -> tuple[Tensor, Tensor, Tensor]:
        log_p = self.score(batch)
        old = log_p.detach() if batch.score is None else batch.score
        advantage = self.clipped(batch.advantage) / self.advantage_clip
        loss, ratio, cut = clipped(log_p - old, advantage, self.clip_range)
        if batch.second is not None:
            distance = (batch.v - batch.second).square().flatten(1).mean(1)
            loss = loss + self.mean_beta * distance
        return loss, ratio, cut
