"""Tiny ranks that are lent to a pool: they take its tasks between calls of their group, and one
that dies or hangs in a task ends the group."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.small_actors import LentRank, Worker, pool, results

from cluster.byte_counter import DriverByteCounter
from cluster.errors import RankGroupError
from cluster.rank_group import RankGroup
from cluster.worker_pool import WorkerPool

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]
RANK = 100
"""What ranks call themselves begins here."""


class Lent:
    """Two ranks, lent to a pool of so many workers of its own."""

    def __init__(self, folder: Path, workers: int):
        self.pool: WorkerPool = pool(
            folder, workers, straggler_seconds=2.0, straggler_factor=2.0, max_restarts=5
        )
        self.group = RankGroup(
            cls=LentRank,
            role="learner",
            ranks=2,
            resources={"num_cpus": 0},
            make=lambda rank: (str(folder), rank),
            byte_counter=DriverByteCounter(),
            deadlines=(60.0, 4.0, 1.0),
        )
        self.notes: list[str] = []
        self.group.note = self.notes.append
        self.group.max_failures = 5
        self.pool.lend(self.group)
        self.group.form()
        self.pool.wait_ready()

    def tasks(self, count: int, seconds: float = 0.0) -> list[tuple[int, int, str]]:
        return results(self.pool, [(Worker.task, key, seconds) for key in range(count)])

    def stop(self) -> None:
        self.pool.stop()
        self.group.stop()


@pytest.fixture
def lent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lent]:
    made = Lent(tmp_path, getattr(request, "param", 0))
    yield made
    made.stop()


def of_ranks(found: list[tuple[int, int, str]]) -> set[int]:
    return {worker - RANK for _, worker, _ in found if worker >= RANK}


def test_ranks_alone_do_all_tasks(lent: Lent) -> None:
    assert len(lent.pool) == 2 and lent.pool.desired == 0
    found = lent.tasks(6, seconds=0.05)
    assert sorted(key for key, *_ in found) == list(range(6)) and of_ranks(found) == {0, 1}


@pytest.mark.parametrize("lent", [1], indirect=True)
def test_during_a_call_of_the_group_workers_alone_do_tasks(lent: Lent) -> None:
    assert len(lent.pool) == 3
    assert of_ranks(lent.tasks(6, seconds=0.1)) == {0, 1}
    call = lent.group.begin(LentRank.update, 1.0)
    assert of_ranks(lent.tasks(3)) == set()
    assert lent.group.finish(call) == [0, 1]
    assert of_ranks(lent.tasks(6, seconds=0.1)) == {0, 1}


@pytest.mark.parametrize("lent", [1], indirect=True)
def test_newcomers_wait_while_there_is_nothing_to_bring_them_up_with(lent: Lent) -> None:
    lent.pool.withhold()
    assert of_ranks(lent.tasks(4, seconds=0.05)) == {0, 1}
    assert all(worker >= RANK for _, worker, _ in lent.tasks(4, seconds=0.05))
    lent.pool.broadcast(Worker.load_weights, "v1")
    lent.pool.sync([(Worker.load_weights, ("v1",))], 1)
    found = lent.tasks(9, seconds=0.1)
    assert {weights for _, worker, weights in found if worker < RANK} == {"v1"}


@pytest.mark.parametrize("lent", [1], indirect=True)
@pytest.mark.parametrize(
    ("what", "became"), [(signal.SIGKILL, "died ("), (signal.SIGSTOP, "was ended (")]
)
def test_a_rank_that_is_lost_in_a_task_ends_the_group(
    lent: Lent, what: signal.Signals, became: str
) -> None:
    lent.tasks(12, seconds=0.05)  # so that it is known how long they take
    process = lent.group.places[1].process
    timer = threading.Timer(0.4, lambda: os.kill(process, what))
    timer.start()
    with pytest.raises(RankGroupError, match=rf"^learner: rank 1 {became.strip(' (')}: "):
        for _ in range(20):
            lent.tasks(6, seconds=0.2)
    assert not lent.group.ranks and sum(lent.group.restarts.values()) == 1
    assert lent.notes[0].startswith("learner-1 on ") and became in lent.notes[0]
    # as the service recovers: what was pending is dropped, a new group takes tasks
    lent.pool.forget()
    lent.group.form()
    found = lent.tasks(6, seconds=0.1)
    assert len(found) == 6 and of_ranks(found) == {0, 1}
    with suppress(ProcessLookupError):  # where Ray has not ended it
        os.kill(process, signal.SIGKILL)


def test_a_call_waits_behind_tasks_and_its_deadline_begins_after_them(lent: Lent) -> None:
    lent.group.call(LentRank.update, 0.0)
    lent.group.call(LentRank.update, 0.0)  # measured: the next must be done within a second
    lent.tasks(4, seconds=0.6)
    tasks = lent.pool.tasks()
    got: list[Any] = []
    for key in range(4):  # two for each rank
        lent.pool.submit(tasks, Worker.task, key, 0.9, then=got.append)
    lent.pool.forget()  # their results are not wanted, but the ranks are at them
    began = time.monotonic()
    assert lent.group.call(LentRank.update, 0.0) == [0, 1]
    assert time.monotonic() - began > 1.2 and not got and not lent.group.restarts
