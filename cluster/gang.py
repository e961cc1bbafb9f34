"""A gang: ranks that work as one and fail as one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import GangError, cause, ending, lost, told
from cluster.meter import Meter
from cluster.placement import bundle
from cluster.pool import NAMESPACE
from cluster.work import Place, place

PROMPT = 10.0
"""Seconds in which the other ranks' errors are waited for, once one has failed: the first is rarely the cause."""


@dataclass
class Call:
    """A method that runs on all ranks."""

    method: str
    references: list[ObjectRef[Any]]
    deadline: float


class Gang:
    """n ranks of one class, placed together. Any rank's failure ends all: after an error or a missed deadline
    the others would wait in a collective until its timeout, and the process group is unusable afterwards.
    `form` makes a new gang of new actors."""

    def __init__(
        self, cls: type, role: str, ranks: int, resources: dict[str, Any], make: Callable[[int], tuple[Any, ...]], meter: Meter, timeout: float, run: str = ""
    ):
        """resources: options of each rank, as Ray takes them. `count` may be changed, for the next gang."""
        self.cls, self.role, self.count, self.resources = cls, role, ranks, resources
        self.make, self.meter, self.timeout, self.run = make, meter, timeout, run
        self.group: PlacementGroup | None = None
        self.ranks: list[ActorHandle[Any]] = []
        self.places: list[Place] = []
        self.made = 0
        self.restarts: Counter[str] = Counter()  # by cause

    def form(self, elsewhere: bool = False) -> None:
        """A new gang, see `start` and `meet`."""
        self.start(elsewhere)
        self.meet()

    def start(self, elsewhere: bool = False) -> None:
        """Make the actors: where the last ones were, so that nobody takes that room meanwhile, unless it is to be elsewhere or
        their number has changed. Does not wait."""
        self._kill()
        if self.group and (elsewhere or self.group.bundle_count != self.count):
            self._release()
        if not self.group and (reserved := bundle(self.resources)):
            self.group = placement_group([reserved] * self.count, strategy="PACK")
        actor = ray.remote(self.cls)
        for rank in range(self.count):
            options = dict(self.resources)
            if self.run:
                options |= {"name": f"{self.run}/{self.role}-{rank}.{self.made}", "namespace": NAMESPACE}
            if self.group:
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=rank)
            self.ranks.append(actor.options(**options).remote(*self.make(rank)))
        self.made += 1

    def meet(self) -> None:
        """Wait for the actors, and let them meet and load what they need."""
        self.places = self.finish(Call("place", [rank.__ray_call__.remote(place) for rank in self.ranks], time.monotonic() + self.timeout))
        call = Call("rendezvous", [self.ranks[0].rendezvous.remote(self.count)], time.monotonic() + self.timeout)
        (address,) = self.finish(call)
        self.call("join", self.count, address)

    def begin(self, method: str, *arguments: Any) -> Call:
        """Run `method` on all ranks; `finish` waits for it."""
        self.meter.count((method, arguments))
        return Call(method, [getattr(rank, method).remote(*arguments) for rank in self.ranks], time.monotonic() + self.timeout)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Run `method` on all ranks; results in rank order. Raises the first error, after ending the gang."""
        return self.finish(self.begin(method, *arguments))

    def finish(self, call: Call) -> list[Any]:
        """Results of all ranks. Raises GangError when a rank died or missed the deadline, LostObjects when what it needed
        is gone, and else what a rank raised; all ranks are ended first."""
        self._watch(call)
        results = ray.get(call.references)
        self.meter.count(results)
        return list(results)

    def _watch(self, call: Call) -> None:
        """Wait for all ranks, as `finish` does, without reading what they give."""
        pending = list(call.references)
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, call.deadline - time.monotonic()), fetch_local=False)
            try:
                if not done:
                    late = [rank for rank, reference in enumerate(call.references) if reference in pending]
                    raise GangError(f"{self.role}.{call.method}: ranks {late} missed the deadline of {self.timeout:g} s")
                ray.get(done)
            except GangError:
                self.lose("unresponsive")
                raise
            except ray.exceptions.RayActorError as error:
                self.lose(ending(error))
                rank = call.references.index(done[0])
                raise GangError(f"{self.role}.{call.method}: rank {rank} died: {str(error).splitlines()[0]}") from error
            except ray.exceptions.RayError as error:
                died = self._deaths(pending)
                self.lose(died or ("lost" if lost(error) else "error"))
                if died:  # the others' errors are of a collective whose peer is gone
                    raise GangError(f"{self.role}.{call.method}: a rank died ({died}); another said: {str(cause(error)).splitlines()[0]}") from error
                raise told(error, f"{self.role}.{call.method}") from error

    def _deaths(self, pending: list[ObjectRef[Any]]) -> str:
        """Whether another rank died, and why: its death may be seen later than what it did to the others."""
        deadline = time.monotonic() + PROMPT
        while pending and time.monotonic() < deadline:
            done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()), fetch_local=False)
            for reference in done:
                try:
                    ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    return ending(error)
                except ray.exceptions.RayError:
                    continue
        return ""

    def leader(self, method: str, *arguments: Any, returns: int = 1) -> list[ObjectRef[Any]]:
        """References to the results of rank 0; every rank runs the method, since it may use collectives. Raises as `finish`."""
        found = [getattr(rank, method).options(num_returns=returns).remote(*arguments) for rank in self.ranks]
        self._watch(Call(method, [one[0] if returns > 1 else one for one in found], time.monotonic() + self.timeout))
        return found[0] if returns > 1 else found[:1]

    def lose(self, why: str) -> None:
        """End all ranks for a cause that is counted; `form` makes new ones."""
        self.restarts[why] += 1
        self._kill()

    def _kill(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
        self.ranks, self.places = [], []

    def _release(self) -> None:
        if self.group:
            remove_placement_group(self.group)
            self.group = None

    def stop(self) -> None:
        """End all ranks, and give back their room."""
        self._kill()
        self._release()
