"""How many workers the cluster has room for, and asking for more room."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.autoscaler.sdk import request_resources

from cluster import nodes, ray_private
from cluster.placement import bundle
from cluster.worker import State
from cluster.worker_pool import WorkerPool

PLACING_SECONDS = 600.0
"""In which a new worker gets its place and its process has come up, if there is room for it."""


def capacity(pool: WorkerPool, waiting: Sequence[Mapping[str, Any]] = ()) -> int | None:
    """Workers of this pool that the cluster has room for: those that have a place, and as many as
    fit beside everything else. None when the workers need nothing that Ray counts.

    waiting: options of other actors that have no place yet, and go first.

    A worker whose place is not known yet may or may not hold its resources: while there are such, a
    number as near to the present one as is possible, so that it does not swing.
    """
    need, leaving = bundle(pool.resources), nodes.draining() | pool.workers.avoided.nodes()
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
    staying = [worker for worker in pool.workers if worker.state is not State.DRAINING]
    placed = Counter(
        worker.find_place() and worker.place is not None and worker.place.node not in leaving
        for worker in staying
    )[True]
    coming = sum(
        worker.place is None and time.monotonic() - worker.made < PLACING_SECONDS
        for worker in staying
    )
    return min(max(fits + placed, pool.desired), fits + placed + coming)


def ask_autoscaler(wanted: Iterable[tuple[Mapping[str, Any], int]]) -> None:
    """For room for all of these: options of actors, and how many. It replaces what was asked for
    before; nothing takes that back."""
    bundles = [bundle(options) for options, count in wanted for _ in range(count)]
    request_resources(bundles=[one for one in bundles if one])
