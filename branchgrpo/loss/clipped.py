"""The clipped surrogate of PPO and GRPO, on mean log-probs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from branchgrpo.table import Component

if TYPE_CHECKING:
    from torch import Tensor


class ClippedLoss(Component):
    """max(−A·ρ, −A·clip(ρ, 1 ± ε)), ρ = exp(log π − log π_old)."""

    name: Literal["clipped"] = Field("clipped", description="the loss")
    clip_range: float = Field(1e-3, gt=0, description="ε; small, since log-probs are means over dimensions")

    def __call__(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, ratio, clipped) of each edge, all of the inputs' shape; `clipped` marks edges whose gradient is cut."""
        import torch

        ratio = torch.exp(log_prob - old_log_prob)
        plain, bounded = -advantage * ratio, -advantage * ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        return torch.maximum(plain, bounded), ratio.detach(), (bounded > plain).detach()
