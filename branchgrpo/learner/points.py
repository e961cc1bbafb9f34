"""Leaves to shards for the learner ranks, and a shard as micro-batches of noised leaves, each made
on the device when its turn comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo import noise
from branchgrpo.algo.loss.forward import ForwardLoss
from branchgrpo.learner.batches import Latents, Texts
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


@dataclass
class PointBatch:
    """A micro-batch of n noised leaves, on the device, float32."""

    x0: Tensor  # [n, *S]
    x: Tensor  # [n, *S] (1 − t)·x0 + t·ε
    target: Tensor  # [n, *S] ε − x0
    t: Tensor  # [n]
    cond: dict[str, Tensor]  # [n, …]
    advantage: Tensor  # [n]
    weight: Tensor  # [n]
    score: Tensor | None  # [n] what was kept of them before
    mean: Tensor | None  # [n] mean of the scores of each one's group


class PointBatches:
    """A shard in main memory, of which any run of points is made on the device when it is asked
    for."""

    def __init__(
        self,
        shard: PointShard,
        trees: Sequence[TreeHeader],
        *,
        latents: Latents,
        texts: Texts,
        size: int,
        device: torch.device,
        seed: int,
        grouped: bool,
    ):
        """size: points of a micro-batch. seed: of the run. grouped: as of the loss."""
        self.shard, self.trees = shard, trees
        self.latents, self.texts = latents, texts
        self.size, self.device = size, device
        self.seed, self.grouped = seed, grouped
        self.scores: Tensor | None = None  # [all points], in main memory
        self.means: Tensor | None = None

    def __len__(self) -> int:
        """Points."""
        return len(self.shard.leaves)

    def take(self, first: int, count: int) -> PointBatch:
        """The micro-batch of these points. Noise is drawn by what it belongs to, so that neither
        batches nor ranks change it."""
        part = slice(first, first + count)
        leaves = self.shard.leaves[part].tolist()
        x0 = torch.stack([self.latents(tree, leaf).float() for tree, leaf in leaves])
        added = torch.stack(
            [
                noise.added(
                    self.seed,
                    *owner(self.trees[tree].key, leaf, self.grouped),
                    index=index,
                    shape=tuple(x0.shape[1:]),
                )
                for (tree, leaf), index in zip(leaves, self.shard.index[part].tolist(), strict=True)
            ]
        )
        x0, added = x0.to(self.device), added.to(self.device)
        t = torch.from_numpy(self.shard.level[part]).to(self.device)
        column = t.view(-1, *(1,) * (x0.ndim - 1))
        return PointBatch(
            x0=x0,
            x=(1.0 - column) * x0 + column * added,
            target=added - x0,
            t=t,
            cond=self.texts([self.trees[tree].prompt_index for tree, _ in leaves]),
            advantage=torch.from_numpy(self.shard.advantage[part]).to(self.device),
            weight=torch.from_numpy(self.shard.weight[part]).to(self.device),
            score=None if self.scores is None else self.scores[part].to(self.device),
            mean=None if self.means is None else self.means[part].to(self.device),
        )

    def keep(self, first: int, scores: Tensor) -> None:
        """Take down [n] scores of the points from `first` on, which later `take`s give."""
        if self.scores is None:
            self.scores = torch.zeros(len(self))
        self.scores[first : first + len(scores)] = scores.cpu()

    def compare(self) -> None:
        """The mean of the scores of each group, over all of its points: later `take`s give it."""
        assert self.scores is not None
        group, real = torch.from_numpy(self.shard.group).long(), self.shard.weight > 0
        counted = torch.from_numpy(real).double()
        sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
        counts = sums.clone()
        sums.index_add_(0, group, self.scores.double() * counted)
        counts.index_add_(0, group, counted)
        self.means = (sums / counts.clamp(min=1.0))[group].float()
