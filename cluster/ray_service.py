"""All actors of one run: pools that grow, shrink and mend, a rank group that is formed again, and
who watches them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cluster import placement
from cluster.actor import Place
from cluster.admission import admitted, until_placed
from cluster.byte_counter import DriverByteCounter
from cluster.capacity import ask_autoscaler, capacity
from cluster.errors import LostObjects, RankGroupError
from cluster.node_watch import NodeWatch
from cluster.rank_group import RankGroup
from cluster.rank_scaling import RankScaling
from cluster.reporter import POST_SECONDS, Reporter
from cluster.worker_pool import WorkerPool

CLUSTER_SECONDS = 1.0
"""How often requests of people, and nodes that come and go, are looked for."""

Limits = Mapping[str, tuple[int, int]]
"""Fewest and most workers by role."""


class RayService:
    """Pools of one rollout role and of rewards (one for each environment), and rank groups: the
    learners, or none."""

    faults: tuple[type[Exception], ...] = (RankGroupError, LostObjects)

    def __init__(
        self,
        rollouts: WorkerPool,
        rewards: list[WorkerPool],
        rank_groups: list[RankGroup],
        byte_counter: DriverByteCounter,
        limits: Limits,
        max_failures: int,
        run: str,
        phases: Sequence[str],
        auto: bool = False,
        request: int = 0,
    ):
        """max_failures: how often the rank group may be lost. run: in whose name others find it;
        empty: nobody does. auto: as many rollout workers as the cluster has room for. request: for
        how many an autoscaler is asked. phases: see `Reporter`."""
        self.rollout_pool = rollouts
        self.reward_pools = rewards
        self.rank_groups = rank_groups
        self.byte_counter = byte_counter
        self.limits, self.auto = limits, auto
        self.max_failures = max_failures
        self.request, self.run = request, run
        self.entered = self.formed = False
        # actors replaced under drivers before this one, by cause; no budget counts them
        self.earlier = Counter[str]()
        self.last_look = 0.0
        self.stop_requested = False  # somebody asked for it
        self.nodes = NodeWatch()
        self.rank_scaling = [RankScaling(rank_group, self.nodes) for rank_group in rank_groups]
        self.reporter = None
        if run:
            self.reporter = Reporter(
                run=run,
                rollouts=rollouts,
                rewards=rewards,
                rank_groups=rank_groups,
                limits=limits,
                phases=phases,
            )
        for pool in self.pools:
            pool.on_poll = self.follow_cluster
        for rank_group in rank_groups:
            rank_group.max_failures = max_failures
        if request:
            self._ask_autoscaler(request)

    @property
    def pools(self) -> list[WorkerPool]:
        """All pools."""
        return [self.rollout_pool, *self.reward_pools]

    @property
    def everyone(self) -> list[WorkerPool | RankGroup]:
        """All pools and rank groups."""
        return [*self.pools, *self.rank_groups]

    @property
    def scaling(self) -> RankScaling:
        """How many learners there are to be."""
        return self.rank_scaling[0]

    @property
    def learner_group(self) -> RankGroup:
        """The rank group that trains."""
        return self.rank_groups[0]

    def enter(self, seconds: float, note: Callable[[str], None]) -> None:
        """Make all actors, when there is room for all at once: see `admitted`. seconds: how long to
        wait for it.

        note: hears of what is waited for, and as in `form`. Raises PlacementError.
        """

        def waiting_for(text: str) -> None:
            note(text)
            self.report({"phase": text})

        wanted = {
            pool.role: [placement.bundle(pool.resources)] * pool.desired for pool in self.pools
        }
        wanted |= {
            rank_group.role: [placement.bundle(rank_group.resources)] * rank_group.count
            for rank_group in self.rank_groups
        }
        self.report({"phase": "placing actors"})
        with admitted(wanted, seconds, self.run, waiting_for):
            self._take_places(note)

    def _take_places(self, note: Callable[[str], None]) -> None:
        for one in self.everyone:
            one.note = note
        for rank_group in self.rank_groups:
            rank_group.start()
        until_placed(self.pools, self.rank_groups)
        self.entered = True

    def form(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Wait until every actor has loaded what it needs. note: hears of each loss and what
        replaces it, in one line."""
        self.report({"phase": "loading models"})
        if not self.entered:
            self._take_places(note)
        for pool in self.reward_pools:  # they load least, and refuse first
            pool.wait_ready()
        for rank_group in self.rank_groups:
            rank_group.meet()
        self.formed = True
        self.rollout_pool.wait_ready()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Around the publishing of weights. What comes next would build on an update that nobody
        saw: if they are lost on their way, the learners go back too."""
        try:
            yield
        except LostObjects:
            self.learner_group.fail("lost", "weights that were published are gone with a node")
            raise

    def driver_bytes(self) -> int:
        """Bytes through the driver since the last call."""
        return self.byte_counter.take()

    def recover(self, error: Exception) -> bool:
        """Drop what is pending; form the rank group anew if it is gone, and return whether it was.
        Raises the error when it was gone too often, preemption apart; RankGroupError when a rank
        turns out to be gone."""
        for pool in self.pools:
            pool.forget()
        if self.learner_group.ranks:
            self.learner_group.ping()  # a rank may have gone with the same node
            return False
        if self.learner_group.spent > self.max_failures:
            raise error
        self._make_room()
        self.learner_group.form(elsewhere=bool(self.nodes.draining))
        return True

    def _make_room(self) -> None:
        """A rank group goes before workers that wait for room, and before those that took what
        there was."""
        self._release_unplaced()
        if self.auto and not self.learner_group.room.placed:
            self.rollout_pool.desired, self.last_look = self.limits["rollout"][0], time.monotonic()
            self.rollout_pool.poll()

    # the cluster, and requests of people

    def follow_cluster(self) -> None:
        """Follow nodes that come and go, and requests of people, at most every CLUSTER_SECONDS.
        Waits for nobody."""
        now = time.monotonic()
        if now - self.last_look < CLUSTER_SECONDS:
            return
        self.last_look = now
        self.nodes.update(self._places())
        for pool in self.pools:
            pool.workers.on_nodes_changed(self.nodes.alive, self.nodes.draining)
        for scaling in self.rank_scaling:
            scaling.reserve()
        # before that, the fewest rollout workers must leave room for all others
        if self.auto and self.formed:
            fewest, most = self.limits["rollout"]
            waiting = [
                pool.resources
                for pool in self.reward_pools
                for worker in pool.workers
                if not worker.find_place()
            ]
            for scaling in self.rank_scaling:
                waiting += [scaling.rank_group.resources] * scaling.reserved * scaling.waiting
            room = capacity(self.rollout_pool, waiting)
            self.rollout_pool.desired = most if room is None else max(fewest, min(most, room))
        if self.reporter:
            self._apply_requests(self.reporter.requests())
            if now - self.reporter.last_post > POST_SECONDS:
                self.reporter.post(self._status())

    def _apply_requests(self, requests: tuple[bool, dict[str, int]]) -> None:
        self.stop_requested, wanted = requests
        for scaling in self.rank_scaling:
            scaling.desired = wanted["learner"]
        if not self.auto:
            self.rollout_pool.desired = wanted["rollout"]
        for pool in self.reward_pools:
            pool.desired = wanted["reward"]

    def stopping(self) -> bool:
        """Did somebody ask for the run to end after the present iteration?"""
        return self.stop_requested

    def leaving(self) -> bool:
        """Will nodes go with actors of this run on them? Each counts once; again and again while
        ranks are on them."""
        return self.nodes.take_new() or any(one.leaving() for one in self.rank_scaling)

    def _places(self) -> list[Place]:
        places = [worker.place for pool in self.pools for worker in pool.workers if worker.place]
        return places + [place for rank_group in self.rank_groups for place in rank_group.places]

    def regroups(self) -> bool:
        """Are the learners to be formed anew?"""
        return self.scaling.asked()

    def regroup(self) -> str:
        """Form the learners anew, see RankScaling.regroup. What workers that have no place yet wait
        for is for the ranks."""
        return self.scaling.regroup(self._release_unplaced)

    def _release_unplaced(self) -> None:
        for pool in self.pools:
            pool.workers.release_unplaced()

    def _ask_autoscaler(self, workers: int) -> None:
        """For room for so many rollout workers beside all others; 0 takes the request back."""
        wanted = [(self.rollout_pool.resources, workers)]
        wanted += [(pool.resources, pool.desired) for pool in self.reward_pools]
        wanted += [(rank_group.resources, rank_group.count) for rank_group in self.rank_groups]
        ask_autoscaler(wanted if workers else [])

    def follow(self) -> dict[str, int]:
        """Poll all pools between iterations; returns counts for the metrics."""
        for pool in self.pools:
            pool.poll()
        self.follow_cluster()
        return {
            "rollout_workers": len(self.rollout_pool.workers),
            "reward_workers": sum(len(pool.workers) for pool in self.reward_pools),
            "restarts": self.earlier.total() + sum(self.restarts().values()),
            "reissued": sum(pool.reissued for pool in self.pools),
        }

    def restarts(self) -> dict[str, int]:
        """Actors replaced under this driver, by cause."""
        return dict(sum((one.restarts for one in self.everyone), Counter[str]()))

    # what others see

    def report(self, values: Mapping[str, Any]) -> None:
        """Tell whoever watches: `values` as the loop gives them, and what the actors do."""
        if self.reporter:
            self.reporter.report(values, self._status())

    def _status(self) -> dict[str, Any]:
        refused = {
            scaling.rank_group.role: f"waits for room for {scaling.reserved} ranks"
            for scaling in self.rank_scaling
            if scaling.waiting
        }
        following = {self.rollout_pool.role: self.rollout_pool.desired} if self.auto else {}
        restarts = dict(self.earlier + Counter(self.restarts()))
        return {"following": following, "restarts": restarts, "refused": refused}

    def stop(self) -> None:
        """End all actors."""
        if self.request:
            self._ask_autoscaler(0)
        for scaling in self.rank_scaling:
            scaling.release()
        for one in self.everyone:
            one.stop()
        if self.reporter:
            self.reporter.close()
