"""A worker of a pool, from its request for room until it is gone.

waiting → starting → ready → draining → gone; a ready worker starts anew when it must be brought up
to the others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from cluster.actor import Place
from cluster.tasks import Task


class State(StrEnum):
    """Where a worker stands."""

    WAITING = "waiting"  # for room, or for its process
    STARTING = "starting"  # it loads what it needs, or what the others have loaded meanwhile
    READY = "ready"  # it takes tasks
    DRAINING = "draining"  # it finishes the tasks it has, and takes no more
    GONE = "gone"  # it is out of the pool


TRANSITIONS: Mapping[State, frozenset[State]] = {
    # to ready at once: its answer may be seen before its place is
    State.WAITING: frozenset({State.STARTING, State.READY, State.DRAINING, State.GONE}),
    State.STARTING: frozenset({State.READY, State.DRAINING, State.GONE}),
    State.READY: frozenset({State.STARTING, State.DRAINING, State.GONE}),
    State.DRAINING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}
"""What may follow a state."""


class IllegalTransition(RuntimeError):
    """A worker was to go from one state to another that cannot follow it."""


@dataclass(eq=False)
class Attempt:
    """A task on a worker; `task` is None where the worker gets ready."""

    worker: Worker
    references: list[ObjectRef[Any]]
    task: Task | None
    began: float


@dataclass(eq=False)
class Worker:
    """One actor. Its state changes by the methods below alone; times are time.monotonic's."""

    index: int
    name: str
    handle: ActorHandle[Any]
    placed: ObjectRef[Place] | None = None  # there as soon as its process runs
    avoiding: frozenset[str] = frozenset()  # nodes where it must not be
    place: Place | None = None  # None: it waits for room, or its process is being started
    new: bool = True  # it was never ready
    sync_round: int = -1  # what it was brought up to last; an older one than the pool's: not yet
    version: int = -1  # of what the sync brought
    leaving: str = "scaled"  # why it drains
    pending: list[Attempt] = field(default_factory=list)  # it works on the first; the rest waits
    began: float = field(default_factory=time.monotonic)  # when it was ready last
    made: float = field(default_factory=time.monotonic)
    last_answer: float = field(default_factory=time.monotonic)  # to anything
    ping: ObjectRef[None] | None = None  # asked while it has nothing to do
    pinged: float = 0.0  # when
    _state: State = State.WAITING

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state

    @property
    def idle(self) -> bool:
        """It could take a task at once."""
        return self._state is State.READY and not self.pending

    @property
    def tasks(self) -> int:
        """Tasks that it has."""
        return sum(attempt.task is not None for attempt in self.pending)

    @property
    def suspect(self) -> bool:
        """What it works on was given to another as well, so it may hang."""
        first = self.pending[0].task if self.pending else None
        return first is not None and (first.done or first.attempts > 1)

    # transitions

    def find_place(self) -> bool:
        """Has it a place by now? Does not wait. An actor that is gone is
        found by its tasks."""
        if self.place is None and self.placed and ray.wait([self.placed], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):
                self.begin_loading(ray.get(self.placed))
        return self.place is not None

    def begin_loading(self, place: Place) -> None:
        """Its process runs there. waiting → starting; one that was ready before, or drains, keeps
        its state."""
        self.place = place
        if self._state is State.WAITING:
            self._change(State.STARTING)

    def begin_sync(self, sync_round: int) -> None:
        """It is being brought up to this round. ready → starting; one that waits goes on."""
        self.sync_round = sync_round
        if self._state is not State.WAITING:
            self._change(State.STARTING)

    def become_ready(self) -> None:
        """It has loaded what it needs. starting → ready; one that drains goes on."""
        self.new = False
        if self._state is not State.DRAINING:
            self._change(State.READY)

    def drain(self, why: str = "scaled") -> None:
        """It takes no more tasks, and is gone when it has done those it has. why: a cause, as
        restarts are counted by."""
        self._change(State.DRAINING)
        self.leaving = why

    def leave(self) -> None:
        """It is out of the pool."""
        self._change(State.GONE)

    def _change(self, state: State) -> None:
        if state not in TRANSITIONS[self._state]:
            raise IllegalTransition(
                f"worker {self.index}: expected one of {sorted(TRANSITIONS[self._state])} after "
                f"{self._state}, got {state}"
            )
        self._state = state

    def answered(self, attempt: Attempt, now: float) -> None:
        """It has done what it worked on, and goes on with the next."""
        self.pending.remove(attempt)
        self.last_answer = now
        if self.pending:
            self.pending[0].began = now  # it waited until now
