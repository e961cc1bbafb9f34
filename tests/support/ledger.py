"""A service whose weights are a ledger: a digest of every update that they went through. Whatever
is lost, done twice or done with other weights changes the digest, and it costs no time. Any call
can be made to fail."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.algo.tree import topology
from branchgrpo.checkpoint.store import Store
from branchgrpo.config.schema import Config
from branchgrpo.service import (
    CheckpointRequest,
    Reference,
    RestoredState,
    SavedCheckpoint,
    UpdateRequest,
)
from branchgrpo.types import (
    F32,
    U8,
    BranchPlan,
    EncodedPrompts,
    GrownSegment,
    RewardScores,
    Sample,
    ScoreRequest,
    SegmentHeader,
    SegmentRequest,
    StepStats,
    Subtree,
    TreePayload,
)


class Lost(Exception):
    """A failure of machines."""


@dataclass(frozen=True)
class Fault:
    """Fail at the nth call of one kind, before or after it took effect; are the learners gone?"""

    call: str
    at: int
    after: bool
    gone: bool


def digest(*parts: object) -> str:
    """Of anything that has a text."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def number(*parts: object) -> float:
    """A number in 0 … 1 from a digest."""
    return int(digest(*parts)[:8], 16) / 16**8


class Tasks:
    """Pending tasks, run in the order of their submission."""

    def __init__(self) -> None:
        self.pending: deque[Callable[[], None]] = deque()

    def run(self) -> None:
        while self.pending:
            self.pending.popleft()()


class Ledger:
    """branchgrpo.service.Service, with all its roles. `calls` counts what was called."""

    faults: tuple[type[Exception], ...] = (Lost,)

    def __init__(self, config: Config, *script: Fault, slow_storage: bool = False):
        """slow_storage: checkpoints are written while training goes on."""
        self.config, self.slow_storage = config, slow_storage
        self.script = list(script)
        self.calls: Counter[str] = Counter()
        self.earlier: Counter[str] = Counter()
        self.rollouts, self.rewards, self.learners = Rollouts(self), [Rewards(self)], Learners(self)
        self.failed: Fault | None = None
        self.losses = 0  # what was grown or encoded before the last one is gone
        self.updating = False

    def call(self, name: str, act: Callable[[], Any]) -> Any:
        """Do it, unless it is to fail."""
        self.calls[name] += 1
        due = self.script[0] if self.script else None
        hit = due is not None and (due.call, due.at) == (name, self.calls[name])
        if hit and due and not due.after:
            self._fail(due)
        found = act()
        if hit and due and due.after:
            self._fail(due)
        return found

    def _fail(self, fault: Fault) -> None:
        self.failed = self.script.pop(0)
        self.losses, self.updating = self.losses + 1, False
        raise Lost(f"{fault.call} {fault.at}")

    def recover(self, error: Exception) -> bool:
        """The learners are formed anew, with the untrained weights, if they are gone."""
        assert self.failed is not None
        if self.failed.gone:
            self.learners.begin_anew()
        return self.failed.gone

    def publish(self, weights: str = "policy") -> int:
        def act() -> int:
            held = self.learners
            self.rollouts.weights = held.weights if weights == "policy" else held.mean
            self.rollouts.version = held.version
            return held.version

        found: int = self.call(f"publish {weights}", act)
        return found

    def follow(self) -> dict[str, int]:
        found: dict[str, int] = self.call("follow", lambda: {"restarts": 0, "reissued": 0})
        return found

    def restarts(self) -> dict[str, int]:
        return {}

    def leaving(self) -> bool:
        return False

    def regroups(self) -> bool:
        return False

    def regroup(self) -> str:
        found: str = self.call("regroup", lambda: "")
        return found

    def stopping(self) -> bool:
        return False

    def report(self, values: Mapping[str, Any]) -> None:
        pass

    def driver_bytes(self) -> int:
        return 0


