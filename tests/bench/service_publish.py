"""Weights from a learner to rollout workers: the real methods, around 500 MB that are not a
model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch

from actors.groups import Learners
from actors.learner import Learner
from actors.pools import Rollouts
from actors.rollout import RolloutWorker
from branchgrpo.config import load as configs
from branchgrpo.models import weights as wire
from cluster.byte_counter import DriverByteCounter
from cluster.rank_group import RankGroup
from cluster.retry_policy import RetryPolicy
from cluster.worker_pool import WorkerPool

WORKERS, TENSORS, SIDE, REPEATS = 4, 125, 1000, 7  # 500 MB


class Weights:
    """The part of a model that publishing sees."""

    def __init__(self) -> None:
        self.tensors = {
            f"layer.{index}": torch.nn.Parameter(torch.rand(SIDE, SIDE)) for index in range(TENSORS)
        }

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return self.tensors


class Sender(Learner):
    """A learner with such weights."""

    def join(self, ranks: int, address: str) -> None:
        torch.set_num_threads(1)
        self.model, self.version = Weights(), 1
        self.kinds = {name: value.dtype for name, value in self.model.trainable().items()}

    def parts(self) -> dict[str, float]:
        """Seconds of what `publish` does, alone."""
        tensors = self._whole("policy")
        found = {
            "learner: gather": timed(lambda: self._whole("policy")),
            "learner: digest": timed(lambda: wire.digest_of(tensors)),
        }
        chunks = self.publish()[2:]
        return found | {
            "learner: publish": timed(self.publish),
            "learner: put": timed(lambda: [ray.put(chunk) for chunk in chunks]),
        }


class Receiver(RolloutWorker):
    """A rollout worker with such weights."""

    def ready(self) -> None:
        torch.set_num_threads(1)
        self.model = Weights()

    def parts(self, held: list[Any]) -> dict[str, float]:
        """Seconds of what `load_weights` does, alone."""
        update, *chunks = ray.get(held)
        return {
            "worker: get": timed(lambda: ray.get(held)),
            "worker: unpack": timed(lambda: wire.unpack_weights(update, chunks)),
            "worker: digest": timed(lambda: wire.digest_of(self.model.trainable())),
            "worker: load_weights": timed(lambda: self.load_weights(update, *chunks)),
        }


def timed(work: Callable[[], Any]) -> float:
    """Median of three."""
    found = []
    for _ in range(3):
        began = perf_counter()
        work()
        found.append(perf_counter() - began)
    return median(found)


def publish() -> dict[str, Any]:
    """Limit: one thread copies 500 MB five times, once for the sender and once for each worker,
    into memory that was used before."""
    config = configs.load(Path(__file__).parents[2] / "configs" / "quickstart.yaml", {})
    byte_counter = DriverByteCounter()
    pool = WorkerPool(
        cls=Receiver,
        role="rollout",
        count=WORKERS,
        resources={"num_cpus": 0.01},
        arguments=(config,),
        byte_counter=byte_counter,
        retry_policy=RetryPolicy(task_timeout_seconds=300.0),
    )
    rank_group = RankGroup(
        cls=Sender,
        role="learner",
        ranks=1,
        resources={"num_cpus": 0.01},
        make=lambda rank: (config, rank, ray.get),
        byte_counter=byte_counter,
        deadlines=(300.0, 10.0, 60.0),
    )
    pool.poll()
    rank_group.form()
    pool.wait_ready()
    learners, rollouts = Learners(rank_group), Rollouts(pool)
    source = np.random.default_rng(0).random(TENSORS * SIDE * SIDE, np.float32)
    target = source.copy()

    def copies() -> float:
        began = perf_counter()
        for _ in range(1 + WORKERS):
            np.copyto(target, source)
        return perf_counter() - began

    def published() -> float:
        began = perf_counter()
        learners.publish(rollouts, "policy")
        return perf_counter() - began

    for _ in range(4):
        copies(), published()  # the store takes its pages
    pairs = [(copies(), published()) for _ in range(REPEATS)]
    limit, measured = median(one for one, _ in pairs), median(one for _, one in pairs)
    fresh = timed(lambda: source.copy())
    held = list(pool.workers.sync_calls[0][1])
    alone = rank_group.call(Sender.parts)[0] | ray.get(pool.workers[0].handle.parts.remote(held))
    pool.stop()
    rank_group.stop()
    row = {"ratio": limit / measured, "limit s": limit, "measured s": measured, "pairs": pairs}
    return row | {
        "MB": source.nbytes / 1e6,
        "alone s": alone,
        "one copy s": limit / (1 + WORKERS),
        "one copy into new memory s": fresh,
    }
