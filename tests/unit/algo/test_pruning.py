"""Pruning rules: which edges stay in the gradient, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from support.small_trees import header, paper_plan, plan_of, quickstart

from branchgrpo.algo.methods.chains import ChainMethod
from branchgrpo.algo.methods.window import Window
from branchgrpo.algo.pruning.depth import DepthPruning
from branchgrpo.algo.pruning.steps import StepPruning
from branchgrpo.algo.pruning.width import WidthPruning
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.config.schema import Config
from branchgrpo.types import BranchPlan, TreeHeader

# nodes: 0 | 1 2 | 3 4 5 6 | 7 8 9 10 | 11 12 13 14; leaves 11 … 14
SMALL = plan_of(2, 2, 1, 1)
PAPER = paper_plan()
ALWAYS = list(range(7))  # up to and with the last split


def kept(rule: WidthPruning | DepthPruning, *rewards: list[float]) -> list[list[int]]:
    trees = [header(SMALL, one, 0, tree) for tree, one in enumerate(rewards)]
    return [np.flatnonzero(mask).tolist() for mask in rule.keep(SMALL, trees, 0)]


def paper_tree() -> object:
    return header(PAPER, np.random.default_rng(1).normal(size=16).tolist())


def pruned(*rules: dict[str, object]) -> Config:
    base = quickstart({"method.splits": "[0, 3, 6, 9]", "method.stochastic": "all"})
    return Config.model_validate(base.model_dump() | {"pruning": list(rules)})


def test_parent_top1_keeps_the_better_child_of_each_last_split() -> None:
    assert kept(WidthPruning(), [1.0, 2.0, 5.0, 4.0]) == [[*ALWAYS, 8, 9, 12, 13]]


def test_parent_top1_ties_keep_the_lower_leaf() -> None:
    assert kept(WidthPruning(), [1.0, 1.0, 0.0, 0.0]) == [[*ALWAYS, 7, 9, 11, 13]]


def test_extremes_keep_the_best_and_the_worst() -> None:
    assert kept(WidthPruning(mode="extremes"), [1.0, 2.0, 5.0, 4.0]) == [[*ALWAYS, 7, 9, 11, 13]]


def test_extremes_rank_all_trees_of_the_prompt() -> None:
    rule = WidthPruning(mode="extremes")
    assert kept(rule, [10.0, 11.0, 12.0, 13.0], [0.0, 1.0, 2.0, 3.0]) == [
        [*ALWAYS, 9, 10, 13, 14],
        [*ALWAYS, 7, 8, 11, 12],
    ]


def test_extremes_of_two_prompts_are_apart() -> None:
    trees = [header(SMALL, [10.0, 11.0, 12.0, 13.0], 0), header(SMALL, [0.0, 1.0, 2.0, 3.0], 1)]
    for mask in WidthPruning(mode="extremes").keep(SMALL, trees, 0):
        assert np.flatnonzero(mask).tolist() == [*ALWAYS, 7, 10, 11, 14]


@pytest.mark.parametrize(
    ("ratio", "leaves"), [(0.25, 4), (0.5, 8), (0.75, 12), (1.0, 16), (0.01, 2), (0.3, 5)]
)
def test_extremes_ratio(ratio: float, leaves: int) -> None:
    tree = paper_tree()
    mask = WidthPruning(mode="extremes", ratio=ratio).keep(PAPER, [tree], 0)[0][-16:]
    ranks = np.argsort(np.argsort(-tree.leaf_reward))
    best, worst = leaves - leaves // 2, leaves // 2
    assert mask.tolist() == [bool(rank < best or rank >= 16 - worst) for rank in ranks]


def test_extremes_ties_keep_the_lower_leaf() -> None:
    assert kept(WidthPruning(mode="extremes"), [5.0, 5.0, 0.0, 1.0]) == [[*ALWAYS, 7, 9, 11, 13]]
    assert kept(WidthPruning(mode="extremes"), [5.0, 0.0, 0.0, 1.0]) == [[*ALWAYS, 7, 8, 11, 12]]


@pytest.mark.parametrize(
    "rewards", [[3.0, 3.0, 3.0, 3.0], [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]]
)
def test_extremes_keep_the_right_number_of_leaves_when_tied(rewards: list[float]) -> None:
    found = kept(WidthPruning(mode="extremes"), rewards)[0]
    assert len([node for node in found if node >= 11]) == 2


def test_width_keeps_whole_chains() -> None:
    topo = topology(PAPER)
    for rule in (WidthPruning(), WidthPruning(mode="extremes")):
        mask = rule.keep(PAPER, [paper_tree()], 0)[0]
        for leaf in topo.level(20):
            chain, node = [], int(leaf)
            while topo.step[node] > 9:
                chain.append(bool(mask[node]))
                node = int(topo.parent[node])
            assert len(chain) == 10 and len(set(chain)) == 1


def test_fixed_depths() -> None:
    mask = DepthPruning(depths=(1, 3)).keep(SMALL, [header(SMALL, [0.0] * 4)] * 2, 7)
    assert [np.flatnonzero(one).tolist() for one in mask] == [[0, 3, 4, 5, 6, 11, 12, 13, 14]] * 2


@pytest.mark.parametrize("interval", [1, 30, 200])
def test_window_slides_from_the_deepest_depth_to_behind_the_last_split(interval: int) -> None:
    rule = DepthPruning(interval=interval)
    for iteration in range(1000):
        # depths 11 … 15 are the last stop: depth 10 holds the last split's edges
        shift = min(iteration // interval, 4)
        assert rule.window_at(PAPER, iteration) == tuple(range(15 - shift, 20 - shift)), iteration


def test_window_wider_than_what_is_behind_the_last_split() -> None:
    for iteration in (0, 30, 900):
        assert DepthPruning(window=50).window_at(PAPER, iteration) == tuple(range(11, 20))


def test_window_of_a_tree_that_trains_splits_only_drops_nothing() -> None:
    config = quickstart()
    plan = config.method.plan(0, static(20, 3.0))
    for iteration in (0, 30, 900):
        mask = DepthPruning().keep(plan, [header(plan, [0.0] * 16)], iteration)[0]
        assert mask[topology(plan).stochastic].all()


def test_edge_counts_of_the_paper() -> None:
    topo, tree = topology(PAPER), paper_tree()
    assert topo.nodes - 1 == 218
    assert int(topo.stochastic.sum()) == 218 - 16  # the last step's edges cannot be trained
    for iteration in (0, 30, 60, 90, 120, 5000):
        mask = DepthPruning().keep(PAPER, [tree], iteration)[0]
        assert int(mask[1:].sum()) == 138
        assert int((mask & topo.stochastic).sum()) == 138 - 16
    for rule in (WidthPruning(), WidthPruning(mode="extremes")):
        mask = rule.keep(PAPER, [tree], 0)[0]
        assert int(mask[1:].sum()) == 138
        assert int((mask & topo.stochastic).sum()) == 138 - 8


def test_rules_and_together() -> None:
    trees = [paper_tree()]
    width = {"name": "width"}
    depth = {"name": "depth"}
    both = None
    one, other = (
        pruned(rule).credit.assign(PAPER, trees, 45, {})[0].keep for rule in (width, depth)
    )
    both = pruned(width, depth).credit.assign(PAPER, trees, 45, {})[0].keep
    assert np.array_equal(both, one & other)
    # after the last split 9 random depths: 5 dropped, 4 halved
    assert int(both.sum()) == 202 - 80 - 4 * 8


def test_pruning_changes_neither_rewards_nor_advantages() -> None:
    trees = [
        paper_tree(),
        header(PAPER, list(range(16)), 0, 1),
        header(PAPER, [float(i % 3) for i in range(16)], 1),
    ]
    plain = pruned().credit.assign(PAPER, trees, 45, {})
    cut = pruned(
        {"name": "width", "mode": "extremes", "ratio": 0.25},
        {"name": "depth", "depths": [1, 2, 12]},
    ).credit.assign(PAPER, trees, 45, {})
    for before, after in zip(plain, cut, strict=True):
        assert np.array_equal(before.advantage, after.advantage)
        assert np.array_equal(before.node_reward, after.node_reward)
        assert before.weight_entropy == after.weight_entropy
        assert after.keep.sum() < before.keep.sum()
        assert not (after.keep & ~before.keep).any()


def chain_trees(plan: BranchPlan, chains: int, prompts: int = 1) -> list[TreeHeader]:
    return [
        header(plan, [0.0], prompt, tree) for prompt in range(prompts) for tree in range(chains)
    ]


def steps_kept(plan: BranchPlan, mask: np.ndarray) -> list[int]:
    """Steps whose edges are all kept; none may be kept in part."""
    step = topology(plan).step
    found = [int(one) for one in range(plan.steps) if mask[step == one].all()]
    assert int(mask.sum()) == sum(int((step == one).sum()) for one in found) and not mask[0]
    return found


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.6, 12), (0.01, 1), (0.33, 7), (0.9, 18), (0.95, 19), (1.0, 19)]
)
def test_steps_keep_a_fraction_of_all_steps_as_far_as_they_can_be_trained(
    fraction: float, count: int
) -> None:
    plan = ChainMethod().plan(0, static(20, 3.0))
    for mask in StepPruning(fraction=fraction).keep(plan, chain_trees(plan, 8), 3):
        found = steps_kept(plan, mask)
        assert len(found) == count and max(found) <= 18  # the last step is not random


def test_steps_are_drawn_from_the_random_ones() -> None:
    plan = ChainMethod(stochastic="window", window=Window(size=4)).plan(60, static(20, 3.0))
    window = [step for step in range(20) if plan.stochastic[step]]
    assert window[0] > 0
    for fraction, count in ((0.1, 2), (0.6, 4)):
        for mask in StepPruning(fraction=fraction).keep(plan, chain_trees(plan, 8), 60):
            found = steps_kept(plan, mask)
            assert len(found) == count and set(found) <= set(window)


def test_steps_drop_a_tree_s_steps_at_full_width() -> None:
    for mask in StepPruning().keep(PAPER, [paper_tree()] * 2, 0):
        assert len(steps_kept(PAPER, mask)) == 12


def test_drawn_steps_are_a_function_of_seed_iteration_and_tree() -> None:
    plan, rule = ChainMethod().plan(0, static(20, 3.0)), StepPruning()
    trees = chain_trees(plan, 4, 3)

    def drawn(
        order: list[TreeHeader], iteration: int = 0, seed: int = 0
    ) -> dict[tuple[int, int], tuple[int, ...]]:
        return {
            (tree.key.prompt, tree.key.tree): tuple(steps_kept(plan, mask))
            for tree, mask in zip(order, rule.keep(plan, order, iteration, seed), strict=True)
        }

    first = drawn(trees)
    assert len(set(first.values())) == len(trees)
    assert drawn(trees) == first == drawn(trees[::-1])
    # whatever the other trees are
    assert {name: first[name] for name in drawn(trees[2:5])} == drawn(trees[2:5])
    for other in (drawn(trees, iteration=1), drawn(trees, seed=1)):
        assert all(other[name] != steps for name, steps in first.items())


def test_every_step_is_drawn_equally_often() -> None:
    plan, trees = ChainMethod().plan(0, static(20, 3.0)), 4000
    counts = np.sum(StepPruning().keep(plan, chain_trees(plan, trees), 0), 0)[1:20]
    share = 12 / 19  # sum of 4000 independent draws: six standard deviations
    assert np.abs(counts - trees * share).max() <= 6 * np.sqrt(trees * share * (1 - share))
    assert counts.sum() == 12 * trees


@pytest.mark.parametrize(
    ("ratio", "best", "worst"), [(0.5, 3, 3), (0.25, 2, 1), (0.01, 1, 1), (1.0, 6, 6)]
)
def test_extremes_of_chains_are_best_of_n(ratio: float, best: int, worst: int) -> None:
    plan, draw = ChainMethod(chains=12).plan(0, static(6, 3.0)), np.random.default_rng(8)
    rewards = [draw.normal(5.0 * prompt, size=12) for prompt in range(2)]
    trees = [
        header(plan, [value], prompt, tree)
        for prompt, values in enumerate(rewards)
        for tree, value in enumerate(values)
    ]
    masks = WidthPruning(mode="extremes", ratio=ratio).keep(plan, trees, 0)
    for tree, mask in zip(trees, masks, strict=True):
        # 0 = the best of its prompt
        place = int((rewards[tree.key.prompt] > rewards[tree.key.prompt][tree.key.tree]).sum())
        # a whole chain, or nothing of it
        assert set(mask[1:].tolist()) == {place < best or place >= 12 - worst}


def test_parent_top1_needs_a_tree() -> None:
    plan = ChainMethod().plan(0, static(6, 3.0))
    with pytest.raises(ValueError, match="parent_top1"):
        WidthPruning().keep(plan, chain_trees(plan, 2), 0)


def test_a_window_that_does_not_slide_stays_at_the_deepest_depths() -> None:
    rule = DepthPruning(slide=False, interval=1)
    assert {rule.window_at(PAPER, iteration) for iteration in (0, 1, 10, 1000)} == {
        (15, 16, 17, 18, 19)
    }


@pytest.mark.parametrize(("stop", "lowest"), [(13, 13), (11, 11), (4, 4), (1, 1), (17, 17)])
def test_stop_depth_is_where_the_window_ends(stop: int, lowest: int) -> None:
    rule = DepthPruning(interval=10, stop_depth=stop)
    seen = [rule.window_at(PAPER, iteration) for iteration in range(0, 300, 10)]
    for turn, window in enumerate(seen):
        top = max(19 - turn, min(19, lowest + 4))
        assert window == tuple(depth for depth in range(top - 4, top + 1) if depth >= lowest)
    assert seen[-1][0] == lowest and len(seen[-1]) == min(5, 20 - lowest)


def test_on_chains_the_window_slides_to_the_first_depth() -> None:
    plan = ChainMethod().plan(0, static(20, 3.0))
    assert [DepthPruning(interval=1).window_at(plan, iteration) for iteration in (0, 14, 99)] == [
        tuple(range(15, 20)),
        *[tuple(range(1, 6))] * 2,
    ]
