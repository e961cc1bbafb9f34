"""An elastic pool of equal workers: tasks go to the least busy one, results come as they finish.

Tasks must be pure functions of their arguments: a task whose worker died, or that takes far longer
than its like, is issued again to another worker, and the first result wins. The first of a task's
results must be small, since the driver reads it to see whether the task failed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import ray
from ray import ObjectRef

from cluster.actor import Method, WorkerClass
from cluster.byte_counter import DriverByteCounter
from cluster.dispatcher import Dispatcher
from cluster.errors import died, loss_cause, never_began, objects_lost, original, reason
from cluster.lent_ranks import LentRanks
from cluster.rank_group import RankGroup
from cluster.retry_policy import RetryPolicy
from cluster.tasks import POLL_SECONDS, Task, Tasks, wait
from cluster.worker import Attempt
from cluster.workers import Workers


class WorkerPool:
    """Workers of one class on Ray actors, and tasks for them. `desired` may be changed at any time:
    `poll` follows it."""

    def __init__(
        self,
        cls: type[WorkerClass],
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
        self.dispatcher = Dispatcher()
        self.workers = Workers(
            cls=cls,
            role=role,
            count=count,
            resources=resources,
            arguments=arguments,
            dispatcher=self.dispatcher,
            retry_policy=retry_policy,
            run=run,
            note=lambda text: self.note(text),
        )
        self.last_poll = 0.0
        # called every POLL_SECONDS, to change what is desired
        self.on_poll: Callable[[], None] = lambda: None
        self.note: Callable[[str], None] = lambda text: None  # hears of losses, in one line each

    def __len__(self) -> int:
        """Workers that are desired, and those that are lent: what work is cut for."""
        return self.workers.desired + len(self.workers.lent or ())

    @property
    def desired(self) -> int:
        """Workers that there are to be; may be changed at any time."""
        return self.workers.desired

    @desired.setter
    def desired(self, count: int) -> None:
        self.workers.desired = count

    @property
    def resources(self) -> dict[str, Any]:
        """Options of each worker, as Ray takes them."""
        return self.workers.resources

    @property
    def restarts(self) -> Counter[str]:
        """Workers that are gone, by cause."""
        return self.workers.budget.restarts

    @property
    def reissued(self) -> int:
        """Tasks that were given to another worker as well."""
        return self.dispatcher.reissued

    # workers

    def wait_ready(self) -> None:
        """Until as many workers as desired have loaded what they need. Raises what that raised."""
        limit, enough = self.retry_policy.task_timeout_seconds, self.desired
        deadline = time.monotonic() + limit
        # those that are desired since may wait for room
        while len(self.workers.ready) < min(enough, self.desired):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.role}: {enough} workers were not ready in {limit:g} s")
            self.poll()
            wait(self)
        self.workers.formed = True

    def poll(self) -> None:
        """Start and end workers as desired, give them tasks, and look for those that take too
        long. Waits for nothing."""
        now = time.monotonic()
        if now - self.last_poll >= POLL_SECONDS:
            self.last_poll = now
            self.on_poll()
            self.workers.look_after(now)
        self.workers.scale()
        self.workers.bring_up()
        self.dispatcher.dispatch(self.workers.available)

    def sync(self, calls: Iterable[tuple[Method, tuple[Any, ...]]], version: int = 0) -> None:
        """From now on, newcomers and those that are busy run these methods before any work; they
        then hold this version of what the methods bring."""
        self.workers.sync(calls, version)

    def withhold(self) -> None:
        """What workers would hold by now is not to be had: until the next `sync` they take no
        tasks. For where there are none; newcomers may come."""
        self.workers.withhold()

    def lend(self, rank_group: RankGroup) -> None:
        """The ranks of a group that is not formed yet take tasks, too, while it works on no call of
        its own."""
        self.workers.lent = LentRanks(
            rank_group,
            withdraw=lambda worker: self.dispatcher.withdraw(worker, blame=False),
            longest=self.workers.deadlines.longest,
        )

    def reset(self, *arguments: Any) -> None:
        """What workers are made with is another from now on. Those that start or are busy end:
        they cannot be given it. The others must be, by a broadcast."""
        self.workers.reset(*arguments)

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
        task = Task(
            method=method.__name__,
            arguments=arguments,
            returns=returns,
            then=then,
            tasks=tasks,
            size=size,
        )
        self.dispatcher.queue.append(task)
        tasks.add(self)
        self.dispatcher.dispatch(self.workers.available)

    def watched(self) -> Collection[ObjectRef[Any]]:
        """References whose results `on_result` is to hear of."""
        return self.dispatcher.attempts.keys()

    def running(self) -> set[str]:
        """Tasks that run, as ROLE.METHOD."""
        return {f"{self.role}.{method}" for method in self.dispatcher.running()}

    def on_result(self, reference: ObjectRef[Any], timed: bool = True) -> None:
        """A watched reference is there: a result, or a failure. timed: it has come just now, so
        that its time is of use for its like. Raises a task's own error; LostObjects;
        BudgetError."""
        attempt = self.dispatcher.attempts.pop(reference, None)
        if attempt is None:
            return  # of a worker that was removed meanwhile
        worker, task = attempt.worker, attempt.task
        now = time.monotonic()
        try:
            worker.find_place()
            ray.get([reference] if task else attempt.references)  # of a sync, what failed first
        except ray.exceptions.RayError as error:
            return self._failed(attempt, error)
        worker.answered(attempt, now)
        if task is None:
            self.workers.became_ready(worker, now)
        elif self.dispatcher.finish(attempt):
            if timed:
                self.workers.deadlines.finished(task, now - attempt.began)
            task.tasks.finished(self)
            task.then(attempt.references)

    def _failed(self, attempt: Attempt, error: ray.exceptions.RayError) -> None:
        """What it worked on has failed, or it is gone. Raises what is no fault of a machine."""
        worker, task = attempt.worker, attempt.task
        starting = task is None and worker.new and not objects_lost(error)
        if starting and (never_began(error) or not died(error)):
            return self.workers.could_not_start(worker, error)
        if died(error):
            # it may live on, but is not waited for
            return self.workers.remove(worker, loss_cause(error), reason(error))
        worker.pending.remove(attempt)
        if task is None:  # to be brought up again
            worker.become_ready()
            worker.sync_round = -1
        elif task.done:
            return None
        raise original(error, f"{self.role}.{task.method if task else 'ready'}") from error

    def broadcast(self, method: Method, *arguments: Any) -> list[Any]:
        """Run `method` on every worker that is ready and idle; their results. Others must be
        brought up before their next task, see `sync`.

        A worker that dies, or does not answer in time, is removed. Raises what the method raised.
        """
        name, began = method.__name__, time.monotonic()
        asked = [worker for worker in self.workers if worker.idle]
        references = [getattr(worker.handle, name).remote(*arguments) for worker in asked]
        in_time = self.workers.deadlines.in_time(name, references)
        results = []
        for worker, reference in zip(asked, references, strict=True):
            if reference not in in_time:
                words = f"no answer to {name} in {time.monotonic() - began:.0f} s"
                self.workers.remove(worker, "unresponsive", words)
                continue
            try:
                results.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                if not died(error):
                    raise original(error, f"{self.role}.{name}") from error
                self.workers.remove(worker, loss_cause(error), reason(error))
        if asked and len(results) == len(asked):
            self.workers.deadlines.all_answered(name, time.monotonic() - began)
        return results

    def share(self, value: Any) -> ObjectRef[Any]:
        """A value that several tasks take, put into the object store once."""
        self.byte_counter.count(value)
        return ray.put(value)

    def fetch(self, reference: ObjectRef[Any]) -> Any:
        """A small result, into the driver. Raises LostObjects when it is gone with its node."""
        try:
            value = ray.get(reference)
        except (ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError) as error:
            raise original(error, self.role) from error
        self.byte_counter.count(value)
        return value

    def forget(self) -> None:
        """Drop all tasks: their results are not wanted any more. Workers finish what they are
        at."""
        self.dispatcher.forget()

    def stop(self) -> None:
        """End the workers."""
        self.forget()
        self.workers.stop()
        self.dispatcher.attempts = {}

    def states(self) -> list[dict[str, Any]]:
        """What each worker is and does, see cluster.status.WorkerState; `node` is its id."""
        return [
            {
                "name": worker.name,
                "state": str(worker.state),
                "version": worker.version,
                "node": worker.place.node if worker.place else "",
                "busy": worker.tasks,
            }
            for worker in self.workers
        ]
