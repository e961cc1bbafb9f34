"""Flow-DPPO: no clipping of the ratio; an edge is left out once its policy has moved too far and
would move further."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.loss.edges import EdgeLoss

if TYPE_CHECKING:
    from torch import Tensor


class DivergenceLoss(EdgeLoss):
    """−A·ρ, and 0 where KL = mean (μ − μ_old)²/(2·std²) ≥ τ and the edge moves away: (ρ > 1, A > 0)
    or (ρ < 1, A < 0)."""

    needs_behaviour_mean: ClassVar[bool] = True

    name: Literal["dppo"] = Field("dppo", description="the loss")
    threshold: float = Field(
        1e-5,
        gt=0,
        description="τ, largest KL to the behaviour policy at which an edge may still move away",
    )

    def __call__(self, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        ratio = torch.exp(edges.log_prob - edges.old_log_prob)
        far = edges.mean_drift.detach() / (2.0 * edges.std**2) >= self.threshold
        away = ((ratio > 1) & (edges.advantage > 0)) | ((ratio < 1) & (edges.advantage < 0))
        cut = (far & away).detach()
        return torch.where(cut, 0.0, -edges.advantage * ratio), ratio.detach(), cut
