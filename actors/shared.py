"""A learner rank that also grows trees, with its own model, between updates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.calls import SharedLearnerCalls
from actors.learner import Learner
from actors.rollout import RolloutWorker, rollout_parts
from branchgrpo.config.schema import Config
from branchgrpo.learner import fsdp
from branchgrpo.learner.payloads import Fetch
from branchgrpo.learner.shown import Shown
from branchgrpo.service import CheckpointRequest, RestoredState, SavedCheckpoint, UpdateRequest
from branchgrpo.types import F32, U8, BranchPlan, LeafMedia, Sample, SegmentRequest, StepStats


class SharedLearner(Learner, SharedLearnerCalls):
    """Both roles on one model: what a RolloutWorker does, it does with the weights that `show` has
    set. An update takes them back; trees can be grown again after the next `show`.

    Sharded weights are gathered whole for growing, in the dtype they are computed with, so that a
    forward needs no other rank: ranks grow different numbers of rows.
    """

    def __init__(self, config: Config, rank: int, fetch: Fetch):
        super().__init__(config, rank, fetch)
        self.grower = RolloutWorker(config, rank)

    def configure(self, config: Config) -> None:
        """As of Learner; trees can be grown at once."""
        self.grower.let_go()
        self.parts = rollout_parts(config)
        super().configure(config)
        self.shown = Shown(self.policy)
        self.grower.serve(config, self.model)
        self.show("policy")  # which all others are equal to

    def update(self, request: UpdateRequest) -> StepStats:
        """As of Learner."""
        self._take_back()
        return super().update(request)

    def publish(self, weights: str = "policy") -> list[Any]:
        """As of Learner; nothing is grown until the next `show`."""
        self._take_back()
        return super().publish(weights)

    def show(self, weights: str) -> int:
        """Grow with the present weights (`policy`), or with others as of `publish`; returns their
        version. Every rank must call it."""
        self._take_back()
        self.policy.optimiser.zero_grad()  # gradients take room that growing can use
        self.shown.show(weights)
        if self.sharded:
            fsdp.hold_whole(self.model)
        self.grower.version = self.version
        return self.version

    def _take_back(self) -> None:
        """The weights are the learner's again."""
        self.grower.version = -1
        if self.sharded:
            fsdp.let_go(self.model)
        self.shown.show("policy")

    def restore(self, where: str, origin: str = "") -> RestoredState:
        """As of Learner; trees can be grown at once."""
        restored = super().restore(where, origin)
        self.show(self.config.grown_with)
        return restored

    def checkpoint(self, request: CheckpointRequest) -> SavedCheckpoint:
        """As of Learner, whatever trees are grown with."""
        with self.shown.own():
            return super().checkpoint(request)

    def export(self, folder: Path) -> None:
        """As of Learner, whatever trees are grown with."""
        with self.shown.own():
            super().export(folder)

    def fingerprint(self) -> F32:
        """As of Learner."""
        with self.shown.own():
            return super().fingerprint()

    # as a RolloutWorker

    def encode(self, samples: list[Sample], evaluated: bool = False) -> list[Any]:
        """See RolloutWorker.encode."""
        return self.grower.encode(samples, evaluated)

    def some(self, media: LeafMedia, rows: Sequence[int]) -> U8:
        """See RolloutWorker.some."""
        return self.grower.some(media, rows)

    def grow(self, plan: BranchPlan, request: SegmentRequest, *inputs: Any) -> list[Any]:
        """See RolloutWorker.grow."""
        return self.grower.grow(plan, request, *inputs)
