"""What a segment keeps for a loss on leaves: those, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.records import records
from support.small_adapter import SmallAdapter

from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.methods.chains import ChainMethod
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.rollout.sampler import Sampler, Segment
from branchgrpo.types import BranchPlan, Subtree, TreeKey

STEPS = static(6, 3.0)
PLANS = {
    "ode": ChainMethod(chains=2, root="private", stochastic="none").plan(0, STEPS),
    "dpm": ChainMethod(
        chains=2, root="private", stochastic="none", tail="dpm", tail_ratio=1.0
    ).plan(0, STEPS),
    "tree": BranchMethod(splits=(0, 2)).plan(0, STEPS),
    "last edge": BranchMethod(splits=(0, 2), train_last_edge=True).plan(0, STEPS),
    "comb": TempFlowMethod(children=2, seeds=2).plan(0, STEPS),
}


def grown(plan: BranchPlan, clean: bool) -> Segment:
    model = SmallAdapter()
    sampler = Sampler(model, seed=3, storage=torch.float32, max_batch=5)
    trees = tuple(Subtree(TreeKey("run", 1, 7, tree), 0, 0) for tree in range(2))
    return sampler.grow(
        plan,
        subtrees=trees,
        x=sampler.roots(plan, trees),
        start=0,
        stop=plan.steps,
        conditioning=model.encode(records(["a"])),
        clean=clean,
    )


@pytest.mark.parametrize("name", PLANS)
def test_leaves_are_kept_as_they_are_shown(name: str) -> None:
    plan = PLANS[name]
    found, other = grown(plan, True), grown(plan, False)
    leaves = topology(plan).level(plan.steps)
    assert torch.equal(found.kept, found.frontier) and torch.equal(found.kept, other.frontier)
    assert found.kept_subtree.tolist() == np.repeat([0, 1], len(leaves)).tolist()
    assert found.kept_node.tolist() == [*leaves.tolist(), *leaves.tolist()]
    # what nodes are fused by
    assert np.array_equal(found.log_prob, other.log_prob)
    assert found.log_prob.shape == (2, int(topology(plan).stochastic.sum()))
    assert not len(found.parent_row) and found.forwards == other.forwards


def test_chains_without_noise_begin_apart_and_have_no_random_step() -> None:
    for name in ("ode", "dpm"):
        plan = PLANS[name]
        assert not any(plan.stochastic) and set(plan.kernel) == {name} and plan.steps == 6
        first, second = grown(plan, True).kept
        assert not torch.allclose(first, second, atol=1e-2)


def test_nothing_is_kept_above_the_leaves() -> None:
    plan, model = PLANS["tree"], SmallAdapter()
    sampler = Sampler(model, seed=3, storage=torch.float32, max_batch=5)
    tree = (Subtree(TreeKey("run", 1, 7, 0), 0, 0),)
    found = sampler.grow(
        plan,
        subtrees=tree,
        x=sampler.roots(plan, tree),
        start=0,
        stop=1,
        conditioning=model.encode(records(["a"])),
        clean=True,
    )
    assert not len(found.kept) and found.frontier.shape == (2, 6) and found.log_prob.shape == (1, 2)
