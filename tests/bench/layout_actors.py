"""Roles that sleep as long as FLUX.1-dev would take on 80 GB H100s, and hold nothing; a light
module, since every actor imports it.

20 trees of `branchgrpo-mix` at 720², LoRA 32, in seconds that are computed from counted operations
at the rates of H100s (bfloat16 600 TFLOP/s, attention 380, float32 45, memory 2.6 TB/s): ± 40 %,
ratios better. docs/benchmarks/README.md, "GPUs that wait".
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import numpy as np

from branchgrpo.algo.tree import topology
from branchgrpo.service import PublishedWeights, WeightSpec
from branchgrpo.types import (
    BranchPlan,
    EncodedPrompts,
    GrownSegment,
    LeafMedia,
    RewardScores,
    Sample,
    ScoreRequest,
    SegmentHeader,
    SegmentRequest,
    StepStats,
)

TREES = 20
GROWING = 5 * 113.0  # GPU-seconds of these trees: 113 s on 5 GPUs, decoding included
UPDATE = 2 * 201.0  # 201 s on 2 ranks
PUBLISH = 3.0  # seconds; counted for ranks that publish to themselves, too
SCORE = 0.02  # a picture: two CLIP-like networks and preparing it; a guess, and 0.6 % of the work
OPTIMISER_STEPS = 3

SCALE = float(os.environ.get("LAYOUT_SCALE", "0.05"))
"""Seconds here for a second there."""


def rest(seconds: float) -> float:
    """Sleep for so many seconds there; returns them."""
    time.sleep(seconds * SCALE)
    return seconds


def rows(plan: BranchPlan, node: int, start: int, stop: int) -> int:
    """Rows that are sent through the model to grow a subtree."""
    below = topology(plan).below
    return sum(len(below(node, level)) for level in range(start, stop))


def parents(plan: BranchPlan) -> int:
    """Distinct parents of random edges in a tree: rows of training."""
    topo = topology(plan)
    return len(np.unique(topo.parent[topo.stochastic]))


class Grower:
    """Grows trees."""

    def __init__(self, config: Any, index: int):
        del config, index
        self.busy = 0.0  # GPU-seconds

    def ready(self) -> None: ...

    def ping(self) -> None: ...

    def worked(self) -> float:
        """GPU-seconds so far."""
        return self.busy

    def encode(self, samples: list[Sample], evaluated: bool = False) -> list[Any]:
        """Read from disk, as with model.encode: precompute."""
        nothing = (None,) * len(samples)
        return EncodedPrompts(truncated=0, bytes=0, conditioning=nothing).objects()

    def grow(self, plan: BranchPlan, request: SegmentRequest, *inputs: Any) -> list[Any]:
        topo, subtrees = topology(plan), request.subtrees
        start, stop = request.start, request.stop
        grown = sum(rows(plan, one.node, start, stop) for one in subtrees)
        self.busy += rest(GROWING / TREES * grown / rows(plan, 0, 0, plan.steps))
        edges = [len(topo.segment_edges(one.node, start, stop)) for one in subtrees]
        header = SegmentHeader(
            subtrees=subtrees,
            start=start,
            stop=stop,
            policy_version=request.version,
            log_prob=np.zeros((len(subtrees), edges[0]), np.float32),
            forwards=grown,
            payload_bytes=0,
        )
        if stop == plan.steps:
            leaves = sum(int(topo.leaf_count[one.node]) for one in subtrees)
            media = LeafMedia(np.zeros((leaves, 1, 1, 1, 3), np.uint8), subtrees)
            return GrownSegment(header=header, payload=None, media=media).objects()
        nodes = len(topo.level(stop)) * len(subtrees)
        frontier = tuple(np.zeros(0) for _ in range(nodes))
        return GrownSegment(header=header, payload=None, frontier=frontier).objects()

    def load_weights(self, published: Any, *chunks: Any) -> str:
        return ""


class Scorer:
    """Scores leaves; its seconds are not counted as busy ones, where it shares a card with a rank
    and where it has one of its own."""

    def __init__(self, config: Any, rewards: tuple[int, ...], index: int):
        self.rewards = rewards

    def ready(self) -> None: ...

    def ping(self) -> None: ...

    def score(self, request: ScoreRequest, *media: LeafMedia) -> RewardScores:
        count = sum(len(one.pixels) for one in media)
        rest(SCORE * count)
        return RewardScores(
            trained=np.zeros((len(request.rewards), count), np.float32),
            parts={},
            ok=np.ones(count, bool),
        )


class Rank:
    """Trains."""

    def __init__(self, config: Any, rank: int, fetch: Any):
        del config, rank, fetch
        self.busy, self.version, self.ranks = 0.0, 0, 1

    def ping(self) -> None: ...

    def worked(self) -> float:
        """GPU-seconds so far."""
        return self.busy

    def rendezvous(self, host: str) -> str:
        return ""

    def join(self, ranks: int, address: str) -> None:
        self.ranks = ranks

    def specification(self) -> WeightSpec:
        return WeightSpec(bytes=0, chunks=0)

    def update(self, request: Any, *inputs: Any) -> StepStats:
        """Each rank's share of the parents, at every optimiser step, as long as the fullest one
        takes."""
        all_parents = len(request.scores) * parents(request.plan)
        seconds = UPDATE / TREES / parents(request.plan)  # a parent
        step = math.ceil(all_parents / OPTIMISER_STEPS)
        rest(OPTIMISER_STEPS * math.ceil(step / self.ranks) * seconds)
        self.busy += all_parents * seconds / self.ranks
        self.version += 1
        nothing = dict.fromkeys(StepStats.__dataclass_fields__, 0)
        return StepStats(
            **nothing
            | {"version": self.version, "on_policy_deviation": float("nan"), "velocity_norm": None}
        )

    def publish(self, weights: str = "policy") -> list[Any]:
        rest(PUBLISH)
        return [PublishedWeights(version=self.version, digest=""), None]


class SharedRank(Rank, Grower):
    """Does both, and publishes to itself."""

    def show(self, weights: str) -> int:
        rest(PUBLISH)
        return self.version
