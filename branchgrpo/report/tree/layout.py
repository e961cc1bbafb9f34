"""Where the nodes of a prompt's trees stand: time from left to right, leaves one below the
other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from branchgrpo.rollout.trees import GrownTree

WIDTH = 1000.0
"""Between the roots and the leaves."""

ROWS = ((16, 68.0), (40, 44.0), (10**9, 30.0))
"""Leaves at most, and how far apart they stand."""

FILLED = 0.86
"""Part of the room between two nodes that a picture takes."""

LARGEST = 56.0


@dataclass(frozen=True)
class Place:
    """A node of one of the trees."""

    tree: int  # which of the trees
    node: int
    x: float  # its middle
    y: float
    size: float  # of its picture, at the longer side; 0: it has none


@dataclass(frozen=True)
class Forest:
    """The trees of one prompt in one iteration, placed."""

    trees: Sequence[GrownTree]
    places: Sequence[Sequence[Place]]  # by tree and node
    step: float  # from one level to the next
    row: float  # from one leaf to the next
    left: float  # room left of the roots
    height: float

    @property
    def strongest(self) -> float:
        """Largest |advantage|, of edges that are trained."""
        return max(
            (float(np.abs(tree.advantage[tree.kept]).max(initial=0.0)) for tree in self.trees),
            default=0.0,
        )


def placed(trees: Sequence[GrownTree]) -> Forest:
    """Places for trees of one plan: a node stands in the middle of its children. Pictures are as
    large as fit between neighbours."""
    plan, topo = trees[0].plan, trees[0].topology
    count = topo.leaves * len(trees)
    row = next(high for most, high in ROWS if count <= most)
    step = WIDTH / plan.steps
    y = np.zeros((len(trees), topo.nodes))
    for number in range(len(trees)):
        first = topo.nodes - topo.leaves
        y[number, first:] = row * (number * topo.leaves + np.arange(topo.leaves) + 0.5)
        for node in range(first - 1, -1, -1):
            below = slice(topo.first_child[node], topo.first_child[node] + topo.child_count[node])
            y[number, node] = (y[number, below.start] + y[number, below.stop - 1]) / 2
    level = topo.step + 1
    sizes = _sizes(trees, y, step=step, row=row)
    left = max(LARGEST, float(sizes.max())) / 2 + 6
    places = [
        [
            Place(
                tree=number,
                node=node,
                x=left + step * float(level[node]) + (row / 2 if level[node] == plan.steps else 0),
                y=float(y[number, node]),
                size=float(sizes[number, node]),
            )
            for node in range(topo.nodes)
        ]
        for number in range(len(trees))
    ]
    return Forest(trees, places, step=step, row=row, left=left, height=row * count)


def _sizes(
    trees: Sequence[GrownTree], y: NDArray[np.float64], *, step: float, row: float
) -> NDArray[np.float64]:
    """[trees, N] sizes of pictures, 0 where there is none: of one level all alike."""
    plan, topo = trees[0].plan, trees[0].topology
    found = np.zeros_like(y)
    shown = np.zeros(topo.nodes, bool)
    shown[[node for node in trees[0].pixels if node < topo.nodes]] = True
    level = topo.step + 1
    levels = sorted({int(one) for one in level[shown]})
    for at in levels:
        nodes = np.flatnonzero(shown & (level == at))
        heights = np.sort(y[:, nodes].ravel())
        room = float(np.diff(heights).min(initial=LARGEST)) if len(heights) > 1 else LARGEST
        beside = [other for other in levels if other != at]
        width = min((abs(other - at) * step for other in beside), default=LARGEST)
        largest = row if at == plan.steps else min(width, room, LARGEST)
        found[:, nodes] = FILLED * largest
    return found
