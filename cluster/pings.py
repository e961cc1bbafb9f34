"""Workers that have nothing to do are asked whether they live, so that one that died or hangs is
replaced before work waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import ray

from cluster.errors import loss_cause, reason
from cluster.worker import Worker

PING_SECONDS = 10.0
"""A worker that has had nothing to do for so long is asked …"""
PING_TIMEOUT = 30.0
"""… and must answer in this time."""


def unanswered(workers: Iterable[Worker], now: float) -> Iterator[tuple[Worker, str, str]]:
    """Ask those who are due. Yields workers that are gone or hang, by which cause, and words for
    people. Waits for nobody."""
    for worker in workers:
        if not worker.idle:  # what it works on has its own deadline
            worker.ping = None
        elif worker.ping is None:
            if now - worker.last_answer > PING_SECONDS:
                worker.ping, worker.pinged = worker.handle.ping.remote(), now
        elif ray.wait([worker.ping], timeout=0)[0]:
            try:
                ray.get(worker.ping)
                worker.ping, worker.last_answer = None, now
            except ray.exceptions.RayError as error:
                yield worker, loss_cause(error), reason(error)
        elif now - worker.pinged > PING_TIMEOUT:
            words = f"no answer in {PING_TIMEOUT:g} s, while it had nothing to do"
            yield worker, "unresponsive", words
