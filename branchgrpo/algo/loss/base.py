"""What a policy loss gets and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from branchgrpo.types import Component

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Edges:
    """Edges of n parents with up to K children each, float32. μ and std are those of the parent's
    transition."""

    log_prob: Tensor  # [n, K] under the present policy; has the gradient
    old_log_prob: Tensor  # [n, K] under the behaviour policy
    advantage: Tensor  # [n, K]
    std: Tensor  # [n, 1]
    dt: Tensor  # [n, 1] σ_next − σ < 0
    # [n, 1] mean over dimensions of (μ − μ_old)², with its gradient; 0 unless the loss needs it
    mean_drift: Tensor


class LossOptions(Component):
    """Options every loss has."""

    # whether rollouts must keep the behaviour policy's velocities
    needs_behaviour_mean: ClassVar[bool] = False

    kl_beta: float = Field(
        0.0,
        ge=0,
        description="β of the KL to the frozen base, mean‖μ − μ_base‖²/(2·std²); 0 = none",
    )

    def __call__(self, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, ratio, cut) [n, K] of each edge; `ratio` has no gradient, `cut` marks edges whose
        gradient is cut."""
        raise NotImplementedError
