"""What a loss gets and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.types import Component

if TYPE_CHECKING:
    from torch import Tensor

Process = Literal["reverse", "forward"]
Second = Literal["none", "sampled", "mean"]


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

    # what it trains on: the random edges of the denoising process, as Edges, or clean leaves to
    # which noise is added again, as Points (forward.py)
    process: ClassVar[Process] = "reverse"
    # whether rollouts must keep the behaviour policy's velocities
    needs_behaviour_mean: ClassVar[bool] = False

    kl_beta: float = Field(
        0.0,
        ge=0,
        description="β of the KL to the frozen base, mean‖μ − μ_base‖²/(2·std²); 0 = none",
    )

    def __call__(self, batch: Any, /) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, ratio, cut) of each edge [n, K], or of each point [n]; `ratio` has no gradient,
        `cut` marks those whose gradient is cut."""
        raise NotImplementedError

    @property
    def needs_base(self) -> bool:
        """The learner must keep the model as it was before training."""
        return self.kl_beta > 0

    @property
    def every(self) -> bool:
        """What has advantage 0 has a gradient as well."""
        return self.kl_beta > 0

    @property
    def mean_penalty(self) -> float:
        """β of the KL to the second weights that an update adds to the loss of every edge, in the
        form of `kl_beta`; 0 = none."""
        return 0.0

    def compared(self, optimiser_steps: int) -> float:
        """Forwards without a gradient that the update makes for each with one, at so many optimiser
        steps an iteration; learner.old apart."""
        del optimiser_steps
        return float(self.kl_beta > 0)

    @property
    def second(self) -> Second:
        """A second set of weights that follows the trained ones by `decay`: `sampled`, rollouts
        grow with it; `mean`, the loss alone has it."""
        return "none"

    def decay(self, update: int) -> float:
        """η of second ← η·second + (1 − η)·trained after the update of this number, from 1."""
        raise NotImplementedError
