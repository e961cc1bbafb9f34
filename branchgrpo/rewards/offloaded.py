"""A scorer whose networks rest in main memory between its calls."""

from __future__ import annotations

from branchgrpo.models.offload import Offloaded
from branchgrpo.rewards.base import Scorer
from branchgrpo.types import F32, U8, Sample


class OffloadedScorer(Scorer):
    """Scores as the given scorer does, whose `networks` are on the device in `score` alone."""

    def __init__(self, scorer: Scorer, device: str):
        self.scorer = scorer
        self.trains_on, self.reports = scorer.trains_on, scorer.reports
        self.max_ratio = scorer.max_ratio
        self.weights = Offloaded(scorer.networks(), device)

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        with self.weights.on_device():
            return self.scorer.score(pixels, samples)

    def features(self, pixels: U8) -> F32:
        with self.weights.on_device():
            return self.scorer.features(pixels)
