"""Advantages that go up a tree by the likelihood of its edges (TreeGRPO), by hand and by loops."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
from support.presets import load, plan_at
from support.small_trees import header, plan_of

from branchgrpo.algo.advantage.fusion import back_up
from branchgrpo.algo.advantage.group import GroupRelative
from branchgrpo.algo.tree import topology
from branchgrpo.types import TreeHeader
from tests.reference.node_tree import build
from tests.reference.slow_credit import backed_up

# nodes: 0 | 1 2 | 3 4 5 6 | 7 8 9 10
PLAN = plan_of(2, 2, 1)


def test_by_hand() -> None:
    """The second child of node 1 three times as likely as the first, node 2 twice node 1."""
    log_prob = np.array([0, 0, log(2), 0, log(3), -7, -7, 0, 0, 0, 0], np.float32)
    found, spread = back_up(topology(PLAN), np.array([4.0, 8.0, 1.0, 3.0], np.float32), log_prob)
    one, two = (4 + 3 * 8) / 4, 2.0
    assert found == pytest.approx([(one + 2 * two) / 3, one, two, 4, 8, 1, 3, 4, 8, 1, 3], rel=1e-6)

    def entropy(p: float) -> float:
        return -(p * log(p) + (1 - p) * log(1 - p)) / log(2)

    assert spread == pytest.approx((entropy(1 / 3) + entropy(1 / 4) + 1) / 3, rel=1e-6)


def grown(prompts: int, trees: int, fanout: tuple[int, ...]) -> list[TreeHeader]:
    plan, draw = plan_of(*fanout), np.random.default_rng(4)
    topo = topology(plan)
    return [
        header(
            plan,
            draw.normal(size=topo.leaves).tolist(),
            prompt=prompt,
            tree=tree,
            log_prob=np.where(topo.stochastic[1:], draw.normal(size=topo.nodes - 1), 0).tolist(),
        )
        for prompt in range(prompts)
        for tree in range(trees)
    ]


@pytest.mark.parametrize("trees", [1, 2])
@pytest.mark.parametrize("fanout", [(2, 2, 1), (1, 3, 3, 3, 1, 1), (2, 1, 3, 1)])
def test_against_loops(fanout: tuple[int, ...], trees: int) -> None:
    plan, given, nodes = plan_of(*fanout), grown(2, trees, fanout), build(fanout)
    found = GroupRelative(weights="likelihood", clamp=100.0).credit(plan, given)
    leaves = [leaf.number for leaf in nodes[0].leaves()]
    for prompt in range(2):
        group = [tree for tree in given if tree.prompt_index == prompt]
        slow = backed_up(
            [(nodes, dict(zip(leaves, tree.leaf_reward.tolist(), strict=True))) for tree in group],
            [dict(enumerate(tree.log_prob.tolist())) for tree in group],
        )
        for wanted, credit in zip(slow, found[prompt * trees :][:trees], strict=True):
            assert credit.advantage == pytest.approx(list(wanted.values()), abs=1e-5)
            assert np.array_equal(credit.keep, topology(plan).stochastic)


def test_alike_likelihoods_are_the_mean() -> None:
    given = [header(PLAN, [1.0, 2.0, 3.0, 8.0], log_prob=[-3.0] * 6)]
    weighted, uniform = (
        GroupRelative(weights=weights).credit(PLAN, given)[0]
        for weights in ("likelihood", "uniform")
    )
    assert weighted.advantage == pytest.approx(uniform.advantage, abs=1e-6)
    assert weighted.weight_entropy == pytest.approx(1.0)
    assert np.array_equal(weighted.node_reward, uniform.node_reward)


def test_large_log_probs_do_not_overflow() -> None:
    given = header(PLAN, [0.0, 1.0, 0.0, 0.0], log_prob=[4e3, -4e3, -9e3, 9e3, 0.0, 0.0])
    found = GroupRelative(weights="likelihood").credit(PLAN, [given])[0]
    assert found.advantage[0] == found.advantage[1] == found.advantage[4] > 0
    assert found.weight_entropy == pytest.approx(1 / 3)


def test_chains_earn_what_their_leaf_does() -> None:
    plan = plan_of(1, 1, 1)
    trees = [header(plan, [value], 0, tree) for tree, value in enumerate((0.0, 1.0, 5.0))]
    found = GroupRelative(weights="likelihood").credit(plan, trees)
    spread = sqrt(7.0)
    assert [one.advantage[1] for one in found] == pytest.approx(
        [-2 / spread, -1 / spread, 3 / spread], rel=1e-6
    )


def test_the_preset_sums_each_rewards_advantages() -> None:
    """Several rewards: the weighted sum of what each gives by itself."""
    rewards = "[{name: jpeg, weight: 2.0}, {name: jpeg, weight: -0.5, label: other}]"
    loaded = load("treegrpo", {"rewards": rewards, "combine": "advantage"})
    plan, draw = plan_at(loaded), np.random.default_rng(5)
    topo = topology(plan)
    log_prob = np.where(topo.stochastic[1:], draw.normal(size=topo.nodes - 1), 0).tolist()
    scores = {(0, 0): (draw.normal(size=(2, 27)) * [[1.0], [1e3]]).astype(np.float32)}
    leaves = loaded.credit.leaf_rewards(scores)[0, 0]
    tree = header(plan, leaves.tolist(), log_prob=log_prob)
    (found,) = loaded.credit.assign(plan, [tree], 0, scores)
    first, second = (
        loaded.advantage.credit(plan, [header(plan, one.tolist(), log_prob=log_prob)])[0].advantage
        for one in scores[0, 0]
    )
    assert found.advantage == pytest.approx(2 * first - 0.5 * second, abs=1e-5)
    assert found.keep.sum() == 39 and np.abs(found.advantage[found.keep]).min() > 0
