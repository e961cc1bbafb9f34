"""What a run says of itself: on the board that people read, and as metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, cast

import ray

from cluster import nodes
from cluster.board import STOP, Board
from cluster.errors import PlacementError
from cluster.metric_table import CAUSES
from cluster.rank_group import RankGroup
from cluster.ray_metrics import RunMetrics
from cluster.status import plain
from cluster.worker_pool import WorkerPool

POST_SECONDS = 5.0
"""How often workers and queues are posted between reports."""
BOARD_SECONDS = 2.0
"""The longest that a run waits for the board; it takes about a millisecond."""
TRAINED = "time/training"
"""The figure that is of the whole run, among those of an iteration."""


class Reporter:
    """Holds the newest report of each kind, and adds what the actors do. Requests that were read
    stay here, whatever becomes of the board in the cluster's head."""

    def __init__(
        self,
        run: str,
        rollouts: WorkerPool,
        rewards: list[WorkerPool],
        rank_groups: list[RankGroup],
        limits: Mapping[str, tuple[int, int]],
        phases: Sequence[str],
    ):
        """phases: parts of an iteration, whose seconds its metrics have."""
        self.rollouts = rollouts
        self.rewards = rewards
        self.rank_groups = rank_groups
        self.everyone: list[WorkerPool | RankGroup] = [rollouts, *rewards, *rank_groups]
        self.last: dict[str, Any] = {"started": time.time()}
        self.last_post = 0.0
        # what the metrics know of
        self.counted: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
        self.versions: set[str] = set()  # workers whose weights they know of
        self.stop_requested = False  # somebody asked for it
        self.wanted = {
            "rollout": rollouts.desired,
            "reward": rewards[0].desired,
            "learner": sum(rank_group.count for rank_group in rank_groups),
        }
        self.known = {
            "run": run,
            "job": ray.get_runtime_context().get_job_id(),
            "limits": {role: list(pair) for role, pair in limits.items()},
        }
        self.board = Board.at(ray.get_runtime_context().gcs_address, BOARD_SECONDS)
        self.metrics = RunMetrics(run, phases)
        self.board.claim(run, self._notice())
        for one in self.everyone:
            for cause in CAUSES:
                self.metrics.begin("branchgrpo_restarts", role=one.role, cause=cause)
        for pool in (rollouts, *rewards):
            self.metrics.begin("branchgrpo_retries", role=pool.role)

    def requests(self) -> tuple[bool, dict[str, int]]:
        """What people want: shall the run end, and actors by role. Where the head gives no answer:
        as before."""
        with suppress(PlacementError):
            found = self.board.requests(self.known["run"], (*self.wanted, STOP))
            self.stop_requested |= STOP in found
            self.wanted |= {role: count for role, count in found.items() if role != STOP}
        return self.stop_requested, dict(self.wanted)

    def _notice(self) -> dict[str, Any]:
        notice = {
            **self.last,
            **self.known,
            "wanted": self.wanted,
            "stopping": self.stop_requested,
            "updated": time.time(),
        }
        return cast(dict[str, Any], plain(notice))

    def report(self, values: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """`values` as the trainer gives them. status: see `post`."""
        metrics: Mapping[str, float] = values.get("metrics", {})
        self.last |= {key: value for key, value in values.items() if key != "metrics"}
        self.last |= {
            key: metrics[name]
            for key, name in (("reward", "reward/total"), ("trained", TRAINED))
            if name in metrics
        }
        for key, prefix in (("seconds", "time/"), ("held_out", "held_out/")):
            if found := {
                name.removeprefix(prefix): value
                for name, value in metrics.items()
                if name.startswith(prefix) and name != TRAINED
            }:
                self.last[key] = found
        self.metrics.iteration(metrics)
        if "service/recoveries" in metrics:
            self._count("branchgrpo_recoveries", int(metrics["service/recoveries"]))
        self.post(status)

    def post(self, status: Mapping[str, Any]) -> None:
        """What is known now. status: further entries of cluster.status.Snapshot."""
        self.last_post = time.monotonic()
        self.last |= {**status, "workers": self._states(), "ready": self._ready()}
        with suppress(PlacementError):  # the run goes on; the next report comes soon
            self.board.post(self.known["run"], self._notice())
        self._measure()

    def _ready(self) -> dict[str, int]:
        """Ready actors by role; of rewards, in that environment which has fewest."""
        ready = [len(pool.workers.ready) for pool in (self.rollouts, *self.rewards)]
        return {
            "rollout": ready[0],
            "reward": min(ready[1:], default=0),
            "learner": sum(len(rank_group.places) for rank_group in self.rank_groups),
        }

    def _states(self) -> dict[str, list[dict[str, Any]]]:
        known, version = nodes.addresses(), int(self.last.get("version", -1))
        states = {
            "rollout": self.rollouts.states(),
            "reward": [state for pool in self.rewards for state in pool.states()],
        }
        states["learner"] = [
            {
                "name": f"{rank_group.role}-{rank}",
                "state": "ready",
                "version": version,
                "node": place.node,
                "busy": 0,
            }
            for rank_group in self.rank_groups
            for rank, place in enumerate(rank_group.places)
        ]
        for state in states["reward"]:
            state["version"] = -1  # rewards hold no weights
        for state in chain.from_iterable(states.values()):
            state["node"] = known.get(state["node"], state["node"])
        return states

    def _measure(self) -> None:
        exported = self.metrics
        exported.set("branchgrpo_fence", int(self.last.get("fence", 0)))
        for pool in (self.rollouts, *self.rewards):
            exported.set("branchgrpo_workers_desired", pool.desired, role=pool.role)
            exported.set(
                "branchgrpo_workers_ready",
                len(pool.workers.ready),
                role=pool.role,
            )
            tasks = len(pool.dispatcher.queue) + len(pool.dispatcher.attempts)
            exported.set("branchgrpo_queue_length", tasks, role=pool.role)
            self._count("branchgrpo_retries", pool.reissued, role=pool.role)
        for one in self.everyone:
            for cause, count in one.restarts.items():
                self._count("branchgrpo_restarts", count, role=one.role, cause=cause)
        for rank_group in self.rank_groups:
            exported.set("branchgrpo_workers_desired", self.wanted["learner"], role=rank_group.role)
            exported.set("branchgrpo_workers_ready", len(rank_group.places), role=rank_group.role)
        for name, key in (
            ("branchgrpo_iteration", "iteration"),
            ("branchgrpo_iterations_planned", "planned"),
        ):
            if key in self.last:
                exported.set(name, self.last[key])
        checkpoint = self.last.get("checkpoint", {})
        if made := checkpoint.get("time"):
            exported.set("branchgrpo_checkpoint_timestamp_seconds", made)
            exported.set("branchgrpo_checkpoint_iteration", checkpoint["iteration"])
        held = {
            state["name"]: state["version"]
            for state in self.rollouts.states()
            if state["version"] >= 0
        }
        for worker in self.versions - held.keys():
            exported.forget(role=self.rollouts.role, worker=worker)
        self.versions = set(held)
        for worker, version in held.items():
            exported.set(
                "branchgrpo_weight_version", version, role=self.rollouts.role, worker=worker
            )

    def _count(self, name: str, count: int, **labels: str) -> None:
        """Bring a counter up to `count`."""
        key = name, frozenset(labels.items())
        self.metrics.add(name, count - self.counted[key], **labels)
        self.counted[key] = count

    def close(self) -> None:
        """Stop the metrics; the run is no longer known."""
        self.metrics.close()
        with suppress(PlacementError):
            self.board.forget(self.known["run"])
