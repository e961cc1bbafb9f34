"""Depth pruning: leave out some depths at full width, fixed or by a window that slides over
training."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from branchgrpo.algo.pruning.base import PruningOptions
from branchgrpo.algo.tree import topology
from branchgrpo.types import Bool, BranchPlan, TreeHeader


class DepthPruning(PruningOptions):
    """Depth d is the edges of step d − 1. Fixed `depths`, or a window when `depths` is empty."""

    name: Literal["depth"] = Field("depth", description="the rule")
    depths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="depths never trained; empty = the sliding window"
    )
    window: int = Field(5, ge=1, description="depths in the window")
    slide: bool = Field(
        True, description="whether the window moves; else it stays at the deepest depths"
    )
    interval: int = Field(
        30, ge=1, description="iterations until the window moves one step shallower"
    )
    stop_depth: int = Field(
        0,
        ge=0,
        description="shallowest depth the window may reach; 0 = the first after the last split",
    )

    def window_at(self, plan: BranchPlan, iteration: int) -> tuple[int, ...]:
        """Depths left out at an iteration. The window starts at the deepest trainable depth, stops
        above the last split."""
        deepest = max((step + 1 for step in range(plan.steps) if plan.trainable[step]), default=0)
        # the depth after the last split's edges
        first_free = min(self.stop_depth, deepest) or max(plan.splits, default=-1) + 2
        moved = iteration // self.interval if self.slide else 0
        top = max(deepest - moved, min(deepest, first_free + self.window - 1))
        return tuple(range(max(first_free, top - self.window + 1), top + 1))

    def keep(
        self, plan: BranchPlan, trees: list[TreeHeader], iteration: int, seed: int = 0
    ) -> list[Bool]:
        """[N] per tree: True where an edge stays in the gradient."""
        del seed
        dropped = self.depths or self.window_at(plan, iteration)
        mask = ~np.isin(topology(plan).step + 1, dropped)
        return [mask.copy() for _ in trees]
