"""A shard of leaves as micro-batches of noised ones, made on the device when their turn comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from branchgrpo.algo import noise
from branchgrpo.learner.batches import Latents, Texts
from branchgrpo.learner.point_shards import owner
from branchgrpo.types import PointShard, TreeHeader


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
