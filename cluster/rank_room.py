"""Room for the ranks of a group: near to each other, and not on nodes where one could not start."""

from __future__ import annotations

from typing import Any

from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import nodes, placement
from cluster.avoid import Avoided, group, labels
from cluster.placement import bundle

ROOM_SECONDS = 30.0
"""How long room is waited for on nodes where ranks could start before it is taken where one could
not."""


class RankRoom:
    """A placement group with a bundle for each rank; none where ranks need nothing that Ray
    counts."""

    def __init__(self) -> None:
        self.group: PlacementGroup | None = None
        self.avoided = Avoided()  # nodes where a rank could not start
        self.avoiding = frozenset[str]()  # those of them that the room is not on

    def take(self, resources: dict[str, Any], ranks: int, elsewhere: bool) -> None:
        """Room for so many ranks with these options: what there is already, unless it is to be
        elsewhere or their number has changed. Waits only where nodes are to be avoided."""
        reserved, found = bundle(resources), frozenset(self.avoided.nodes())
        avoiding = found if nodes.fits(reserved, found) else frozenset()
        if self.group:
            other = self.group.bundle_count != ranks or avoiding != self.avoiding
            if elsewhere or other:
                self.release()
        self.avoiding = avoiding
        if self.group or not reserved:
            return
        self.group = group(reserved, ranks, avoiding)
        if avoiding and not self.group.wait(ROOM_SECONDS):
            self.release()
            self.group, self.avoiding = group(reserved, ranks, ()), frozenset()

    @property
    def placed(self) -> bool:
        """Has it all its room? False where none is needed."""
        return self.group is not None and placement.placed(self.group)

    @property
    def waiting(self) -> bool:
        """Has it not all its room yet?"""
        return self.group is not None and not placement.placed(self.group)

    def options(self, rank: int) -> dict[str, Any]:
        """Of a rank's actor, as Ray takes them."""
        if self.group:
            place = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=rank)
            return {"scheduling_strategy": place}
        return {"label_selector": labels(self.avoiding)} if self.avoiding else {}

    def release(self) -> None:
        """Give it back."""
        if self.group:
            remove_placement_group(self.group)
            self.group = None
