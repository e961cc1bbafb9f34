"""Centred reward distillation (arXiv 2603.14128): how much better the velocity matches a leaf than
it did is fitted to how much better the leaf is, both against the mean of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.loss.base import Second
from branchgrpo.algo.loss.decay import Decay
from branchgrpo.algo.loss.forward import SMALLEST, ForwardLoss, Points, Velocity, plain

if TYPE_CHECKING:
    from torch import Tensor


class CentredRewardLoss(ForwardLoss):
    """c/β·e² with e = β·(r − mean r) − (r̂ − mean r̂), means over the group, r = ℓ_old/w_old − ℓ/w,
    w = mean|v − v*| without a gradient, and c = advantage_clip."""

    grouped: ClassVar[bool] = True
    scored: ClassVar[Literal["never", "iteration", "step"]] = "step"

    name: Literal["crd"] = Field("crd", description="the loss")
    beta: float = Field(1.0, gt=0, description="β, scale of r beside r̂")
    old: Decay = Field(
        Decay(start=0.25),
        description="how the weights that rollouts sample with follow the trained ones",
    )

    @property
    def second(self) -> Second:
        return "sampled"

    @property
    def every(self) -> bool:
        return True  # equal rewards draw the r of a group together

    @property
    def score_needs(self) -> frozenset[Velocity]:
        return frozenset({"second"})

    def decay(self, update: int) -> float:
        return self.old.at(update)

    def score(self, points: Points) -> Tensor:
        """[n] β·r − r̂, whose distance from the group's mean is e."""
        assert points.second is not None
        gained = self._matched(points, points.second) - self._matched(points, points.v)
        return self.beta * gained - self.rating(points.advantage)

    def __call__(self, batch: Points) -> tuple[Tensor, Tensor, Tensor]:
        """The mean counts as fixed: its gradient is Σ e over the group, which is 0."""
        assert batch.score is not None and batch.mean is not None
        matched = self._matched(batch, batch.v)
        # the score, whose gradient is that of −β·ℓ/w alone
        off = batch.score - batch.mean - self.beta * (matched - matched.detach())
        return plain(self.advantage_clip / self.beta * off.square())

    def _matched(self, points: Points, v: Tensor) -> Tensor:
        """[n] ℓ/w of a velocity."""
        off = (v - points.target).flatten(1)
        weight = off.detach().abs().mean(1).clamp(min=SMALLEST)
        return off.square().mean(1) / weight
