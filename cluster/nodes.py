"""What the cluster's nodes have room for, and which of them will go."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from cluster import ray_private
from cluster.placement import bundle

if TYPE_CHECKING:
    from cluster.pool import Pool

PLACING_SECONDS = 600.0
"""In which a new worker gets its place and its process has come up, if there is room for it."""


def draining() -> set[str]:
    """Ids of nodes that will end soon: preempted, or given back by an autoscaler."""
    return ray_private.draining_nodes()


def alive() -> set[str]:
    """Ids of nodes that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def addresses() -> dict[str, str]:
    """How people know nodes, by their ids: the address, and some of the id, since a machine may
    have several."""
    return {
        node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
        for node in ray.nodes()
    }


def address(node: str) -> str:
    """How people know a node, by its id; of one that nobody knows: "an unknown node"."""
    return addresses().get(node, node[:6] or "an unknown node")


def of(actor: ActorHandle[Any]) -> str:
    """Id of the node where an actor is, was, or was to be; empty while nobody knows. Dead actors
    are known, too."""
    return ray_private.node_of_actor(actor)


def fits(resources: Mapping[str, float], without: Collection[str]) -> bool:
    """Is there a node, other than these, that could hold as much if it were free?"""
    there = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without
    ]
    return any(
        all(one.get(name, 0.0) >= amount for name, amount in resources.items()) for one in there
    )


def room(pool: Pool, waiting: Sequence[Mapping[str, Any]] = ()) -> int | None:
    """Workers of this pool that the cluster has room for: those that have a place, and as many as
    fit beside everything else. None when the workers need nothing that Ray counts.

    waiting: options of other actors that have no place yet, and go first.

    A worker whose place is not known yet may or may not hold its resources: while there are such, a
    number as near to the present one as is possible, so that it does not swing.
    """
    need, leaving = bundle(pool.resources), draining() | pool.avoided.nodes()
    if not need:
        return None
    every = [
        free
        for node, free in ray_private.available_resources_per_node().items()
        if node not in leaving
    ]
    for other in map(bundle, waiting):
        taken = next(
            (
                free
                for free in every
                if all(free.get(name, 0.0) >= amount for name, amount in other.items())
            ),
            {},
        )
        for name in taken.keys() & other.keys():
            taken[name] -= other[name]
    fits: int = sum(
        min(math.floor(free.get(name, 0.0) / amount + 1e-6) for name, amount in need.items())
        for free in every
    )
    staying = [worker for worker in pool.workers if worker.state != "draining"]
    placed = Counter(
        worker.look() and worker.place is not None and worker.place.node not in leaving
        for worker in staying
    )[True]
    coming = sum(
        worker.place is None and time.monotonic() - worker.made < PLACING_SECONDS
        for worker in staying
    )
    return min(max(fits + placed, pool.desired), fits + placed + coming)
