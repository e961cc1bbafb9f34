"""Which worker has which task."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ray import ObjectRef

from cluster.tasks import Task
from cluster.worker import Attempt, Worker

QUEUE_DEPTH = 2
"""Tasks a worker holds at once: one that runs, and one so that it need not wait for the driver."""


class Dispatcher:
    """Tasks of one pool: those that wait, and those that workers have."""

    def __init__(self) -> None:
        self.queue: deque[Task] = deque()
        self.attempts: dict[
            ObjectRef[Any], Attempt
        ] = {}  # by the reference that is there at the end
        self.reissued = 0

    def dispatch(self, workers: Sequence[Worker]) -> None:
        """Give tasks that wait to those of these workers that have room, to the least busy one
        first."""
        while self.queue:
            free = [one for one in workers if len(one.pending) < QUEUE_DEPTH and not one.suspect]
            if not free:
                return
            self._issue(self.queue.popleft(), min(free, key=lambda worker: len(worker.pending)))

    def _issue(self, task: Task, worker: Worker) -> None:
        method = getattr(worker.handle, task.method)
        found = method.options(num_returns=task.returns).remote(*task.arguments)
        references = found if task.returns > 1 else [found]
        task.attempts += 1
        self.watch(Attempt(worker, references, task, time.monotonic()), references[0])

    def watch(self, attempt: Attempt, reference: ObjectRef[Any]) -> None:
        """Its worker has it now; `reference` is there at its end."""
        attempt.worker.pending.append(attempt)
        self.attempts[reference] = attempt

    def reissue(self, worker: Worker, others: Sequence[Worker], words: str) -> list[str]:
        """Give all that this worker has to others as well, what others have already apart. words:
        why. Returns a line for people for each task."""
        lines = []
        for place, attempt in enumerate(list(worker.pending)):
            task = attempt.task
            if task is None or task.done or task.attempts != 1 or not others:
                continue
            self.reissued += 1
            other = min(others, key=lambda one: len(one.pending))
            what = f"{task.method} waits after it" if place else words
            lines.append(f"{worker.name}: {what}: given to {other.name} as well")
            self._issue(task, other)
        return lines

    def finish(self, attempt: Attempt) -> bool:
        """An attempt has its result. Is it the first of its task?"""
        task = attempt.task
        if task is None or task.done:
            return False
        task.done = True
        task.attempts -= 1
        if task in self.queue:
            self.queue.remove(task)
        return True

    def withdraw(self, worker: Worker, blame: bool) -> Task | None:
        """Its tasks are for others; the one that it worked on, which is repeated first. blame: that
        one may be why the worker is gone."""
        self.attempts = {
            reference: attempt
            for reference, attempt in self.attempts.items()
            if attempt.worker is not worker
        }
        current = worker.pending[0].task if worker.pending else None
        if current and not current.done:
            current.failures += blame
        for attempt in reversed(worker.pending):
            task = attempt.task
            if task and not task.done:
                task.attempts -= 1
                if not task.attempts and task not in self.queue:
                    self.queue.appendleft(task)
        return current

    def forget(self) -> None:
        """Drop all tasks: their results are not wanted any more."""
        self.queue.clear()
        for attempt in self.attempts.values():
            if attempt.task:
                attempt.task.done = True

    def running(self) -> set[str]:
        """Methods of tasks that workers have."""
        return {attempt.task.method for attempt in self.attempts.values() if attempt.task}
