"""A gang: ranks that work as one and fail as one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import GangError, cause
from cluster.placement import bundle
from cluster.pool import Meter


class Gang:
    """n ranks of one class, placed together. Any rank's failure ends all: after an error or a missed deadline
    the others would wait in a collective until its timeout, and the process group is unusable afterwards."""

    def __init__(self, cls: type, role: str, ranks: int, cpus: float, gpus: float, make: Callable[[int], tuple[Any, ...]], meter: Meter, timeout: float):
        self.role, self.meter, self.timeout = role, meter, timeout
        resources = bundle(cpus, gpus)
        self.group = placement_group([resources] * ranks, strategy="PACK") if resources else None
        actor = ray.remote(cls)
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        self.ranks = []
        for rank in range(ranks):
            if self.group:
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=rank)
            self.ranks.append(actor.options(**options).remote(*make(rank)))

    def form(self) -> None:
        """Wait until every rank is ready, then let them meet."""
        self.call("ready")
        address = ray.get(self.ranks[0].rendezvous.remote(), timeout=self.timeout)
        self.call("join", len(self.ranks), address)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Run `method` on all ranks; results in rank order. Raises the first error, after ending the gang."""
        self.meter.count((method, arguments))
        pending = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        order, deadline = list(pending), time.monotonic() + self.timeout
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            try:
                if not done:
                    late = [rank for rank, reference in enumerate(order) if reference in pending]
                    raise GangError(f"{self.role}.{method}: ranks {late} missed the deadline of {self.timeout:g} s")
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                self.stop()
                raise cause(error) from error
            except ray.exceptions.RayActorError as error:
                self.stop()
                rank = order.index(done[0])
                raise GangError(f"{self.role}.{method}: rank {rank} died: {str(error).splitlines()[0]}") from error
            except GangError:
                self.stop()
                raise
        results = ray.get(order)
        self.meter.count(results)
        return list(results)

    def leader(self, method: str, *arguments: Any, returns: int = 1) -> list[ObjectRef[Any]]:
        """References to the results of rank 0; every rank runs the method, since it may use collectives."""
        found = [getattr(rank, method).options(num_returns=returns).remote(*arguments) for rank in self.ranks]
        return found[0] if returns > 1 else found[:1]

    def stop(self) -> None:
        """End all ranks."""
        for rank in self.ranks:
            ray.kill(rank)
        if self.group:
            remove_placement_group(self.group)
            self.group = None
