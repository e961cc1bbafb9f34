"""Nodes on which an actor could not start, as on one with a broken package: newcomers go elsewhere
for a while."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping

from ray.util.placement_group import PlacementGroup, placement_group

AVOID_SECONDS = 600.0
"""How long a node is left alone after its first failure; twice as long after each further one."""


class Avoided:
    """The nodes that one role leaves alone."""

    def __init__(self) -> None:
        self.failures = Counter[str]()
        self.until: dict[str, float] = {}  # on the clock time.monotonic

    def add(self, node: str) -> None:
        """An actor could not start there."""
        self.until[node] = time.monotonic() + AVOID_SECONDS * 2.0 ** self.failures[node]
        self.failures[node] += 1

    def nodes(self) -> set[str]:
        """Ids of those that are left alone now."""
        now = time.monotonic()
        return {node for node, until in self.until.items() if until > now}


def labels(nodes: Collection[str]) -> dict[str, str]:
    """Labels, as Ray's options take them, of every node but these."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"} if nodes else {}


def group(bundle: Mapping[str, float], count: int, nodes: Collection[str]) -> PlacementGroup:
    """Room for so many actors, near to each other, on other nodes than these."""
    away = {"bundle_label_selector": [labels(nodes)] * count} if nodes else {}
    return placement_group([dict(bundle)] * count, strategy="PACK", **away)
