"""Sibling-centred credit: by hand, against a reference of loops, and as an unbiased gradient on a
tree small enough to try every outcome."""

from __future__ import annotations

import itertools
from math import sqrt

import numpy as np
import pytest
from support.small_trees import header, plan_of

from branchgrpo.algo.advantage.sibling import SiblingCentred, differences
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.types import BranchPlan, TreeHeader
from tests.reference.node_tree import Node, build, build_comb
from tests.reference.slow_credit import sibling_advantages

# nodes: 0 | 1 2 | 3 4 5 6 | 7 8 9 10
PLAN = plan_of(2, 2, 1)


def nodes_of(plan: BranchPlan) -> list[Node]:
    if plan.comb:
        return build_comb(plan.fanout, plan.stochastic)
    nodes = build(plan.fanout)
    for node in nodes[1:]:
        node.random = plan.stochastic[node.step]
    return nodes


def grown(plan: BranchPlan, prompts: int, trees: int) -> list[TreeHeader]:
    draw = np.random.default_rng(3)
    return [
        header(plan, draw.normal(tree, 1 + prompt, topology(plan).leaves).tolist(), prompt, tree)
        for prompt, tree in itertools.product(range(prompts), range(trees))
    ]


def test_by_hand() -> None:
    found = SiblingCentred().credit(PLAN, [header(PLAN, [1.0, 2.0, 3.0, 8.0])])[0]
    # depth 1: 1.5 and 5.5 about 3.5, one pair: ±2 / √(8 / 1); depth 2: ∓0.5 and ∓2.5 over
    # √((2 · 0.25 + 2 · 6.25) / 2)
    low, high = 0.5 / sqrt(6.5), 2.5 / sqrt(6.5)
    assert found.advantage == pytest.approx(
        [0, -sqrt(0.5), sqrt(0.5), -low, low, -high, high, 0, 0, 0, 0], abs=1e-6
    )
    assert found.node_reward.tolist() == [3.5, 1.5, 5.5, 1, 2, 3, 8, 1, 2, 3, 8]
    assert found.keep.tolist() == [False, *[True] * 6, *[False] * 4]


COMB = TempFlowMethod(children=3, seeds=2).plan(0, static(4, 3.0))


@pytest.mark.parametrize("trees", [1, 3])
@pytest.mark.parametrize(
    "plan",
    [PLAN, plan_of(1, 3, 1, 2, 1), plan_of(3, 2, 1, 1), COMB],
    ids=["binary", "three", "wide", "comb"],
)
def test_against_loops(plan: BranchPlan, trees: int) -> None:
    given, nodes = grown(plan, 2, trees), nodes_of(plan)
    found = SiblingCentred(clamp=100.0).credit(plan, given)
    for prompt in range(2):
        group = [tree for tree in given if tree.prompt_index == prompt]
        leaves = [leaf.number for leaf in nodes[0].leaves()]
        slow = sibling_advantages(
            [(nodes, dict(zip(leaves, tree.leaf_reward.tolist(), strict=True))) for tree in group]
        )
        for wanted, one in zip(slow, found[prompt * trees :][:trees], strict=True):
            expected = [wanted.get(node.number, 0.0) for node in nodes]
            assert one.advantage == pytest.approx(expected, abs=1e-5)
            assert np.array_equal(one.keep, topology(plan).stochastic) and any(expected)


def test_an_edge_does_not_carry_its_ancestors_luck() -> None:
    """The first split decides all but 0.01: below it, pairs are told apart all the same."""
    found = SiblingCentred().credit(PLAN, [header(PLAN, [0.0, 0.01, 5.0, 5.01])])[0]
    assert found.advantage[3:7] == pytest.approx([-sqrt(0.5), sqrt(0.5)] * 2, rel=1e-3)


def test_edges_without_siblings_earn_nothing() -> None:
    plan = plan_of(1, 2, 1, 1)
    found = SiblingCentred().credit(plan, [header(plan, [0.0, 3.0])])[0]
    assert found.advantage == pytest.approx([0, 0, -sqrt(0.5), sqrt(0.5), 0, 0, 0, 0], abs=1e-6)
    chains = plan_of(1, 1, 1)
    alone = SiblingCentred().credit(chains, [header(chains, [one], 0, one) for one in (0, 1)])
    assert not any(one.advantage.any() for one in alone)


