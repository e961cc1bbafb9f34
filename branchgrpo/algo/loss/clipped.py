"""The clipped surrogate of PPO and GRPO, on mean log-probs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.loss.edges import EdgeLoss

if TYPE_CHECKING:
    from torch import Tensor


class ClippedLoss(EdgeLoss):
    """max(−A·ρ, −A·clip(ρ, 1 ± ε)), ρ = exp(log π − log π_old)."""

    name: Literal["clipped"] = Field("clipped", description="the loss")
    clip_range: float = Field(
        1e-3, gt=0, description="ε; small, since log-probs are means over dimensions"
    )

    def __call__(self, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        return clipped(edges.log_prob - edges.old_log_prob, edges.advantage, self.clip_range)


def clipped(
    log_ratio: Tensor, advantage: Tensor, clip_range: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, ratio, cut) of the clipped surrogate, all of the inputs' shape."""
    import torch

    ratio = torch.exp(log_ratio)
    plain, bounded = -advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(plain, bounded), ratio.detach(), (bounded > plain).detach()
