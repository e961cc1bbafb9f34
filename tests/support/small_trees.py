"""Small trees with hand-picked rewards, shared by the tests of credit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.config import load as config
from branchgrpo.types import BranchPlan, TreeHeader, TreeKey

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


METHOD = "branchgrpo-antithetic"
"""Of tests that say nothing else: whatever the quick start's own is."""


def quickstart(overrides: dict[str, str] | None = None) -> config.Config:
    """The quick-start config by METHOD with some keys replaced, and without what it only measures
    or shows."""
    plain = {"evaluation.rewards": "[]", "evaluation.trees": "0"}
    return config.load(QUICKSTART, plain | (overrides or {}), METHOD)


def plan_of(*fanout: int) -> BranchPlan:
    """Every step but the last is random."""
    steps = len(fanout)
    return BranchPlan(
        static(steps, 3.0).levels,
        fanout,
        ("dance",) * (steps - 1) + ("ode",),
        (0.3,) * (steps - 1) + (0.0,),
    )


def paper_plan() -> BranchPlan:
    """T = 20, splits 0, 3, 6, 9: 16 leaves."""
    return BranchMethod(splits=(0, 3, 6, 9)).plan(0, static(20, 3.0))


def header(
    plan: BranchPlan,
    rewards: list[float],
    prompt: int = 0,
    tree: int = 0,
    log_prob: list[float] | None = None,
) -> TreeHeader:
    """A tree with these leaf rewards; log_prob holds the edges from node 1 on, the rest is 0."""
    values = np.zeros(topology(plan).nodes, np.float32)
    values[1 : 1 + len(log_prob or [])] = log_prob or []
    return TreeHeader(
        key=TreeKey("test", 0, prompt, tree),
        prompt_index=prompt,
        policy_version=0,
        log_prob=values,
        leaf_reward=np.array(rewards, np.float32),
    )
