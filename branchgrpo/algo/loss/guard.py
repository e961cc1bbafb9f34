"""GRPO-Guard (arXiv 2510.22319): a ratio whose mean and spread no longer depend on the step, and
balanced gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.loss.clipped import clipped
from branchgrpo.algo.loss.edges import EdgeLoss

if TYPE_CHECKING:
    from torch import Tensor


class GuardLoss(EdgeLoss):
    """The clipped surrogate of ρ = exp((Δlog π + b)·std), b = mean (μ − μ_old)²/(2·std²), divided
    by −dt."""

    needs_behaviour_mean: ClassVar[bool] = True

    name: Literal["guard"] = Field("guard", description="the loss")
    clip_range: float = Field(1e-3, gt=0, description="ε")

    def __call__(self, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        bias = edges.mean_drift / (2.0 * edges.std**2)
        loss, ratio, cut = clipped(
            (edges.log_prob - edges.old_log_prob + bias) * edges.std,
            edges.advantage,
            self.clip_range,
        )
        return loss / -edges.dt, ratio, cut
