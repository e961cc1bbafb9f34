"""Topology of a tree as arrays. No node objects: a tree is its plan, numbered level by level.

Level l holds the nodes after l denoising steps; the edge into a node of level l belongs to step l − 1.
Nodes are numbered breadth first, so children of one parent are neighbours, parents come in order, and
the nodes below any node form one run of numbers at every level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from branchgrpo.types import I32, Bool, BranchPlan, SegmentHeader, TreeHeader


@dataclass(frozen=True)
class Topology:
    """Arrays of a tree of N nodes, T steps and L leaves."""

    parent: I32  # [N] −1 for the root
    step: I32  # [N] step of the edge into the node, −1 for the root
    offset: I32  # [T+2] nodes of level l are offset[l] … offset[l+1] − 1
    stochastic: Bool  # [N] edge has a log-prob
    leaf_first: I32  # [N] number (among leaves) of the first leaf below a node
    leaf_count: I32  # [N] leaves below a node

    @property
    def nodes(self) -> int:
        """N, root included."""
        return len(self.parent)

    @property
    def leaves(self) -> int:
        """L."""
        return int(self.leaf_count[0])

    def level(self, level: int) -> I32:
        """Node numbers of a level."""
        return np.arange(self.offset[level], self.offset[level + 1], dtype=np.int32)

    def children(self, nodes: I32, level: int) -> I32:
        """Children [n, fanout] of nodes [n] of `level`."""
        fanout = (self.offset[level + 2] - self.offset[level + 1]) // (self.offset[level + 1] - self.offset[level])
        first = self.offset[level + 1] + (nodes - self.offset[level]) * fanout
        found: I32 = (first[:, None] + np.arange(fanout, dtype=np.int32)).astype(np.int32)
        return found

    def below(self, node: int, level: int) -> I32:
        """Nodes of `level` that descend from `node` (itself, at its own level)."""
        nodes = self.level(level)
        first, count = self.leaf_first[node], self.leaf_count[node]
        starts = self.leaf_first[nodes]
        found: I32 = nodes[(starts >= first) & (starts < first + count)]
        return found

    def segment_edges(self, node: int, start: int, stop: int) -> I32:
        """Stochastic edges (child numbers, rising) on levels start+1 … stop below `node`."""
        found = [self.below(node, level) for level in range(start + 1, stop + 1)]
        nodes = np.concatenate(found) if found else np.zeros(0, np.int32)
        edges: I32 = nodes[self.stochastic[nodes]]
        return edges


@lru_cache(maxsize=64)
def _topology(fanout: tuple[int, ...], stochastic: tuple[bool, ...]) -> Topology:
    parent, step, offset = [np.array([-1], np.int32)], [np.array([-1], np.int32)], [0, 1]
    for i, children in enumerate(fanout):
        parent.append(np.repeat(np.arange(offset[-2], offset[-1], dtype=np.int32), children))
        step.append(np.full(len(parent[-1]), i, np.int32))
        offset.append(offset[-1] + len(parent[-1]))
    leaves = len(parent[-1])
    first = [np.arange(0, leaves, leaves // len(level), dtype=np.int32) for level in parent]
    count = [np.full(len(level), leaves // len(level), np.int32) for level in parent]
    steps = np.concatenate(step)
    mask = np.array([False, *(stochastic[i] for i in steps[1:])])
    arrays = (np.concatenate(parent), steps, np.array(offset, np.int32), mask, np.concatenate(first), np.concatenate(count))
    for array in arrays:
        array.flags.writeable = False  # shared by the cache
    return Topology(*arrays)


def topology(plan: BranchPlan) -> Topology:
    """The arrays of the plan's tree."""
    return _topology(plan.fanout, plan.stochastic)


def fork_level(plan: BranchPlan, fork_depth: int) -> int:
    """Level at which trees are cut into subtrees: behind the `fork_depth`-th split; 0 = whole trees.

    A depth beyond the last split means the last split.
    """
    splits = plan.splits[:fork_depth]
    return splits[-1] + 1 if splits else 0


def auto_fork_depth(plan: BranchPlan, trees: int, workers: int) -> int:
    """The shallowest split whose frontier keeps every worker busy; 0 when whole trees already do."""
    pieces = trees
    for depth, step in enumerate(plan.splits):
        if pieces >= workers:
            return depth
        pieces *= plan.fanout[step]
    return len(plan.splits)


def assemble(plan: BranchPlan, segments: list[SegmentHeader], rewards: dict[tuple[int, int], np.ndarray]) -> list[TreeHeader]:
    """Whole trees from the headers of their segments.

    rewards: (prompt row, tree number) → leaf rewards [L]. Trees come sorted by (prompt row, tree), whatever
    order the segments arrived in. Raises ValueError when a tree or an edge is missing or versions are mixed.
    """
    topo = topology(plan)
    log_prob: dict[tuple[int, int], np.ndarray] = {}
    key, versions = {}, {segment.policy_version for segment in segments}
    if len(versions) != 1:
        raise ValueError(f"a batch must come from one policy version, got {sorted(versions)}")
    for segment in segments:
        for subtree, values in zip(segment.subtrees, segment.log_prob, strict=True):
            name = (subtree.prompt, subtree.key.tree)
            key[name] = subtree.key
            tree = log_prob.setdefault(name, np.full(topo.nodes, np.nan, np.float32))
            tree[topo.segment_edges(subtree.node, segment.start, segment.stop)] = values
    if key.keys() != rewards.keys():
        raise ValueError(f"segments and rewards must name the same trees; differing (prompt row, tree): {sorted(key.keys() ^ rewards.keys())}")
    headers = []
    for name in sorted(key):
        values = np.where(topo.stochastic, log_prob[name], np.float32(0))
        if np.isnan(values).any():
            raise ValueError(f"{key[name]}: {int(np.isnan(values).sum())} of {int(topo.stochastic.sum())} edges have no finite log-prob")
        headers.append(TreeHeader(key[name], name[0], next(iter(versions)), values, rewards[name]))
    return headers
