"""A segment as it grows: the rows in flight, and what training and pictures need of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo.tree import Topology
from branchgrpo.types import F32, I32, Bool, Subtree


@dataclass
class Segment:
    """M grown subtrees. Rows of `frontier` are ordered by subtree, then by node number."""

    log_prob: F32  # [M, E] of stochastic edges, by rising child number
    kept_subtree: I32  # [m] rows of `kept`
    kept_node: I32  # [m]
    # [m, *S] storage dtype: parents and children of stochastic edges that can be trained, or the
    # leaves
    kept: Tensor
    parent_row: I32  # [p] rows of `kept` whose velocity is kept as well; empty unless asked for
    velocity: Tensor  # [p, *S] float32
    frontier: Tensor  # [M*f, *S] storage dtype, nodes of level `stop`
    viewed: list[tuple[int, int]]  # (subtree, node) of each row of `clean`
    clean: Tensor  # [v, *S] float32 x̂0 of nodes to be shown; v = 0 unless asked for
    forwards: int  # rows sent through the model
    halved: int  # how often the batch was halved on the way


class Rows:
    """The rows in flight: latents, which subtree each belongs to, and its node number."""

    def __init__(self, topo: Topology, subtrees: tuple[Subtree, ...], x: Tensor, start: int):
        self.x = x
        self.owner = np.arange(len(subtrees))
        self.node = np.array([subtree.node for subtree in subtrees], np.int32)
        if not np.isin(self.node, topo.level(start)).all():
            raise ValueError(
                f"subtrees must start at level {start}, got nodes {self.node.tolist()}"
            )

    def advance(self, x: Tensor, above: np.ndarray, children: I32) -> None:
        """Go one level down; x holds a row for each child, `above` the row of its parent."""
        self.x = x
        self.owner = self.owner[above]
        self.node = children


class Kept:
    """Rows that training needs, each node once (a child is often the next step's parent)."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []
        self.seen: dict[tuple[int, int], int] = {}  # (subtree, node) → row

    def add(self, x: Tensor, owner: np.ndarray, node: np.ndarray, rows: np.ndarray) -> None:
        names = list(zip(owner[rows].tolist(), node[rows].tolist(), strict=True))
        new = [row for row, name in zip(rows.tolist(), names, strict=True) if name not in self.seen]
        if new:
            self.latents.append(x[new])
            for name in names:
                self.seen.setdefault(name, len(self.seen))

    def arrays(self, like: Tensor) -> tuple[I32, I32, Tensor]:
        names = np.array(list(self.seen), np.int32).reshape(-1, 2)
        return names[:, 0], names[:, 1], torch.cat(self.latents) if self.latents else like[:0]


class Record:
    """What training needs of a segment, taken down on the way."""

    def __init__(self, keep_velocity: bool, clean: bool, shown: Bool):
        """shown: [N] nodes whose x̂0 is kept."""
        self.keep_velocity, self.clean, self.shown = keep_velocity, clean, shown
        self.log_probs: list[F32] = []  # [M, ·] of each random step
        self.kept = Kept()
        self.velocities = Kept()
        self.views = Kept()
        self.forwards = 0

    def view(self, state: Rows, clean: Tensor) -> None:
        """x̂0 [·, *S] of the level that `state` is at."""
        rows = np.flatnonzero(self.shown[state.node])
        self.views.add(clean.float(), state.owner, state.node, rows)

    def add_parents(self, state: Rows, v: Tensor, rows: np.ndarray) -> None:
        """Rows of the level that `state` is at, with edges below them that can be trained."""
        if self.clean:
            return
        self.kept.add(state.x, state.owner, state.node, rows)
        if self.keep_velocity:
            self.velocities.add(v.float(), state.owner, state.node, rows)

    def add_children(self, state: Rows, rows: np.ndarray) -> None:
        """The rows that these edges lead to, on the level that `state` is at now."""
        if not self.clean:
            self.kept.add(state.x, state.owner, state.node, rows)

    def segment(self, subtrees: int, roots: Tensor, frontier: Tensor, halved: int) -> Segment:
        """All of it, for so many subtrees."""
        owner, node, latents = self.kept.arrays(frontier)
        return Segment(
            log_prob=np.concatenate(self.log_probs, 1)
            if self.log_probs
            else np.zeros((subtrees, 0), np.float32),
            kept_subtree=owner,
            kept_node=node,
            kept=latents,
            parent_row=np.array([self.kept.seen[name] for name in self.velocities.seen], np.int32),
            velocity=self.velocities.arrays(roots.float())[2],
            frontier=frontier,
            viewed=list(self.views.seen),
            clean=self.views.arrays(roots.float())[2],
            forwards=self.forwards,
            halved=halved,
        )
