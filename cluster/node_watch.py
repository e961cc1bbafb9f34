"""Nodes that come, go and are about to go, as one run sees them."""

from __future__ import annotations

from collections.abc import Iterable

from cluster import nodes
from cluster.actor import Place


class NodeWatch:
    """Which nodes there are, and for which of those that will go a checkpoint is due."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.draining: set[str] = set()  # nodes that will go
        # those of them, present and past, that had actors of this run
        self.warned: set[str] = set()
        self.checkpointed_for: set[str] = set()  # those of them for which a checkpoint was asked

    def update(self, places: Iterable[Place]) -> None:
        """Ask the cluster. places: of this run's actors, before any leaves."""
        self.draining, self.alive = nodes.draining(), nodes.alive()
        self.warned |= self.draining & {place.node for place in places}

    def take_new(self) -> bool:
        """Has it become known that nodes with actors of this run will go? Each counts once."""
        new = self.warned - self.checkpointed_for
        self.checkpointed_for |= new
        return bool(new)
