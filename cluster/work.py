"""What a pool keeps: workers, tasks, attempts at tasks, and sets of tasks that are waited for."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

if TYPE_CHECKING:
    from cluster.pool import Pool

Method = Callable[..., Any]
"""A method of the actors' class; it runs where the actor is."""

TICK = 0.25
"""Seconds between two looks at deadlines and wanted counts."""


class Place(NamedTuple):
    """Where an actor runs."""

    node: str
    process: int


def place(actor: Any) -> Place:
    """Runs in an actor, whatever its class, when it has been made."""
    del actor
    return Place(ray.get_runtime_context().get_node_id(), os.getpid())


@dataclass(frozen=True)
class RetryPolicy:
    """How long a pool waits, and how often it forgives."""

    # seconds within which some task must finish, and a worker that has its place must get ready
    task_timeout_seconds: float = 1800.0
    # a task is issued again after this many times the median of its like, and its worker ended
    # after as many more
    straggler_factor: float = 3.0
    straggler_seconds: float = 5.0  # … but never before this many seconds
    max_restarts: int = 20  # workers replaced in all, preempted ones apart
    max_attempts: int = 4  # workers that one task may take with it


@dataclass(eq=False)
class Worker:
    """One actor."""

    index: int
    handle: ActorHandle[Any]
    placed: ObjectRef[Place]
    place: Place | None = None  # None: it waits for room, or its process is being started
    state: str = "starting"  # starting, ready, draining
    avoiding: frozenset[str] = frozenset()  # nodes where it must not be
    new: bool = True  # it was never ready
    sync_round: int = -1  # which sync it had; older ones must be greeted again
    version: int = -1  # of what the sync brought
    leaving: str = "scaled"  # why it drains
    pending: list[Attempt] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    made: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)  # when it last answered anything
    ping: ObjectRef[Place] | None = None  # asked while it has nothing to do
    pinged: float = 0.0

    def look(self) -> bool:
        """Has it a place by now? Does not wait. Of an actor that is gone, its tasks tell."""
        if self.place is None and ray.wait([self.placed], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):
                self.place = ray.get(self.placed)
        return self.place is not None


@dataclass(eq=False)
class Attempt:
    """A task on a worker; `task` is None for a sync."""

    worker: Worker
    references: list[ObjectRef[Any]]
    task: Task | None
    began: float


@dataclass(eq=False)
class Task:
    """A piece of work until its first result."""

    method: str
    arguments: tuple[Any, ...]
    returns: int
    then: Callable[[list[ObjectRef[Any]]], None]
    tasks: Tasks
    size: float = 1.0
    attempts: list[Attempt] = field(default_factory=list)  # that run
    failures: int = 0
    done: bool = False


class Tasks:
    """Pending tasks, perhaps of several pools, and what to do when each finishes; steps may add
    further tasks."""

    def __init__(self) -> None:
        self.pools: Counter[Pool] = Counter()  # unfinished tasks of each
        self.every: list[Pool] = []

    def add(self, pool: Pool) -> None:
        """A task of this pool is to be waited for."""
        self.pools[pool] += 1
        if pool not in self.every:
            self.every.append(pool)

    def finished(self, pool: Pool) -> None:
        """One of its tasks has its result."""
        self.pools[pool] -= 1

    def run(self, between: Callable[[], None] = lambda: None) -> None:
        """Until nothing is pending; `between` is called now and then. Raises the first task's
        error, or TimeoutError when none finishes in time."""
        heard = time.monotonic()
        while any(self.pools.values()):
            for pool in self.every:
                pool.poll()
            if wait(*self.every):
                heard = time.monotonic()
            elif time.monotonic() - heard > (
                limit := max(pool.retry_policy.task_timeout_seconds for pool in self.every)
            ):
                waiting = sorted(
                    {
                        f"{pool.role}.{attempt.task.method}"
                        for pool in self.every
                        for attempt in pool.attempts.values()
                        if attempt.task
                    }
                )
                raise TimeoutError(
                    f"no task finished in {limit:g} s; waiting for {waiting or 'workers'}"
                )
            between()


def wait(*pools: Pool) -> int:
    """Wait a moment for anything that the pools watch, and let them take it in. Returns how much
    came."""
    watched = {reference: pool for pool in pools for reference in pool.attempts}
    if not watched:
        time.sleep(TICK / 5)
        return 0
    done, _ = ray.wait(list(watched), num_returns=1, timeout=TICK, fetch_local=False)
    for reference in done:
        watched[reference].answered(reference)
    return len(done)
