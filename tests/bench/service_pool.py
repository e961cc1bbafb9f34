"""Figures of the pool alone: workers that sleep."""

from __future__ import annotations

import os
import signal
import time
from statistics import median
from typing import Any

from cluster.byte_counter import DriverByteCounter
from cluster.retry_policy import RetryPolicy
from cluster.worker_pool import WorkerPool

REPEATS = 5
TASK = 0.1


class Sleeper:
    """A rollout worker that does nothing."""

    def __init__(self, index: int):
        self.index = index

    def ready(self) -> None: ...

    def ping(self) -> None: ...

    def rest(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.index

    def load_weights(self, update: None) -> str:
        del update
        return ""


def sleepers(count: int) -> WorkerPool:
    """A pool whose workers are ready."""
    pool = WorkerPool(
        cls=Sleeper,
        role="sleeper",
        count=count,
        resources={"num_cpus": 0.01},
        arguments=(),
        byte_counter=DriverByteCounter(),
        retry_policy=RetryPolicy(task_timeout_seconds=300.0),
    )
    pool.wait_ready()
    return pool


def took(
    pool: WorkerPool, count: int, seconds: float, kill_every: int = 0, kills: int = 0
) -> float:
    """Seconds until `count` tasks are done. The process of the worker that took one task of
    `kill_every` is
    killed, `kills` times."""
    tasks = pool.tasks()
    done = 0
    killed = 0

    def then(references: list[Any]) -> None:
        nonlocal done, killed
        del references
        done += 1
        busy = [worker for worker in pool.workers if worker.state == "ready" and worker.pending]
        if kill_every and done >= kill_every * (killed + 1) and killed < kills and busy:
            os.kill(busy[0].place.process, signal.SIGKILL)
            killed += 1

    began = time.perf_counter()
    for _ in range(count):
        pool.submit(tasks, Sleeper.rest, seconds, then=then)
    tasks.run()
    assert done == count and killed == kills
    return time.perf_counter() - began


def dispatch() -> dict[str, Any]:
    """Ideal ÷ measured seconds."""
    workers, each = 4, 50
    pool = sleepers(workers)
    found = [took(pool, workers * each, TASK) for _ in range(REPEATS)]
    pool.stop()
    return {"efficiency": each * TASK / median(found), "measured s": found, "ideal s": each * TASK}


def scaling() -> dict[str, Any]:
    """Tasks a second and worker, relative to one worker."""
    counts, each = (1, 2, 4, 8), 20
    pools = [sleepers(count) for count in counts]
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(REPEATS):
        for count, pool in zip(counts, pools, strict=True):
            found[count].append(took(pool, count * each, TASK))
    for pool in pools:
        pool.stop()
    one = median(found[1])
    return {
        "efficiency": {count: one / median(found[count]) for count in counts[1:]},
        "measured s": found,
    }


def goodput() -> dict[str, Any]:
    """Fault-free seconds ÷ seconds with kills; 160 tasks on 4 workers. Starting a process takes as
    long for long tasks as for short ones."""
    rows: dict[str, Any] = {}
    pool = sleepers(4)
    for seconds, repeats in ((TASK, REPEATS), (5 * TASK, 1)):
        plain = []
        faulty = []
        restarts = sum(pool.restarts.values())
        for _ in range(repeats):
            plain.append(took(pool, 160, seconds))
            faulty.append(took(pool, 160, seconds, kill_every=32, kills=4))
            pool.restarts.clear()  # the budget is of a run
            pool.wait_ready()
        rows[f"{seconds:g} s"] = {
            "goodput": median(plain) / median(faulty),
            "plain s": plain,
            "with 4 kills s": faulty,
            "restarts before": restarts,
        }
    started = []
    for _ in range(3):
        began = time.perf_counter()
        sleepers(1).stop()
        started.append(time.perf_counter() - began)
    pool.stop()
    return {"tasks": rows, "a worker starts in s": median(started)}


def many(most: int) -> dict[str, Any]:
    """CPU seconds of the driver's process (Ray's threads in it, too) for each task of 0.2 s, by the
    number of workers."""
    seconds = 0.2
    each = 10
    rows = {}
    pool = sleepers(8)
    for count in (8, 16, 32, 64):
        if count > most:
            break
        pool.desired, began = count, time.perf_counter()
        pool.wait_ready()
        started = time.perf_counter() - began
        cpu = []
        wall = []
        for _ in range(3):
            before = time.process_time()
            wall.append(took(pool, each * count, seconds))
            cpu.append((time.process_time() - before) / (each * count))
        rows[count] = {
            "driver CPU ms per task": 1000 * median(cpu),
            "efficiency": each * seconds / median(wall),
            "all ready after s": started,
        }
    pool.stop()
    return {"workers": rows}
