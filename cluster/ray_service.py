"""All actors of one run: pools that grow, shrink and mend, a rank group that is formed again, and
who watches them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster import avoid, nodes, placement
from cluster.admission import admitted, until_placed
from cluster.byte_counter import DriverByteCounter
from cluster.errors import LostObjects, RankGroupError
from cluster.pool import Pool
from cluster.rank_group import RankGroup
from cluster.reporter import TELL_SECONDS, Reporter
from cluster.work import Place

LOOK_SECONDS = 1.0
"""How often wishes, and nodes that come and go, are looked for."""
RESERVE_SECONDS = 2.0
"""How long a checkpoint waits for room that is free to be reserved."""

Limits = Mapping[str, tuple[int, int]]
"""Fewest and most workers by role."""


class RayService:
    """Pools of one rollout role and of rewards (one for each environment), and rank groups: the
    learners, or none."""

    faults: tuple[type[Exception], ...] = (RankGroupError, LostObjects)

    def __init__(
        self,
        rollouts: Pool,
        rewards: list[Pool],
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
        self.limits = limits
        self.max_failures = max_failures
        self.auto = auto
        self.request = request
        self.run = run
        self.entered = False
        self.formed = False
        # actors replaced under drivers before this one, by cause; no budget counts them
        self.earlier = Counter[str]()
        self.looked = 0.0
        self.ending = False  # somebody asked for it
        self.wanted_ranks = rank_groups[0].count if rank_groups else 0
        self.reserve: PlacementGroup | None = None  # room for ranks that are to be added or to move
        self.reserved = 0  # how many
        self.draining_nodes: set[str] = set()  # nodes that will go
        # those of them, present and past, that had actors of this run
        self.warned: set[str] = set()
        self.checkpointed_for: set[str] = set()  # those of them for which a checkpoint was asked
        self.reporter = (
            Reporter(
                run=run,
                rollouts=rollouts,
                rewards=rewards,
                rank_groups=rank_groups,
                limits=limits,
                phases=phases,
            )
            if run
            else None
        )
        for pool in self.pools:
            pool.tick = self.look
        for rank_group in rank_groups:
            rank_group.allowed = max_failures
        if request:
            self._ask_autoscaler(request)

    @property
    def pools(self) -> list[Pool]:
        """All pools."""
        return [self.rollout_pool, *self.reward_pools]

    @property
    def everyone(self) -> list[Pool | RankGroup]:
        """All pools and rank groups."""
        return [*self.pools, *self.rank_groups]

    @property
    def learner_group(self) -> RankGroup:
        """The rank group that trains."""
        return self.rank_groups[0]

    def enter(self, seconds: float, note: Callable[[str], None]) -> None:
        """Make all actors, when there is room for all at once: see `admitted`. seconds: how long to
        wait for it.

        note: hears of what is waited for, and as in `form`. Raises PlacementError.
        """

        def told(text: str) -> None:
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
        with admitted(wanted, seconds, self.run, told):
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
        self.learner_group.form(elsewhere=bool(self.draining_nodes))
        return True

    def _make_room(self) -> None:
        """A rank group goes before workers that wait for room, and before those that took what
        there was."""
        for pool in self.pools:
            pool.release_unplaced()
        if self.auto and not (
            self.learner_group.group and placement.placed(self.learner_group.group)
        ):
            self.rollout_pool.desired, self.looked = self.limits["rollout"][0], time.monotonic()
            self.rollout_pool.poll()

    # wishes

    def look(self) -> None:
        """Follow the cluster, and wishes of people, at most once in a while; waits for nobody."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        self.draining_nodes, alive = nodes.draining(), nodes.alive()
        # before those who can leave at once are gone
        self.warned |= self.draining_nodes & {place.node for place in self._places()}
        for pool in self.pools:
            pool.on_nodes_changed(alive, self.draining_nodes)
        self._reserve()
        # before that, the fewest rollout workers must leave room for all others
        if self.auto and self.formed:
            fewest, most = self.limits["rollout"]
            waiting = [
                pool.resources
                for pool in self.reward_pools
                for worker in pool.workers
                if not worker.look()
            ]
            waiting += [self.learner_group.resources] * self.reserved if self._waiting() else []
            room = nodes.room(self.rollout_pool, waiting)
            self.rollout_pool.desired = most if room is None else max(fewest, min(most, room))
        if self.reporter:
            self._apply_requests(self.reporter.wishes())
            if now - self.reporter.told > TELL_SECONDS:
                self.reporter.tell(self._standing())

    def _apply_requests(self, wishes: tuple[bool, dict[str, int]]) -> None:
        self.ending, wanted = wishes
        self.wanted_ranks = wanted["learner"]
        if not self.auto:
            self.rollout_pool.desired = wanted["rollout"]
        for pool in self.reward_pools:
            pool.desired = wanted["reward"]

    def stopping(self) -> bool:
        """Did somebody ask for the run to end after the present iteration?"""
        return self.ending

    def leaving(self) -> bool:
        """Will nodes go with actors of this run on them? Each is told once; again and again while
        ranks are on them."""
        new = self.warned - self.checkpointed_for
        self.checkpointed_for |= new
        return bool(new) or any(
            place.node in self.draining_nodes
            for rank_group in self.rank_groups
            for place in rank_group.places
        )

    def _places(self) -> list[Place]:
        places = [worker.place for pool in self.pools for worker in pool.workers if worker.place]
        return places + [place for rank_group in self.rank_groups for place in rank_group.places]

    def regroup(self) -> str:
        """Form the rank group anew, in the number that is wanted now and on nodes that stay.
        Returns why, or nothing when it stays
        as it is: since nothing asks for it, or since there is no room."""
        rank_group, going = self.learner_group, self._going()
        if not going and self.wanted_ranks == rank_group.count:
            return ""
        self._reserve()
        if self.reserve and not self.reserve.wait(RESERVE_SECONDS):
            return ""
        why = (
            f"{going} of {rank_group.count} ranks are on nodes that will go"
            if going
            else f"{rank_group.count} → {self.wanted_ranks} ranks"
        )
        rank_group.restarts["preempted" if going else "scaled"] += 1
        before, rank_group.count = rank_group.count, self.wanted_ranks
        for pool in self.pools:
            pool.release_unplaced()  # what is released is for the rank group
        self._release()
        try:
            rank_group.form(elsewhere=bool(going))
        except RankGroupError:
            rank_group.count = before  # as many as are known to work
            raise
        return why

    def _going(self) -> int:
        """Ranks on nodes that will go."""
        return sum(
            place.node in self.draining_nodes
            for rank_group in self.rank_groups
            for place in rank_group.places
        )

    def _reserve(self) -> None:
        """Hold room for ranks that are to be added or to move, which also asks an autoscaler for
        it; they take it after the next checkpoint."""
        wanted = (
            max(0, self._going() + self.wanted_ranks - self.learner_group.count)
            if self.rank_groups and self.learner_group.places
            else 0
        )
        if wanted == self.reserved:
            return
        self._release()
        if bundle := placement.bundle(self.learner_group.resources):
            avoided = self.learner_group.avoided.nodes()
            self.reserve, self.reserved = (
                (avoid.group(bundle, wanted, avoided), wanted) if wanted else (None, 0)
            )

    def _waiting(self) -> bool:
        """Is there no room yet for what is reserved?"""
        return self.reserve is not None and not placement.placed(self.reserve)

    def _release(self) -> None:
        if self.reserve:
            remove_placement_group(self.reserve)
        self.reserve, self.reserved = None, 0

    def _ask_autoscaler(self, workers: int) -> None:
        """For room for so many rollout workers beside all others; 0 takes the request back."""
        wanted = [
            (self.rollout_pool.resources, workers),
            *((pool.resources, pool.desired) for pool in self.reward_pools),
        ]
        wanted += [(rank_group.resources, rank_group.count) for rank_group in self.rank_groups]
        bundles = [
            bundle
            for resources, count in wanted
            for bundle in [placement.bundle(resources)] * count
            if bundle
        ]
        request_resources(bundles=bundles if workers else [])

    def follow(self) -> dict[str, int]:
        """Poll all pools between iterations; returns counts for the metrics."""
        for pool in self.pools:
            pool.poll()
        self.look()
        restarts = self.earlier.total() + sum(self.restarts().values())
        counts = {
            "rollout_workers": len(self.rollout_pool.workers),
            "reward_workers": sum(len(pool.workers) for pool in self.reward_pools),
        }
        return counts | {
            "restarts": restarts,
            "reissued": sum(pool.reissued for pool in self.pools),
        }

    def restarts(self) -> dict[str, int]:
        """Actors replaced under this driver, by cause."""
        return dict(sum((one.restarts for one in self.everyone), Counter[str]()))

    # telling

    def report(self, values: Mapping[str, Any]) -> None:
        """Tell whoever watches: `values` as the trainer gives them, and what the actors do."""
        if self.reporter:
            self.reporter.report(values, self._standing())

    def _standing(self) -> dict[str, Any]:
        following = {self.rollout_pool.role: self.rollout_pool.desired} if self.auto else {}
        return {
            "following": following,
            "restarts": dict(self.earlier + Counter(self.restarts())),
            "refused": {"learner": f"waits for room for {self.reserved} ranks"}
            if self._waiting()
            else {},
        }

    def stop(self) -> None:
        """End all actors."""
        if self.request:
            self._ask_autoscaler(0)
        self._release()
        for one in self.everyone:
            one.stop()
        if self.reporter:
            self.reporter.close()
