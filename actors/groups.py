"""The learners as the driver calls them: typed calls on a group of ranks, whatever runs it (Ray, or
one process in tests). See branchgrpo.service for what each call means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.calls import LearnerCalls, RolloutCalls, SharedLearnerCalls
from actors.pools import Method, Rollouts
from branchgrpo.service import (
    CheckpointRequest,
    PublishedWeights,
    Reference,
    RestoredState,
    SavedCheckpoint,
    UpdateRequest,
    WeightSpec,
)
from branchgrpo.types import F32, StepStats


class Ranks(Protocol):
    """Ranks that work as one."""

    def call(self, method: Method, *arguments: Any) -> list[Any]:
        """Run a method on every rank; results in rank order."""

    def begin(self, method: Method, *arguments: Any, size: float = 1.0) -> Any:
        """The same without waiting."""

    def finish(self, call: Any) -> list[Any]:
        """Wait for what `begin` began; results in rank order."""

    def leader(self, method: Method, *arguments: Any, returns: int = 1) -> list[Reference]:
        """References to the results of rank 0; every rank runs the method."""


@dataclass(frozen=True)
class Update:
    """branchgrpo.service.PendingUpdate."""

    ranks: Ranks
    call: Any

    def result(self) -> StepStats:
        found: StepStats = self.ranks.finish(self.call)[0]
        return found


@dataclass(frozen=True)
class Learners:
    """branchgrpo.service.LearnerGroup. Results are rank 0's."""

    ranks: Ranks

    def start_update(self, request: UpdateRequest, size: float) -> Update:
        call = self.ranks.begin(LearnerCalls.update, request, size=size)
        return Update(self.ranks, call)

    def checkpoint(self, request: CheckpointRequest) -> SavedCheckpoint:
        found: SavedCheckpoint = self.ranks.call(LearnerCalls.checkpoint, request)[0]
        return found

    def checkpointed(self, wait: bool) -> SavedCheckpoint:
        found: SavedCheckpoint = self.ranks.call(LearnerCalls.checkpointed, wait)[0]
        return found

    def restore(self, where: str, origin: str) -> RestoredState:
        found: RestoredState = self.ranks.call(LearnerCalls.restore, where, origin)[0]
        return found

    def fingerprint(self) -> F32:
        found: F32 = self.ranks.call(LearnerCalls.fingerprint)[0]
        return found

    def export(self, folder: Path) -> None:
        self.ranks.call(LearnerCalls.export, folder)

    def publish(self, rollouts: Rollouts, weights: str) -> PublishedWeights:
        """Rank 0 puts the named weights into the store, every idle rollout worker loads them and
        confirms the digest; busy ones and newcomers load them before their next task. Raises what a
        worker raises that then holds anything else."""
        spec: WeightSpec = self.ranks.call(LearnerCalls.specification)[0]
        published, *parts = self.ranks.leader(
            LearnerCalls.publish, weights, returns=2 + spec.chunks
        )
        found: PublishedWeights = rollouts.pool.fetch(published)
        rollouts.pool.broadcast(RolloutCalls.load_weights, *parts)
        rollouts.pool.sync([(RolloutCalls.load_weights, tuple(parts))], found.version)
        return found


@dataclass(frozen=True)
class SharedLearners(Learners):
    """The same where the ranks grow trees too."""

    def publish(self, rollouts: Rollouts, weights: str) -> PublishedWeights:
        """The ranks grow with the named weights from now on. They are sent to rollout workers only
        where there are any beside the ranks; newcomers take tasks after the next time."""
        sent = None
        if rollouts.pool.desired:
            sent = super().publish(rollouts, weights)
        else:
            rollouts.pool.withhold()
        version: int = self.ranks.call(SharedLearnerCalls.show, weights)[0]
        return sent or PublishedWeights(version=version)
