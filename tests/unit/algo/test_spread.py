"""How rewards spread in a tree: against pairs counted one by one, and closed forms of trees with
known components of variance."""

from __future__ import annotations

import itertools
from math import sqrt

import numpy as np
import pytest
from support.small_trees import plan_of

from branchgrpo.algo.methods.chains import ChainMethod
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.spread import effective_samples, sibling_spreads
from branchgrpo.algo.tree import topology
from branchgrpo.types import F32, BranchPlan
from tests.reference.node_tree import Node, build, build_comb

Leaves = dict[tuple[int, int], F32]


def gaussian(
    fanout: tuple[int, ...], stds: list[float], prompts: int, trees: int = 1, root: float = 0.0
) -> Leaves:
    """Leaf rewards that are sums of a normal number for each edge of the tree, of the step's std,
    and one of the tree's, of std `root`; prompts differ by much more."""
    draw, found = np.random.default_rng(0), {}
    for prompt, tree in itertools.product(range(prompts), range(trees)):
        values = 50.0 * np.sin(prompt) + root * draw.normal(size=1)
        for children, std in zip(fanout, stds, strict=True):
            values = values.repeat(children)
            values = values + std * draw.normal(size=len(values))
        found[prompt, tree] = values.astype(np.float32)
    return found


def ancestors(leaf: Node) -> list[int]:
    found, node = [], leaf
    while node.parent is not None:
        node = node.parent
        found.append(node.number)
    return found[::-1]


