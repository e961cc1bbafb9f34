"""Ranks of a group that also take the tasks of a pool, between the group's own calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import ray

from cluster.rank_group import RankGroup
from cluster.tasks import Task
from cluster.worker import Attempt, Worker


class LentRanks:
    """The workers that a rank group lends to a pool: there from when the group has met until it
    ends. The pool neither makes nor ends them: one that dies or hangs ends the group."""

    def __init__(
        self,
        rank_group: RankGroup,
        withdraw: Callable[[Worker], object],
        longest: Callable[[Task], float],
    ):
        """withdraw: takes a worker's tasks back, for others. longest: seconds that a task may
        take."""
        self.rank_group = rank_group
        self.withdraw = withdraw
        self.longest = longest
        self._workers: list[Worker] = []
        rank_group.on_formed = self._begin
        rank_group.on_ended = self._end
        rank_group.free_at = self._free_at

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers))

    def __len__(self) -> int:
        """As many as there are to be."""
        return self.rank_group.count

    def __contains__(self, worker: Worker) -> bool:
        return worker in self._workers

    @property
    def available(self) -> list[Worker]:
        """Those that may take tasks: none while the group works on a call of its own."""
        return [] if self.rank_group.running else list(self._workers)

    def lose(self, worker: Worker, why: str, words: str) -> None:
        """It died or hangs. Raises RankGroupError, after ending the group."""
        self.rank_group.lose(worker.index, why, words)

    def _begin(self) -> None:
        for rank, (handle, place) in enumerate(
            zip(self.rank_group.ranks, self.rank_group.places, strict=True)
        ):
            worker = Worker(
                index=rank, name=f"{self.rank_group.role}-{rank}", handle=handle, place=place
            )
            worker.become_ready()
            self._workers.append(worker)

    def _end(self) -> None:
        ended, self._workers = self._workers, []
        for worker in ended:
            worker.leave()
            self.withdraw(worker)

    def _free_at(self) -> float:
        """When all will have done their tasks at the latest, on the clock time.monotonic: a call of
        the group waits behind these."""
        now = time.monotonic()
        return max(
            (
                now
                + sum(
                    self.longest(attempt.task)
                    for attempt in worker.pending
                    if attempt.task and not _done(attempt)
                )
                for worker in self._workers
            ),
            default=now,
        )


def _done(attempt: Attempt) -> bool:
    return bool(ray.wait(attempt.references[-1:], timeout=0, fetch_local=False)[0])
