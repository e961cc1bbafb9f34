"""The roles as the driver calls them: typed calls on pools and groups of actors, whatever runs
these (Ray, or one process in tests). See branchgrpo.service for what each call means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.calls import RolloutCalls
from actors.encoder import Encoder
from actors.reward import RewardWorker
from branchgrpo.service import (
    Reference,
    Tasks,
)
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
    SegmentRequest,
    TreePayload,
)

Method = Callable[..., Any]
"""A method of a role's class."""


class WorkerPool(Protocol):
    """Workers of one class."""

    def __len__(self) -> int: ...

    def tasks(self) -> Any:
        """A new set of pending tasks."""

    def submit(
        self,
        tasks: Any,
        method: Method,
        *arguments: Any,
        returns: int = 1,
        size: float = 1.0,
        then: Callable[[list[Reference]], None],
    ) -> None:
        """Run a method on some worker; `then` gets references to its `returns` results."""

    def share(self, value: Any) -> Reference:
        """A value that several tasks take, sent once."""

    def fetch(self, reference: Reference) -> Any:
        """A small result, into the driver."""

    def broadcast(self, method: Method, *arguments: Any) -> list[Any]:
        """Run a method on every worker that is idle; results in their order."""

    def sync(self, calls: Sequence[tuple[Method, tuple[Any, ...]]], version: int = 0) -> None:
        """What all others run before their next task, newcomers too."""

    @property
    def desired(self) -> int:
        """Workers that there are to be, those that are lent apart."""

    def withhold(self) -> None:
        """Newcomers take no tasks before the next `sync`."""


@dataclass(frozen=True)
class Encoders:
    """branchgrpo.data.encodings.EncoderPool."""

    pool: WorkerPool

    def tasks(self) -> Tasks:
        tasks: Tasks = self.pool.tasks()
        return tasks

    def encode(
        self, tasks: Any, samples: list[Sample], path: Path, then: Callable[[str, int], None]
    ) -> None:
        def done(references: list[Reference]) -> None:
            then(*self.pool.fetch(references[0]))

        self.pool.submit(tasks, Encoder.encode, samples, path, then=done)


@dataclass(frozen=True)
class Rollouts:
    """branchgrpo.service.RolloutPool."""

    pool: WorkerPool

    def __len__(self) -> int:
        return len(self.pool)

    def tasks(self) -> Tasks:
        tasks: Tasks = self.pool.tasks()
        return tasks

    def share(self, plan: BranchPlan) -> Reference:
        return self.pool.share(plan)

    def encode(
        self,
        tasks: Any,
        samples: list[Sample],
        then: Callable[[EncodedPrompts], None],
        evaluated: bool = False,
    ) -> None:
        def done(references: list[Reference]) -> None:
            then(EncodedPrompts.of(self.pool.fetch(references[0]), references[1:]))

        self.pool.submit(
            tasks,
            RolloutCalls.encode,
            *(samples, evaluated),
            returns=1 + len(samples),
            size=len(samples),
            then=done,
        )

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
        def done(references: list[Reference]) -> None:
            header, rest = self.pool.fetch(references[0]), references[1:]
            then(GrownSegment.of(header, rest, leaves=not frontier, viewed=request.viewed))

        self.pool.submit(
            tasks,
            RolloutCalls.grow,
            *(plan, request, *conditioning, *roots),
            returns=2 + request.viewed + (len(request.subtrees) * frontier if frontier else 1),
            size=size,
            then=done,
        )

    def some(
        self, tasks: Any, media: Reference, rows: Sequence[int], then: Callable[[U8], None]
    ) -> None:
        def done(references: list[Reference]) -> None:
            then(self.pool.fetch(references[0]))

        self.pool.submit(tasks, RolloutCalls.some, media, rows, size=len(rows), then=done)

    def pixels(self, media: Reference) -> U8:
        found: U8 = self.pool.fetch(media).pixels
        return found

    def views(self, views: Reference) -> NodeViews:
        found: NodeViews = self.pool.fetch(views)
        return found

    def payload(self, payload: Reference) -> TreePayload:
        found: TreePayload = self.pool.fetch(payload)
        return found

    def fingerprints(self) -> list[F32]:
        return self.pool.broadcast(RolloutCalls.fingerprint)


@dataclass(frozen=True)
class Rewards:
    """branchgrpo.service.RewardPool."""

    pool: WorkerPool

    def score(
        self,
        tasks: Any,
        request: ScoreRequest,
        media: Sequence[Reference],
        *,
        size: float,
        then: Callable[[RewardScores], None],
    ) -> None:
        def done(references: list[Reference]) -> None:
            then(self.pool.fetch(references[0]))

        self.pool.submit(tasks, RewardWorker.score, request, *media, size=size, then=done)

    def features(
        self,
        tasks: Any,
        request: ScoreRequest,
        media: Sequence[Reference],
        *,
        size: float,
        then: Callable[[Mapping[str, F32]], None],
    ) -> None:
        def done(references: list[Reference]) -> None:
            then(self.pool.fetch(references[0]))

        self.pool.submit(tasks, RewardWorker.features, request, *media, size=size, then=done)
