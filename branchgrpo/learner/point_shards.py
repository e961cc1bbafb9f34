"""Leaves to shards for the learner ranks, at the noise levels that they are trained at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from branchgrpo.algo import noise
from branchgrpo.algo.loss.forward import ForwardLoss
from branchgrpo.types import BranchPlan, PointShard, TreeCredit, TreeHeader, TreeKey

Unit = list[tuple[int, int, int, float, float]]
"""Points that stay on one rank: (tree, leaf, number of the level, level, advantage)."""


def split_points(
    plan: BranchPlan,
    trees: Sequence[TreeHeader],
    credits: Sequence[TreeCredit],
    *,
    loss: ForwardLoss,
    ranks: int,
    optimiser_steps: int,
    seed: int,
    shuffle: int,
) -> list[list[PointShard]]:
    """shards[optimiser step][rank]: every shard of a step has the same number of points.

    All levels of a leaf belong to one step and one rank; of losses with `grouped`, all leaves of a
    prompt at one level do. The loss of a step is the mean over its points; points whose advantage
    is 0 count in that mean but are not computed, unless they have a gradient (`loss.every`). Levels
    at which no weights train have no points. With
    several optimiser steps, what belongs together is shuffled, by `shuffle`. seed: of the run, by
    which levels are drawn.
    """
    units = _units(plan, trees, credits, loss, seed)
    order = np.arange(len(units))
    if optimiser_steps > 1:
        order = np.random.default_rng(shuffle).permutation(order)
    return [
        _shards([units[at] for at in part], ranks, loss.every)
        for part in np.array_split(order, optimiser_steps)
    ]


def owner(key: TreeKey, node: int, grouped: bool) -> tuple[TreeKey, int]:
    """Whose draws a leaf gets: its own, or, of losses with `grouped`, those of its prompt."""
    return (replace(key, tree=0), 0) if grouped else (key, node)


def _units(
    plan: BranchPlan,
    trees: Sequence[TreeHeader],
    credits: Sequence[TreeCredit],
    loss: ForwardLoss,
    seed: int,
) -> list[Unit]:
    found: dict[tuple[int, ...], Unit] = {}
    frozen = np.array(plan.frozen or (False,) * plan.steps)
    for tree, (header, credit) in enumerate(zip(trees, credits, strict=True)):
        for leaf in np.flatnonzero(credit.keep).tolist():
            drawn = noise.levels(seed, *owner(header.key, leaf, loss.grouped))
            advantage = float(credit.advantage[leaf])
            levels = loss.levels(plan.sigmas, drawn)
            # of a model whose weights train at some steps alone: those steps
            step = np.searchsorted(-plan.sigmas[:-1], -levels, side="right") - 1
            for index in np.flatnonzero(~frozen[step]).tolist():
                level = float(levels[index])
                name = (header.prompt_index, index) if loss.grouped else (tree, leaf)
                found.setdefault(name, []).append((tree, leaf, index, level, advantage))
    return [found[name] for name in sorted(found)]


def _shards(units: list[Unit], ranks: int, every: bool) -> list[PointShard]:
    """One optimiser step's points, dealt out in runs."""
    total = sum(map(len, units))
    live = [unit for unit in units if every or any(advantage for *_, advantage in unit)]
    parts = [
        [(group, *point) for group in groups.tolist() for point in live[group]]
        for groups in np.array_split(np.arange(len(live)), ranks)
    ]
    longest = max(map(len, parts))
    shards = []
    for part in parts:
        # padding repeats a point
        rows = part + (part or parts[0])[:1] * (longest - len(part))
        group, tree, leaf, index, level, advantage = np.array(rows, np.float64).reshape(-1, 6).T
        real = np.arange(longest) < len(part)
        shards.append(
            PointShard(
                leaves=np.stack([tree, leaf], 1).astype(np.int32),
                index=index.astype(np.int32),
                level=level.astype(np.float32),
                group=group.astype(np.int32),
                advantage=advantage.astype(np.float32),
                weight=(real / max(1, total)).astype(np.float32),
            )
        )
    return shards
