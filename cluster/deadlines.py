"""How long tasks and broadcasts take, and from when on they take too long."""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef

from cluster.retry_policy import RetryPolicy
from cluster.tasks import Task
from cluster.worker import Worker

KEPT = 64
"""Times that a median is taken of."""
HUNG = 2
"""What takes so many times the seconds after which it is overdue hangs."""


@dataclass(frozen=True, kw_only=True)
class Overdue:
    """What a worker works on takes too long."""

    words: str  # for people
    hung: bool  # far too long: it is not waited for any more


class Deadlines:
    """Of one pool, by the method's name."""

    def __init__(self, policy: RetryPolicy):
        self.policy = policy
        self.seconds: dict[str, deque[float]] = {}  # of finished tasks, for each of their size
        self.broadcasts: dict[str, deque[float]] = {}  # until all had answered

    # tasks

    def finished(self, task: Task, seconds: float) -> None:
        """It took so long."""
        self.seconds.setdefault(task.method, deque(maxlen=KEPT)).append(seconds / task.size)

    def limit(self, task: Task) -> float:
        """Seconds after which a task of this kind and size is overdue."""
        known = self.seconds.get(task.method)
        if not known:
            return self.policy.task_timeout_seconds
        usual = task.size * statistics.median(known)
        return max(self.policy.straggler_seconds, self.policy.straggler_factor * usual)

    def longest(self, task: Task) -> float:
        """Seconds after which it is not waited for any more."""
        # what is slow everywhere must end somewhere
        return HUNG * self.limit(task) * float(2**task.failures)

    def usual(self, task: Task) -> str:
        """How long its like takes, for people."""
        known = self.seconds.get(task.method)
        if not known:
            return "the first of its kind"
        return f"median {task.size * statistics.median(known):.2g} s"

    def overdue(self, worker: Worker, now: float) -> Overdue | None:
        """Does it take too long for what it works on?"""
        if not worker.pending:
            return None
        first = worker.pending[0]
        if ray.wait(first.references[-1:], timeout=0, fetch_local=False)[0]:
            return None  # done: nobody has taken it in yet
        took = now - max(first.began, worker.began)
        if first.task is None:
            if not worker.find_place():
                first.began = now  # it waits for room, however long that takes
                return None
            late = took > self.policy.task_timeout_seconds
            return Overdue(words=f"not ready after {took:.0f} s", hung=True) if late else None
        longest = self.longest(first.task)
        if HUNG * took <= longest:
            return None
        words = f"{first.task.method} takes {took:.0f} s ({self.usual(first.task)})"
        return Overdue(words=words, hung=took > longest)

    # broadcasts

    def all_answered(self, method: str, seconds: float) -> None:
        """A broadcast took so long."""
        self.broadcasts.setdefault(method, deque(maxlen=KEPT)).append(seconds)

    def in_time(self, method: str, references: list[ObjectRef[Any]]) -> list[ObjectRef[Any]]:
        """Wait for a broadcast's results; those that come in time: some times as long as it usually
        takes until all have answered. While nobody knows, the faster half has the timeout, and the
        others some times as long as that half took."""
        if not references:
            return []
        began, known = time.monotonic(), self.broadcasts.get(method)
        usual = statistics.median(known) if known else 0.0
        first = self.policy.task_timeout_seconds
        if known:
            first = min(first, self._answer_limit(usual))
        half: list[ObjectRef[Any]]
        half, late = ray.wait(
            references, num_returns=(len(references) + 1) // 2, timeout=first, fetch_local=False
        )
        if len(half) < len(late) or not late:
            return half
        limit = self._answer_limit(max(usual, time.monotonic() - began))
        done, _ = ray.wait(late, num_returns=len(late), timeout=limit, fetch_local=False)
        return half + list(done)

    def _answer_limit(self, usual: float) -> float:
        """Seconds that answers may take which usually take so many."""
        return 2 * max(self.policy.straggler_seconds, self.policy.straggler_factor * usual)
