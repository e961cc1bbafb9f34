"""Reward fusion and the depth-wise advantage, against numbers worked out by hand."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
from small_trees import header, paper_plan, plan_of

from branchgrpo.advantage.depthwise import DepthWise
from branchgrpo.advantage.fusion import fuse
from branchgrpo.tree import topology

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
    assert spread == pytest.approx((entropy(1 / 8, 3 / 8, 1 / 4, 1 / 4) + entropy(1 / 4, 3 / 4) + 1.0) / 3, rel=1e-6)


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
    assert credit.keep.tolist() == [False, *[True] * 6, *[False] * 4]  # the last step is deterministic


def test_trees_of_a_prompt_are_one_group_and_prompts_are_apart() -> None:
    trees = [header(PLAN, [0.0] * 4, 0, 0), header(PLAN, [100.0, 101.0, 102.0, 105.0], 1, 0), header(PLAN, [1.0] * 4, 0, 1)]
    low, other, high = DepthWise().credit(PLAN, trees)
    # depth 1: values 0 0 1 1, mean ½, variance 4 · ¼ / 3; depths 2 and 3: eight values, variance 8 · ¼ / 7
    first, rest = 0.5 / sqrt(1 / 3), 0.5 / sqrt(2 / 7)
    assert high.advantage == pytest.approx([0.0, first, first, *[rest] * 8], abs=1e-6)
    assert low.advantage == pytest.approx(-high.advantage, abs=1e-6)
    alone = DepthWise().credit(PLAN, [header(PLAN, [0.0, 1.0, 2.0, 5.0])])[0]
    assert other.advantage == pytest.approx(alone.advantage, abs=1e-4)


def test_advantages_of_every_depth_sum_to_zero() -> None:
    plan = paper_plan()
    draw = np.random.default_rng(0)
    trees = [header(plan, draw.normal(size=16).tolist(), prompt, tree) for prompt in range(2) for tree in range(3)]
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
    assert free.max() == pytest.approx((15 / 16) / 0.25, rel=1e-5)  # variance (15/256 + 225/256) / 15 = 1/16
    assert cut == pytest.approx(np.clip(free, -0.1, 0.1))


def test_std_of_the_tree_by_hand() -> None:
    trees = [header(PLAN, [0.0, 0.0, 2.0, 2.0], 0, 0), header(PLAN, [0.0, 4.0, 0.0, 4.0], 0, 1)]
    first, second = DepthWise(std="tree").credit(PLAN, trees)
    one, two = sqrt(4 / 3), sqrt(16 / 3)  # spreads of the leaves
    # depth 1: values 0 2 | 2 2, mean 3/2; depth 2: 0 0 2 2 | 0 4 0 4, mean 3/2
    assert first.advantage[:7] == pytest.approx([0, -1.5 / one, 0.5 / one, -1.5 / one, -1.5 / one, 0.5 / one, 0.5 / one], abs=1e-6)
    assert second.advantage[:7] == pytest.approx([0, 0.5 / two, 0.5 / two, -1.5 / two, 2.5 / two, -1.5 / two, 2.5 / two], abs=1e-6)


def test_std_of_the_tree_with_equal_leaves_does_not_explode() -> None:
    trees = [header(PLAN, [0.0] * 4, 0, 0), header(PLAN, [0.0, 0.0, 0.0, 1e-3], 0, 1)]
    equal = DepthWise(std="tree").credit(PLAN, trees)[0]
    assert np.abs(equal.advantage).max() < 1.0  # a tree without spread has no divisor of its own: it must not be clamped noise


def test_std_of_all_leaves_by_hand() -> None:
    trees = [header(PLAN, [0.0, 0.0, 2.0, 2.0], 0), header(PLAN, [0.0, 0.0, 4.0, 4.0], 1)]
    first, second = DepthWise(std="global").credit(PLAN, trees)
    # leaves: four 0, two 2, two 4: mean 3/2, squares 4 · 9/4 + 2 · 1/4 + 2 · 25/4 = 22
    spread = sqrt(22 / 7)
    assert first.advantage[1:3] == pytest.approx([-1 / spread, 1 / spread], abs=1e-6)
    assert second.advantage[1:3] == pytest.approx([-2 / spread, 2 / spread], abs=1e-6)
