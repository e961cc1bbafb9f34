"""Ranks that are to be added, taken away, or moved from nodes that will go. Room for them is held
until they take it after the next checkpoint; holding it also asks an autoscaler for it."""

from __future__ import annotations

from collections.abc import Callable

from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster import avoid, placement
from cluster.errors import RankGroupError
from cluster.node_watch import NodeWatch
from cluster.rank_group import RankGroup

RESERVE_SECONDS = 2.0
"""How long a checkpoint waits for room that is free to be reserved."""


class RankScaling:
    """Of one rank group. Where ranks need nothing that Ray counts, no room is held."""

    def __init__(self, rank_group: RankGroup, nodes: NodeWatch):
        self.rank_group = rank_group
        self.nodes = nodes
        self.desired = rank_group.count
        self.reserved = 0  # ranks that room is held for
        self.reservation: PlacementGroup | None = None

    def leaving(self) -> int:
        """Ranks on nodes that will go."""
        return sum(place.node in self.nodes.draining for place in self.rank_group.places)

    def reserve(self) -> None:
        """Hold room for as many as are to be added or to move."""
        missing = max(0, self.leaving() + self.desired - self.rank_group.count)
        ranks = missing if self.rank_group.places else 0
        if ranks == self.reserved:
            return
        self.release()
        bundle = placement.bundle(self.rank_group.resources)
        if bundle and ranks:
            avoided = self.rank_group.room.avoided.nodes()
            self.reservation, self.reserved = avoid.group(bundle, ranks, avoided), ranks

    @property
    def waiting(self) -> bool:
        """Is there no room yet for what is reserved?"""
        return self.reservation is not None and not placement.placed(self.reservation)

    def release(self) -> None:
        """Give the room back."""
        if self.reservation:
            remove_placement_group(self.reservation)
        self.reservation, self.reserved = None, 0

    def asked(self) -> bool:
        """Is the rank group to be formed anew?"""
        return bool(self.leaving()) or self.desired != self.rank_group.count

    def regroup(self, make_room: Callable[[], None]) -> str:
        """Form the rank group anew, in the number that is desired now and on nodes that stay.
        Returns why, or nothing when it stays as it is: since nothing asks for it, or since there is
        no room. make_room: called before the held room is given back for the ranks to take.

        Raises RankGroupError when that fails; the next one has as many ranks as before."""
        rank_group, leaving = self.rank_group, self.leaving()
        if not self.asked():
            return ""
        self.reserve()
        if self.reservation and not self.reservation.wait(RESERVE_SECONDS):
            return ""
        why = f"{rank_group.count} → {self.desired} ranks"
        if leaving:
            why = f"{leaving} of {rank_group.count} ranks are on nodes that will go"
        rank_group.restarts["preempted" if leaving else "scaled"] += 1
        before, rank_group.count = rank_group.count, self.desired
        make_room()
        self.release()
        try:
            rank_group.form(elsewhere=bool(leaving))
        except RankGroupError:
            rank_group.count = before  # as many as are known to work
            raise
        return why
