"""What the driver calls of actors whose classes load torch. It names their methods here, and never
imports the classes themselves (deferred.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.deadlines import storage_bound
from branchgrpo.config.schema import Config
from branchgrpo.service import (
    CheckpointRequest,
    RestoredState,
    SavedCheckpoint,
    UpdateRequest,
    WeightSpec,
)
from branchgrpo.types import (
    F32,
    U8,
    BranchPlan,
    LeafMedia,
    Sample,
    SegmentRequest,
    StepStats,
    WeightUpdate,
)


class RolloutCalls(Protocol):
    """Of actors.rollout.RolloutWorker."""

    def ping(self) -> None:
        """Is it alive?"""

    def ready(self) -> None:
        """Load the model."""

    def configure(self, config: Config) -> None:
        """Begin again with the untrained model, for this config; resources stay as they were."""

    def encode(self, samples: list[Sample], evaluated: bool = False) -> list[Any]:
        """Encode a batch of records; returns EncodedPrompts.objects. evaluated: for held-out
        pictures, which may be of another size."""

    def grow(self, plan: BranchPlan, request: SegmentRequest, *inputs: Any) -> list[Any]:
        """Grow a segment; returns GrownSegment.objects."""

    def some(self, media: LeafMedia, rows: Sequence[int]) -> U8:
        """Pixels [n, F, H, W, 3] of these rows, of videos a few frames."""

    def load_weights(self, update: WeightUpdate, *chunks: list[U8]) -> str:
        """Replace the trained weights. Returns the digest of what the model then holds."""

    def fingerprint(self) -> F32:
        """Velocity at a fixed input: tells whose weights it has."""


class LearnerCalls(Protocol):
    """Of actors.learner.Learner. But for `ping` and `rendezvous` every rank is called."""

    def ping(self) -> None:
        """Is it alive?"""

    def rendezvous(self, host: str) -> str:
        """A free address of this host, for rank 0 to be met at."""

    def join(self, ranks: int, address: str) -> None:
        """Form the process group of so many ranks, if there are several; load the model."""

    @storage_bound
    def configure(self, config: Config) -> None:
        """Begin again with the untrained model, for this config; ranks and resources stay."""

    def update(self, request: UpdateRequest) -> StepStats:
        """One iteration's training."""

    def specification(self) -> WeightSpec:
        """How `publish` sends the weights."""

    def publish(self, weights: str = "policy") -> list[Any]:
        """[PublishedWeights, WeightUpdate, chunk, …], from rank 0."""

    @storage_bound
    def checkpoint(self, request: CheckpointRequest) -> SavedCheckpoint:
        """Write what training has reached, with the driver's own state, or begin to."""

    @storage_bound
    def checkpointed(self, wait: bool) -> SavedCheckpoint:
        """What became of a checkpoint that was pending."""

    @storage_bound
    def restore(self, where: str, origin: str = "") -> RestoredState:
        """Go back to the newest valid checkpoint, else to `origin`, else to the beginning."""

    def fingerprint(self) -> F32:
        """As of RolloutCalls."""

    @storage_bound
    def export(self, folder: Path) -> None:
        """Write the weights that are evaluated."""


class SharedLearnerCalls(LearnerCalls, Protocol):
    """Of actors.shared.SharedLearner."""

    def some(self, media: LeafMedia, rows: Sequence[int]) -> U8:
        """As of RolloutCalls."""

    def show(self, weights: str) -> int:
        """Grow with these weights from now on; returns their version."""

    def encode(self, samples: list[Sample], evaluated: bool = False) -> list[Any]:
        """As of RolloutCalls."""

    def grow(self, plan: BranchPlan, request: SegmentRequest, *inputs: Any) -> list[Any]:
        """As of RolloutCalls."""
