"""What a reward is: options that build a scorer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import Field

from branchgrpo.table import Component
from branchgrpo.types import F32, U8


class RewardOptions(Component):
    """Options every reward has."""

    weight: float = Field(1.0, description="factor in the weighted sum of rewards")

    def check_prompts(self, prompts: list[str]) -> None:
        """Raise UserError when the reward cannot score one of these prompts."""
        del prompts

    def build(self, threads: int, device: str) -> Scorer:
        """Load what scoring needs."""
        raise NotImplementedError


class Scorer(ABC):
    """A loaded reward."""

    trains_on: str  # which of the scores is the reward
    reports: tuple[str, ...]  # which are reported

    @abstractmethod
    def score(self, pixels: U8, prompts: list[str]) -> dict[str, F32]:
        """Named scores [L] of pixels u8 [L, F, H, W, 3] for their L prompts; higher is better."""
