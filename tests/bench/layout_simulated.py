"""The real loop, service, pools and rank group, whose actors sleep: how long GPUs wait in each
layout."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import layout_actors as actors

from branchgrpo.app import service as composition
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.training.hooks import Record
from branchgrpo.training.loop import step
from branchgrpo.training.run import Run
from branchgrpo.training.state import TrainState

GPUS = 8
ITERATIONS = 5
"""The first is left out, which grows twice where trees are grown ahead, and the last, which then
grows nothing."""
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
NODE = {
    "run.iterations": str(ITERATIONS),
    "rollout.prompts": str(actors.TREES),
    "rollout.max_batch": "16",
    "rollout.cpus": "0.01",
    "reward_workers.cpus": "0.01",
    "learner.cpus": "0.01",
    "gates.enabled": "false",
    "checkpoint.every_minutes": "0",
    "cluster.straggler_seconds": "600",  # no task is given to two workers
    "cluster.task_timeout_seconds": "600",
}
"""flux.1-dev-1node, but for what its actors hold."""
SEPARATE = {"rollout.workers": "5", "learner.ranks": "2"}  # and one that scores
SHARED = {
    "cluster.layout": "shared",
    "rollout.workers": "0",
    "learner.ranks": str(GPUS),
}
LAYOUTS: dict[str, dict[str, str]] = {
    "separate": SEPARATE,
    "async": SEPARATE | {"async.max_staleness": "1"},
    # the same 20 trees in 40 pieces of 8 pictures, 5 a rank
    "shared": SHARED | {"rollout.fork_depth": "1", "rollout.tasks_per_worker": "5"},
    # 3 whole trees a rank
    "shared, 24 trees": SHARED | {"rollout.prompts": "24"},
    # four ranks grow 3, the others 2
    "shared, 20 whole trees": SHARED,
}


class Kept:
    """A log and a display."""

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        names = ("iteration", "grow", "score", "update", "publish")
        self.seconds.append({name: values[f"time/{name}"] for name in names})

    def update(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def phase(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def rewind(self, iteration: int) -> None: ...


def simulated() -> dict[str, Any]:
    """Seconds are those of the GPUs that are simulated."""
    found = dict[str, Any]()
    for name, options in LAYOUTS.items():
        found[name] = idle(options)
        print(name, found[name], file=sys.stderr, flush=True)
    return {
        "idle_share_separate": found["separate"]["idle share"],
        "idle_share_async": found["async"]["idle share"],
        "idle_share_shared": found["shared"]["idle share"],
        "layouts": found,
        "s here for a s there": actors.SCALE,
        "iterations": ITERATIONS - 2,
    }


def idle(options: dict[str, str]) -> dict[str, Any]:
    """1 − GPU-seconds of growing and learning ÷ all GPUs' seconds, of whole iterations."""
    config = configs.load(QUICKSTART, NODE | options, "branchgrpo-mix")
    kept, busy = Kept(), list[float]()
    with sleeping(config) as service:
        run = Run(
            config,
            service,
            name="bench",
            log=kept,  # type: ignore[arg-type]
            display=kept,  # type: ignore[arg-type]
            hooks=(Record(),),
        )
        state = TrainState()
        for _ in range(ITERATIONS):
            step(run, state)
            busy.append(worked(service))
    trees = config.rollout.prompts
    expected = (actors.GROWING + actors.UPDATE) * trees / actors.TREES
    each = (busy[-2] - busy[0]) / (ITERATIONS - 2)
    if abs(each / expected - 1) > 1e-3:
        raise RuntimeError(f"expected {expected:g} GPU-seconds of work, got {each:g}")
    seconds = {
        name: median(row[name] for row in kept.seconds[1:-1]) / actors.SCALE
        for name in kept.seconds[0]
    }
    return {
        "idle share": 1 - expected / (GPUS * seconds["iteration"]),
        "seconds": seconds,
        "trees": trees,
        "busy GPU-seconds": each,
    }


def worked(service: Any) -> float:
    """GPU-seconds of all actors that grow or learn, so far."""
    ranks = service.learner_group.call(actors.Rank.worked)
    return float(sum([*ranks, *service.rollout_pool.broadcast(actors.Grower.worked)]))


@contextmanager
def sleeping(config: Config) -> Iterator[Any]:
    """The service of a run, composed as always, of classes that sleep."""
    others = {
        "RolloutWorker": actors.Grower,
        "RewardWorker": actors.Scorer,
        "Learner": actors.Rank,
        "SharedLearner": actors.SharedRank,
    }
    own = {name: getattr(composition, name) for name in others}
    vars(composition).update(others)
    service = composition.ray_service(config)
    try:
        service.form()
        yield service
    finally:
        service.stop()
        vars(composition).update(own)
