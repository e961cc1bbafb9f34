"""From scores to new weights: rewards, credit, a rank's share of the update, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from branchgrpo.types.arrays import F32, I32, Bool, check_shapes


@dataclass(frozen=True)
class RewardScores:
    """Scores of a batch of media by a worker's R rewards, in the batch's order."""

    trained: F32  # [R, L] what trains
    parts: Mapping[str, F32]  # [L] each: what is reported
    ok: Bool  # [L] False where a reward failed for good
    retries: int = 0  # attempts after the first ones
    reason: str = ""  # of the last failure

    def __post_init__(self) -> None:
        count = len(self.ok)
        check_shapes(self, trained=(self.trained, (None, count)), ok=(self.ok, (count,)))
        for name, part in self.parts.items():
            if part.shape != (count,):
                raise ValueError(f"RewardScores.{name}: expected {count} scores, got {part.shape}")


@dataclass(frozen=True)
class TreeCredit:
    """What each edge of a tree earned. Entry 0 (the root, which has no edge) is never kept."""

    node_reward: F32  # [N] leaf rewards fused upward
    advantage: F32  # [N] of the edge into the node
    # [N] trained: stochastic, of weights that train (or a leaf, for a loss on leaves), not pruned
    keep: Bool
    weight_entropy: float = 1.0  # mean normalised entropy of the fusion weights; 1 = uniform

    def __post_init__(self) -> None:
        nodes = len(self.node_reward)
        check_shapes(self, advantage=(self.advantage, (nodes,)), keep=(self.keep, (nodes,)))


@dataclass(frozen=True)
class LearnerShard:
    """One rank's part of an optimiser step: n parents with up to K child edges each, padded to
    equal n.

    Rows of `parents` are (tree, node); padding repeats the last parent with weight 0.
    """

    parents: I32  # [n, 2]
    edges: I32  # [n, K] child nodes, -1 where a parent has fewer
    advantage: F32  # [n, K]
    # [n, K] the plan's weight of the step / kept edges of the whole optimiser step, all ranks; 0
    # for padding
    weight: F32

    def __post_init__(self) -> None:
        count, width = self.edges.shape
        check_shapes(
            self,
            parents=(self.parents, (count, 2)),
            advantage=(self.advantage, (count, width)),
            weight=(self.weight, (count, width)),
        )

    @property
    def trees(self) -> set[int]:
        """Trees that it has edges of."""
        return set(self.parents[:, 0].tolist())

    @property
    def nodes(self) -> set[tuple[int, int]]:
        """(tree, node) of every latent that it takes."""
        found = {(int(tree), int(node)) for tree, node in self.parents}
        found |= {
            (int(tree), int(child))
            for (tree, _), row in zip(self.parents, self.edges, strict=True)
            for child in row
            if child >= 0
        }
        return found


@dataclass(frozen=True)
class PointShard:
    """One rank's part of an optimiser step of a loss on leaves: n points, padded to equal n.

    A point is a leaf at one noise level. Padding repeats a point with weight 0.
    """

    leaves: I32  # [n, 2] (tree, node)
    index: I32  # [n] number of the level among those of its leaf, or of its group
    level: F32  # [n] that level, t
    group: I32  # [n] points of one number belong together, all on one rank
    advantage: F32  # [n]
    weight: F32  # [n] 1 / points of the whole optimiser step, all ranks; 0 for padding

    def __post_init__(self) -> None:
        count = len(self.leaves)
        check_shapes(
            self,
            leaves=(self.leaves, (count, 2)),
            index=(self.index, (count,)),
            level=(self.level, (count,)),
            group=(self.group, (count,)),
            advantage=(self.advantage, (count,)),
            weight=(self.weight, (count,)),
        )

    @property
    def trees(self) -> set[int]:
        """Trees that it has leaves of."""
        return set(self.leaves[:, 0].tolist())

    @property
    def nodes(self) -> set[tuple[int, int]]:
        """(tree, node) of every latent that it takes."""
        return {(int(tree), int(node)) for tree, node in self.leaves}


Shard = LearnerShard | PointShard
"""What a rank trains on in an optimiser step."""


@dataclass(frozen=True)
class WeightUpdate:
    """Header of one published version; the bytes travel beside it as lists of numpy arrays, one
    array for each tensor."""

    version: int
    digest: str  # wire.digest_of the tensors
    names: tuple[str, ...]
    dtypes: tuple[str, ...]  # torch names
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class StepStats:
    """What one update did, equal on every rank."""

    version: int  # of the weights after it
    loss: float
    ratio_deviation: float  # mean |ratio − 1|
    # max |ratio − 1| before the first optimiser step; NaN when the gate did not run
    on_policy_deviation: float
    # max |ratio − 1| to the behaviour policy in the ranks' first micro-batches, before any step
    first_ratio_deviation: float
    clip_fraction: float
    kl: float  # mean KL to the base over trained edges; 0 when the loss has no such term
    learning_rate: float  # of the last optimiser step
    gradient_norm: float  # before clipping, mean over optimiser steps
    optimiser_steps: int
    skipped_steps: int  # gradient was not finite
    forwards: int  # distinct parents, all ranks
    halved: int  # how often micro-batches were, for want of memory, all ranks
    edges: int  # trained edges, all ranks
    edges_stochastic: int  # before pruning
    edges_all: int  # of the trees, deterministic ones too
    weight_entropy: float
    advantage_abs: float
    fetched_bytes: int  # of payloads and of encoded prompts that this rank read
    # ‖v‖ after it ÷ before the run's first one; None where it was not measured
    velocity_norm: float | None
