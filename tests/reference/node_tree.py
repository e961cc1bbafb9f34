"""A tree of node objects, built one node at a time: slow, and obviously right."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Node:
    """One node; `step` is the denoising step of the edge into it. A comb says which edges are
    random."""

    number: int
    step: int
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    random: bool = False

    @property
    def level(self) -> int:
        return self.step + 1

    def leaves(self) -> list[Node]:
        """Leaves below this node, left to right."""
        if not self.children:
            return [self]
        return [leaf for child in self.children for leaf in child.leaves()]

    def descendants(self, level: int) -> list[Node]:
        """Nodes of `level` below this node, or the node itself at its own level."""
        if self.level == level:
            return [self]
        return [found for child in self.children for found in child.descendants(level)]

    def subtree(self) -> list[Node]:
        """This node and every node below it."""
        return [self, *(node for child in self.children for node in child.subtree())]


def build(fanout: Sequence[int]) -> list[Node]:
    """All nodes by number, breadth first from the root."""
    nodes = [Node(0, -1, None)]
    queue = deque(nodes)
    while queue:
        node = queue.popleft()
        step = node.step + 1
        if step == len(fanout):
            continue
        for _ in range(fanout[step]):
            child = Node(len(nodes), step, node)
            nodes.append(child)
            node.children.append(child)
            queue.append(child)
    return nodes


def build_comb(fanout: Sequence[int], random: Sequence[bool]) -> list[Node]:
    """A trunk whose node has fanout[step] random children at every random step; all other edges are
    the only one.

    The trunk goes on, as its node's first child, while a random step lies ahead.
    """
    nodes = [Node(0, -1, None)]
    trunk, queue = nodes[0], deque(nodes)
    while queue:
        node = queue.popleft()
        step = node.step + 1
        if step == len(fanout):
            continue
        if node is trunk and any(random[step:]):
            kinds = [False] * any(random[step + 1 :]) + [True] * (
                fanout[step] if random[step] else 0
            )
        else:
            kinds = [False]
        for kind in kinds:
            child = Node(len(nodes), step, node, random=kind)
            nodes.append(child)
            node.children.append(child)
            queue.append(child)
        if node is trunk:
            trunk = node.children[0]
            if trunk.random:
                trunk = nodes[0]  # it ended after its last split
    return nodes


def size_of_levels(fanout: Sequence[int]) -> list[int]:
    """How many nodes each of the T + 1 levels has."""
    nodes = build(fanout)
    return [sum(node.level == level for node in nodes) for level in range(len(fanout) + 1)]
