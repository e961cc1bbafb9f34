"""A rank group: ranks that work as one and fail as one."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import nodes, ray_private
from cluster.avoid import Avoided, group, labels
from cluster.byte_counter import DriverByteCounter
from cluster.errors import RankGroupError, died, ending, lost, never_began, reason, told
from cluster.placement import bundle
from cluster.pool import NAMESPACE, NOT_COUNTED
from cluster.work import Method, Place, place

PROMPT = 10.0
"""Seconds in which the other ranks' errors are waited for, once one has failed: the first is rarely
the cause."""
ROOM_SECONDS = 30.0
"""How long a rank group waits for room on nodes where it could start before it is made where it
could not."""


@dataclass
class Call:
    """A method that runs on all ranks."""

    method: str
    references: list[ObjectRef[Any]]
    deadline: float
    seconds: float = 0.0  # the deadline's, from when the ranks were free
    began: float = 0.0
    size: float = 1.0  # of its work, beside other calls of the method
    first: bool = True  # of the method on these ranks, which may warm up
    alone: bool = False  # nothing else was to be finished first
    starting: bool = False  # the ranks come up


class RankGroup:
    """n ranks of one class, placed together. Any rank's failure ends all: after an error or a
    missed deadline the others would wait in a collective until its timeout, and the process group
    is unusable afterwards. `form` makes a new rank group of new actors.

    A call must be finished in `factor` times the median of its like, never in less than `least`
    seconds, and in `timeout` seconds where none was measured yet. First calls on new ranks are of
    their own kind. Methods that have the attribute `storage_bound` always have the whole
    timeout.
    """

    def __init__(
        self,
        cls: type,
        role: str,
        ranks: int,
        resources: dict[str, Any],
        make: Callable[[int], tuple[Any, ...]],
        byte_counter: DriverByteCounter,
        deadlines: tuple[float, float, float],
        run: str = "",
    ):
        """resources: options of each rank, as Ray takes them. `count` may be changed, for the next
        rank group. deadlines: timeout, factor, least."""
        self.cls = cls
        self.role = role
        self.count = ranks
        self.resources = resources
        self.make = make
        self.byte_counter = byte_counter
        self.run = run
        self.timeout, self.factor, self.least = deadlines
        self.group: PlacementGroup | None = None
        self.ranks: list[ActorHandle[Any]] = []
        self.places: list[Place] = []
        self.made = 0
        self.restarts: Counter[str] = Counter()  # by cause
        self.allowed = 0  # of those, preempted ones apart
        self.note: Callable[[str], None] = lambda text: None  # hears of losses, in one line each
        self.formed = False  # once
        # nodes where a rank could not start; those of them that it avoids
        self.avoided, self.avoiding = Avoided(), frozenset[str]()
        # that calls took for their size on one rank, by method and first
        self.seconds: dict[tuple[str, bool], deque[float]] = {}
        self.called = set[str]()  # methods, on these ranks
        self.running: list[Call] = []  # begun and not finished

    def form(self, elsewhere: bool = False) -> None:
        """A new rank group, see `start` and `meet`."""
        self.start(elsewhere)
        self.meet()

    def start(self, elsewhere: bool = False) -> None:
        """Make the actors: where the last ones were, so that nobody takes that room meanwhile,
        unless it is to be elsewhere or their number has changed. Waits only where nodes are to be
        avoided."""
        self._kill()
        self._place(elsewhere)
        actor = ray.remote(self.cls)
        for rank in range(self.count):
            options = dict(self.resources)
            if self.run:
                options |= {
                    "name": f"{self.run}/{self.role}-{rank}.{self.made}",
                    "namespace": NAMESPACE,
                }
            if self.group:
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=rank
                )
            elif self.avoiding:
                options["label_selector"] = labels(self.avoiding)
            self.ranks.append(actor.options(**options).remote(*self.make(rank)))
        self.made += 1

    def _place(self, elsewhere: bool) -> None:
        """Room for all, and where it must not be."""
        reserved, found = bundle(self.resources), frozenset(self.avoided.nodes())
        avoiding = found if nodes.fits(reserved, found) else frozenset()
        if self.group and (
            elsewhere or self.group.bundle_count != self.count or avoiding != self.avoiding
        ):
            self._release()
        self.avoiding = avoiding
        if self.group or not reserved:
            return
        self.group = group(reserved, self.count, avoiding)
        if avoiding and not self.group.wait(ROOM_SECONDS):
            self._release()
            self.group, self.avoiding = group(reserved, self.count, ()), frozenset()

    def meet(self) -> None:
        """Wait for the actors, and let them meet and load what they need. Raises, once there has
        been a rank group, RankGroupError for
        whatever a rank cannot start of: the next one is made elsewhere."""
        self.places = self.finish(
            self._starting("place", [ray_private.call_in_actor(rank, place) for rank in self.ranks])
        )
        # where other nodes reach it
        host = next(
            node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["NodeID"] == self.places[0].node
        )
        (address,) = self.finish(
            self._starting("rendezvous", [self.ranks[0].rendezvous.remote(host)])
        )
        self.finish(
            self._starting("join", [rank.join.remote(self.count, address) for rank in self.ranks])
        )
        self.formed = True

    def _starting(self, method: str, references: list[ObjectRef[Any]]) -> Call:
        return Call(
            method, references, time.monotonic() + self.timeout, self.timeout, starting=True
        )

    def begin(self, method: Method, *arguments: Any, size: float = 1.0) -> Call:
        """Run `method` on all ranks; `finish` waits for it. size: of its work, beside other calls
        of the method."""
        name = method.__name__
        self.byte_counter.count((name, arguments))
        return self._begun(
            name, [getattr(rank, name).remote(*arguments) for rank in self.ranks], size
        )

    def _begun(self, method: str, references: list[ObjectRef[Any]], size: float) -> Call:
        first, began = method not in self.called, time.monotonic()
        self.called.add(method)
        seconds = self.limit(method, first, size)
        # ranks do one after the other
        free = max([began, *(call.deadline for call in self.running)])
        call = Call(
            method=method,
            references=references,
            deadline=free + seconds,
            seconds=seconds,
            began=began,
            size=size,
            first=first,
            alone=not self.running,
        )
        self.running.append(call)
        return call

    def limit(self, method: str, first: bool = False, size: float = 1.0) -> float:
        """Seconds that a call may take. first: on new ranks."""
        known = self.seconds.get((method, first))
        if not known or getattr(getattr(self.cls, method, None), "storage_bound", False):
            return self.timeout
        return min(
            self.timeout,
            max(self.least, self.factor * statistics.median(known) * size / max(1, self.count)),
        )

    def call(self, method: Method, *arguments: Any) -> list[Any]:
        """Run `method` on all ranks; results in rank order. Raises the first error, after ending
        the rank group."""
        return self.finish(self.begin(method, *arguments))

    def finish(self, call: Call) -> list[Any]:
        """Results of all ranks. Raises RankGroupError when a rank died or missed the deadline,
        LostObjects when what it needed is gone, and else what a rank raised; all ranks are ended
        first."""
        self._watch(call)
        results = ray.get(call.references)
        self.byte_counter.count(results)
        return list(results)

    def _watch(self, call: Call) -> None:
        """Wait for all ranks, as `finish` does, without reading what they give."""
        pending = list(call.references)
        while pending:
            done, pending = ray.wait(
                pending,
                num_returns=1,
                timeout=max(0.0, call.deadline - time.monotonic()),
                fetch_local=False,
            )
            if not done:
                late = [
                    rank for rank, reference in enumerate(call.references) if reference in pending
                ]
                who = " and ".join(self._name(rank) for rank in late)
                self.fail(
                    "unresponsive", f"{who}: {call.method} not finished in {call.seconds:.3g} s"
                )
                raise RankGroupError(
                    f"{self.role}.{call.method}: ranks {late} missed the deadline of "
                    f"{call.seconds:.3g} s"
                )
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                self._failed(call, call.references.index(done[0]), error, pending)
        if call in self.running:
            self.running = self.running[self.running.index(call) + 1 :]
            if call.alone:
                took = (time.monotonic() - call.began) * max(1, self.count) / call.size
                self.seconds.setdefault((call.method, call.first), deque(maxlen=64)).append(took)

    def _failed(
        self, call: Call, rank: int, error: ray.exceptions.RayError, pending: list[ObjectRef[Any]]
    ) -> None:
        """End the rank group; raises RankGroupError for a death, else what the rank raised."""
        what, said = f"{self.role}.{call.method}", reason(error)
        if not died(error):  # the others' errors may be of a collective whose peer is gone
            for other, death in self._deaths(pending):
                self.fail(
                    ending(death),
                    f"{self._name(call.references.index(other))} died ({reason(death)})",
                )
                raise RankGroupError(
                    f"{what}: a rank died ({ending(death)}); another said: {said}"
                ) from error
        if (
            call.starting
            and self.formed
            and not lost(error)
            and (never_began(error) or not died(error))
        ):
            self.avoided.add(nodes.of(self.ranks[rank]))
            self.fail("start", f"{self._name(rank)} could not start ({said})")
            raise RankGroupError(f"{what}: rank {rank} could not start: {said}") from error
        if died(error):
            self.fail(ending(error), f"{self._name(rank)} died ({said})")
            raise RankGroupError(f"{what}: rank {rank} died: {said}") from error
        self.fail(
            "lost" if lost(error) else "error",
            f"{self._name(rank)} failed ({said})" if lost(error) else "",
        )
        raise told(error, what) from error

    def _deaths(
        self, pending: list[ObjectRef[Any]]
    ) -> list[tuple[ObjectRef[Any], ray.exceptions.RayError]]:
        """The first of the other ranks that died, if one did: its death may be seen later than what
        it did to the others."""
        deadline = time.monotonic() + PROMPT
        while pending and time.monotonic() < deadline:
            done, pending = ray.wait(
                pending,
                num_returns=1,
                timeout=max(0.0, deadline - time.monotonic()),
                fetch_local=False,
            )
            for reference in done:
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    if died(error):
                        return [(reference, error)]
        return []

    def ping(self) -> None:
        """Do all ranks live? Raises as `finish`."""
        self.finish(self._begun("ping", [rank.ping.remote() for rank in self.ranks], 1.0))

    def leader(self, method: Method, *arguments: Any, returns: int = 1) -> list[ObjectRef[Any]]:
        """References to the results of rank 0; every rank runs the method, since it may use
        collectives. Raises as `finish`."""
        found = [
            getattr(rank, method.__name__).options(num_returns=returns).remote(*arguments)
            for rank in self.ranks
        ]
        self._watch(
            self._begun(method.__name__, [one[0] if returns > 1 else one for one in found], 1.0)
        )
        return found[0] if returns > 1 else found[:1]

    @property
    def spent(self) -> int:
        """Losses that count."""
        return sum(count for why, count in self.restarts.items() if why not in NOT_COUNTED)

    def fail(self, why: str, words: str = "") -> None:
        """End all ranks for a cause that is counted; `form` makes new ones. words: what happened,
        for people."""
        self.restarts[why] += 1
        if words and self.formed:
            budget = (
                "which no budget counts"
                if why in NOT_COUNTED
                else f"restart {self.spent} of {self.allowed}"
            )
            self.note(f"{words}: learners begin again from the checkpoint, {budget}")
        self._kill()

    def _name(self, rank: int) -> str:
        node = self.places[rank].node if rank < len(self.places) else nodes.of(self.ranks[rank])
        return f"{self.role}-{rank} on {nodes.address(node)}"

    def _kill(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
        self.ranks = []
        self.places = []
        self.running = []
        self.called.clear()

    def _release(self) -> None:
        if self.group:
            remove_placement_group(self.group)
            self.group = None

    def stop(self) -> None:
        """End all ranks, and give back their room."""
        self._kill()
        self._release()
