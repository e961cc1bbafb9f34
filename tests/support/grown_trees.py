"""Trees with pictures of noise, as large as one likes."""

from __future__ import annotations

import numpy as np

from branchgrpo.algo.tree import topology, trainable, viewed_nodes
from branchgrpo.rollout.trees import GrownTree
from branchgrpo.types import BranchPlan, Sample, TreeKey


def grown(
    plan: BranchPlan, *, prompt: int = 7, trees: int = 1, side: int = 32, trained: str = "edges"
) -> list[GrownTree]:
    """Trees of one prompt; every third random edge is pruned."""
    topo, draw = topology(plan), np.random.default_rng(0)
    shown = np.flatnonzero(viewed_nodes(plan) | (topo.child_count == 0))
    leaves = np.arange(topo.nodes) >= topo.nodes - topo.leaves
    kept = leaves if trained == "leaves" else trainable(plan) & (np.arange(topo.nodes) % 3 > 0)
    return [
        GrownTree(
            key=TreeKey("test", 20, prompt, number),
            sample=Sample(prompt='a "red" <circle> & more'),
            plan=plan,
            log_prob=draw.normal(size=topo.nodes).astype(np.float32),
            advantage=draw.normal(size=topo.nodes).astype(np.float32),
            kept=kept,
            node_reward=draw.uniform(size=topo.nodes).astype(np.float32),
            reward=draw.uniform(size=topo.leaves).astype(np.float32),
            parts={"ocr/exact": draw.uniform(size=topo.leaves).astype(np.float32)},
            pixels={int(node): draw.integers(0, 256, (side, side, 3), np.uint8) for node in shown},
            trained=trained,
        )
        for number in range(trees)
    ]
