"""What the driver needs of its surroundings, as protocols, and the messages that pass: the same
loop runs on Ray, or in one process in tests.

A `Reference` is a handle on a result that stays where it was made: bulk data never passes through
the driver. `then` is called with a task's result when it is done, in the driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from branchgrpo.types import (
    F32,
    U8,
    BranchPlan,
    EncodedPrompts,
    GrownSegment,
    NodeViews,
    RewardScores,
    Sample,
    ScoreRequest,
    SegmentHeader,
    SegmentRequest,
    StepStats,
    TreePayload,
)

Reference = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateRequest:
    """Driver → learner ranks. `scores` has every reward's trained scores [R, L] by (prompt index,
    tree); trees that it leaves out are not trained on."""

    plan: BranchPlan
    iteration: int
    segments: Sequence[tuple[SegmentHeader, Reference]]  # → TreePayload
    conditioning: Sequence[Reference]  # → Conditioning of one row, by prompt index
    scores: Mapping[tuple[int, int], F32]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSpec:
    """Learner rank → driver: how the trained weights are published."""

    bytes: int
    chunks: int  # objects that they travel as, beside their header


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """Learner rank 0 → driver."""

    version: int
    digest: str = ""  # empty where nobody had to be sent them


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRequest:
    """Driver → learner ranks."""

    where: str
    iteration: int
    fence: int
    driver: Mapping[str, Any] = field(default_factory=dict)  # the driver's own state; any JSON
    wait: bool = True  # until it is written; else, where ranks can, training goes on meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCheckpoint:
    """Learner rank 0 → driver."""

    path: str = ""
    failed: str = ""  # why it could not be written: training can go on without
    pending: bool = False  # it is being written


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoredState:
    """Learner rank 0 → driver."""

    driver: Mapping[str, Any] | None  # as it was saved; None: there was no checkpoint
    damaged: tuple[str, ...]  # checkpoints that were passed over, and why


class Tasks(Protocol):
    """Pending tasks, perhaps of several pools."""

    def run(self) -> None:
        """Until all tasks, and those their completion added, are done. Raises the first failure."""


class RolloutPool(Protocol):
    """Those that grow trees: equal workers, any of which may get any task."""

    def __len__(self) -> int: ...

    def tasks(self) -> Tasks:
        """A new set of pending tasks."""

    def share(self, plan: BranchPlan) -> Reference:
        """A plan that several tasks take, sent once."""

    def encode(
        self,
        tasks: Any,
        samples: list[Sample],
        then: Callable[[EncodedPrompts], None],
        evaluated: bool = False,
    ) -> None:
        """Encode what the model sees of a batch of records. evaluated: as of EncodedTexts."""

    def grow(
        self,
        tasks: Any,
        plan: Reference,
        request: SegmentRequest,
        *,
        conditioning: Sequence[Reference],
        roots: Sequence[Reference],
        frontier: int,
        size: float,
        then: Callable[[GrownSegment], None],
    ) -> None:
        """Grow a segment. conditioning: of `request.prompts`. roots: the subtrees' root latents,
        none at level 0. frontier: nodes at `request.stop`, or 0 where that is the last level. size:
        of the work beside other segments: how long it may take."""

    def some(
        self, tasks: Any, media: Reference, rows: Sequence[int], then: Callable[[U8], None]
    ) -> None:
        """As `pixels` of these rows alone, of videos a few frames. The rest stays where it is."""

    def pixels(self, media: Reference) -> U8:
        """[leaves, F, H, W, 3] of a segment's media, into the driver: for pictures."""

    def views(self, views: Reference) -> NodeViews:
        """What a segment's nodes would have become, into the driver: for pictures of trees."""

    def payload(self, payload: Reference) -> TreePayload:
        """What was kept of a segment, into the driver: the latents of a few pictures."""

    def fingerprints(self) -> list[F32]:
        """Each worker's velocity at one fixed input: tells whose weights it has."""


