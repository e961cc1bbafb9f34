"""What the cluster's nodes have room for, and which of them will go."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray

# Ray Train asks for draining nodes in the same way; there is no public call for either.
from ray._private.state import available_resources_per_node, state

from cluster.placement import bundle
from cluster.pool import Pool

PLACING_SECONDS = 600.0
"""In which a new worker gets its place and its process has come up, if there is room for it."""


def draining() -> set[str]:
    """Ids of nodes that will end soon: preempted, or given back by an autoscaler."""
    return set(state.get_draining_nodes())


def alive() -> set[str]:
    """Ids of nodes that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def addresses() -> dict[str, str]:
    """How people know nodes, by their ids: the address, and some of the id, since a machine may have several."""
    return {node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})" for node in ray.nodes()}


def room(pool: Pool, waiting: Sequence[Mapping[str, Any]] = ()) -> int | None:
    """Workers of this pool that the cluster has room for: those that have a place, and as many as fit beside everything
    else. None when the workers need nothing that Ray counts.

    waiting: options of other actors that have no place yet, and go first.

    A worker whose place is not known yet may or may not hold its resources: while there are such, a number as near to the
    present one as is possible, so that it does not swing.
    """
    need, leaving = bundle(pool.resources), draining()
    if not need:
        return None
    every = [dict(free) for node, free in available_resources_per_node().items() if node not in leaving]
    for other in map(bundle, waiting):
        taken = next((free for free in every if all(free.get(name, 0.0) >= amount for name, amount in other.items())), {})
        for name in taken.keys() & other.keys():
            taken[name] -= other[name]
    fits: int = sum(min(math.floor(free.get(name, 0.0) / amount + 1e-6) for name, amount in need.items()) for free in every)
    staying = [worker for worker in pool.workers if worker.state != "draining"]
    placed = Counter(worker.look() and worker.place is not None and worker.place.node not in leaving for worker in staying)[True]
    coming = sum(worker.place is None and time.monotonic() - worker.made < PLACING_SECONDS for worker in staying)
    return min(max(fits + placed, pool.desired), fits + placed + coming)
