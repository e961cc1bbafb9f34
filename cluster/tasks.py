"""Tasks, sets of tasks that are waited for, and waiting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import ObjectRef

from cluster.retry_policy import RetryPolicy

POLL_SECONDS = 0.25
"""Between two looks at deadlines and desired counts, and the longest that `wait` waits."""


class TaskPool(Protocol):
    """What runs tasks, as those who wait for them see it."""

    retry_policy: RetryPolicy

    def poll(self) -> None:
        """Give out tasks, and look after those who run them. Waits for nothing."""

    def watched(self) -> Collection[ObjectRef[Any]]:
        """References whose results `on_result` is to hear of."""

    def on_result(self, reference: ObjectRef[Any], timed: bool = True) -> None:
        """A watched reference is there: a result, or a failure. timed: it has come just now."""

    def running(self) -> set[str]:
        """Tasks that run, as ROLE.METHOD."""


@dataclass(eq=False, kw_only=True)
class Task:
    """A piece of work until its first result."""

    method: str
    arguments: tuple[Any, ...]
    returns: int
    then: Callable[[list[ObjectRef[Any]]], None]
    tasks: Tasks
    size: float = 1.0
    attempts: int = 0  # that run
    failures: int = 0  # workers that were lost with it
    done: bool = False


class Tasks:
    """Pending tasks, perhaps of several pools, and what to do when each finishes; steps may add
    further tasks."""

    def __init__(self) -> None:
        self.unfinished: Counter[TaskPool] = Counter()
        self.pools: list[TaskPool] = []

    def add(self, pool: TaskPool) -> None:
        """A task of this pool is to be waited for."""
        self.unfinished[pool] += 1
        if pool not in self.pools:
            self.pools.append(pool)

    def finished(self, pool: TaskPool) -> None:
        """One of its tasks has its result."""
        self.unfinished[pool] -= 1

    def run(self, between: Callable[[], None] = lambda: None) -> None:
        """Until nothing is pending; `between` is called now and then. Raises the first task's
        error, or TimeoutError when none finishes in time."""
        take_in(*self.pools)
        last_result = time.monotonic()
        while any(self.unfinished.values()):
            for pool in self.pools:
                pool.poll()
            limit = max(pool.retry_policy.task_timeout_seconds for pool in self.pools)
            if wait(*self.pools):
                last_result = time.monotonic()
            elif time.monotonic() - last_result > limit:
                waiting = sorted(set[str]().union(*(pool.running() for pool in self.pools)))
                raise TimeoutError(
                    f"no task finished in {limit:g} s; waiting for {waiting or 'workers'}"
                )
            between()


def wait(*pools: TaskPool) -> int:
    """Wait a moment for anything that the pools watch, and let them take it in. Returns how much
    came."""
    watched = {reference: pool for pool in pools for reference in pool.watched()}
    if not watched:
        time.sleep(POLL_SECONDS / 5)
        return 0
    done, _ = ray.wait(list(watched), num_returns=1, timeout=POLL_SECONDS, fetch_local=False)
    for reference in done:
        watched[reference].on_result(reference)
    return len(done)


def take_in(*pools: TaskPool) -> None:
    """Let the pools take in what came while nobody looked; when that was, nobody knows."""
    watched = {reference: pool for pool in pools for reference in pool.watched()}
    if watched:
        done, _ = ray.wait(list(watched), num_returns=len(watched), timeout=0, fetch_local=False)
        for reference in done:
            watched[reference].on_result(reference, timed=False)
