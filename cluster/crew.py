"""All actors of one run: pools that grow, shrink and mend, a gang that is formed again, and who watches them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

import ray
from ray import ObjectRef
from ray.autoscaler.sdk import request_resources

from cluster import control, nodes, placement
from cluster.errors import GangError, LostObjects, PlacementError
from cluster.gang import Gang
from cluster.meter import Meter
from cluster.monitor import Monitor
from cluster.pool import FORGIVEN, Pool
from cluster.publish import publish
from cluster.work import Place

LOOK_SECONDS = 1.0
"""How often wishes, and nodes that come and go, are looked for."""
ROOM_SECONDS = 5.0
"""How long a gang of other size waits for its room before the present one goes on."""

Limits = Mapping[str, tuple[int, int]]
"""Fewest and most workers by role."""


class Crew:
    """Pools of one rollout role and of rewards (one for each environment), and gangs: the learners, or none."""

    faults: tuple[type[Exception], ...] = (GangError, LostObjects)

    def __init__(
        self,
        rollouts: Pool,
        rewards: list[Pool],
        gangs: list[Gang],
        meter: Meter,
        limits: Limits,
        forgiven: int,
        run: str,
        auto: bool = False,
        request: int = 0,
    ):
        """forgiven: how often the gang may be lost. run: in whose name others find it; empty: nobody does. auto: as many
        rollout workers as the cluster has room for. request: for how many an autoscaler is asked."""
        self.rollouts, self.rewards, self.gangs, self.meter = rollouts, rewards, gangs, meter
        self.limits, self.forgiven, self.auto, self.request = limits, forgiven, auto, request
        self.chunks, self.formed = 0, False
        self.wish: ObjectRef[Any] | None = None
        self.looked = 0.0
        self.ending = False  # somebody asked for it
        self.wanted_ranks = gangs[0].count if gangs else 0
        self.refused = ""  # why the gang has another number of ranks than wanted
        self.leavers: set[str] = set()  # nodes that will go
        self.heeded: set[str] = set()  # those of them for which a checkpoint was asked
        self.counted: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()  # what the metrics know of
        self.versions: set[str] = set()  # workers whose weights they know of
        self.last: dict[str, Any] = {"started": time.time()}
        self.controller: Any = None
        self.monitor: Monitor | None = None
        if run:
            desired = {"rollout": rollouts.desired, "reward": rewards[0].desired, "learner": self.wanted_ranks}
            self.controller, self.monitor = control.start(run, desired, limits), Monitor(run)
        for pool in self.pools:
            pool.tick = self.look
        if request:
            self._ask_autoscaler(request)

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
        for pool in self.rewards:  # they load least, and refuse first
            pool.wait_ready()
        for gang in self.gangs:
            gang.form()
            self.chunks = gang.call("chunks")[0]
        self.formed = True
        self.rollouts.wait_ready()

    def publish(self, weights: str = "policy") -> int:
        """The gang's weights of this name to every rollout worker; returns their version."""
        try:
            return publish(self.learners, self.rollouts, self.chunks, weights)
        except LostObjects:  # what comes next would build on an update that nobody saw: the gang goes back too
            self.learners.lose("lost")
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
        """Follow the cluster, and wishes of people, at most once in a while; waits for nobody."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        self.leavers, alive = nodes.draining(), nodes.alive()
        for pool in self.pools:
            pool.settle(alive, self.leavers)
        if self.auto and self.formed:  # before that, the fewest rollout workers must leave room for all others
            fewest, most = self.limits["rollout"]
            room = nodes.room(self.rollouts)
            self.rollouts.desired = most if room is None else max(fewest, min(most, room))
        if self.controller is None:
            return
        self.wish = self.wish or self.controller.wishes.remote()
        if ray.wait([self.wish], timeout=0)[0]:
            self.ending, wanted = ray.get(self.wish)
            self.wish, self.wanted_ranks = None, wanted["learner"]
            if not self.auto:
                self.rollouts.desired = wanted["rollout"]
            for pool in self.rewards:
                pool.desired = wanted["reward"]

    def stopping(self) -> bool:
        """Did somebody ask for the run to end behind the present iteration?"""
        return self.ending

    def leaving(self) -> bool:
        """Will nodes go with actors of this run on them? Each is told once."""
        new = {place.node for place in self._places() if place.node in self.leavers} - self.heeded
        self.heeded |= new
        return bool(new)

    def _places(self) -> list[Place]:
        places = [worker.place for pool in self.pools for worker in pool.workers if worker.place]
        return places + [place for gang in self.gangs for place in gang.places]

    def regroup(self) -> str:
        """Form the gang anew, in the number that is wanted now and on nodes that stay. Returns why, or nothing when it stays
        as it is: since nothing asks for it, or since there is no room."""
        gang = self.learners
        going, more = sum(place.node in self.leavers for place in gang.places), self.wanted_ranks - gang.count
        if not going and not more:
            return ""
        try:
            placement.require({gang.role: [placement.bundle(gang.resources)] * max(0, going + more)}, ROOM_SECONDS)
        except PlacementError as error:
            self.refused = str(error)
            return ""
        why = f"{going} of {gang.count} ranks are on nodes that will go" if going else f"{gang.count} → {self.wanted_ranks} ranks"
        gang.restarts["preempted" if going else "scaled"] += 1
        gang.count, self.refused = self.wanted_ranks, ""
        gang.form(elsewhere=bool(going))
        self.chunks = gang.call("chunks")[0]
        return why

    def _ask_autoscaler(self, workers: int) -> None:
        """For room for so many rollout workers beside all others; 0 takes the request back."""
        wanted = [(self.rollouts.resources, workers), *((pool.resources, pool.desired) for pool in self.rewards)]
        wanted += [(gang.resources, gang.count) for gang in self.gangs]
        bundles = [bundle for resources, count in wanted for bundle in [placement.bundle(resources)] * count if bundle]
        request_resources(bundles=bundles if workers else [])

    def follow(self) -> dict[str, int]:
        """Tend all pools between iterations; returns counts for the figures."""
        for pool in self.pools:
            pool.tend()
        self.look()
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
        self.last["following"] = {self.rollouts.role: self.rollouts.desired} if self.auto else {}
        self.last["refused"] = {"learner": self.refused} if self.refused else {}
        if held_out := {name.removeprefix("held_out/"): value for name, value in figures.items() if name.startswith("held_out/")}:
            self.last["held_out"] = held_out
        self.controller.report.remote(dict(self.last))
        self._measure(figures, int(values.get("epoch", 0)))

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

    def _measure(self, figures: Mapping[str, float], epoch: int) -> None:
        assert self.monitor is not None
        self.monitor.iteration(figures)
        self.monitor.set("branchgrpo_epoch", epoch)
        for pool in self.pools:
            self.monitor.set("branchgrpo_workers_desired", pool.desired, role=pool.role)
            self.monitor.set("branchgrpo_workers_ready", sum(worker.state == "ready" for worker in pool.workers), role=pool.role)
            self.monitor.set("branchgrpo_queue_length", len(pool.queue) + len(pool.attempts), role=pool.role)
            self._count("branchgrpo_retries", pool.reissued, role=pool.role)
        for one in self.everyone:
            for cause, count in one.restarts.items():
                self._count("branchgrpo_restarts", count, role=one.role, cause=cause)
        if made := self.last.get("checkpoint", {}).get("time"):
            self.monitor.set("branchgrpo_checkpoint_timestamp_seconds", made)
        held = {state["name"]: state["version"] for state in self.rollouts.states() if state["version"] >= 0}
        for worker in self.versions - held.keys():
            self.monitor.forget(role=self.rollouts.role, worker=worker)
        self.versions = set(held)
        for worker, version in held.items():
            self.monitor.set("branchgrpo_weight_version", version, role=self.rollouts.role, worker=worker)

    def _count(self, name: str, count: int, **labels: str) -> None:
        """Bring a counter up to `count`."""
        assert self.monitor is not None
        before = self.counted[name, frozenset(labels.items())]
        self.monitor.add(name, count - before, **labels)
        self.counted[name, frozenset(labels.items())] = count

    def stop(self) -> None:
        """End all actors."""
        if self.request:
            self._ask_autoscaler(0)
        for one in self.everyone:
            one.stop()
        if self.monitor:
            self.monitor.close()