def test_other_divisors_by_hand() -> None:
    trees = [header(PLAN, [0.0, 0.0, 2.0, 2.0], 0, 0), header(PLAN, [0.0, 4.0, 0.0, 4.0], 1, 0)]
    first, second = SiblingCentred(std="tree").credit(PLAN, trees)
    one, two = sqrt(4 / 3), sqrt(16 / 3)  # spreads of the leaves
    assert first.advantage[:7] == pytest.approx([0, -1 / one, 1 / one, 0, 0, 0, 0], abs=1e-6)
    assert second.advantage[:7] == pytest.approx(
        [0, 0, 0, -2 / two, 2 / two, -2 / two, 2 / two], abs=1e-6
    )
    # eight leaves, mean 3/2: 4 · 9/4 + 2 · 1/4 + 2 · 25/4 = 22
    every = SiblingCentred(std="global").credit(PLAN, trees)
    assert every[0].advantage[2] == pytest.approx(1 / sqrt(22 / 7), rel=1e-6)
    assert every[1].advantage[4] == pytest.approx(2 / sqrt(22 / 7), rel=1e-6)


@pytest.mark.parametrize("std", ["depth", "tree", "global"])
def test_equal_leaves_and_the_clamp(std: str) -> None:
    flat = SiblingCentred(std=std).credit(PLAN, [header(PLAN, [0.5, 0.5 + 2e-7, 0.5, 0.5])])[0]
    assert not flat.advantage.any()
    found = SiblingCentred(std=std, clamp=0.1).credit(PLAN, [header(PLAN, [0.0, 1.0, 2.0, 9.0])])[0]
    assert np.abs(found.advantage[:7]).max() == np.float32(0.1)


def test_the_divisor_estimates_the_spread_of_a_child_given_its_parent() -> None:
    """Three children of variance 4 at the first split, two of variance 1 below: a child's mean
    reward has variance 4 + 1/2 given the root, a leaf's 1 given its parent."""
    plan, draw = plan_of(3, 2, 1), np.random.default_rng(0)
    rewards = (2 * draw.normal(size=(4000, 3))).repeat(2, 1) + draw.normal(size=(4000, 6))
    trees = [header(plan, one.tolist(), 0, tree) for tree, one in enumerate(rewards)]
    credits = SiblingCentred(clamp=100.0).credit(plan, trees)
    apart = differences(topology(plan), np.stack([one.node_reward for one in credits]))
    advantage = np.stack([one.advantage for one in credits])
    for node, variance in ((1, 4.5), (4, 1.0)):
        ratio = apart[:, node] / advantage[:, node]
        assert np.ptp(ratio) < 1e-3  # one divisor for the depth, not one for each pair
        assert ratio.mean() == pytest.approx(sqrt(variance), rel=0.03)


def test_the_expected_gradient_is_that_of_the_reward() -> None:
    """Every outcome of a tree of coins: two children of each node, heads with a probability that
    depends on the parent's own coin. The sum of (difference · ∇ log π) over the edges of a depth
    has, but for the node's own part in the mean, a factor (k − 1)/k, the gradient of the expected
    reward. So has the whole depth's mean (of n nodes, (n − 1)/n), with a larger variance."""
    first, second = 0.3, (0.6, 0.2)  # P(1) of the first coin; of the second, after 0 and 1
    reward = np.array([[0.0, 1.0], [5.0, 3.0]])
    topo = topology(PLAN)
    mean, moment, square = np.zeros(3), np.zeros((2, 3)), np.zeros(2)
    for coins in itertools.product((0, 1), repeat=6):  # of nodes 1 … 6
        chance, score = 1.0, np.zeros((7, 3))  # ∇ log π by the logits of the three coins
        for node, coin in enumerate(coins, 1):
            above = coins[topo.parent[node] - 1] if node > 2 else 0
            heads, which = (second[above], 1 + above) if node > 2 else (first, 0)
            chance *= heads if coin else 1 - heads
            score[node, which] = coin - heads
        leaves = [reward[coins[topo.parent[node] - 1], coins[node - 1]] for node in range(3, 7)]
        found = SiblingCentred().credit(PLAN, [header(PLAN, leaves)])[0].node_reward[None]
        apart = differences(topo, found)[0, :7]
        mean += chance * (apart[1:3] @ score[1:3] / 2 + apart[3:7] @ score[3:7] / 4)
        depth = found[0, 3:7] - found[0, 3:7].mean()
        for index, one in enumerate((apart[3:7] * 2, depth * 4 / 3)):
            sampled = one @ score[3:7] / 4
            moment[index] += chance * sampled
            square[index] += chance * float((sampled**2).sum())
    after = np.array([(1 - p) * r[0] + p * r[1] for p, r in zip(second, reward, strict=True)])
    slope = [first * (1 - first), *(p * (1 - p) for p in second)]
    true = np.array(
        [
            slope[0] * (after[1] - after[0]),
            (1 - first) * slope[1] * (reward[0, 1] - reward[0, 0]),
            first * slope[2] * (reward[1, 1] - reward[1, 0]),
        ]
    )
    assert mean == pytest.approx(true / 2, rel=1e-5)
    assert moment[:, 1:] == pytest.approx(np.stack([true[1:]] * 2), rel=1e-5)
    assert square[0] < 0.8 * square[1]
