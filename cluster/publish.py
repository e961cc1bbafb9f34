"""Weights from the learner gang to a pool, once, through the object store."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.gang import Gang
from cluster.pool import Pool


def publish(gang: Gang, pool: Pool, chunks: Sequence[int], weights: str) -> int:
    """Rank 0 puts the named weights in the store, every idle worker loads them and confirms the digest; busy ones and
    newcomers load them before their next task. Returns the version.

    chunks: of each part. All is asked for at once, so that workers load a part while the next is gathered and put.

    Raises what a worker raises that holds anything else than what was published; GangError when a rank is gone.
    """
    parts = [gang.lead("publish", weights, part, returns=2 + count) for part, count in enumerate(chunks)]
    loads = [("load_weights", tuple(references[1:])) for _, references in parts]
    asked = pool.begin(loads)
    for call, _ in parts:
        gang.watch(call)
    version, _ = pool.fetch(parts[0][1][0])
    pool.finish(asked)
    pool.greet(loads, int(version))
    return int(version)
