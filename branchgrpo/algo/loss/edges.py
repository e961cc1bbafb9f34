"""Losses of the denoising process' random edges."""

from __future__ import annotations

from pydantic import Field

from branchgrpo.algo.loss.base import LossOptions, Second
from branchgrpo.algo.loss.decay import Decay


class EdgeLoss(LossOptions):
    """Base of the losses on edges that can hold the policy to an exponential mean of its
    weights."""

    mean_beta: float = Field(
        0.0,
        ge=0,
        description="β of the KL to an exponential mean of the weights, "
        "mean‖μ − μ_mean‖²/(2·std²); 0 = none",
    )
    mean: Decay = Field(
        Decay(start=0.9), description="how that mean of the weights follows the trained ones"
    )

    @property
    def mean_penalty(self) -> float:
        return self.mean_beta

    @property
    def second(self) -> Second:
        return "mean" if self.mean_beta else "none"

    @property
    def every(self) -> bool:
        return self.kl_beta > 0 or self.mean_beta > 0

    def compared(self, optimiser_steps: int) -> float:
        return super().compared(optimiser_steps) + float(self.mean_beta > 0)

    def decay(self, update: int) -> float:
        return self.mean.at(update)
