"""Kept edges to equal shards for the learner ranks."""

from __future__ import annotations

import numpy as np

from branchgrpo.algo.tree import topology
from branchgrpo.types import F32, I32, BranchPlan, LearnerShard, TreeCredit


def split(
    plan: BranchPlan,
    credits: list[TreeCredit],
    ranks: int,
    optimiser_steps: int,
    seed: int,
    every: bool = False,
) -> list[list[LearnerShard]]:
    """shards[optimiser step][rank]: every shard of a step has the same number of parents.

    Siblings stay together, since one forward of their parent serves all their edges. The loss of a
    step is the mean over its kept edges; an edge whose advantage is 0 counts in that mean but has
    no gradient, so its parent is not computed for it, unless `every` asks for all (a KL term has a
    gradient there). With several optimiser steps the parents are shuffled (by `seed`); with one,
    they keep tree order, so that a rank reads few payloads.
    """
    topo, width = topology(plan), max(plan.fanout)
    parents = []
    edges = []
    advantage = []
    counts = []
    for tree, credit in enumerate(credits):
        kept = np.flatnonzero(credit.keep)
        for parent in np.unique(topo.parent[kept]):
            children = kept[topo.parent[kept] == parent]
            parents.append((tree, parent))
            edges.append(np.pad(children, (0, width - len(children)), constant_values=-1))
            advantage.append(np.pad(credit.advantage[children], (0, width - len(children))))
            counts.append(len(children))
    table = (
        np.array(parents, np.int32).reshape(-1, 2),
        np.array(edges, np.int32).reshape(-1, width),
        np.array(advantage, np.float32).reshape(-1, width),
    )
    # of a parent's edges: they belong to one step
    weights = plan.weights[topo.step[table[1][:, 0]]]
    order = np.arange(len(counts))
    if optimiser_steps > 1:
        order = np.random.default_rng(seed).permutation(order)
    return [
        _shards(
            table[0][rows],
            edges=table[1][rows],
            advantage=table[2][rows],
            factor=weights[rows],
            ranks=ranks,
            every=every,
        )
        for rows in np.array_split(order, optimiser_steps)
    ]


def _shards(
    parents: I32, edges: I32, advantage: F32, factor: F32, ranks: int, every: bool
) -> list[LearnerShard]:
    """One optimiser step's parents, dealt out in runs of equal length."""
    total = int((edges >= 0).sum())
    weight = (edges >= 0) * np.float32(1.0 / max(1, total)) * factor[:, None]
    live = (advantage != 0).any(1) | every
    parents = parents[live]
    edges = edges[live]
    advantage = advantage[live]
    weight = weight[live].astype(np.float32)
    each = -(-len(parents) // ranks)
    shards = []
    for rank in range(ranks):
        rows = np.arange(rank * each, (rank + 1) * each)
        real = rows < len(parents)
        rows = np.minimum(rows, len(parents) - 1)
        shards.append(
            LearnerShard(
                parents[rows],
                edges[rows],
                advantage[rows] * real[:, None],
                weight[rows] * real[:, None],
            )
        )
    return shards
