"""Topology of a tree as arrays. No node objects: a tree is its plan, numbered level by level.

Level l holds the nodes after l denoising steps; the edge into a node of level l belongs to step l −
1. Nodes are numbered breadth first, so children of one parent are neighbours, parents come in
   order, and
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
    first_child: I32  # [N] number of a node's first child; leaves: N
    child_count: I32  # [N]

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

    def children(self, nodes: I32) -> tuple[I32, I32]:
        """(children of `nodes` [n] one after the other [c], how many each has [n])."""
        counts = self.child_count[nodes]
        before = np.cumsum(counts) - counts  # children of earlier nodes
        found: I32 = (
            np.repeat(self.first_child[nodes] - before, counts)
            + np.arange(counts.sum(), dtype=np.int32)
        ).astype(np.int32)
        return found, counts

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
def _topology(fanout: tuple[int, ...], random: tuple[bool, ...], comb: bool) -> Topology:
    parent = [np.array([-1])]
    step = [np.array([-1])]
    stochastic = [np.array([False])]
    counts = []
    offset = [0, 1]
    last_split = max((i for i in range(len(fanout)) if random[i]), default=-1)
    for i, children in enumerate(fanout):
        size = offset[-1] - offset[-2]
        # the trunk, while there is one, is the first node of its level, and its first child goes on
        # as the trunk
        if comb:
            count = np.ones(size, np.int64)
            trunk, goes_on = i <= last_split, i < last_split
            count[0] = children * random[i] + goes_on if trunk else 1
            mask = np.zeros(count.sum(), bool)
            mask[goes_on : count[0]] = trunk and random[i]
        else:
            count = np.full(size, children)
            mask = np.full(size * children, random[i])
        parent.append(np.repeat(np.arange(offset[-2], offset[-1]), count))
        step.append(np.full(count.sum(), i))
        stochastic.append(mask)
        counts.append(count)
        offset.append(offset[-1] + int(count.sum()))
    nodes, leaves = offset[-1], offset[-1] - offset[-2]
    ancestor = np.concatenate(parent)
    child_count = np.concatenate([*counts, np.zeros(leaves, np.int64)])
    # breadth first: children come in the order of their parents
    first_child = 1 + np.cumsum(child_count) - child_count
    leaf_first, leaf_count = np.arange(nodes) - offset[-2], np.ones(nodes, np.int64)
    for node in range(offset[-2] - 1, -1, -1):
        below = slice(first_child[node], first_child[node] + child_count[node])
        leaf_first[node], leaf_count[node] = leaf_first[below.start], leaf_count[below].sum()
    found = Topology(
        parent=ancestor.astype(np.int32),
        step=np.concatenate(step).astype(np.int32),
        offset=np.array(offset, np.int32),
        stochastic=np.concatenate(stochastic),
        leaf_first=leaf_first.astype(np.int32),
        leaf_count=leaf_count.astype(np.int32),
        first_child=first_child.astype(np.int32),
        child_count=child_count.astype(np.int32),
    )
    for array in vars(found).values():
        array.flags.writeable = False  # shared by the cache
    return found


def topology(plan: BranchPlan) -> Topology:
    """The arrays of the plan's tree."""
    return _topology(plan.fanout, plan.stochastic, plan.comb)


def trainable(plan: BranchPlan) -> Bool:
    """[N] edges of the plan's tree that can be trained."""
    topo = topology(plan)
    found: Bool = topo.stochastic & np.append(plan.trainable, False)[topo.step]  # −1: the root
    return found


VIEWS = 4
"""Steps of a chain at which its x̂0 is shown."""


def viewed_nodes(plan: BranchPlan) -> Bool:
    """[N] nodes whose x̂0 a picture of the tree shows: those that split; of a chain, those at a few
    steps, evenly spaced. Leaves are pictures themselves."""
    topo = topology(plan)
    if plan.splits or plan.comb:
        return topo.child_count > 1
    steps = {round(index * plan.steps / VIEWS) for index in range(VIEWS)}
    return np.isin(topo.step + 1, sorted(steps)) & (topo.child_count > 0)


def fork_level(plan: BranchPlan, fork_depth: int) -> int:
    """Level at which trees are cut into subtrees: after the `fork_depth`-th split; 0 = whole
    trees.

    A depth beyond the last split means the last split. A comb is never cut: its subtrees are
    unequal.
    """
    splits = () if plan.comb else plan.splits[:fork_depth]
    return splits[-1] + 1 if splits else 0


def auto_fork_depth(plan: BranchPlan, trees: int, workers: int) -> int:
    """The shallowest split whose frontier keeps every worker busy; 0 when whole trees already
    do."""
    pieces = trees
    for depth, step in enumerate(plan.splits):
        if pieces >= workers:
            return depth
        pieces *= plan.fanout[step]
    return len(plan.splits)


def assemble(
    plan: BranchPlan, segments: list[SegmentHeader], rewards: dict[tuple[int, int], np.ndarray]
) -> list[TreeHeader]:
    """Whole trees from the headers of their segments.

    rewards: (prompt index, tree number) → leaf rewards [L]; trees that it does not name were
    dropped. Trees come sorted by (prompt index, tree), whatever order the segments arrived in.
    Raises ValueError when a tree or an edge is missing or versions are mixed.
    """
    topo = topology(plan)
    log_prob: dict[tuple[int, int], np.ndarray] = {}
    key, versions = {}, {segment.policy_version for segment in segments}
    if len(versions) != 1:
        raise ValueError(f"a batch must come from one policy version, got {sorted(versions)}")
    for segment in segments:
        for subtree, values in zip(segment.subtrees, segment.log_prob, strict=True):
            name = (subtree.prompt_index, subtree.key.tree)
            key[name] = subtree.key
            tree = log_prob.setdefault(name, np.full(topo.nodes, np.nan, np.float32))
            tree[topo.segment_edges(subtree.node, segment.start, segment.stop)] = values
    if not rewards or not rewards.keys() <= key.keys():
        raise ValueError(
            "every reward must belong to a grown tree, those of (prompt index, tree) "
            f"{sorted(rewards.keys() - key.keys())} do not"
        )
    headers = []
    for name in sorted(rewards):
        values = np.where(topo.stochastic, log_prob[name], np.float32(0))
        if np.isnan(values).any():
            raise ValueError(
                f"{key[name]}: {int(np.isnan(values).sum())} of "
                f"{int(topo.stochastic.sum())} edges have no finite log-prob"
            )
        headers.append(
            TreeHeader(
                key=key[name],
                prompt_index=name[0],
                policy_version=next(iter(versions)),
                log_prob=values,
                leaf_reward=rewards[name],
            )
        )
    return headers
