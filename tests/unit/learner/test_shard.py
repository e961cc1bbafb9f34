"""Kept edges dealt out to learner ranks: nothing lost, nothing twice, equal work."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.small_trees import paper_plan, plan_of

from branchgrpo.algo.tree import topology
from branchgrpo.learner.shard import split
from branchgrpo.types import BranchPlan, LearnerShard, TreeCredit

PAPER = paper_plan()


def credits_of(
    plan: BranchPlan, trees: int, kept: float = 0.7, zero: float = 0.0
) -> list[TreeCredit]:
    """Random credit; `kept` and `zero` are shares of edges."""
    draw, topo = np.random.default_rng(3), topology(plan)
    credits = []
    for _ in range(trees):
        advantage = draw.uniform(0.1, 1.0, topo.nodes).astype(np.float32) * draw.choice(
            [-1, 1], topo.nodes
        ).astype(np.float32)
        advantage[draw.random(topo.nodes) < zero] = 0
        credits.append(
            TreeCredit(
                np.zeros(topo.nodes, np.float32),
                advantage,
                topo.stochastic & (draw.random(topo.nodes) < kept),
            )
        )
    return credits


def entries(shards: list[LearnerShard]) -> Counter[tuple[int, int, int, float, float]]:
    """(tree, parent, child, advantage, weight) of everything that has a weight."""
    found: Counter[tuple[int, int, int, float, float]] = Counter()
    for shard in shards:
        for (tree, parent), *row in zip(
            shard.parents.tolist(),
            shard.edges.tolist(),
            shard.advantage.tolist(),
            shard.weight.tolist(),
            strict=True,
        ):
            found.update(
                (tree, parent, child, a, w) for child, a, w in zip(*row, strict=True) if w > 0
            )
    return found


def expected(plan: BranchPlan, credits: list[TreeCredit]) -> set[tuple[int, int, int]]:
    """(tree, parent, child) of every kept edge that has a sibling, or itself, with an advantage."""
    parent = topology(plan).parent
    found = set()
    for tree, credit in enumerate(credits):
        live = {
            int(parent[n])
            for n in range(1, len(parent))
            if credit.keep[n] and credit.advantage[n] != 0
        }
        found |= {
            (tree, int(parent[n]), n)
            for n in range(1, len(parent))
            if credit.keep[n] and int(parent[n]) in live
        }
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("zero", [0.0, 0.5])
def test_the_union_over_ranks_is_every_kept_edge_once(ranks: int, zero: float) -> None:
    credits = credits_of(PAPER, 3, zero=zero)
    (shards,) = split(PAPER, credits=credits, ranks=ranks, optimiser_steps=1, seed=0)
    assert len(shards) == ranks
    assert len({len(shard.parents) for shard in shards}) == 1
    found = entries(shards)
    assert set(found.values()) == {1}
    assert {entry[:3] for entry in found} == expected(PAPER, credits)
    total = sum(int(credit.keep.sum()) for credit in credits)
    for tree, _, child, advantage, weight in found:
        assert advantage == credits[tree].advantage[child]
        assert weight == pytest.approx(1 / total, rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_weights_sum_to_one_when_every_edge_has_an_advantage(ranks: int) -> None:
    (shards,) = split(PAPER, credits=credits_of(PAPER, 3), ranks=ranks, optimiser_steps=1, seed=0)
    assert sum(float(shard.weight.sum(dtype=np.float64)) for shard in shards) == pytest.approx(
        1.0, rel=1e-5
    )


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_padding_repeats_the_last_parent_with_weight_zero(ranks: int) -> None:
    plan = plan_of(2, 1, 1)  # parents 0, 1 and 2
    credit = TreeCredit(
        np.zeros(7, np.float32), np.ones(7, np.float32), topology(plan).stochastic.copy()
    )
    (shards,) = split(
        plan, credits=[credit, credit], ranks=ranks, optimiser_steps=1, seed=0
    )  # six parents
    each = -(-6 // ranks)
    rows = np.concatenate([shard.parents for shard in shards])
    weight = np.concatenate([shard.weight for shard in shards])
    advantage = np.concatenate([shard.advantage for shard in shards])
    assert len(rows) == each * ranks
    assert rows[:6].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert (rows[6:] == [1, 2]).all()
    assert not weight[6:].any() and not advantage[6:].any()
    assert np.concatenate([shard.edges for shard in shards])[:3].tolist() == [
        [1, 2],
        [3, -1],
        [4, -1],
    ]
    assert weight[:6] == pytest.approx(np.array([[1, 1], [1, 0], [1, 0]] * 2) / 8)


def test_parents_without_advantage_are_left_out_but_counted() -> None:
    plan = plan_of(2, 2, 1)
    advantage = np.array([9, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9], np.float32)
    credit = TreeCredit(np.zeros(11, np.float32), advantage, topology(plan).stochastic.copy())
    (shards,) = split(plan, credits=[credit], ranks=1, optimiser_steps=1, seed=0)
    assert shards[0].parents.tolist() == [[0, 1]]
    assert shards[0].edges.tolist() == [[3, 4]]
    assert shards[0].weight == pytest.approx(np.array([[1 / 6, 1 / 6]]))


@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("ranks", [1, 3])
def test_optimiser_steps_partition_the_parents(steps: int, ranks: int) -> None:
    credits = credits_of(PAPER, 2)
    found = split(PAPER, credits=credits, ranks=ranks, optimiser_steps=steps, seed=5)
    assert len(found) == steps
    seen: Counter[tuple[int, int, int]] = Counter()
    owner: dict[tuple[int, int], int] = {}
    for step, shards in enumerate(found):
        assert len({len(shard.parents) for shard in shards}) == 1
        assert sum(float(shard.weight.sum(dtype=np.float64)) for shard in shards) == pytest.approx(
            1.0, rel=1e-5
        )
        for tree, parent, child, _, _ in entries(shards):
            seen[tree, parent, child] += 1
            assert owner.setdefault((tree, parent), step) == step
    assert set(seen.values()) == {1}
    assert set(seen) == expected(PAPER, credits)


def test_the_order_of_several_steps_follows_the_seed_alone() -> None:
    credits = credits_of(PAPER, 2)

    def order(seed: int) -> list[list[list[int]]]:
        return [
            shards[0].parents.tolist()
            for shards in split(PAPER, credits=credits, ranks=1, optimiser_steps=2, seed=seed)
        ]

    assert order(5) == order(5)
    assert order(5) != order(6)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_siblings_stay_together(ranks: int) -> None:
    credits = credits_of(PAPER, 2)
    parent = topology(PAPER).parent
    (shards,) = split(PAPER, credits=credits, ranks=ranks, optimiser_steps=1, seed=0)
    seen = set()
    for shard in shards:
        for (tree, node), row, weight in zip(
            shard.parents.tolist(), shard.edges, shard.weight, strict=True
        ):
            children = set(row[row >= 0].tolist())
            assert children == {
                int(n) for n in np.flatnonzero(credits[tree].keep) if parent[n] == node
            }
            assert (row[: len(children)] >= 0).all()
            if weight.any():
                assert (tree, node) not in seen
                seen.add((tree, node))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("what", ["nothing kept", "no advantage"])
def test_empty_credit(ranks: int, steps: int, what: str) -> None:
    credits = credits_of(
        PAPER,
        2,
        kept=0.0 if what == "nothing kept" else 1.0,
        zero=0.0 if what == "nothing kept" else 2.0,
    )
    for shards in split(PAPER, credits=credits, ranks=ranks, optimiser_steps=steps, seed=0):
        assert len(shards) == ranks
        assert all(
            shard.parents.shape == (0, 2) and shard.weight.shape == (0, 2) for shard in shards
        )
