"""A rank's shard as micro-batches on its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo.tree import topology
from branchgrpo.types import BranchPlan, LearnerShard, TreeHeader

Latents = Callable[[int, int], Tensor]
"""(tree, node) → its stored latents, or velocity, [*S]."""

Texts = Callable[[Sequence[int]], dict[str, Tensor]]
"""Prompt indices → their encodings, a row each, on the device."""


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


def micro_batches(
    plan: BranchPlan,
    shard: LearnerShard,
    trees: list[TreeHeader],
    latents: Latents,
    texts: Texts,
    size: int,
    device: torch.device,
    velocities: Latents | None = None,
) -> list[MicroBatch]:
    """A shard as micro-batches of at most `size` parents; with the behaviour policy's velocities,
    if they are given."""
    topo, batches = topology(plan), []
    for first in range(0, len(shard.parents), size):
        part = slice(first, first + size)
        parents, edges = shard.parents[part], shard.edges[part]
        steps = torch.from_numpy(topo.step[edges[:, 0]].astype(np.int64)).to(device)
        x = torch.stack([latents(tree, node) for tree, node in parents.tolist()]).to(device)
        y = torch.stack(
            [
                torch.stack([latents(tree, child if child >= 0 else node) for child in row])
                for (tree, node), row in zip(parents.tolist(), edges.tolist(), strict=True)
            ]
        ).to(device)
        behaviour = np.array(
            [
                trees[tree].log_prob[row]
                for (tree, _), row in zip(parents.tolist(), edges, strict=True)
            ],
            np.float32,
        )
        old, advantage, weight, present = (
            torch.from_numpy(array).to(device)
            for array in (behaviour, shard.advantage[part], shard.weight[part], edges >= 0)
        )
        levels = torch.from_numpy(plan.sigmas).to(device)
        velocity = (
            torch.stack([velocities(tree, node) for tree, node in parents.tolist()]).to(device)
            if velocities
            else None
        )
        batches.append(
            MicroBatch(
                x=x,
                y=y,
                sigma=levels[steps],
                steps=steps,
                cond=texts([trees[tree].prompt_index for tree in parents[:, 0].tolist()]),
                old=old,
                advantage=advantage,
                weight=weight,
                present=present,
                velocity=velocity,
            )
        )
    return batches