class Rollouts:
    """One worker. Payloads and media say which weights grew them, encodings whose they are."""

    def __init__(self, service: Ledger):
        self.service = service
        self.weights, self.version = "untrained", 0

    def __len__(self) -> int:
        return 1

    def tasks(self) -> Tasks:
        return Tasks()

    def share(self, plan: BranchPlan) -> Reference:
        return plan

    def encode(
        self,
        tasks: Tasks,
        samples: list[Sample],
        then: Callable[[EncodedPrompts], None],
        evaluated: bool = False,
    ) -> None:
        service = self.service

        def act() -> EncodedPrompts:
            # nobody waits for encodings while ranks that may have to make them are at an update
            assert not service.updating or service.config.async_.max_staleness
            assert len(samples) <= service.config.rollout.encode_batch
            made = [(sample.prompt, service.losses) for sample in samples]
            return EncodedPrompts(truncated=0, bytes=len(samples), conditioning=made)

        tasks.pending.append(lambda: then(service.call("encode", act)))

    def grow(
        self,
        tasks: Tasks,
        plan: BranchPlan,
        request: SegmentRequest,
        *,
        conditioning: Sequence[Reference],
        roots: Sequence[Reference],
        frontier: int,
        size: float,
        then: Callable[[GrownSegment], None],
    ) -> None:
        def act() -> GrownSegment:
            assert request.version == self.version, (request.version, self.version)
            assert len(conditioning) == len(request.prompts)
            assert {made for _, made in conditioning} == {self.service.losses}
            topo, subtrees = topology(plan), request.subtrees
            edges = topo.segment_edges(subtrees[0].node, request.start, request.stop)
            random = int(topo.stochastic[np.asarray(edges)].sum())
            header = SegmentHeader(
                subtrees=subtrees,
                start=request.start,
                stop=request.stop,
                policy_version=request.version,
                log_prob=np.zeros((len(subtrees), random), np.float32),
                forwards=1,
                payload_bytes=1,
            )
            return GrownSegment(
                header=header,
                payload=(self.weights, subtrees, tuple(prompt for prompt, _ in conditioning)),
                media=None if frontier else (self.weights, plan, subtrees),
                frontier=(None,) * (len(subtrees) * frontier),
            )

        tasks.pending.append(lambda: then(self.service.call("grow", act)))

    def some(
        self, tasks: Any, media: Reference, rows: Sequence[int], then: Callable[[U8], None]
    ) -> None:
        blank = np.zeros((len(rows), 1, 8, 8, 3), np.uint8)
        tasks.pending.append(lambda: then(self.service.call("some", lambda: blank)))

    def pixels(self, media: Reference) -> U8:
        _, plan, subtrees = media
        leaves = sum(int(topology(plan).leaf_count[one.node]) for one in subtrees)
        found: U8 = self.service.call("pixels", lambda: np.zeros((leaves, 1, 8, 8, 3), np.uint8))
        return found

    def payload(self, payload: Reference) -> TreePayload:
        weights, subtrees, _ = payload

        def act() -> TreePayload:
            rows = [[number(weights, replace(one.key, run="")), 1.0] for one in subtrees]
            return TreePayload(
                subtree=np.arange(len(subtrees), dtype=np.int32),
                node=np.zeros(len(subtrees), np.int32),
                latents=np.array(rows, np.float32),
                dtype="float32",
                parent=np.zeros(0, np.int32),
                velocity=np.zeros((0, 2), np.float32),
            )

        found: TreePayload = self.service.call("payload", act)
        return found

    def fingerprints(self) -> list[F32]:
        def act() -> list[F32]:
            return [np.array([number(self.weights)], np.float32)]

        found: list[F32] = self.service.call("fingerprints", act)
        return found


class Rewards:
    """Scores by the weights that grew a leaf, its tree and its place."""

    def __init__(self, service: Ledger):
        self.service = service

    def score(
        self,
        tasks: Tasks,
        request: ScoreRequest,
        media: Sequence[Reference],
        *,
        size: float,
        then: Callable[[RewardScores], None],
    ) -> None:
        def act() -> RewardScores:
            ((weights, plan, subtrees),) = media
            assert request.subtrees == subtrees  # no reward here compares trees
            topo = topology(plan)

            def of(one: Subtree) -> list[float]:
                first, count = int(topo.leaf_first[one.node]), int(topo.leaf_count[one.node])
                key = replace(one.key, run="")
                return [number(weights, key, leaf) for leaf in range(first, first + count)]

            scores = np.array([value for one in subtrees for value in of(one)], np.float32)
            (reward,) = self.service.config.rewards
            return RewardScores(
                trained=scores[None],
                parts={f"{reward.title}/{name}": scores for name in reward.reported()},
                ok=np.ones(len(scores), bool),
            )

        tasks.pending.append(lambda: then(self.service.call("score", act)))


