"""Weights from the learner rank group to a pool, once, through the object store."""

from __future__ import annotations

from cluster.pool import Pool
from cluster.rank_group import RankGroup


def publish(rank_group: RankGroup, pool: Pool, chunks: int, weights: str) -> int:
    """Rank 0 puts the named weights in the store, every idle worker loads them and confirms the
    digest; busy ones and newcomers load them before their next task. Returns the version.

    Raises what a worker raises that holds anything else than what was published; RankGroupError
    when a rank is gone.
    """
    references = rank_group.leader("publish", weights, returns=2 + chunks)
    version, _ = pool.fetch(references[0])
    pool.broadcast("load_weights", *references[1:])
    pool.sync([("load_weights", tuple(references[1:]))], int(version))
    return int(version)
