"""A rank's shard as micro-batches, each made on the device when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo.tree import topology
from branchgrpo.types import BranchPlan, LearnerShard, TreeHeader

Latents = Callable[[int, int], Tensor]
"""(tree, node) → its stored latents, or velocity, [*S], in main memory."""

Texts = Callable[[Sequence[int]], dict[str, Tensor]]
"""Prompt indices [n] → their encodings on the device, n rows each."""


@dataclass
class MicroBatch:
    """A micro-batch of n parents with up to K children each, on the device."""

    x: Tensor  # [n, *S] parents
    y: Tensor  # [n, K, *S] children
    sigma: Tensor  # [n]
    steps: Tensor  # [n] long
    cond: dict[str, Tensor]  # [n, …]
    old: Tensor  # [n, K] behaviour log-prob
    advantage: Tensor  # [n, K]
    weight: Tensor  # [n, K]
    present: Tensor  # [n, K] bool: there is such a child
    velocity: Tensor | None = None  # [n, *S] of the behaviour policy at x, where the loss needs it
    own: Recomputed | None = None  # in place of old and velocity, where it was computed


@dataclass
class Recomputed:
    """What the learner's own weights made of n parents before the iteration's first step."""

    log_prob: Tensor  # [n, K]
    velocity: Tensor | None  # [n, *S], where the loss needs it


class MicroBatches:
    """A shard in main memory, of which any run of parents is made on the device when it is asked
    for: what is not asked for yet, and what is done with, takes no room there."""

    def __init__(
        self,
        plan: BranchPlan,
        shard: LearnerShard,
        trees: list[TreeHeader],
        *,
        latents: Latents,
        texts: Texts,
        size: int,
        device: torch.device,
        velocities: Latents | None = None,
    ):
        """size: parents of a micro-batch. velocities: of the behaviour policy, where the loss needs
        them."""
        self.plan, self.shard, self.trees = plan, shard, trees
        self.latents, self.texts, self.velocities = latents, texts, velocities
        self.size, self.device = size, device
        self.own: Recomputed | None = None  # of all parents, in main memory

    def __len__(self) -> int:
        """Parents."""
        return len(self.shard.parents)

    def take(self, first: int, count: int) -> MicroBatch:
        """The micro-batch of these parents."""
        part = slice(first, first + count)
        parents, edges = self.shard.parents[part].tolist(), self.shard.edges[part]
        steps = torch.from_numpy(topology(self.plan).step[edges[:, 0]].astype(np.int64))
        old = np.array(
            [self.trees[tree].log_prob[row] for (tree, _), row in zip(parents, edges, strict=True)],
            np.float32,
        )
        # a child that is missing is stood for by its parent
        children = [
            (tree, child if child >= 0 else node)
            for (tree, node), row in zip(parents, edges.tolist(), strict=True)
            for child in row
        ]
        return MicroBatch(
            x=self._stacked(self.latents, parents),
            y=torch.unflatten(self._stacked(self.latents, children), 0, edges.shape),
            sigma=torch.tensor(self.plan.sigmas)[steps].to(self.device),
            steps=steps.to(self.device),
            cond=self.texts([self.trees[tree].prompt_index for tree, _ in parents]),
            old=torch.from_numpy(old).to(self.device),
            advantage=torch.from_numpy(self.shard.advantage[part]).to(self.device),
            weight=torch.from_numpy(self.shard.weight[part]).to(self.device),
            present=torch.from_numpy(edges >= 0).to(self.device),
            velocity=self._stacked(self.velocities, parents) if self.velocities else None,
            own=self._own(part),
        )

    def keep_own(self, first: int, log_prob: Tensor, velocity: Tensor | None) -> None:
        """Take down [n, K] and [n, *S] of n parents, which every later `take` of them gives."""
        if self.own is None:
            everyone = torch.zeros(len(self), *log_prob.shape[1:])
            self.own = Recomputed(
                everyone,
                None if velocity is None else torch.zeros(len(self), *velocity.shape[1:]),
            )
        rows = slice(first, first + len(log_prob))
        self.own.log_prob[rows] = log_prob.cpu()
        if self.own.velocity is not None and velocity is not None:
            self.own.velocity[rows] = velocity.cpu()

    def _own(self, part: slice) -> Recomputed | None:
        if self.own is None:
            return None
        velocity = self.own.velocity
        return Recomputed(
            self.own.log_prob[part].to(self.device),
            None if velocity is None else velocity[part].to(self.device),
        )

    def _stacked(self, stored: Latents, nodes: Sequence[Sequence[int]]) -> Tensor:
        """[len(nodes), *S] on the device; from pinned memory, the host need not wait."""
        return torch.stack(
            [stored(tree, node).to(self.device, non_blocking=True) for tree, node in nodes]
        )
