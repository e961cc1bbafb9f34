"""Losses of the forward process: on clean leaves to which noise is added again. They need neither
log-probs nor random steps, so that any solver may grow the leaves.

Notation: t noise level (1 = noise), x_t = (1 − t)·x0 + t·ε, v* = ε − x0, ℓ = mean (v − v*)².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from branchgrpo.algo.loss.base import LossOptions, Process
from branchgrpo.types import F32

if TYPE_CHECKING:
    from torch import Tensor

Velocity = Literal["base", "second"]
"""Beside the present policy's: that of the model before training, or of the second weights."""

SMALLEST = 1e-5
"""Lower bound of adaptive weights, which divide."""


@dataclass
class Points:
    """n noised leaves, float32."""

    x0: Tensor  # [n, *S] clean
    x: Tensor  # [n, *S] noised
    target: Tensor  # [n, *S] v*
    t: Tensor  # [n]
    advantage: Tensor  # [n]
    v: Tensor  # [n, *S] of the present policy; has the gradient, but where a score is asked for
    base: Tensor | None = None  # [n, *S] of the frozen base, where the loss needs it
    second: Tensor | None = None  # [n, *S] of the second weights, where the loss needs it
    score: Tensor | None = None  # [n] what `ForwardLoss.score` gave of them, where it was asked
    mean: Tensor | None = None  # [n] mean score of each one's group, of losses with `grouped`

    def error(self, v: Tensor) -> Tensor:
        """[n] ℓ of a velocity [n, *S]."""
        return (v - self.target).square().flatten(1).mean(1)

    def spread(self, values: Tensor) -> Tensor:
        """[n] → [n, 1, …], to go with [n, *S]."""
        return values.view(-1, *(1,) * (self.x.ndim - 1))


class ForwardLoss(LossOptions):
    """Base of the losses on clean leaves."""

    process: ClassVar[Process] = "forward"
    # the leaves of a prompt share times and noise, and what a leaf's loss is depends on the scores
    # of the others
    grouped: ClassVar[bool] = False
    # when `score` is asked for, without a gradient: before the first optimiser step of an
    # iteration, of the points of later ones; before each step, of all its points; or never
    scored: ClassVar[Literal["never", "iteration", "step"]] = "never"

    advantage_clip: float = Field(
        5.0, gt=0, description="advantages are clipped to ± this, which counts as the most"
    )
    share: float = Field(
        0.99, gt=0, le=1, description="part of the sampler's steps, from noise, that is trained"
    )
    times: int = Field(
        0,
        ge=0,
        description="levels of each leaf, drawn anew from those of these steps; 0 = all of them",
    )
    kl_beta: float = Field(
        0.0,
        ge=0,
        description="β of the distance to the frozen base, mean‖v − v_base‖²; 0 = none",
    )

    @property
    def needs(self) -> frozenset[Velocity]:
        """Velocities that the loss takes beside the policy's."""
        return frozenset()

    @property
    def score_needs(self) -> frozenset[Velocity]:
        """Velocities that `score` takes beside the policy's."""
        return frozenset()

    @property
    def needs_base(self) -> bool:
        return self.kl_beta > 0 or "base" in self.needs | self.score_needs

    def compared(self, optimiser_steps: int) -> float:
        scored = {"never": 0.0, "iteration": 1.0 - 1.0 / optimiser_steps, "step": 1.0}
        beside = self.needs | (frozenset({"base"}) if self.kl_beta else frozenset())
        return len(beside) + scored[self.scored] * (1 + len(self.score_needs))

    def levels(self, sigmas: F32, draw: np.random.Generator) -> F32:
        """[k] noise levels t that a leaf (or a group) is trained at, of the sampler's own sigmas
        [T+1]; k depends on T alone. Of the first `share` of its steps all, or `times` different
        ones, where there are so many."""
        first = sigmas[: max(1, int(round(self.share * (len(sigmas) - 1), 9)))]
        if not 0 < self.times < len(first):
            return first
        return first[np.sort(draw.choice(len(first), self.times, replace=False))]

    def score(self, points: Points) -> Tensor:
        """[n] what is asked for before, see `scored`; nothing has a gradient there."""
        raise NotImplementedError

    def clipped(self, advantage: Tensor) -> Tensor:
        """A, within ± advantage_clip."""
        return advantage.clamp(-self.advantage_clip, self.advantage_clip)

    def rating(self, advantage: Tensor) -> Tensor:
        """r̂ = A/(2·advantage_clip) + ½, within 0 … 1."""
        return (advantage / (2.0 * self.advantage_clip) + 0.5).clamp(0.0, 1.0)


def plain(loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, ratio, cut) of a loss without a ratio."""
    import torch

    one = torch.ones_like(loss.detach())
    return loss, one, torch.zeros_like(one, dtype=torch.bool)
