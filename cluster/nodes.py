"""What the cluster's nodes have room for, and which of them will go."""

from __future__ import annotations

import math
import time
from collections import Counter

import ray

# Ray Train asks for draining nodes in the same way; there is no public call for either.
from ray._private.state import available_resources_per_node, state

from cluster.placement import bundle
from cluster.pool import Pool

PLACING_SECONDS = 60.0
"""In which a new worker gets its place, if there is room for it."""


def draining() -> set[str]:
    """Ids of nodes that will end soon: preempted, or given back by an autoscaler."""
    return set(state.get_draining_nodes())


def alive() -> set[str]:
    """Ids of nodes that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def addresses() -> dict[str, str]:
    """How people know nodes, by their ids: the address, and some of the id, since a machine may have several."""
    return {node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})" for node in ray.nodes()}


def room(pool: Pool) -> int | None:
    """Workers of this pool that the cluster has room for: those that have a place, and as many as fit beside everything
    else. None when the workers need nothing that Ray counts.

    A worker whose place is not known yet may or may not hold its resources: while there are such, a number as near to the
    present one as is possible, so that it does not swing.
    """
    need, leaving = bundle(pool.resources), draining()
    if not need:
        return None
    fits = 0
    for node, free in available_resources_per_node().items():
        if node not in leaving:
            fits += min(math.floor(free.get(name, 0.0) / amount + 1e-6) for name, amount in need.items())
    staying = [worker for worker in pool.workers if worker.state != "draining"]
    placed = Counter(worker.look() and worker.place is not None and worker.place.node not in leaving for worker in staying)[True]
    coming = sum(worker.place is None and time.monotonic() - worker.made < PLACING_SECONDS for worker in staying)
    return min(max(fits + placed, pool.desired), fits + placed + coming)
