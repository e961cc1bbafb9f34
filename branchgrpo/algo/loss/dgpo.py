"""Direct group preference optimisation (arXiv 2510.08425): leaves matched by their advantages, by
as much as their prompt's group is not yet told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.loss.base import Second
from branchgrpo.algo.loss.decay import Decay
from branchgrpo.algo.loss.forward import ForwardLoss, Points, Velocity, plain

if TYPE_CHECKING:
    from torch import Tensor


class GroupPreferenceLoss(ForwardLoss):
    """ω·A·ℓ, ω = sigmoid(mean over the group of A·β·(ℓ − ℓ_base)) without a gradient."""

    grouped: ClassVar[bool] = True
    scored: ClassVar[Literal["never", "iteration", "step"]] = "step"

    name: Literal["dgpo"] = Field("dgpo", description="the loss")
    beta: float = Field(
        100.0, gt=0, description="β, how sharply ω falls once a group is told apart"
    )
    times: int = Field(
        4, ge=0, description="levels of each group, drawn anew from those of these steps; 0 = all"
    )
    share: float = Field(
        0.7, gt=0, le=1, description="part of the sampler's steps, from noise, that is trained"
    )
    clip_range: float = Field(
        0.01,
        ge=0,
        description="ε: a leaf's gradient is cut where exp(ℓ_mean − ℓ) has left 1 ± ε the way "
        "that A drives it, ℓ_mean being that of an exponential mean of the weights; 0 = no bound",
    )
    kl_beta: float = Field(
        0.02,
        ge=0,
        description="β of the distance to the frozen base, mean‖v − v_base‖²; 0 = none",
    )
    mean: Decay = Field(
        Decay(most=0.3), description="how that mean of the weights follows the trained ones"
    )

    @property
    def second(self) -> Second:
        return "mean" if self.clip_range else "none"

    @property
    def needs(self) -> frozenset[Velocity]:
        return frozenset({"second"} if self.clip_range else ())

    @property
    def score_needs(self) -> frozenset[Velocity]:
        return frozenset({"base"})

    def decay(self, update: int) -> float:
        return self.mean.at(update)

    def score(self, points: Points) -> Tensor:
        """[n] A·β·(ℓ − ℓ_base)."""
        assert points.base is not None
        gap = points.error(points.v) - points.error(points.base)
        return self.clipped(points.advantage) * self.beta * gap

    def __call__(self, batch: Points) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        assert batch.mean is not None
        advantage, error = self.clipped(batch.advantage), batch.error(batch.v)
        loss, ratio, cut = plain(torch.sigmoid(batch.mean) * advantage * error)
        if batch.second is not None:
            ratio = torch.exp(batch.error(batch.second) - error.detach())
            up, down = ratio > 1.0 + self.clip_range, ratio < 1.0 - self.clip_range
            cut = torch.where(advantage > 0, up, down) & (advantage != 0)
            loss = torch.where(cut, loss.detach(), loss)
        return loss, ratio, cut
