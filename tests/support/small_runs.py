"""Short real runs on a local Ray, in which things are made to fail: real actors and a real object
store, with a model that starts soon."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.calls import LearnerCalls
from branchgrpo.app.service import configure, ray_service
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.models import weights as wire
from branchgrpo.report.sinks import read
from branchgrpo.service import UpdateRequest
from branchgrpo.training.carry_out import carry_out
from cluster.ray_service import RayService
from support.quiet_display import Quiet
from support.slow_painter import slow_painter
from support.small_trees import METHOD, QUICKSTART

ROOT = Path(__file__).parents[2]
ITERATIONS = 4
SMALL = {
    "run.iterations": str(ITERATIONS),
    "run.export": "none",
    "sampling.steps": "6",
    "method.splits": "[1, 2, 3]",
    "method.leaves": "8",
    "rollout.workers": "2",
    "rollout.cpus": "0.25",
    "rollout.prompts": "3",
    "rollout.fork_depth": "1",
    "reward_workers.cpus": "0.25",
    "learner.cpus": "0.25",
    "learner.threads": "1",
    "learner.timeout_seconds": "300",
    "learner.learning_rate": "0.001",
    "learner.warmup": "0",
    "evaluation.prompts": "4",
    "evaluation.pictures": "4",
    "evaluation.every": "0",
    "evaluation.steps": "4",
    "checkpoint.every": "2",
    "checkpoint.every_minutes": "0",
    # a busy machine is slow, but nothing hangs; what is about hanging asks for less
    "cluster.straggler_seconds": "120",
}


def small() -> dict[str, str]:
    """Options of such a run, on the quick start's."""
    return SMALL | slow_painter()


@dataclass
class Run:
    """What a run came to."""

    weights: str  # digest of what was published last
    # (iteration, prompt index, tree) → trained scores, of the last time that they were trained on
    rewards: dict[tuple[int, int, int], bytes]
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    notes: list[str]
    service: RayService
    folder: Path


def config(**options: str) -> Config:
    return embedded(**small() | options)


def embedded(**options: str) -> Config:
    """The same with the quick start's own model and reward."""
    return configs.load(QUICKSTART, SMALL | options, METHOD)


def nothing(made: RayService, iteration: int) -> None:
    """No sabotage."""


def carried(
    folder: Path, loaded: Config, sabotage: Callable[[RayService, int], None] = nothing
) -> Run:
    """Train in `folder` with a service of its own; see `played`."""
    made = ray_service(loaded)
    try:
        made.form()
        return played(made, folder, loaded, sabotage)
    finally:
        made.stop()


class Stage:
    """Where run after run of the same roles is played by one service: loading its models takes
    longer than a short run."""

    def __init__(self) -> None:
        self.service: RayService | None = None

    def played(
        self, folder: Path, loaded: Config, sabotage: Callable[[RayService, int], None] = nothing
    ) -> Run:
        """The run; a service whose run failed plays no other."""
        made, self.service = self.service, None
        try:
            if made is None:
                made = ray_service(loaded)
                made.form()
            else:
                configure(made, loaded)
                for pool in made.pools:
                    pool.wait_ready()
            found = played(made, folder, loaded, sabotage)
        except BaseException:
            if made:
                made.stop()
            raise
        self.service = made
        return found

    def end(self) -> None:
        if self.service:
            self.service.stop()
            self.service = None


def played(
    made: RayService, folder: Path, loaded: Config, sabotage: Callable[[RayService, int], None]
) -> Run:
    """Train in `folder`; `sabotage` is called after every iteration, with the number of iterations
    done, and once before the first. The service's counts begin at 0."""
    display = Quiet()
    rewards = dict[tuple[int, int, int], bytes]()
    done = [0]
    begin = made.learner_group.begin
    for one in made.everyone:
        one.restarts.clear()
        one.note = display.note
    for pool in made.pools:
        pool.dispatcher.reissued = 0

    def spy(method: Any, *arguments: Any, **options: Any) -> Any:
        if method is LearnerCalls.update:
            request: UpdateRequest = arguments[0]
            for key, values in request.scores.items():
                rewards[request.iteration, *key] = values.tobytes()
        return begin(method, *arguments, **options)

    def between() -> bool:
        done[0] += 1
        sabotage(made, done[0])
        return False

    made.learner_group.begin = spy  # type: ignore[method-assign]
    try:
        sabotage(made, 0)
        summary = carry_out(
            loaded, service=made, folder=folder, display=display, interrupted=between
        )
        update = made.learner_group.call(LearnerCalls.publish)[0][0]
        return Run(
            weights=update.digest,
            rewards=rewards,
            records=read(folder / "metrics.jsonl"),
            summary=summary,
            notes=display.notes,
            service=made,
            folder=folder,
        )
    finally:
        made.learner_group.begin = begin  # type: ignore[method-assign]


def same(one: Run, other: Run) -> None:
    """Final weights and rewards are equal, bit by bit."""
    assert one.rewards.keys() == other.rewards.keys() and one.rewards
    assert one.rewards == other.rewards
    assert one.weights == other.weights
    assert [record["iteration"] for record in one.records] == [
        record["iteration"] for record in other.records
    ]
    held = [
        [
            json.loads((run.folder / "held_out.json").read_text())[when]
            for when in ("before", "after")
        ]
        for run in (one, other)
    ]
    assert held[0] == held[1]


def busy(
    made: RayService,
    index: int,
    act: Callable[[int], None],
    method: str = "grow",
    lent: bool = False,
) -> threading.Thread:
    """A thread that waits until the rollout worker at this place is in the middle of a task, then
    acts on its process. lent: the rank at this place."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            pool = made.rollout_pool.workers
            workers = [worker for worker in list(pool) if worker.state == "ready"]
            if lent:
                workers = list(pool.lent or ())
            if len(workers) > index and any(
                attempt.task and attempt.task.method == method
                for attempt in list(workers[index].pending)
            ):
                time.sleep(0.03)
                act(workers[index].place.process)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@contextmanager
def impatient(made: RayService, seconds: float) -> Iterator[None]:
    """Rollout tasks are stragglers after so many seconds, until the end of the block."""
    deadlines = made.rollout_pool.workers.deadlines
    usual = deadlines.policy
    deadlines.policy = replace(usual, straggler_seconds=seconds)
    try:
        yield
    finally:
        deadlines.policy = usual


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def digest(tensors: Any) -> str:
    return wire.digest_of(tensors)
