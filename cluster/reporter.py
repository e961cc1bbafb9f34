"""What a run says of itself: to its controller, whom people ask, and as metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

import ray
from ray import ObjectRef

from cluster import control, nodes
from cluster.errors import died
from cluster.gang import Gang
from cluster.monitor import Monitor
from cluster.pool import Pool

TELL_SECONDS = 5.0
"""How often workers and queues are told between reports."""


class Reporter:
    """Holds the newest report of each kind, and adds what the actors do. Makes the controller."""

    def __init__(self, run: str, rollouts: Pool, rewards: list[Pool], gangs: list[Gang], limits: Mapping[str, tuple[int, int]]):
        self.rollouts, self.rewards, self.gangs = rollouts, rewards, gangs
        self.everyone: list[Pool | Gang] = [rollouts, *rewards, *gangs]
        self.last: dict[str, Any] = {"started": time.time()}
        self.told = self.asked = 0.0
        self.wish: ObjectRef[Any] | None = None
        self.counted: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()  # what the metrics know of
        self.versions: set[str] = set()  # workers whose weights they know of
        desired = {"rollout": rollouts.desired, "reward": rewards[0].desired, "learner": sum(gang.count for gang in gangs)}
        self.controller, self.monitor = control.start(run, desired, limits), Monitor(run)

    def wishes(self) -> tuple[bool, dict[str, int]] | None:
        """What people want: shall the run end, and actors by role; None when there is nothing to hear now. Does not wait.

        The controller may be gone with its node, or an answer lost: the run goes on as it is.
        """
        now = time.monotonic()
        if self.wish is None or now - self.asked > control.ANSWER_SECONDS:
            self.wish, self.asked = self.controller.wishes.remote(), now
        if not ray.wait([self.wish], timeout=0)[0]:
            return None
        wish, self.wish = self.wish, None
        try:
            found: tuple[bool, dict[str, int]] = ray.get(wish)
        except ray.exceptions.RayError as error:
            if not died(error):
                raise
            return None
        return found

    def report(self, values: Mapping[str, Any], standing: Mapping[str, Any]) -> None:
        """`values` as the trainer gives them. standing: see `tell`."""
        figures: Mapping[str, float] = values.get("figures", {})
        self.last |= {key: value for key, value in values.items() if key != "figures"}
        if "reward/total" in figures:
            self.last["reward"] = figures["reward/total"]
        for key, prefix in (("seconds", "time/"), ("held_out", "held_out/")):
            if found := {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}:
                self.last[key] = found
        self.monitor.iteration(figures)
        self.tell(standing)

    def tell(self, standing: Mapping[str, Any]) -> None:
        """What is known now. standing: further entries of cluster.control.Snapshot."""
        self.told = time.monotonic()
        restarts: Counter[str] = Counter()
        for one in self.everyone:
            restarts.update(one.restarts)
        self.last |= {**standing, "workers": self._states(), "ready": self._ready(), "restarts": dict(restarts), "updated": time.time()}
        self.controller.report.remote(dict(self.last))
        self._measure()

    def _ready(self) -> dict[str, int]:
        """Ready actors by role; of rewards, in that environment which has fewest."""
        ready = [sum(worker.state == "ready" for worker in pool.workers) for pool in (self.rollouts, *self.rewards)]
        return {"rollout": ready[0], "reward": min(ready[1:], default=0), "learner": sum(len(gang.places) for gang in self.gangs)}

    def _states(self) -> dict[str, list[dict[str, Any]]]:
        known, version = nodes.addresses(), int(self.last.get("version", -1))
        states = {"rollout": self.rollouts.states(), "reward": [state for pool in self.rewards for state in pool.states()]}
        states["learner"] = [
            {"name": f"{gang.role}-{rank}", "state": "ready", "version": version, "node": place.node, "busy": 0}
            for gang in self.gangs
            for rank, place in enumerate(gang.places)
        ]
        for state in states["reward"]:
            state["version"] = -1  # rewards hold no weights
        for state in chain.from_iterable(states.values()):
            state["node"] = known.get(state["node"], state["node"])
        return states

    def _measure(self) -> None:
        monitor = self.monitor
        monitor.set("branchgrpo_epoch", int(self.last.get("epoch", 0)))
        for pool in (self.rollouts, *self.rewards):
            monitor.set("branchgrpo_workers_desired", pool.desired, role=pool.role)
            monitor.set("branchgrpo_workers_ready", sum(worker.state == "ready" for worker in pool.workers), role=pool.role)
            monitor.set("branchgrpo_queue_length", len(pool.queue) + len(pool.attempts), role=pool.role)
            self._count("branchgrpo_retries", pool.reissued, role=pool.role)
        for one in self.everyone:
            for cause, count in one.restarts.items():
                self._count("branchgrpo_restarts", count, role=one.role, cause=cause)
        if made := self.last.get("checkpoint", {}).get("time"):
            monitor.set("branchgrpo_checkpoint_timestamp_seconds", made)
        held = {state["name"]: state["version"] for state in self.rollouts.states() if state["version"] >= 0}
        for worker in self.versions - held.keys():
            monitor.forget(role=self.rollouts.role, worker=worker)
        self.versions = set(held)
        for worker, version in held.items():
            monitor.set("branchgrpo_weight_version", version, role=self.rollouts.role, worker=worker)

    def _count(self, name: str, count: int, **labels: str) -> None:
        """Bring a counter up to `count`."""
        key = name, frozenset(labels.items())
        self.monitor.add(name, count - self.counted[key], **labels)
        self.counted[key] = count

    def close(self) -> None:
        """Stop the metrics."""
        self.monitor.close()