class Learners:
    """One rank."""

    def __init__(self, service: Ledger):
        self.service = service
        self.exported = ""
        self.asked = 0  # what became of a checkpoint
        self.begin_anew()

    def begin_anew(self) -> None:
        """Untrained weights."""
        self.weights, self.mean, self.version = "untrained", "untrained", 0
        self.pending: tuple[Path, str] | None = None  # a checkpoint that is being written

    def start_update(self, request: UpdateRequest, size: float) -> Any:
        def act() -> StepStats:
            self.service.updating = False
            texts = [prompt for prompt, _ in request.conditioning]
            scores = {key: request.scores[key].tolist() for key in sorted(request.scores)}
            grown = sorted(str(payload) for _, payload in request.segments)
            assert all(
                self.version - header.policy_version <= self.service.config.async_.max_staleness
                for header, _ in request.segments
            )
            self.weights = digest(self.weights, request.iteration, scores, grown, texts)
            self.mean = digest(self.mean, self.weights)
            self.version += 1
            return stats(self.version)

        def begin() -> None:
            self.service.updating = True

        self.service.call("start update", begin)
        return Update(self.service, act)

    def checkpoint(self, request: CheckpointRequest) -> SavedCheckpoint:
        def act() -> SavedCheckpoint:
            state = {
                "driver": dict(request.driver),
                "learner": [self.weights, self.mean, self.version],
            }
            path = Path(request.where) / f"{request.fence:04d}-{request.iteration:04d}.json"
            assert request.fence == Store(request.where, 2).fence()
            self.pending = (path, json.dumps(state))
            if self.service.slow_storage and not request.wait:
                return SavedCheckpoint(pending=True)
            return self._written()

        found: SavedCheckpoint = self.service.call("checkpoint", act)
        return found

    def checkpointed(self, wait: bool) -> SavedCheckpoint:
        """Every second time, where nobody waits."""

        def act() -> SavedCheckpoint:
            self.asked += 1
            if self.pending and not wait and self.asked % 2:
                return SavedCheckpoint(pending=True)
            return self._written()

        found: SavedCheckpoint = self.service.call("checkpointed", act)
        return found

    def _written(self) -> SavedCheckpoint:
        if self.pending is None:
            return SavedCheckpoint()
        (path, text), self.pending = self.pending, None
        path.write_text(text)
        return SavedCheckpoint(path=str(path))

    def restore(self, where: str, origin: str) -> RestoredState:
        def act() -> RestoredState:
            self.begin_anew()
            files = sorted(Path(where).glob("*.json"))
            if not files:
                return RestoredState(driver=None, damaged=())
            state = json.loads(files[-1].read_text())
            self.weights, self.mean, self.version = state["learner"]
            return RestoredState(driver=state["driver"], damaged=())

        found: RestoredState = self.service.call("restore", act)
        return found

    def fingerprint(self) -> F32:
        found: F32 = self.service.call(
            "fingerprint", lambda: np.array([number(self.weights)], np.float32)
        )
        return found

    def export(self, folder: Path) -> None:
        def act() -> None:
            self.exported = self.mean

        self.service.call("export", act)


@dataclass
class Update:
    """An update that takes effect when it is waited for."""

    service: Ledger
    act: Callable[[], StepStats]

    def result(self) -> StepStats:
        found: StepStats = self.service.call("update", self.act)
        return found


def stats(version: int) -> StepStats:
    """Of an update that changed something."""
    values = dict.fromkeys(StepStats.__dataclass_fields__, 0)
    return StepStats(**values | {"version": version, "optimiser_steps": 1, "velocity_norm": None})
