"""The workers of a pool: they are started, brought up to the others, lost and replaced, and
leave."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from typing import Any

import ray
from ray import ObjectRef

from cluster import nodes, ray_private
from cluster.avoid import Avoided, labels
from cluster.byte_counter import DriverByteCounter
from cluster.errors import WORDS, BudgetError, ending, reason, told
from cluster.placement import bundle
from cluster.work import Attempt, Method, RetryPolicy, Task, Worker, place

NAMESPACE = "branchgrpo"
NOT_COUNTED = ("preempted", "scaled")
"""Causes that no budget counts."""
PING_SECONDS = 10.0
"""A worker that has had nothing to do for so long is asked whether it lives …"""
PING_TIMEOUT = 30.0
"""… and must answer in this time."""
VERBS = {"start": "could not start", "unresponsive": "was ended"}
"""What became of a worker, by cause; of all others: it died."""


class Workers:
    """Actors of one class; `desired` may be changed at any time."""

    def __init__(
        self,
        cls: type,
        role: str,
        count: int,
        resources: dict[str, Any],
        arguments: tuple[Any, ...],
        byte_counter: DriverByteCounter,
        retry_policy: RetryPolicy,
        run: str = "",
    ):
        """resources: options of the actors, as Ray takes them. run: in whose name the actors are
        named; empty: not named."""
        self.role = role
        self.byte_counter = byte_counter
        self.retry_policy = retry_policy
        self.run = run
        self.desired, self.arguments = count, arguments
        self.actor, self.resources = ray.remote(cls), resources
        self.workers: list[Worker] = []
        self.made = 0
        self.queue: deque[Task] = deque()
        # behind `ready`: what brings a newcomer up to the others
        self.sync_calls: list[tuple[str, tuple[Any, ...]]] = []
        self.sync_round, self.version = 0, 0
        self.attempts: dict[ObjectRef[Any], Attempt] = {}
        # of finished tasks for each of their size, by method
        self.seconds: dict[str, deque[float]] = {}
        self.broadcasts: dict[str, deque[float]] = {}  # seconds until all had answered, by method
        self.restarts: Counter[str] = Counter()  # by cause
        self.nodes = set[str]()  # lost with workers on them
        self.reissued = 0
        self.formed = False  # all were ready once: who cannot start later is a newcomer
        self.avoided = Avoided()  # nodes where newcomers could not start
        self.unfit = 0  # newcomers in a row that could not start, while nobody else was there
        self.note: Callable[[str], None] = lambda text: None  # hears of losses, in one line each
        # not told yet: who is gone, and how the budget stands
        self.losses: list[tuple[str, str]] = []
        self.polled = 0.0
        self.tick: Callable[[], None] = lambda: None  # called every TICK, to change what is desired

    def sync(self, calls: Iterable[tuple[Method, tuple[Any, ...]]], version: int = 0) -> None:
        """From now on, newcomers run these methods before any work; they then hold this version of
        what the methods bring."""
        self.sync_calls = [(method.__name__, arguments) for method, arguments in calls]
        self.sync_round = self.sync_round + 1
        self.version = version
        for worker in self.workers:
            # a broadcast brought these up already
            if worker.state == "ready" and not worker.pending:
                worker.sync_round, worker.version = self.sync_round, version

    def on_nodes_changed(self, alive: Container[str], leaving: Container[str]) -> None:
        """Nodes that are not alive took their workers with them, idle ones too. On those that will
        go, workers finish what they have, and others take their place elsewhere; no budget counts
        that."""
        for worker in [worker for worker in self.workers if worker.place]:
            assert worker.place
            if worker.place.node not in alive:
                self._remove(worker, "node")
            elif worker.state != "draining" and worker.place.node in leaving:
                worker.state, worker.leaving = "draining", "preempted"
                self.note(
                    f"{self._name(worker)}: that node will go; another worker takes its "
                    "place when it has done its work"
                )

    def ping(self, now: float) -> None:
        """Ask idle workers whether they live, so that one that died or hangs is replaced before
        work waits for it."""
        for worker in list(self.workers):
            if worker.state != "ready" or worker.pending:  # what it works on has its own deadline
                worker.ping = None
            elif worker.ping is None:
                if now - worker.heard > PING_SECONDS:
                    worker.ping, worker.pinged = worker.handle.ping.remote(), now
            elif ray.wait([worker.ping], timeout=0)[0]:
                try:
                    ray.get(worker.ping)
                    worker.ping, worker.heard = None, now
                except ray.exceptions.RayError as error:
                    self._remove(worker, ending(error), reason(error))
            elif now - worker.pinged > PING_TIMEOUT:
                self._remove(
                    worker,
                    "unresponsive",
                    f"no answer in {PING_TIMEOUT:g} s, while it had nothing to do",
                )

    def release_unplaced(self) -> None:
        """End workers that have no place yet: others are to get the room that comes free now."""
        for worker in [worker for worker in self.workers if not worker.look()]:
            self._remove(worker, "scaled")

    def reset(self, *arguments: Any) -> None:
        """What workers are made with is another from now on; end those that cannot be told now, as
        they start or are busy."""
        self.arguments = arguments
        self.broadcasts.clear()
        for worker in [
            worker for worker in self.workers if worker.state != "ready" or worker.pending
        ]:
            self._remove(worker, "scaled")
        self.sync([])

    def _start(self) -> None:
        options = self.resources | (
            {"name": f"{self.run}/{self.role}-{self.made}", "namespace": NAMESPACE}
            if self.run
            else {}
        )
        avoiding = self._avoiding()
        options |= {"label_selector": labels(avoiding)} if avoiding else {}
        handle = self.actor.options(**options).remote(*self.arguments, self.made)
        worker = Worker(
            self.made, handle, ray_private.call_in_actor(handle, place), avoiding=avoiding
        )
        self.made += 1
        if self.losses:
            gone, budget = self.losses.pop(0)
            self.note(f"{gone}; {self.role}-{worker.index} replaces it, {budget}")
        self.workers.append(worker)
        self._sync(worker, [("ready", ()), *self.sync_calls])

    def _sync(self, worker: Worker, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        worker.state, worker.sync_round = "starting", self.sync_round
        references = [
            getattr(worker.handle, method).remote(*arguments) for method, arguments in calls
        ]
        self._watch(Attempt(worker, references, None, time.monotonic()), references[-1])

    def _watch(self, attempt: Attempt, reference: ObjectRef[Any]) -> None:
        attempt.worker.pending.append(attempt)
        self.attempts[reference] = attempt

    def _avoiding(self) -> frozenset[str]:
        """Nodes where newcomers are not to be; none when nobody is there and no other node could
        hold one."""
        found = frozenset(self.avoided.nodes())
        alone = bool(found) and all(worker.new for worker in self.workers)
        return frozenset() if alone and not nodes.fits(bundle(self.resources), found) else found

    def _look_elsewhere(self) -> None:
        """Workers that wait for room are made again when the nodes that they must avoid are others
        by now."""
        if self.avoided.until:
            now = self._avoiding()
            for worker in [
                one for one in self.workers if one.new and one.avoiding != now and not one.look()
            ]:
                self._remove(worker, "scaled")

    def _unfit(self, worker: Worker, error: ray.exceptions.RayError) -> None:
        """It could not start. Raises why, while the pool is formed; later only when nobody is left
        and several in a row could not: until then others are started, elsewhere."""
        alone = all(one.new for one in self.workers)
        self.unfit = self.unfit + 1 if alone else 0
        if not self.formed or self.unfit >= self.retry_policy.max_attempts:
            raise told(error, f"{self.role}.ready") from error
        if worker.state != "draining" and (
            node := worker.place.node if worker.place else nodes.of(worker.handle)
        ):
            self.avoided.add(node)
        self._remove(worker, "start", reason(error))

    def _name(self, worker: Worker) -> str:
        return (
            f"{self.role}-{worker.index} on "
            f"{nodes.address(worker.place.node if worker.place else nodes.of(worker.handle))}"
        )

    def _remove(self, worker: Worker, why: str, words: str = "") -> None:
        """The worker is gone: its tasks go to others. words: why, for people. Raises BudgetError
        when that was once too often; workers that go with their node count once."""
        if worker not in self.workers:
            return
        lost = worker.state != "draining" and why != "scaled"
        why = worker.leaving if worker.state == "draining" else why
        gone = (
            f"{self._name(worker)} {VERBS.get(why, 'died')} ({words or WORDS.get(why, why)})"
            if lost
            else why
        )
        if why == "node" and worker.place:
            self.nodes.add(worker.place.node)
        self.workers.remove(worker)
        self.attempts = {
            reference: attempt
            for reference, attempt in self.attempts.items()
            if attempt.worker is not worker
        }
        ray.kill(worker.handle)
        self.restarts[why] += 1
        # what it worked on; the rest waited after
        at = worker.pending[0].task if worker.pending else None
        if at and not at.done:
            at.failures += why not in NOT_COUNTED
        for attempt in reversed(worker.pending):  # so that the one at fault is repeated first
            if attempt.task and not attempt.task.done:
                attempt.task.attempts.remove(attempt)
                if not attempt.task.attempts and attempt.task not in self.queue:
                    self.queue.appendleft(attempt.task)
        spent = len(self.nodes) + sum(
            count for cause, count in self.restarts.items() if cause not in (*NOT_COUNTED, "node")
        )
        if spent > self.retry_policy.max_restarts:
            counts = ", ".join(f"{count} {cause}" for cause, count in sorted(self.restarts.items()))
            raise BudgetError(
                f"{self.role}: {spent} losses of workers, {self.retry_policy.max_restarts} are "
                f"allowed: {counts}; last: {gone}"
            )
        if at and at.failures >= self.retry_policy.max_attempts:
            raise BudgetError(
                f"{self.role}.{at.method}: {at.failures} workers were lost with this task "
                f"({why}): {gone}"
            )
        if lost:
            self.losses.append(
                (
                    gone,
                    "which no budget counts"
                    if why in NOT_COUNTED
                    else f"restart {spent} of {self.retry_policy.max_restarts}",
                )
            )

    def states(self) -> list[dict[str, Any]]:
        """What each worker is and does, see cluster.control.WorkerState; `node` is its id."""
        found = []
        for one in self.workers:
            state, node = (
                ("waiting" if one.state == "starting" else one.state, "")
                if one.place is None
                else (one.state, one.place.node)
            )
            busy = sum(attempt.task is not None for attempt in one.pending)
            found.append(
                {
                    "name": f"{self.role}-{one.index}",
                    "state": state,
                    "version": one.version,
                    "node": node,
                    "busy": busy,
                }
            )
        return found
