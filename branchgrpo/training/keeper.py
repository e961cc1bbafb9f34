"""What keeps what a run finds beside its metrics; see carry_out.RunFolder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from branchgrpo.rollout.trees import GrownTree
from branchgrpo.training.diversity import Diversity
from branchgrpo.training.evaluate import Scores
from branchgrpo.types import U8, Sample


class TreeKeeper(Protocol):
    """Keeps pictures of trees."""

    def keep_trees(self, iteration: int, grown: Sequence[GrownTree], note: str) -> None:
        """Trees of some prompts, as this iteration would grow them. note: what is to be known of
        them."""


class Keeper(TreeKeeper, Protocol):
    """Keeps what a held-out check has found."""

    def save(self, when: str, index: int, frames: U8) -> None:
        """A picture that is saved as it is: [F, H, W, 3] of the prompt at this place. Comes ahead
        of `keep`."""

    def keep(
        self,
        when: str,
        *,
        scores: Scores,
        diversity: Diversity,
        pixels: U8 | None,
        samples: Sequence[Sample],
        title: str,
    ) -> None:
        """when: "before" or "after" training. diversity: {} where it was not measured. pixels:
        [n, F, H, W, 3] of the first n prompts."""
