"""An elastic pool of equal workers: tasks go to the least busy one, results come as they finish.

Tasks must be pure functions of their arguments: a task whose worker died, or that takes far longer
than its like, is issued again to another worker, and the first result wins. The first of a task's
results must be small, since the driver reads it to see whether the task failed.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef

from cluster.errors import died, ending, lost, never_began, reason, told
from cluster.work import TICK, Attempt, Method, RetryPolicy, Task, Tasks, Worker, wait
from cluster.workers import NAMESPACE, NOT_COUNTED, Workers

__all__ = ["NAMESPACE", "NOT_COUNTED", "Pool", "RetryPolicy"]

DEPTH = 2
"""Tasks a worker holds at once: one that runs, and one so that it need not wait for the driver."""


class Pool(Workers):
    """Workers of one class on Ray actors, and tasks for them. `poll` follows what is desired."""

    def __len__(self) -> int:
        """Workers that are wanted: what work is cut for."""
        return self.desired

    def wait_ready(self) -> None:
        """Until as many workers as wanted have loaded what they need. Raises what that raised."""
        deadline, enough = time.monotonic() + self.retry_policy.task_timeout_seconds, self.desired
        # those wished for meanwhile may wait for room
        while sum(worker.state == "ready" for worker in self.workers) < min(enough, self.desired):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.role}: {enough} workers were not ready in "
                    f"{self.retry_policy.task_timeout_seconds:g} s"
                )
            self.poll()
            wait(self)
        self.formed = True

    def poll(self) -> None:
        """Start and end workers as wanted, give them tasks, and look for tasks that take too
        long."""
        now = time.monotonic()
        if now - self.polled >= TICK:
            self.polled = now
            self.tick()
            self._overdue(now)
            self.ping(now)
            self._look_elsewhere()
        active = [worker for worker in self.workers if worker.state != "draining"]
        for worker in sorted(
            active, key=lambda worker: (worker.state == "ready", len(worker.pending), -worker.index)
        )[: max(0, len(active) - self.desired)]:
            worker.state = "draining"
        for worker in [
            one
            for one in self.workers
            if one.state == "draining" and not any(attempt.task for attempt in one.pending)
        ]:
            self._remove(worker, "scaled")
        for _ in range(self.desired - len(active)):
            self._start()
        for gone, budget in self.losses:
            self.note(f"{gone}, {budget}")
        self.losses.clear()
        for worker in [
            worker
            for worker in self.workers
            if worker.state == "ready"
            and worker.sync_round != self.sync_round
            and not worker.pending
        ]:
            if self.sync_calls:
                self._sync(worker, self.sync_calls)
            worker.sync_round, worker.version = self.sync_round, self.version
        self._dispatch()

    def _dispatch(self) -> None:
        while self.queue:
            free = [
                one
                for one in self.workers
                if one.state == "ready"
                and one.sync_round == self.sync_round
                and len(one.pending) < DEPTH
                and not self._slow(one)
            ]
            if not free:
                return
            self._issue(self.queue.popleft(), min(free, key=lambda worker: len(worker.pending)))

    def _issue(self, task: Task, worker: Worker) -> None:
        found = (
            getattr(worker.handle, task.method)
            .options(num_returns=task.returns)
            .remote(*task.arguments)
        )
        references = found if task.returns > 1 else [found]
        attempt = Attempt(worker, references, task, time.monotonic())
        task.attempts.append(attempt)
        self._watch(attempt, references[0])

    def _retry_policy(self, task: Task) -> float:
        """Seconds after which a task of this kind and size is overdue."""
        known = self.seconds.get(task.method)
        return (
            max(
                self.retry_policy.straggler_seconds,
                self.retry_policy.straggler_factor * task.size * statistics.median(known),
            )
            if known
            else self.retry_policy.task_timeout_seconds
        )

    def _slow(self, worker: Worker) -> bool:
        """Something on it is overdue: it may be hung."""
        return any(
            attempt.task.done or len(attempt.task.attempts) > 1
            for attempt in worker.pending[:1]
            if attempt.task
        )

    def _overdue(self, now: float) -> None:
        """Issue again what takes too long; end workers that don't answer."""
        for worker in list(self.workers):
            if not worker.pending:
                continue
            first = worker.pending[0]  # what it works on; the rest waits after
            if ray.wait(first.references[-1:], timeout=0, fetch_local=False)[0]:
                continue  # done: nobody has taken it in yet
            took = now - max(first.began, worker.began)
            if first.task is None:
                if not worker.look():
                    first.began = now  # it waits for room, however long that takes
                elif took > self.retry_policy.task_timeout_seconds:
                    self._remove(worker, "unresponsive", f"not ready after {took:.0f} s")
                continue
            # what is slow everywhere must end somewhere
            limit = self._retry_policy(first.task) * 2**first.task.failures
            if took <= limit:
                continue
            words = f"{first.task.method} takes {took:.0f} s ({self._usual(first.task)})"
            if took > 2 * limit:
                self._remove(worker, "unresponsive", words)
            else:
                for attempt in [
                    one
                    for one in worker.pending
                    if one.task and not one.task.done and len(one.task.attempts) == 1
                ]:
                    others = [
                        one
                        for one in self.workers
                        if one is not worker
                        and one.state == "ready"
                        and one.sync_round == self.sync_round
                    ]
                    if others and attempt.task:
                        self.reissued += 1
                        other = min(others, key=lambda one: len(one.pending))
                        what = (
                            words if attempt is first else f"{attempt.task.method} waits after it"
                        )
                        self.note(
                            f"{self.role}-{worker.index}: {what}: given to "
                            f"{self.role}-{other.index} as well"
                        )
                        self._issue(attempt.task, other)

    def _usual(self, task: Task) -> str:
        """How long its like takes, for people."""
        known = self.seconds.get(task.method)
        return (
            f"median {task.size * statistics.median(known):.2g} s"
            if known
            else "the first of its kind"
        )

    # tasks

    def tasks(self) -> Tasks:
        """A new set of pending tasks."""
        return Tasks()

    def submit(
        self,
        tasks: Tasks,
        method: Method,
        *arguments: Any,
        returns: int = 1,
        size: float = 1.0,
        then: Callable[[list[ObjectRef[Any]]], None],
    ) -> None:
        """Run `method` on some worker; `then` gets its references when it has finished.

        size: of the task beside others of its method, by which its time is judged.
        """
        self.byte_counter.count((method.__name__, arguments))
        self.queue.append(
            Task(
                method=method.__name__,
                arguments=arguments,
                returns=returns,
                then=then,
                tasks=tasks,
                size=size,
            )
        )
        tasks.add(self)
        self._dispatch()

    def answered(self, reference: ObjectRef[Any]) -> None:
        """A watched reference is there: a result, or a failure. Raises a task's own error;
        LostObjects; BudgetError."""
        attempt = self.attempts.pop(reference, None)
        if attempt is None:
            return  # of a worker that was removed meanwhile
        worker = attempt.worker
        task = attempt.task
        now = time.monotonic()
        try:
            worker.look()
            ray.get([reference] if task else attempt.references)  # of a sync, what failed first
        except ray.exceptions.RayError as error:
            return self._failed(worker, attempt, error)
        worker.pending.remove(attempt)
        worker.heard = now
        if worker.pending:
            worker.pending[0].began = now  # it waited until now
        if task is None:
            worker.state = "ready" if worker.state == "starting" else worker.state
            worker.began = now
            worker.new, self.unfit = False, 0
            if worker.sync_round == self.sync_round:
                worker.version = self.version
            return
        if task.done:
            return
        task.done = True
        task.attempts.remove(attempt)
        if task in self.queue:
            self.queue.remove(task)
        self.seconds.setdefault(task.method, deque(maxlen=64)).append(
            (now - attempt.began) / task.size
        )
        task.tasks.finished(self)
        task.then(attempt.references)

    def _failed(self, worker: Worker, attempt: Attempt, error: ray.exceptions.RayError) -> None:
        """What it worked on has failed, or it is gone. Raises what is no fault of a machine."""
        task = attempt.task
        if (
            task is None
            and worker.new
            and not lost(error)
            and (never_began(error) or not died(error))
        ):
            self._unfit(worker, error)
            return
        if died(error):
            # it may live on, but is not waited for
            self._remove(worker, ending(error), reason(error))
            return
        worker.pending.remove(attempt)
        if task is None:  # to be greeted again
            worker.state = "ready" if worker.state == "starting" else worker.state
            worker.sync_round = -1
            worker.new = False
        elif task.done:
            return
        raise told(error, f"{self.role}.{task.method if task else 'ready'}") from error

    def broadcast(self, method: Method, *arguments: Any) -> list[Any]:
        """Run `method` on every worker that is ready and idle; their results. Others are greeted
        before their next task.

        A worker that dies, or does not answer in time, is removed. Raises what the method raised.
        """
        name = method.__name__
        asked = [
            worker for worker in self.workers if worker.state == "ready" and not worker.pending
        ]
        references = [getattr(worker.handle, name).remote(*arguments) for worker in asked]
        began = time.monotonic()
        ready = self._answers(name, references)
        results = []
        for worker, reference in zip(asked, references, strict=True):
            if reference not in ready:
                self._remove(
                    worker,
                    "unresponsive",
                    f"no answer to {name} in {time.monotonic() - began:.0f} s",
                )
                continue
            try:
                results.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                if not died(error):
                    raise told(error, f"{self.role}.{name}") from error
                self._remove(worker, ending(error), reason(error))
        if asked and len(results) == len(asked):
            self.broadcasts.setdefault(name, deque(maxlen=64)).append(time.monotonic() - began)
        return results

    def _answers(self, method: str, references: list[ObjectRef[Any]]) -> list[ObjectRef[Any]]:
        """Those that come in time: some times as long as it usually takes until all have answered.
        While nobody knows, the faster half has the timeout, and the others some times as long as
        that half took."""
        if not references:
            return []
        began, known = time.monotonic(), self.broadcasts.get(method)
        usual = statistics.median(known) if known else 0.0
        first = (
            min(
                self.retry_policy.task_timeout_seconds,
                2
                * max(
                    self.retry_policy.straggler_seconds, self.retry_policy.straggler_factor * usual
                ),
            )
            if known
            else self.retry_policy.task_timeout_seconds
        )
        half: list[ObjectRef[Any]]
        half, late = ray.wait(
            references, num_returns=(len(references) + 1) // 2, timeout=first, fetch_local=False
        )
        if len(half) < len(late):
            return half
        limit = 2 * max(
            self.retry_policy.straggler_seconds,
            self.retry_policy.straggler_factor * max(usual, time.monotonic() - began),
        )
        return half + (
            ray.wait(late, num_returns=len(late), timeout=limit, fetch_local=False)[0]
            if late
            else []
        )

    def share(self, value: Any) -> ObjectRef[Any]:
        """A value that several tasks take, put into the object store once."""
        self.byte_counter.count(value)
        return ray.put(value)

    def fetch(self, reference: ObjectRef[Any]) -> Any:
        """A small result, into the driver. Raises LostObjects when it is gone with its node."""
        try:
            value = ray.get(reference)
        except (ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError) as error:
            raise told(error, self.role) from error
        self.byte_counter.count(value)
        return value

    def forget(self) -> None:
        """Drop all tasks: what they would give is not wanted any more. Workers finish what they are
        at."""
        self.queue.clear()
        for attempt in self.attempts.values():
            if attempt.task:
                attempt.task.done = True

    def stop(self) -> None:
        """End the workers."""
        self.forget()
        for worker in self.workers:
            ray.kill(worker.handle)
        self.workers = []
        self.attempts = {}
        self.desired = 0
