"""DiffusionNFT (arXiv 2509.16117): good leaves pull the velocity towards them, bad ones push it
away, on either side of the weights that sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from branchgrpo.algo.loss.base import Second
from branchgrpo.algo.loss.decay import Decay
from branchgrpo.algo.loss.forward import SMALLEST, ForwardLoss, Points, Velocity, plain

if TYPE_CHECKING:
    from torch import Tensor


class NegativeAwareLoss(ForwardLoss):
    """c·(r̂·L⁺ + (1 − r̂)·L⁻)/β with L± = mean (x̂0± − x0)²/w±, x̂0± = x_t − t·v±,
    v± = v_old ± β·(v − v_old), r̂ = A/(2c) + ½ and c = advantage_clip."""

    name: Literal["nft"] = Field("nft", description="the loss")
    beta: float = Field(
        1.0, gt=0, description="β, how far v± go; its authors take 0.1 for OCR and several rewards"
    )
    weighted: bool = Field(
        True, description="divide by w± = mean|x̂0± − x0|, so that all levels count alike"
    )
    kl_beta: float = Field(
        1e-4,
        ge=0,
        description="β of the distance to the frozen base, mean‖v − v_base‖²; 0 = none",
    )
    old: Decay = Field(
        Decay(), description="how the weights that rollouts sample with follow the trained ones"
    )

    @property
    def second(self) -> Second:
        return "sampled"

    @property
    def every(self) -> bool:
        return True  # r̂ = ½ draws v back to v_old

    @property
    def needs(self) -> frozenset[Velocity]:
        return frozenset({"second"})

    def decay(self, update: int) -> float:
        return self.old.at(update)

    def __call__(self, batch: Points) -> tuple[Tensor, Tensor, Tensor]:
        old = batch.second
        assert old is not None
        step = self.beta * (batch.v - old)
        good, bad = self._distance(batch, old + step), self._distance(batch, old - step)
        rating = self.rating(batch.advantage)
        return plain(self.advantage_clip / self.beta * (rating * good + (1.0 - rating) * bad))

    def _distance(self, points: Points, v: Tensor) -> Tensor:
        """[n] L± of v±."""
        off = (points.x - points.spread(points.t) * v - points.x0).flatten(1)
        if not self.weighted:
            return off.square().mean(1)
        weight = off.detach().abs().mean(1).clamp(min=SMALLEST)
        return off.square().mean(1) / weight
