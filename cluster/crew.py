"""All actors of one run: pools that grow, shrink and mend, a gang that is formed again, and who watches them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray import ObjectRef

from cluster import control
from cluster.errors import GangError, LostObjects
from cluster.gang import Gang
from cluster.meter import Meter
from cluster.monitor import Monitor
from cluster.pool import FORGIVEN, Pool
from cluster.publish import publish

WISH_SECONDS = 1.0
"""How often wishes for other counts are looked for."""

Limits = Mapping[str, tuple[int, int]]
"""Fewest and most workers by role."""


class Crew:
    """Pools of one rollout role and of rewards (one for each environment), and gangs: the learners, or none."""

    faults: tuple[type[Exception], ...] = (GangError, LostObjects)

    def __init__(self, rollouts: Pool, rewards: list[Pool], gangs: list[Gang], meter: Meter, limits: Limits, forgiven: int, run: str, auto: bool):
        """forgiven: how often the gang may be lost. run: in whose name others find it; empty: nobody does. auto: as many
        rollout workers as the cluster has room for."""
        self.rollouts, self.rewards, self.gangs, self.meter = rollouts, rewards, gangs, meter
        self.limits, self.forgiven, self.auto = limits, forgiven, auto
        self.chunks = 0
        self.wish: ObjectRef[Any] | None = None
        self.wished = 0.0
        self.counted: Counter[tuple[str, str]] = Counter()  # restarts that the metrics know of
        self.last: dict[str, Any] = {"started": time.time()}
        self.controller: Any = None
        self.monitor: Monitor | None = None
        if run:
            desired = {"rollout": rollouts.desired, "reward": rewards[0].desired, "learner": gangs[0].count if gangs else 0}
            self.controller, self.monitor = control.start(run, desired, limits), Monitor(run)
        for pool in self.pools:
            pool.tick = self.look

    @property
    def pools(self) -> list[Pool]:
        """All pools."""
        return [self.rollouts, *self.rewards]

    @property
    def everyone(self) -> list[Pool | Gang]:
        """All pools and gangs."""
        return [*self.pools, *self.gangs]

    @property
    def learners(self) -> Gang:
        """The gang that trains."""
        return self.gangs[0]

    def form(self) -> None:
        """Wait until every actor has loaded what it needs."""
        for pool in self.pools:
            pool.tend()  # all begin to load at once
        for gang in self.gangs:
            gang.form()
            self.chunks = gang.call("chunks")[0]
        for pool in self.pools:
            pool.wait_ready()

    def publish(self, weights: str = "policy") -> int:
        """The gang's weights of this name to every rollout worker; returns their version."""
        try:
            return publish(self.learners, self.rollouts, self.chunks, weights)
        except LostObjects:  # what comes next would build on an update that nobody saw: the gang goes back too
            self.learners.restarts["lost"] += 1
            self.learners.stop()
            raise

    def driver_bytes(self) -> int:
        """Bytes through the driver since the last call."""
        return self.meter.take()

    def recover(self, error: Exception) -> bool:
        """Drop what is pending; form the gang anew if it is gone, and return whether it was. Raises the error when it was
        gone too often, preemption apart; GangError when a rank turns out to be gone."""
        for pool in self.pools:
            pool.forget()
        if self.learners.ranks:
            self.learners.call("chunks")  # a rank may have gone with the same node
            return False
        if sum(count for why, count in self.learners.restarts.items() if why not in FORGIVEN) > self.forgiven:
            raise error
        self.learners.form()
        return True

    # wishes

    def look(self) -> None:
        """Follow wishes for other counts of workers, at most once in a while; never waits."""
        now = time.monotonic()
        if self.auto:
            self.rollouts.desired = self._room()
        if self.controller is None or now - self.wished < WISH_SECONDS:
            return
        if self.wish is None:
            self.wish = self.controller.desired.remote()
        done, _ = ray.wait([self.wish], timeout=0)
        if done:
            wanted: dict[str, int] = ray.get(self.wish)
            self.wish, self.wished = None, now
            if not self.auto:
                self.rollouts.desired = wanted["rollout"]
            for pool in self.rewards:
                pool.desired = wanted["reward"]

    def _room(self) -> int:
        """Rollout workers that the cluster has room for, beside all others."""
        have: Counter[str] = Counter()
        for node in ray.nodes():
            if node["Alive"]:
                have.update(node["Resources"])
        for pool in self.rewards:
            have.subtract({name: amount * pool.desired for name, amount in pool.need.items()})
        for gang in self.gangs:
            have.subtract({"CPU": gang.cpus * gang.count, "GPU": gang.gpus * gang.count})
        fewest, most = self.limits["rollout"]
        room = min((math.floor(have[name] / amount + 1e-6) for name, amount in self.rollouts.need.items() if amount), default=most)
        return max(fewest, min(most, room))

    def follow(self) -> dict[str, int]:
        """Tend all pools between iterations; returns counts for the figures."""
        for pool in self.pools:
            pool.tend()
        restarts = sum(sum(one.restarts.values()) for one in self.everyone)
        counts = {"rollout_workers": len(self.rollouts.workers), "reward_workers": sum(len(pool.workers) for pool in self.rewards)}
        return counts | {"restarts": restarts, "reissued": sum(pool.reissued for pool in self.pools)}

    # telling

    def report(self, values: Mapping[str, Any]) -> None:
        """Tell whoever watches: `values` as the trainer gives them, and what the workers do."""
        if self.controller is None or self.monitor is None:
            return
        figures: Mapping[str, float] = values.get("figures", {})
        restarts: Counter[str] = Counter()
        for one in self.everyone:
            restarts.update(one.restarts)
        self.last |= {key: value for key, value in values.items() if key != "figures"}
        self.last |= {
            "reward": figures.get("reward/total", math.nan),
            "seconds": {name.removeprefix("time/"): value for name, value in figures.items() if name.startswith("time/")},
            "workers": self._states(),
            "restarts": dict(restarts),
            "updated": time.time(),
        }
        if held_out := {name.removeprefix("held_out/"): value for name, value in figures.items() if name.startswith("held_out/")}:
            self.last["held_out"] = held_out
        self.controller.report.remote(dict(self.last))
        self._measure(figures, int(values.get("epoch", 0)))

    def _states(self) -> dict[str, list[dict[str, Any]]]:
        states = {"rollout": self.rollouts.states(), "reward": [state for pool in self.rewards for state in pool.states()]}
        ranks = [{"name": f"learner-{rank}", "state": "ready", "version": -1, "node": "", "busy": 0} for gang in self.gangs for rank in range(len(gang.ranks))]
        return states | {"learner": ranks}

    def _measure(self, figures: Mapping[str, float], epoch: int) -> None:
        assert self.monitor is not None
        self.monitor.iteration(figures)
        self.monitor.set("branchgrpo_epoch", epoch)
        for pool in self.pools:
            self.monitor.set("branchgrpo_workers_desired", pool.desired, role=pool.role)
            self.monitor.set("branchgrpo_workers_ready", sum(worker.state == "ready" for worker in pool.workers), role=pool.role)
            self.monitor.set("branchgrpo_queue_length", len(pool.queue) + len(pool.attempts), role=pool.role)
        for one in self.everyone:
            for cause, count in one.restarts.items():
                self.monitor.add("branchgrpo_restarts", count - self.counted[one.role, cause], role=one.role, cause=cause)
                self.counted[one.role, cause] = count

    def stop(self) -> None:
        """End all actors."""
        for one in self.everyone:
            one.stop()
        if self.monitor:
            self.monitor.close()
