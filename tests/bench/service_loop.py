"""Figures of the driver's loop: the learner's time hidden after rollouts, and recovery."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from service_pool import Sleeper
from support.small_runs import busy, carried, embedded, kill

from actors.calls import LearnerCalls
from actors.pools import Rollouts
from branchgrpo.app.service import TrainingService
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.service import PublishedWeights, WeightSpec
from branchgrpo.training.hooks import Record
from branchgrpo.training.loop import step
from branchgrpo.training.run import Run
from branchgrpo.training.state import TrainState
from branchgrpo.types import Sample, StepStats
from cluster.byte_counter import DriverByteCounter
from cluster.rank_group import RankGroup
from cluster.ray_service import RayService
from cluster.retry_policy import RetryPolicy
from cluster.worker_pool import WorkerPool

GROW = 0.5
UPDATE = 0.3
ITERATIONS = 12
PAIRS = 3
# iterations after which something dies; new workers load between; checkpoints at even ones
ROLLOUT_KILLS = (3, 43)
LEARNER_KILLS = (81, 91)
LAST = 95


class SleepingLearner:
    """A learner that does nothing for a while."""

    def __init__(self) -> None:
        self.version = 0

    def rendezvous(self, host: str) -> str:
        return ""

    def join(self, ranks: int, address: str) -> None: ...

    def ping(self) -> None: ...

    def specification(self) -> WeightSpec:
        return WeightSpec(bytes=0, chunks=0)

    def update(self, *arguments: Any) -> StepStats:
        time.sleep(UPDATE)
        self.version += 1
        nothing = {name: 0 for name in StepStats.__dataclass_fields__}
        return StepStats(
            **nothing
            | {"version": self.version, "on_policy_deviation": float("nan"), "velocity_norm": None}
        )

    def publish(self, weights: str) -> list[Any]:
        return [PublishedWeights(version=self.version, digest=""), None]


class SleepingCollector:
    """Trees that cost the pool's time and hold nothing."""

    def __init__(self, pool: WorkerPool):
        self.pool = pool

    def encode(self, samples: list[Sample], evaluated: bool = False) -> EncodedTexts:
        return EncodedTexts(Rollouts(self.pool), [], 1)

    def collect(self, *arguments: Any, **options: Any) -> RolloutBatch:
        tasks = self.pool.tasks()
        for _ in range(len(self.pool)):
            self.pool.submit(tasks, Sleeper.rest, GROW, then=lambda references: None)
        tasks.run()
        return RolloutBatch(
            scores={(0, 0): np.zeros((1, 2), np.float32)},
            rewards={(0, 0): np.zeros(2, np.float32)},
            seconds={"encode": 0.0},
        )


class Kept:
    """A log and a display."""

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self.seconds.append(
            {name: values[f"time/{name}"] for name in ("iteration", "update", "publish")}
        )

    def update(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def phase(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


def hidden() -> dict[str, Any]:
    """The real loop, RayService, pool, rank group and publishing; trees and learner sleep.
    Medians leave out the first iteration, which grows twice, and the last one, which grows
    nothing."""
    byte_counter = DriverByteCounter()
    pool = WorkerPool(
        cls=Sleeper,
        role="rollout",
        count=2,
        resources={"num_cpus": 0.01},
        arguments=(),
        byte_counter=byte_counter,
        retry_policy=RetryPolicy(task_timeout_seconds=300.0),
    )
    rank_group = RankGroup(
        cls=SleepingLearner,
        role="learner",
        ranks=1,
        resources={"num_cpus": 0.01},
        make=lambda rank: (),
        byte_counter=byte_counter,
        deadlines=(300.0, 10.0, 60.0),
    )
    service = TrainingService(
        rollouts=pool,
        rewards=[],
        rank_groups=[rank_group],
        byte_counter=byte_counter,
        limits={"rollout": (1, 8)},
        max_failures=0,
        run="",
        phases=(),
        auto=False,
    )
    service.form()
    found: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    for staleness in (0, 1) * PAIRS:
        options = {
            "run.iterations": str(ITERATIONS),
            "async.max_staleness": str(staleness),
            "gates.enabled": "false",
            "checkpoint.every": "0",
        }
        kept = Kept()
        rank_group.form()  # its version begins at 0
        run = Run(
            embedded(**options),
            service,
            name="bench",
            log=kept,  # type: ignore[arg-type]
            display=kept,  # type: ignore[arg-type]
            hooks=(Record(),),
        )
        run.ahead.collector = SleepingCollector(pool)  # type: ignore[assignment]
        state = TrainState()
        for _ in range(ITERATIONS):
            step(run, state)
        found[staleness] += kept.seconds[1:-1]
    service.stop()
    alone, beside = (
        {
            name: median(one[name] for one in found[staleness])
            for name in ("iteration", "update", "publish")
        }
        for staleness in (0, 1)
    )
    part = (alone["iteration"] - beside["iteration"]) / alone["update"]
    return {
        "hidden": part,
        "grow s": GROW,
        "update s": UPDATE,
        "staleness 0, s": alone,
        "staleness 1, s": beside,
        "iterations": len(found[0]),
    }


def recovery() -> dict[str, Any]:
    """A real run of tests/faults: seconds beyond a usual iteration until the iteration that was hit
    is done, ÷ a usual iteration.

    Learner: rank 0 of 1 dies 50 ms into an update. Its rank group is formed anew and goes back to
    the newest checkpoint: after an odd iteration that is one iteration earlier.
    """
    first: dict[int, float] = {}  # iteration → when it was done for the first time

    def sabotage(made: RayService, count: int) -> None:
        del count
        if not first:
            report = lambda values: done(made, int(values["iteration"]))  # noqa: E731
            made.report = report  # type: ignore[method-assign]
            first[0] = time.perf_counter()

    def done(made: RayService, iteration: int) -> None:
        if iteration in first:
            return
        first[iteration] = time.perf_counter()
        if iteration in ROLLOUT_KILLS:
            busy(made, 0, kill)
        if iteration in LEARNER_KILLS:
            begin, hit = made.learner_group.begin, SimpleNamespace(done=False)

            def begun(method: Any, *arguments: Any, **options: Any) -> Any:
                call = begin(method, *arguments, **options)
                if method is LearnerCalls.update and not hit.done:
                    hit.done = True
                    threading.Timer(0.05, kill, (made.learner_group.places[0].process,)).start()
                return call

            made.learner_group.begin = begun  # type: ignore[method-assign]

    with tempfile.TemporaryDirectory() as folder:
        run = carried(Path(folder) / "run", embedded(**{"run.iterations": str(LAST)}), sabotage)
    took = {iteration: first[iteration] - first[iteration - 1] for iteration in range(2, LAST)}
    hit = [kill + 1 for kill in ROLLOUT_KILLS + LEARNER_KILLS]
    usual = median(
        seconds
        for iteration, seconds in took.items()
        if iteration not in hit and iteration - 1 not in hit
    )
    rows: dict[str, Any] = {
        "a usual iteration s": usual,
        "rollout restarts": dict(run.service.rollout_pool.restarts),
        "learner restarts": dict(run.service.learner_group.restarts),
    }
    for role, kills in (("rollout", ROLLOUT_KILLS), ("learner", LEARNER_KILLS)):
        rows[role] = [
            {
                "behind iteration": one,
                "iterations": took[one + 1] / usual - 1,
                "s": took[one + 1] - usual,
            }
            for one in kills
        ]
    return rows