class RewardPool(Protocol):
    """Those that score by some of the rewards."""

    def score(
        self,
        tasks: Any,
        request: ScoreRequest,
        media: Sequence[Reference],
        *,
        size: float,
        then: Callable[[RewardScores], None],
    ) -> None:
        """Score leaves. media: → LeafMedia of the segments that `request.places` names."""

    def features(
        self,
        tasks: Any,
        request: ScoreRequest,
        media: Sequence[Reference],
        *,
        size: float,
        then: Callable[[Mapping[str, F32]], None],
    ) -> None:
        """Features of leaves, see `RewardOptions.has_features`, by the reward's title: [L, D], in
        the order of `request.subtrees`."""


class PendingUpdate(Protocol):
    """An update that the learner ranks work on."""

    def result(self) -> StepStats:
        """Wait for it."""


class LearnerGroup(Protocol):
    """Those that train: ranks that work as one."""

    def start_update(self, request: UpdateRequest, size: float) -> PendingUpdate:
        """Begin an iteration's training. size: of the work beside other updates."""

    def checkpoint(self, request: CheckpointRequest) -> SavedCheckpoint:
        """Write what training has reached, or begin to: one at a time. Raises StaleFence when
        another driver has taken over."""

    def checkpointed(self, wait: bool) -> SavedCheckpoint:
        """What became of a checkpoint that was pending; wait: until it is written. Raises as
        `checkpoint`."""

    def restore(self, where: str, origin: str) -> RestoredState:
        """Go back to the newest valid checkpoint at `where`, else to the checkpoint `origin`, else
        to the untrained model."""

    def fingerprint(self) -> F32:
        """As of RolloutPool.fingerprints."""

    def export(self, folder: Path) -> None:
        """Write the weights that are evaluated, in the form that run.export names."""


class Service(Protocol):
    """Everything a training run works with."""

    # actors replaced under drivers before this one, by cause
    earlier: Counter[str]
    # failures of machines, not of the program: the run goes back to what it has saved
    faults: tuple[type[Exception], ...]

    @property
    def rollouts(self) -> RolloutPool:
        """Those that grow trees."""

    @property
    def rewards(self) -> Sequence[RewardPool]:
        """Those that score, a pool for each of Config.reward_groups."""

    @property
    def learners(self) -> LearnerGroup:
        """Those that train."""

    def publish(self, weights: str = "policy") -> int:
        """Weights of the learners (`policy`; `ema`, their exponential mean; `second`, the set that
        a loss samples with) to every rollout worker, confirmed by digest; returns their
        version."""

    def recover(self, error: Exception) -> bool:
        """Make everything work again after one of `faults`: no task pending, learners formed anew,
        with the untrained weights, if they are gone; returns whether they were. Raises the error
        when that happened too often."""

    def follow(self) -> dict[str, int]:
        """Follow requests for more or fewer workers; returns workers by role. Called between
        iterations, too."""

    def restarts(self) -> dict[str, int]:
        """Actors replaced under this driver, by cause."""

    def leaving(self) -> bool:
        """Has it become known that machines with actors of this run will go? Each is told once. A
        checkpoint is due."""

    def regroups(self) -> bool:
        """Is `regroup` asked for?"""

    def regroup(self) -> str:
        """Form the learners anew, with the untrained weights, where their number is to change or
        their machines will go. Returns why; empty when nothing was done. Called after a
        checkpoint that is written."""

    def stopping(self) -> bool:
        """Did somebody ask for the run to end after the present iteration?"""

    def report(self, values: Mapping[str, Any]) -> None:
        """Tell whoever watches how far the run is."""

    def driver_bytes(self) -> int:
        """Bytes that passed through the driver since the last call."""


class Display(Protocol):
    """What a person sees."""

    def phase(self, text: str) -> None:
        """A step of start-up or finish begins."""

    def note(self, text: str) -> None:
        """Something worth keeping."""

    def update(self, iteration: int, values: Mapping[str, float]) -> None:
        """An iteration ended."""


class Log(Protocol):
    """Where metrics go."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Keep an iteration's metrics."""

    def pictures(self, iteration: int, tag: str, pixels: U8, captions: Sequence[str]) -> None:
        """Show pictures [P, F, H, W, 3]. tag: what they are of; it comes again at later
        iterations."""

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """Show values [n], by tag, as histograms."""

    def rewind(self, iteration: int) -> None:
        """Forget the metrics of later iterations: they are done again."""
