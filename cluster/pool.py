"""An elastic pool of equal workers: tasks go to the least busy one, results come as they finish.

Tasks must be pure functions of their arguments: a task whose worker died, or that takes far longer than its like, is
issued again to another worker, and the first result wins. The first of a task's results must be small, since the driver
reads it to see whether the task failed.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from typing import Any

import ray
from ray import ObjectRef

from cluster.errors import BudgetError, ending, told
from cluster.meter import Meter
from cluster.work import TICK, Attempt, Flow, Patience, Task, Worker, place, wait

__all__ = ["FORGIVEN", "NAMESPACE", "Patience", "Pool"]

NAMESPACE = "branchgrpo"
DEPTH = 2
"""Tasks a worker holds at once: one that runs, and one so that it need not wait for the driver."""
FORGIVEN = ("preempted", "scaled")
"""Causes that no budget counts."""


class Pool:
    """Workers of one class on Ray actors. `desired` may be changed at any time; `tend` follows."""

    def __init__(
        self,
        cls: type,
        role: str,
        count: int,
        resources: dict[str, Any],
        arguments: tuple[Any, ...],
        meter: Meter,
        patience: Patience,
        run: str = "",
    ):
        """resources: options of the actors, as Ray takes them. run: in whose name the actors are named; empty: not named."""
        self.role, self.meter, self.patience, self.run = role, meter, patience, run
        self.desired, self.arguments = count, arguments
        self.actor, self.resources = ray.remote(cls), resources
        self.workers: list[Worker] = []
        self.made = 0
        self.queue: deque[Task] = deque()
        self.greetings: list[tuple[str, tuple[Any, ...]]] = []  # behind `ready`: what brings a newcomer up to the others
        self.greeting, self.version = 0, 0
        self.attempts: dict[ObjectRef[Any], Attempt] = {}
        self.seconds: dict[str, deque[float]] = {}  # of finished tasks for each of their size, by method
        self.restarts: Counter[str] = Counter()  # by cause
        self.nodes = set[str]()  # lost with workers on them
        self.reissued = 0
        self.tended = 0.0
        self.tick: Callable[[], None] = lambda: None  # called every TICK, to change what is desired

    def __len__(self) -> int:
        """Workers that are wanted: what work is cut for."""
        return self.desired

    # workers

    def wait_ready(self) -> None:
        """Until as many workers as wanted have loaded what they need. Raises what that raised."""
        deadline, enough = time.monotonic() + self.patience.timeout, self.desired
        while sum(worker.state == "ready" for worker in self.workers) < min(enough, self.desired):  # those wished for meanwhile may wait for room
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.role}: {enough} workers were not ready in {self.patience.timeout:g} s")
            self.tend()
            wait(self)

    def greet(self, greetings: Iterable[tuple[str, tuple[Any, ...]]], version: int = 0) -> None:
        """From now on, newcomers run these methods before any work; they then hold this version of what the methods bring."""
        self.greetings, self.greeting, self.version = list(greetings), self.greeting + 1, version
        for worker in self.workers:
            if worker.state == "ready" and not worker.pending:  # a broadcast brought these up already
                worker.greeting, worker.version = self.greeting, version

    def settle(self, alive: Container[str], leaving: Container[str]) -> None:
        """Nodes that are not alive took their workers with them, idle ones too. On those that will go, workers finish what they
        have, and others take their place elsewhere; no budget counts that."""
        for worker in [worker for worker in self.workers if worker.place]:
            assert worker.place
            if worker.place.node not in alive:
                self._remove(worker, "node")
            elif worker.state != "draining" and worker.place.node in leaving:
                worker.state, worker.leaving = "draining", "preempted"

    def stand_back(self) -> None:
        """End workers that have no place yet: others are to get the room that comes free now."""
        for worker in [worker for worker in self.workers if not worker.look()]:
            self._remove(worker, "scaled")

    def renew(self, *arguments: Any) -> None:
        """What workers are made with is another from now on; end those that cannot be told now, as they start or are busy."""
        self.arguments = arguments
        for worker in [worker for worker in self.workers if worker.state != "ready" or worker.pending]:
            self._remove(worker, "scaled")
        self.greet([])

    def _start(self) -> None:
        options = self.resources | ({"name": f"{self.run}/{self.role}-{self.made}", "namespace": NAMESPACE} if self.run else {})
        handle = self.actor.options(**options).remote(*self.arguments, self.made)
        worker = Worker(self.made, handle, handle.__ray_call__.remote(place))
        self.made += 1
        self.workers.append(worker)
        self._greet(worker, [("ready", ()), *self.greetings])

    def _greet(self, worker: Worker, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        worker.state, worker.greeting = "starting", self.greeting
        references = [getattr(worker.handle, method).remote(*arguments) for method, arguments in calls]
        self._watch(Attempt(worker, references, None, time.monotonic()), references[-1])

    def _watch(self, attempt: Attempt, reference: ObjectRef[Any]) -> None:
        attempt.worker.pending.append(attempt)
        self.attempts[reference] = attempt

    def _remove(self, worker: Worker, why: str, reason: str = "") -> None:
        """The worker is gone: its tasks go to others. Raises BudgetError when that was once too often; workers that go with
        their node count once."""
        if worker not in self.workers:
            return
        why = worker.leaving if worker.state == "draining" else why
        if why == "node" and worker.place:
            self.nodes.add(worker.place.node)
        self.workers.remove(worker)
        self.attempts = {reference: attempt for reference, attempt in self.attempts.items() if attempt.worker is not worker}
        ray.kill(worker.handle)
        self.restarts[why] += 1
        at = worker.pending[0].task if worker.pending else None  # what it worked on; the rest waited behind
        if at and not at.done:
            at.failures += why not in FORGIVEN
        for attempt in worker.pending:
            if attempt.task and not attempt.task.done:
                attempt.task.attempts.remove(attempt)
                if not attempt.task.attempts and attempt.task not in self.queue:
                    self.queue.appendleft(attempt.task)
        spent = len(self.nodes) + sum(count for cause, count in self.restarts.items() if cause not in (*FORGIVEN, "node"))
        if spent > self.patience.restarts:
            counts = ", ".join(f"{count} {cause}" for cause, count in sorted(self.restarts.items()))
            raise BudgetError(f"{self.role}: {spent} losses of workers, {self.patience.restarts} are allowed: {counts}; last: {reason or why}")
        if at and at.failures >= self.patience.attempts:
            raise BudgetError(f"{self.role}.{at.method}: {at.failures} workers were lost with this task ({why}): {reason or why}")

    def tend(self) -> None:
        """Start and end workers as wanted, give them tasks, and look for tasks that take too long."""
        now = time.monotonic()
        if now - self.tended >= TICK:
            self.tended = now
            self.tick()
            self._overdue(now)
        active = [worker for worker in self.workers if worker.state != "draining"]
        for worker in sorted(active, key=lambda worker: (worker.state == "ready", len(worker.pending), -worker.index))[: max(0, len(active) - self.desired)]:
            worker.state = "draining"
        for worker in [one for one in self.workers if one.state == "draining" and not any(attempt.task for attempt in one.pending)]:
            self._remove(worker, "scaled")
        for _ in range(self.desired - len(active)):
            self._start()
        for worker in [worker for worker in self.workers if worker.state == "ready" and worker.greeting != self.greeting and not worker.pending]:
            if self.greetings:
                self._greet(worker, self.greetings)
            worker.greeting, worker.version = self.greeting, self.version
        self._dispatch()

    def _dispatch(self) -> None:
        while self.queue:
            free = [one for one in self.workers if one.state == "ready" and one.greeting == self.greeting and len(one.pending) < DEPTH and not self._slow(one)]
            if not free:
                return
            self._issue(self.queue.popleft(), min(free, key=lambda worker: len(worker.pending)))

    def _issue(self, task: Task, worker: Worker) -> None:
        found = getattr(worker.handle, task.method).options(num_returns=task.returns).remote(*task.arguments)
        references = found if task.returns > 1 else [found]
        attempt = Attempt(worker, references, task, time.monotonic())
        task.attempts.append(attempt)
        self._watch(attempt, references[0])

    def _patience(self, task: Task) -> float:
        """Seconds after which a task of this kind and size is overdue."""
        known = self.seconds.get(task.method)
        return max(self.patience.least, self.patience.straggler * task.size * statistics.median(known)) if known else self.patience.timeout

    def _slow(self, worker: Worker) -> bool:
        """Something on it is overdue: it may be hung."""
        return any(attempt.task.done or len(attempt.task.attempts) > 1 for attempt in worker.pending[:1] if attempt.task)

    def _overdue(self, now: float) -> None:
        """Issue again what takes too long; end workers that don't answer."""
        for worker in list(self.workers):
            if not worker.pending:
                continue
            first = worker.pending[0]  # what it works on; the rest waits behind
            if ray.wait(first.references[-1:], timeout=0, fetch_local=False)[0]:
                continue  # done: nobody has taken it in yet
            took = now - max(first.began, worker.began)
            if first.task is None:
                if not worker.look():
                    first.began = now  # it waits for room, however long that takes
                elif took > self.patience.timeout:
                    self._remove(worker, "unresponsive")
                continue
            limit = self._patience(first.task) * 2**first.task.failures  # what is slow everywhere must end somewhere
            if took > 2 * limit:
                self._remove(worker, "unresponsive")
            elif took > limit:
                for attempt in [one for one in worker.pending if one.task and not one.task.done and len(one.task.attempts) == 1]:
                    others = [one for one in self.workers if one is not worker and one.state == "ready" and one.greeting == self.greeting]
                    if others and attempt.task:
                        self.reissued += 1
                        self._issue(attempt.task, min(others, key=lambda one: len(one.pending)))

    # tasks

    def flow(self) -> Flow:
        """A new set of pending tasks."""
        return Flow()

    def submit(self, flow: Flow, method: str, *arguments: Any, returns: int = 1, size: float = 1.0, then: Callable[[list[ObjectRef[Any]]], None]) -> None:
        """Run `method` on some worker; `then` gets its references when it has finished.

        size: of the task beside others of its method, by which its time is judged.
        """
        self.meter.count((method, arguments))
        self.queue.append(Task(method, arguments, returns, then, flow, size))
        flow.add(self)
        self._dispatch()

    def answered(self, reference: ObjectRef[Any]) -> None:
        """A watched reference is there: a result, or a failure. Raises a task's own error; LostObjects; BudgetError."""
        attempt = self.attempts.pop(reference, None)
        if attempt is None:
            return  # of a worker that was removed meanwhile
        worker, task, now = attempt.worker, attempt.task, time.monotonic()
        try:
            worker.look()
            ray.get([reference] if task else attempt.references)  # of a greeting, what failed first
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError) as error:
            self._remove(worker, ending(error), str(error).strip().splitlines()[0])  # it may live on, but is not waited for
            return
        except ray.exceptions.RayError as error:
            worker.pending.remove(attempt)
            if task is None:  # to be greeted again
                worker.state, worker.greeting = "ready" if worker.state == "starting" else worker.state, -1
            elif task.done:
                return
            raise told(error, f"{self.role}.{task.method if task else 'ready'}") from error
        worker.pending.remove(attempt)
        if worker.pending:
            worker.pending[0].began = now  # it waited until now
        if task is None:
            worker.state, worker.began = "ready" if worker.state == "starting" else worker.state, now
            if worker.greeting == self.greeting:
                worker.version = self.version
            return
        if task.done:
            return
        task.done = True
        task.attempts.remove(attempt)
        if task in self.queue:
            self.queue.remove(task)
        self.seconds.setdefault(task.method, deque(maxlen=64)).append((now - attempt.began) / task.size)
        task.flow.finished(self)
        task.then(attempt.references)

    def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Run `method` on every worker that is ready and idle; their results. Others are greeted before their next task.

        A worker that dies, or does not answer in time, is removed. Raises what the method raised.
        """
        asked = [worker for worker in self.workers if worker.state == "ready" and not worker.pending]
        references = [getattr(worker.handle, method).remote(*arguments) for worker in asked]
        ready = self._answers(references)
        results = []
        for worker, reference in zip(asked, references, strict=True):
            if reference not in ready:
                self._remove(worker, "unresponsive")
                continue
            try:
                results.append(ray.get(reference))
            except ray.exceptions.RayActorError as error:
                self._remove(worker, ending(error))
            except ray.exceptions.RayError as error:
                raise told(error, f"{self.role}.{method}") from error
        return results

    def _answers(self, references: list[ObjectRef[Any]]) -> list[ObjectRef[Any]]:
        """Those that come in time: the faster half has the timeout, the others some times as long as that half took."""
        if not references:
            return []
        began = time.monotonic()
        half: list[ObjectRef[Any]]
        half, late = ray.wait(references, num_returns=(len(references) + 1) // 2, timeout=self.patience.timeout, fetch_local=False)
        limit = 2 * max(self.patience.least, self.patience.straggler * (time.monotonic() - began))
        return half + (ray.wait(late, num_returns=len(late), timeout=limit, fetch_local=False)[0] if late else [])

    def share(self, value: Any) -> ObjectRef[Any]:
        """A value that several tasks take, put into the object store once."""
        self.meter.count(value)
        return ray.put(value)

    def fetch(self, reference: ObjectRef[Any]) -> Any:
        """A small result, into the driver. Raises LostObjects when it is gone with its node."""
        try:
            value = ray.get(reference)
        except (ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError) as error:
            raise told(error, self.role) from error
        self.meter.count(value)
        return value

    def forget(self) -> None:
        """Drop all tasks: what they would give is not wanted any more. Workers finish what they are at."""
        self.queue.clear()
        for attempt in self.attempts.values():
            if attempt.task:
                attempt.task.done = True

    def states(self) -> list[dict[str, Any]]:
        """What each worker is and does, see cluster.control.WorkerState; `node` is its id."""
        found = []
        for one in self.workers:
            state, node = ("waiting" if one.state == "starting" else one.state, "") if one.place is None else (one.state, one.place.node)
            busy = sum(attempt.task is not None for attempt in one.pending)
            found.append({"name": f"{self.role}-{one.index}", "state": state, "version": one.version, "node": node, "busy": busy})
        return found

    def stop(self) -> None:
        """End the workers."""
        self.forget()
        for worker in self.workers:
            ray.kill(worker.handle)
        self.workers, self.attempts, self.desired = [], {}, 0
