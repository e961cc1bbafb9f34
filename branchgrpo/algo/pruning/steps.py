"""Step pruning: each tree trains a random part of its denoising steps (DanceGRPO's timestep
fraction)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from branchgrpo.algo.pruning.base import PruningOptions
from branchgrpo.algo.tree import topology
from branchgrpo.types import Bool, BranchPlan, TreeHeader


class StepPruning(PruningOptions):
    """Keep round(fraction·T) of a tree's T steps, drawn anew for each tree from those that can be
    trained."""

    prunes_combs: ClassVar[bool] = True

    name: Literal["steps"] = Field("steps", description="the rule")
    fraction: float = Field(
        0.6, gt=0, le=1, description="part of all T denoising steps that is trained"
    )

    def keep(
        self, plan: BranchPlan, trees: list[TreeHeader], iteration: int, seed: int = 0
    ) -> list[Bool]:
        """[N] per tree: True where an edge stays in the gradient."""
        topo, random = topology(plan), np.flatnonzero(plan.trainable)
        count = min(len(random), max(1, round(self.fraction * plan.steps)))
        masks = []
        for tree in trees:
            draw = np.random.default_rng((seed, iteration, tree.key.prompt, tree.key.tree))
            masks.append(np.isin(topo.step, draw.choice(random, count, replace=False)))
        return masks
