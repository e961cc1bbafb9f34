"""The latents that a rank trains on, fetched by reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from branchgrpo.algo.tree import topology
from branchgrpo.models import weights as wire
from branchgrpo.types import BranchPlan, SegmentHeader, Shard, TreeHeader

Fetch = Callable[[Sequence[Any]], list[Any]]
"""Values behind references."""

DROPPED = -1
"""Owner of the latents of trees that are not trained on."""


class PayloadStore:
    """Latents of a rank's shards: fetches only the payloads that hold some of them."""

    def __init__(
        self,
        fetch: Fetch,
        plan: BranchPlan,
        trees: list[TreeHeader],
        segments: Sequence[tuple[SegmentHeader, Any]],
        shards: Sequence[Shard],
        pin: bool = False,
    ):
        """pin: in page-locked memory, from which a GPU copies while the host goes on."""
        topo = topology(plan)
        index = {(tree.prompt_index, tree.key.tree): i for i, tree in enumerate(trees)}
        wanted = {name for one in shards for name in one.nodes}
        needed = []
        for header, reference in segments:
            owners = [
                index.get((subtree.prompt_index, subtree.key.tree), DROPPED)
                for subtree in header.subtrees
            ]
            held: set[tuple[int, int]] = set()
            for tree, subtree in zip(owners, header.subtrees, strict=True):
                edges = topo.segment_edges(subtree.node, header.start, header.stop)
                held.update((tree, int(edge)) for edge in edges)
                if header.stop == plan.steps:
                    leaves = topo.below(subtree.node, plan.steps)
                    held.update((tree, int(leaf)) for leaf in leaves)
            if not wanted.isdisjoint(held):
                needed.append((owners, reference))
        self.rows: dict[tuple[int, int], torch.Tensor] = {}
        self.velocities: dict[tuple[int, int], torch.Tensor] = {}
        self.bytes = 0
        for (owners, _), payload in zip(
            needed, fetch([reference for _, reference in needed]), strict=True
        ):
            self.bytes += payload.latents.nbytes + payload.velocity.nbytes
            latents = wire.to_torch(payload.latents, payload.dtype)
            velocities = wire.to_torch(payload.velocity, "float32")
            if pin:
                latents, velocities = latents.pin_memory(), velocities.pin_memory()
            for row, (subtree, node) in enumerate(
                zip(payload.subtree.tolist(), payload.node.tolist(), strict=True)
            ):
                self.rows[owners[subtree], node] = latents[row]
            for row, velocity in zip(payload.parent.tolist(), velocities, strict=True):
                self.velocities[owners[payload.subtree[row]], int(payload.node[row])] = velocity

    def latents(self, tree: int, node: int) -> torch.Tensor:
        """[*S] of one node, in the storage dtype."""
        return self.rows[tree, node]

    def behaviour(self, tree: int, node: int) -> torch.Tensor:
        """[*S] velocity of the policy that grew the tree, at one parent."""
        return self.velocities[tree, node]
