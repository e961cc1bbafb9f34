"""Weights from the learner gang to a pool, once, through the object store."""

from __future__ import annotations

from typing import Any

from cluster.errors import PublishError
from cluster.gang import Gang
from cluster.pool import Pool


def publish(gang: Gang, pool: Pool, chunks: int) -> Any:
    """Rank 0 puts its weights in the store, every worker loads them and confirms the digest. Returns the header.

    Raises PublishError when a worker, after loading, holds anything else than what was published.
    """
    references = gang.leader("publish", returns=1 + chunks)
    header = pool.fetch(references[0])
    digests = pool.broadcast("load_weights", *references)
    for worker, digest in enumerate(digests):
        if digest != header.digest:
            raise PublishError(f"{pool.role}-{worker} holds weights {digest[:12]}… after loading v{header.version}, published were {header.digest[:12]}…")
    return header