def slow(plan: BranchPlan, leaves: Leaves, nodes: list[Node]) -> float:
    """The formula of METHODS by a loop over all pairs: chains of one root part below it, trees of
    roots of their own above all else."""
    chains = plan.chains if plan.shared_root else 1
    pairs: dict[tuple[int, int], list[float]] = {}
    each: dict[int, list[tuple[list[object], float]]] = {}
    for (prompt, tree), rewards in leaves.items():
        for leaf, reward in zip(nodes[0].leaves(), rewards.tolist(), strict=True):
            path = [("root", tree // chains), ("tree", tree), *ancestors(leaf)[1:], leaf.number]
            each.setdefault(prompt, []).append((path, reward))
    for members in each.values():
        for (one, first), (other, second) in itertools.combinations(members, 2):
            depth = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
            pairs.setdefault((depth, 0), []).append((first - second) ** 2 / 2)
    count = len(next(iter(each.values())))
    ordered = [pairs[key] for key in sorted(pairs)]
    variance = sum(ordered[0]) / len(ordered[0])
    total = 1.0
    for found in ordered:
        correlation = 1 - sum(found) / len(found) / variance
        total += len(found) / len(each) * 2 / count * correlation
    return min(max(count / total, 1.0), count)


@pytest.mark.parametrize("fanout", [(2, 1, 2, 1), (3, 2, 1, 2, 1), (1, 2, 1), (4, 1)])
@pytest.mark.parametrize("trees", [1, 3])
def test_effective_samples_by_all_pairs(fanout: tuple[int, ...], trees: int) -> None:
    plan = plan_of(*fanout)
    # each tree from a root of its own
    leaves = gaussian(fanout, [0.5 + step for step in range(len(fanout))], 4, trees, root=1.5)
    found = effective_samples(plan, leaves)
    assert found == pytest.approx(slow(plan, leaves, build(fanout)), rel=1e-5)
    assert 1 <= found <= trees * np.prod(fanout)


@pytest.mark.parametrize("seeds", [1, 3])
def test_effective_samples_of_combs_by_all_pairs(seeds: int) -> None:
    plan = TempFlowMethod(children=3, seeds=seeds).plan(0, static(4, 3.0))
    draw, size = np.random.default_rng(1), topology(plan).leaves
    leaves = {
        (prompt, tree): (tree + draw.normal(size=size)).astype(np.float32)
        for prompt, tree in itertools.product(range(3), range(seeds))
    }
    nodes = build_comb(plan.fanout, plan.stochastic)
    assert effective_samples(plan, leaves) == pytest.approx(slow(plan, leaves, nodes), rel=1e-5)


def test_chains_of_two_roots_part_there_first() -> None:
    """Two groups of three chains, each from one noise, whose rewards it decides in part."""
    plan = ChainMethod(chains=3).plan(0, static(3, 3.0))
    draw = np.random.default_rng(2)
    roots = draw.normal(size=(200, 2))
    leaves = {
        (prompt, tree): (roots[prompt, tree // 3] + draw.normal(size=1)).astype(np.float32)
        for prompt, tree in itertools.product(range(200), range(6))
    }
    found = effective_samples(plan, leaves)
    assert found == pytest.approx(slow(plan, leaves, build(plan.fanout)), rel=1e-5)
    # half of a leaf's variance is its root's: 6 / (1 + 2 · ½)
    assert found == pytest.approx(3.0, rel=0.1)


def test_effective_samples_of_known_components() -> None:
    """Components 4, 1, 3 of the three splits into 2, 3, 2: pairs that part at the second share 4 of
    8, at the third 5 of 8."""
    fanout, parts = (2, 3, 2, 1), (4.0, 1.0, 3.0)
    leaves = gaussian(fanout, [*map(sqrt, parts), 0.0], prompts=6000)
    # of 12 leaves: 2 · C(3, 2) · 4 = 24 pairs part at the second split, 6 at the third
    expected = 12 / (1 + 24 * 2 / 12 * 4 / 8 + 6 * 2 / 12 * 5 / 8)
    assert effective_samples(plan_of(*fanout), leaves) == pytest.approx(expected, rel=0.03)


def test_with_several_trees_the_roots_part_counts() -> None:
    """Components 2 of the root and 2 of a split into 4, two trees: leaves of a tree share half."""
    leaves = gaussian((4, 1), [sqrt(2.0), 0.0], prompts=6000, trees=2, root=sqrt(2.0))
    expected = 8 / (1 + 12 * 2 / 8 / 2)
    assert effective_samples(plan_of(4, 1), leaves) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("method", [ChainMethod(chains=5), ChainMethod(chains=5, root="private")])
def test_chains_are_independent(method: ChainMethod) -> None:
    plan = method.plan(0, static(4, 3.0))
    leaves = gaussian(plan.fanout, [1.0] * 4, prompts=3, trees=5)
    assert effective_samples(plan, leaves) == pytest.approx(5.0)


def test_a_split_at_the_root_alone_makes_independent_leaves() -> None:
    assert effective_samples(plan_of(6, 1, 1), gaussian((6, 1, 1), [1.0, 1.0, 1.0], 2)) == 6.0


def test_equal_leaves_are_one_sample() -> None:
    plan = plan_of(2, 2, 1)
    assert effective_samples(plan, gaussian((2, 2, 1), [0.0, 0.0, 0.0], prompts=3)) == 1.0
    # two trees of equal leaves: two
    apart = gaussian((2, 2, 1), [0.0, 0.0, 0.0], prompts=3, trees=2, root=1.0)
    assert effective_samples(plan, apart) == pytest.approx(2.0)
    assert effective_samples(plan_of(1, 1), {(0, 0): np.ones(1, np.float32)}) == 1.0


def test_leaves_that_differ_only_at_the_last_split_are_no_more_than_there_are() -> None:
    """Opposite siblings: their mean is known better than from independent leaves."""
    leaves = {(0, 0): np.array([-1, 1, -1, 1], np.float32)}
    assert effective_samples(plan_of(2, 2, 1), leaves) == 4.0


def test_sibling_spreads_by_loops() -> None:
    fanout = (3, 1, 2, 2, 1)
    plan, leaves = plan_of(*fanout), gaussian(fanout, [2.0, 0.5, 0.3, 1.0, 0.0], 3, 2)
    found: dict[int, list[float]] = {}
    for rewards in leaves.values():
        nodes = build(fanout)
        of = dict(zip((leaf.number for leaf in nodes[0].leaves()), rewards.tolist(), strict=True))
        for node in nodes:
            if len(node.children) < 2:
                continue
            means = [np.mean([of[leaf.number] for leaf in one.leaves()]) for one in node.children]
            middle = sum(means) / len(means)
            square = sum((mean - middle) ** 2 for mean in means) / (len(means) - 1)
            found.setdefault(node.level, []).append(sqrt(square))
    assert sibling_spreads(plan, leaves) == pytest.approx(
        [sum(found[step]) / len(found[step]) for step in (0, 2, 3)], rel=1e-5
    )


def test_on_a_comb_siblings_are_the_random_children_of_a_step() -> None:
    plan = TempFlowMethod(children=2, seeds=1).plan(0, static(3, 3.0))
    topo = topology(plan)
    rewards = np.zeros(topo.leaves, np.float32)
    for step, gap in ((0, 3.0), (1, 8.0)):
        first, second = np.flatnonzero(topo.stochastic & (topo.step == step))
        rewards[topo.leaf_first[[first, second]]] = 5.0, 5.0 + gap
    assert sibling_spreads(plan, {(0, 0): rewards}) == pytest.approx([3 / sqrt(2), 8 / sqrt(2)])


def test_chains_have_no_siblings() -> None:
    assert sibling_spreads(plan_of(1, 1, 1), gaussian((1, 1, 1), [1.0, 1.0, 1.0], 2, 3)) == []
