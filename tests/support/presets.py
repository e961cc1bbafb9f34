"""Presets, their plans and what they train."""

from __future__ import annotations

import numpy as np

from branchgrpo.algo.tree import topology
from branchgrpo.config import load as config
from branchgrpo.types import BranchPlan, TreeHeader
from support.small_trees import QUICKSTART, header


def load(preset: str, overrides: dict[str, str] | None = None) -> config.Config:
    return config.load(QUICKSTART, overrides or {}, preset)


def plan_at(loaded: config.Config, iteration: int = 0) -> BranchPlan:
    return loaded.method.plan(iteration, loaded.schedule(), loaded.run.seed)


def group(plan: BranchPlan) -> list[TreeHeader]:
    """One prompt's trees with random rewards."""
    rng = np.random.default_rng(3)
    return [
        header(plan, rng.standard_normal(topology(plan).leaves).tolist(), 0, tree)
        for tree in range(plan.chains)
    ]


def trained(loaded: config.Config, iteration: int = 0) -> np.ndarray:
    """[trees, N] which edges are trained: random, and not pruned."""
    plan = plan_at(loaded, iteration)
    return np.stack([one.keep for one in loaded.credit.assign(plan, group(plan), iteration, {})])


LAST = {"method.train_last_edge": "true"}
