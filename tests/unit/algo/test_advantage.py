"""Reward fusion and the advantage estimators, against numbers worked out by hand and by loops."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
from support.small_trees import header, paper_plan, plan_of

from branchgrpo.algo.advantage.depthwise import DepthWise
from branchgrpo.algo.advantage.fusion import fuse
from branchgrpo.algo.advantage.group import GroupRelative
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from tests.reference.node_tree import build

# nodes: 0 | 1 2 | 3 4 5 6 | 7 8 9 10
PLAN = plan_of(2, 2, 1)
REWARDS = [8.0, 16.0, 0.0, 4.0]


def entropy(*weights: float) -> float:
    return -sum(w * log(w) for w in weights) / log(len(weights))


def test_uniform_fusion_is_the_mean_of_the_leaves() -> None:
    tree = header(PLAN, REWARDS, log_prob=[5.0, -3.0, 1.0, 2.0, 3.0, 4.0])
    reward, spread = fuse(topology(PLAN), tree.leaf_reward, tree.log_prob, 0.0)
    assert reward.tolist() == [7.0, 12.0, 2.0, 8.0, 16.0, 0.0, 4.0, 8.0, 16.0, 0.0, 4.0]
    assert spread == pytest.approx(1.0)


def test_path_probability_fusion_by_hand() -> None:
    # path probabilities of the leaves from the root: 1 · 1, 1 · 3, 2 · 1, 2 · 1
    tree = header(PLAN, REWARDS, log_prob=[0.0, log(2), 0.0, log(3), 0.0, 0.0])
    reward, spread = fuse(topology(PLAN), tree.leaf_reward, tree.log_prob, 1.0)
    root = (1 * 8 + 3 * 16 + 2 * 0 + 2 * 4) / 8
    assert reward == pytest.approx([root, 14.0, 2.0, 8, 16, 0, 4, 8, 16, 0, 4], rel=1e-6)
    assert spread == pytest.approx(
        (entropy(1 / 8, 3 / 8, 1 / 4, 1 / 4) + entropy(1 / 4, 3 / 4) + 1.0) / 3, rel=1e-6
    )


def test_path_beta_is_an_exponent_of_the_path_probability() -> None:
    tree = header(PLAN, REWARDS, log_prob=[0.0, log(16), 0.0, log(9), 0.0, 0.0])
    reward, _ = fuse(topology(PLAN), tree.leaf_reward, tree.log_prob, 0.5)
    assert reward[0] == pytest.approx((1 * 8 + 3 * 16 + 4 * 0 + 4 * 4) / 12, rel=1e-6)
    assert reward[1] == pytest.approx((1 * 8 + 3 * 16) / 4, rel=1e-6)


def test_fusion_survives_large_log_probs() -> None:
    tree = header(PLAN, REWARDS, log_prob=[-4000.0, 4000.0, 0.0, 0.0, 900.0, 0.0])
    reward, spread = fuse(topology(PLAN), tree.leaf_reward, tree.log_prob, 1.0)
    assert reward[:3] == pytest.approx([0.0, 12.0, 0.0])
    assert spread == pytest.approx(1 / 3)  # only node 1 is undecided


def test_depthwise_closed_form() -> None:
    credit = DepthWise().credit(PLAN, [header(PLAN, [1.0, 2.0, 3.0, 6.0])])[0]
    spread = sqrt(14 / 3)
    row = [-2 / spread, -1 / spread, 0.0, 3 / spread]
    assert credit.advantage == pytest.approx([0.0, -sqrt(0.5), sqrt(0.5), *row, *row], abs=1e-6)
    # the last step is deterministic
    assert credit.keep.tolist() == [False, *[True] * 6, *[False] * 4]


def test_trees_of_a_prompt_are_one_group_and_prompts_are_apart() -> None:
    trees = [
        header(PLAN, [0.0] * 4, 0, 0),
        header(PLAN, [100.0, 101.0, 102.0, 105.0], 1, 0),
        header(PLAN, [1.0] * 4, 0, 1),
    ]
    low, other, high = DepthWise().credit(PLAN, trees)
    # depth 1: values 0 0 1 1, mean ½, variance 4 · ¼ / 3; depths 2 and 3: eight values, variance 8
    # · ¼ / 7
    first, rest = 0.5 / sqrt(1 / 3), 0.5 / sqrt(2 / 7)
    assert high.advantage == pytest.approx([0.0, first, first, *[rest] * 8], abs=1e-6)
    assert low.advantage == pytest.approx(-high.advantage, abs=1e-6)
    alone = DepthWise().credit(PLAN, [header(PLAN, [0.0, 1.0, 2.0, 5.0])])[0]
    assert other.advantage == pytest.approx(alone.advantage, abs=1e-4)


def test_advantages_of_every_depth_sum_to_zero() -> None:
    plan = paper_plan()
    draw = np.random.default_rng(0)
    trees = [
        header(plan, draw.normal(size=16).tolist(), prompt, tree)
        for prompt in range(2)
        for tree in range(3)
    ]
    credits = DepthWise().credit(plan, trees)
    for prompt in range(2):
        group = np.stack([credit.advantage for credit in credits[3 * prompt : 3 * prompt + 3]])
        for level in range(1, plan.steps + 1):
            values = group[:, topology(plan).level(level)]
            assert values.sum() == pytest.approx(0.0, abs=1e-4)
            assert values.std(ddof=1) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("gap", [1e-3, 1.0, 1e4])
def test_two_nodes_always_differ_by_the_same(gap: float) -> None:
    plan = plan_of(2, 1, 1)
    advantage = DepthWise().credit(plan, [header(plan, [1.0, 1.0 + gap])])[0].advantage
    assert advantage[1:] == pytest.approx([-0.70710678, 0.70710678] * 3, abs=1e-4)


def test_a_depth_with_one_node_has_no_advantage() -> None:
    plan = plan_of(1, 1, 2, 1)
    advantage = DepthWise().credit(plan, [header(plan, [0.0, 1.0])])[0].advantage
    assert advantage[:3].tolist() == [0.0, 0.0, 0.0]
    assert np.all(advantage[3:] != 0)


@pytest.mark.parametrize("std", ["depth", "tree", "global"])
def test_equal_rewards_have_no_advantage(std: str) -> None:
    tiny = header(PLAN, [0.5, 0.5 + 4e-7, 0.5, 0.5 + 2e-7])
    spread = header(PLAN, [0.0, 1.0, 0.0, 1.0], 1)
    credit, other = DepthWise(std=std).credit(PLAN, [tiny, spread])
    assert not credit.advantage.any()
    assert other.advantage.any()


def test_clamp() -> None:
    rewards = [0.0] * 15 + [1.0]
    plan = paper_plan()
    free = DepthWise(clamp=100.0).credit(plan, [header(plan, rewards)])[0].advantage
    cut = DepthWise(clamp=0.1).credit(plan, [header(plan, rewards)])[0].advantage
    # variance (15/256 + 225/256) / 15 = 1/16
    assert free.max() == pytest.approx((15 / 16) / 0.25, rel=1e-5)
    assert cut == pytest.approx(np.clip(free, -0.1, 0.1))


def test_std_of_the_tree_by_hand() -> None:
    trees = [header(PLAN, [0.0, 0.0, 2.0, 2.0], 0, 0), header(PLAN, [0.0, 4.0, 0.0, 4.0], 0, 1)]
    first, second = DepthWise(std="tree").credit(PLAN, trees)
    one, two = sqrt(4 / 3), sqrt(16 / 3)  # spreads of the leaves
    # depth 1: values 0 2 | 2 2, mean 3/2; depth 2: 0 0 2 2 | 0 4 0 4, mean 3/2
    assert first.advantage[:7] == pytest.approx(
        [0, -1.5 / one, 0.5 / one, -1.5 / one, -1.5 / one, 0.5 / one, 0.5 / one], abs=1e-6
    )
    assert second.advantage[:7] == pytest.approx(
        [0, 0.5 / two, 0.5 / two, -1.5 / two, 2.5 / two, -1.5 / two, 2.5 / two], abs=1e-6
    )


def test_std_of_the_tree_with_equal_leaves_does_not_explode() -> None:
    trees = [header(PLAN, [0.0] * 4, 0, 0), header(PLAN, [0.0, 0.0, 0.0, 1e-3], 0, 1)]
    equal = DepthWise(std="tree").credit(PLAN, trees)[0]
    # a tree without spread has no divisor of its own: it must not be clamped noise
    assert np.abs(equal.advantage).max() < 1.0


def test_std_of_all_leaves_by_hand() -> None:
    trees = [header(PLAN, [0.0, 0.0, 2.0, 2.0], 0), header(PLAN, [0.0, 0.0, 4.0, 4.0], 1)]
    first, second = DepthWise(std="global").credit(PLAN, trees)
    # leaves: four 0, two 2, two 4: mean 3/2, squares 4 · 9/4 + 2 · 1/4 + 2 · 25/4 = 22
    spread = sqrt(22 / 7)
    assert first.advantage[1:3] == pytest.approx([-1 / spread, 1 / spread], abs=1e-6)
    assert second.advantage[1:3] == pytest.approx([-2 / spread, 2 / spread], abs=1e-6)


def population(rewards: list[float], unbiased: bool) -> tuple[float, float]:
    """(mean, std) by loops."""
    mean = sum(rewards) / len(rewards)
    return mean, sqrt(sum((one - mean) ** 2 for one in rewards) / (len(rewards) - unbiased))


@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize(("unbiased", "epsilon"), [(True, 1e-8), (False, 1e-4)])
def test_group_relative_on_chains(std: str, unbiased: bool, epsilon: float) -> None:
    plan, draw = plan_of(1, 1, 1), np.random.default_rng(2)
    rewards = {
        (prompt, tree): float(draw.normal(3 * prompt, 1 + prompt))
        for prompt in range(3)
        for tree in range(4)
    }
    trees = [header(plan, [value], *name) for name, value in rewards.items()]
    credits = GroupRelative(std=std, unbiased=unbiased, epsilon=epsilon, clamp=1.2).credit(
        plan, trees
    )
    for (prompt, _), value, credit in zip(rewards, rewards.values(), credits, strict=True):
        group = [other for (row, _), other in rewards.items() if row == prompt]
        mean, _ = population(group, unbiased)
        _, spread = population(group if std == "group" else list(rewards.values()), unbiased)
        wanted = min(1.2, max(-1.2, (value - mean) / (spread + epsilon)))
        assert credit.advantage == pytest.approx([wanted] * 4, abs=1e-5)
        assert credit.node_reward == pytest.approx([value] * 4)
        assert credit.keep.tolist() == [False, True, True, False]
    assert any(abs(credit.advantage[1]) == np.float32(1.2) for credit in credits) or std == "global"


def test_epsilon_is_added_to_the_spread() -> None:
    plan = plan_of(2, 1)
    credit = GroupRelative(unbiased=False, epsilon=1e-4).credit(plan, [header(plan, [0.0, 2e-4])])[
        0
    ]
    assert credit.advantage[1:3] == pytest.approx([-0.5, 0.5], rel=1e-5)  # 1e-4 / (1e-4 + 1e-4)


@pytest.mark.parametrize("std", ["group", "global"])
def test_a_group_without_spread_has_no_advantage(std: str) -> None:
    plan = plan_of(1, 1)
    trees = [
        header(plan, [value], prompt, tree)
        for prompt, values in enumerate([(0.5, 0.5 + 4e-7), (0.0, 1.0)])
        for tree, value in enumerate(values)
    ]
    credits = GroupRelative(std=std).credit(plan, trees)
    assert not credits[0].advantage.any() and not credits[1].advantage.any()
    assert credits[2].advantage[1] < 0 < credits[3].advantage[1]
    assert not GroupRelative(std=std).credit(plan, trees[2:3])[0].advantage.any()  # a group of one


def test_an_edge_earns_the_mean_of_the_leaves_below_it() -> None:
    fanout, draw = (2, 1, 3, 1), np.random.default_rng(7)
    plan = plan_of(*fanout)
    rewards = [draw.normal(size=6).tolist() for _ in range(2)]
    credits = GroupRelative(clamp=1.1).credit(
        plan,
        [
            header(plan, rewards=one, prompt=0, tree=tree, log_prob=draw.normal(size=12).tolist())
            for tree, one in enumerate(rewards)
        ],
    )
    mean, spread = population(rewards[0] + rewards[1], True)
    for one, credit in zip(rewards, credits, strict=True):
        nodes = build(fanout)
        leaves = [node.number for node in nodes[0].leaves()]
        # clamped leaf by leaf
        earned = {
            leaf: min(1.1, max(-1.1, (reward - mean) / spread))
            for leaf, reward in zip(leaves, one, strict=True)
        }
        for node in nodes:
            below = [earned[leaf.number] for leaf in node.leaves()]
            assert credit.advantage[node.number] == pytest.approx(sum(below) / len(below), abs=1e-5)


def test_depthwise_of_each_tree_alone() -> None:
    draw = np.random.default_rng(5)
    trees = [header(PLAN, draw.normal(10.0 * tree, size=4).tolist(), 0, tree) for tree in range(3)]
    together = DepthWise(group="tree").credit(PLAN, trees)
    for tree, credit in zip(trees, together, strict=True):
        assert np.array_equal(credit.advantage, DepthWise().credit(PLAN, [tree])[0].advantage)
    mean, spread = population(trees[1].leaf_reward.tolist(), True)
    assert together[1].advantage[3:7] == pytest.approx(
        (trees[1].leaf_reward - mean) / spread, abs=1e-5
    )
    assert not np.allclose(
        together[1].advantage, DepthWise().credit(PLAN, trees)[1].advantage, atol=0.1
    )


@pytest.mark.parametrize("group", ["prompt", "tree"])
def test_on_a_comb_only_the_random_children_of_a_step_are_compared(group: str) -> None:
    """TempFlow: the leaf of child k of step i has reward leaves[seed][i][k]; nothing else may enter
    its advantage."""
    steps = 4
    children = 3
    seeds = 2
    plan = TempFlowMethod(children=children, seeds=seeds).plan(0, static(steps, 3.0))
    topo = topology(plan)
    leaves = np.random.default_rng(6).normal(size=(seeds, steps - 1, children))
    trees, edge_of = [], {}
    for seed in range(seeds):
        rewards = np.full(topo.leaves, np.nan)
        for step in range(steps - 1):
            edges = [
                node
                for node in range(topo.nodes)
                if topo.step[node] == step and topo.stochastic[node]
            ]
            assert len(edges) == children
            for child, edge in enumerate(edges):
                edge_of[step, child] = edge
                rewards[topo.leaf_first[edge]] = leaves[seed, step, child]
                assert topo.leaf_count[edge] == 1
        assert np.isfinite(rewards).all()  # there are no other leaves
        trees.append(header(plan, rewards.tolist(), 0, seed))
    credits = DepthWise(group=group).credit(plan, trees)
    for seed, credit in enumerate(credits):
        assert np.flatnonzero(credit.keep).tolist() == sorted(edge_of.values())
        for (step, child), edge in edge_of.items():
            mean, spread = population(
                leaves[:, step].ravel().tolist()
                if group == "prompt"
                else leaves[seed, step].tolist(),
                True,
            )
            assert credit.advantage[edge] == pytest.approx(
                (leaves[seed, step, child] - mean) / spread, abs=1e-5
            )


@pytest.mark.parametrize("std", ["depth", "tree", "global"])
def test_depthwise_on_chains_is_finite(std: str) -> None:
    plan = plan_of(1, 1, 1)
    credits = DepthWise(std=std).credit(
        plan, [header(plan, [value], 0, tree) for tree, value in enumerate([0.0, 1.0, 3.0])]
    )
    assert all(np.isfinite(credit.advantage).all() for credit in credits)
