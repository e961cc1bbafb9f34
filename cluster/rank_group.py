"""A rank group: ranks that work as one and fail as one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from cluster import nodes, ray_private
from cluster.actor import Method, Place, RankClass, named, place
from cluster.byte_counter import DriverByteCounter
from cluster.errors import (
    RankGroupError,
    died,
    loss_cause,
    never_began,
    objects_lost,
    original,
    reason,
)
from cluster.rank_calls import Call, CallDeadlines
from cluster.rank_room import RankRoom
from cluster.restart_budget import NOT_COUNTED


class RankGroup:
    """n ranks of one class, placed together. Any rank's failure ends all: after an error or a
    missed deadline the others would wait in a collective until its timeout, and the process group
    is unusable afterwards. `form` makes a new rank group of new actors.

    For deadlines see CallDeadlines. Methods that have the attribute `storage_bound` always have the
    whole timeout.
    """

    def __init__(
        self,
        cls: type[RankClass],
        role: str,
        ranks: int,
        resources: dict[str, Any],
        make: Callable[[int], tuple[Any, ...]],
        byte_counter: DriverByteCounter,
        deadlines: tuple[float, float, float],
        run: str = "",
    ):
        """resources: options of each rank, as Ray takes them. make: a rank's arguments. `count` may
        be changed, for the next rank group. deadlines: timeout, factor, least."""
        self.cls = cls
        self.role = role
        self.count = ranks
        self.resources = resources
        self.make = make
        self.byte_counter = byte_counter
        self.run = run
        self.deadlines = CallDeadlines(*deadlines)
        self.room = RankRoom()
        self.ranks: list[ActorHandle[Any]] = []
        self.places: list[Place] = []
        self.created = 0  # rank groups
        self.restarts: Counter[str] = Counter()  # by cause
        self.max_failures = 0  # of those that count
        self.note: Callable[[str], None] = lambda text: None  # hears of losses, in one line each
        self.formed = False  # once
        self.called = set[str]()  # methods, on these ranks
        self.running: list[Call] = []  # begun and not finished
        # for those whom the ranks are lent to: when there are ranks, when there are none any more,
        # and when ranks will have done what they were given beside calls
        self.on_formed: Callable[[], None] = lambda: None
        self.on_ended: Callable[[], None] = lambda: None
        self.free_at: Callable[[], float] = time.monotonic

    # forming

    def form(self, elsewhere: bool = False) -> None:
        """A new rank group, see `start` and `meet`."""
        self.start(elsewhere)
        self.meet()

    def start(self, elsewhere: bool = False) -> None:
        """Make the actors: where the last ones were, so that nobody takes that room meanwhile,
        unless it is to be elsewhere or their number has changed. Waits only where nodes are to be
        avoided."""
        self._kill()
        self.room.take(self.resources, self.count, elsewhere)
        actor = ray.remote(self.cls)
        for rank in range(self.count):
            options = self.resources | named(self.run, f"{self.role}-{rank}.{self.created}")
            options |= self.room.options(rank)
            self.ranks.append(actor.options(**options).remote(*self.make(rank)))
        self.created += 1

    def meet(self) -> None:
        """Wait for the actors, and let them meet and load what they need. Raises, once there has
        been a rank group, RankGroupError for whatever a rank cannot start of: the next one is made
        elsewhere."""
        self.places = self._start_call(
            "place", [ray_private.call_in_actor(rank, place) for rank in self.ranks]
        )
        # where other nodes reach it
        host = next(
            node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["NodeID"] == self.places[0].node
        )
        (address,) = self._start_call("rendezvous", [self.ranks[0].rendezvous.remote(host)])
        self._start_call("join", [rank.join.remote(self.count, address) for rank in self.ranks])
        self.formed = True
        self.on_formed()

    def _start_call(self, method: str, references: list[ObjectRef[Any]]) -> list[Any]:
        seconds = self.deadlines.timeout
        call = Call(
            method=method,
            references=references,
            deadline=time.monotonic() + seconds,
            seconds=seconds,
            starting=True,
        )
        return self.finish(call)

    # calls

    def begin(self, method: Method, *arguments: Any, size: float = 1.0) -> Call:
        """Run `method` on all ranks; `finish` waits for it. size: of its work, beside other calls
        of the method."""
        name = method.__name__
        self.byte_counter.count((name, arguments))
        return self._begun(
            name, [getattr(rank, name).remote(*arguments) for rank in self.ranks], size
        )

    def _begun(self, method: str, references: list[ObjectRef[Any]], size: float = 1.0) -> Call:
        first, began = method not in self.called, time.monotonic()
        self.called.add(method)
        seconds = self.limit(method, first, size)
        # ranks do one after the other
        free = max([self.free_at(), *(call.deadline for call in self.running)])
        call = Call(
            method=method,
            references=references,
            deadline=free + seconds,
            seconds=seconds,
            began=began,
            size=size,
            first=first,
            alone=not self.running and free <= time.monotonic(),
        )
        self.running.append(call)
        return call

    def limit(self, method: str, first: bool = False, size: float = 1.0) -> float:
        """Seconds that a call may take. first: on new ranks."""
        if getattr(getattr(self.cls, method, None), "storage_bound", False):
            return self.deadlines.timeout
        return self.deadlines.limit(method, first=first, size=size, ranks=self.count)

    def call(self, method: Method, *arguments: Any) -> list[Any]:
        """Run `method` on all ranks; results in rank order. Raises the first error, after ending
        the rank group."""
        return self.finish(self.begin(method, *arguments))

    def finish(self, call: Call) -> list[Any]:
        """Results of all ranks. Raises RankGroupError when a rank died or missed the deadline,
        LostObjects when what it needed is gone, and else what a rank raised; all ranks are ended
        first."""
        self._wait(call)
        results = ray.get(call.references)
        self.byte_counter.count(results)
        return list(results)

    def ping(self) -> None:
        """Do all ranks live? Raises as `finish`."""
        self.finish(self._begun("ping", [rank.ping.remote() for rank in self.ranks]))

    def leader(self, method: Method, *arguments: Any, returns: int = 1) -> list[ObjectRef[Any]]:
        """References to the results of rank 0; every rank runs the method, since it may use
        collectives. Raises as `finish`."""
        name = method.__name__
        found = [
            getattr(rank, name).options(num_returns=returns).remote(*arguments)
            for rank in self.ranks
        ]
        self._wait(self._begun(name, [one[0] if returns > 1 else one for one in found]))
        return found[0] if returns > 1 else found[:1]

    def _wait(self, call: Call) -> None:
        """Wait for all ranks, as `finish` does, without reading what they give."""
        done = set[ObjectRef[Any]]()
        for reference in call.finished():
            done.add(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                self._failed(call, call.references.index(reference), error, done)
        late = [rank for rank, reference in enumerate(call.references) if reference not in done]
        if late:
            self._missed(call, late)
        if call in self.running:
            self.running = self.running[self.running.index(call) + 1 :]
            self.deadlines.finished(call)

    # failures

    def _missed(self, call: Call, late: list[int]) -> None:
        """End the rank group; raises RankGroupError."""
        who = " and ".join(self._name(rank) for rank in late)
        self.fail("unresponsive", f"{who}: {call.method} not finished in {call.seconds:.3g} s")
        raise RankGroupError(
            f"{self.role}.{call.method}: ranks {late} missed the deadline of {call.seconds:.3g} s"
        )

    def _failed(
        self, call: Call, rank: int, error: ray.exceptions.RayError, done: set[ObjectRef[Any]]
    ) -> None:
        """End the rank group; raises RankGroupError for a death, else what the rank raised. done:
        results that are there."""
        what, said = f"{self.role}.{call.method}", reason(error)
        if not died(error):  # the others' errors may be of a collective whose peer is gone
            for other, death in call.errors_of_others(done):
                if died(death):
                    why = loss_cause(death)
                    self.fail(why, f"{self._name(other)} died ({reason(death)})")
                    words = f"{what}: a rank died ({why}); another said: {said}"
                    raise RankGroupError(words) from error
        starting = call.starting and self.formed and not objects_lost(error)
        if starting and (never_began(error) or not died(error)):
            self.room.avoided.add(nodes.of(self.ranks[rank]))
            self.fail("start", f"{self._name(rank)} could not start ({said})")
            raise RankGroupError(f"{what}: rank {rank} could not start: {said}") from error
        if died(error):
            self.fail(loss_cause(error), f"{self._name(rank)} died ({said})")
            raise RankGroupError(f"{what}: rank {rank} died: {said}") from error
        if objects_lost(error):
            self.fail("lost", f"{self._name(rank)} failed ({said})")
        else:
            self.fail("error")
        raise original(error, what) from error

    @property
    def spent(self) -> int:
        """Losses that count."""
        return sum(count for why, count in self.restarts.items() if why not in NOT_COUNTED)

    def fail(self, why: str, words: str = "") -> None:
        """End all ranks for a cause that is counted; `form` makes new ones. words: what happened,
        for people."""
        self.restarts[why] += 1
        if words and self.formed:
            counted = f"restart {self.spent} of {self.max_failures}"
            budget = "which no budget counts" if why in NOT_COUNTED else counted
            self.note(f"{words}: learners begin again from the checkpoint, {budget}")
        self._kill()

    def lose(self, rank: int, why: str, words: str) -> None:
        """A rank died or hangs in work that was given to it beside calls. Raises RankGroupError,
        after ending the rank group."""
        became = "was ended" if why == "unresponsive" else "died"
        self.fail(why, f"{self._name(rank)} {became} ({words})")
        raise RankGroupError(f"{self.role}: rank {rank} {became}: {words}")

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
        self.on_ended()

    def stop(self) -> None:
        """End all ranks, and give back their room."""
        self._kill()
        self.room.release()
