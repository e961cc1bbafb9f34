"""The trees of an iteration, and of those that are grown while the learner updates; and the next
prompts, which are encoded meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from branchgrpo.algo.methods.base import MethodRun
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.report.metrics import overlooked
from branchgrpo.rollout import scouts
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.service import Display, UpdateRequest
from branchgrpo.training.state import TrainState
from branchgrpo.types import BranchPlan, Sample


@dataclass(frozen=True, kw_only=True)
class PendingRollout:
    """An iteration's trees, not trained on yet."""

    iteration: int
    version: int  # of the weights that grew them
    plan: BranchPlan
    samples: Sequence[Sample]  # by prompt index
    batch: RolloutBatch

    @property
    def request(self) -> UpdateRequest:
        """The update that trains on them."""
        return UpdateRequest(
            plan=self.plan,
            iteration=self.iteration,
            segments=self.batch.segments,
            conditioning=self.batch.conditioning,
            scores=self.batch.scores,
        )


class Ahead:
    """Grows trees, as far ahead of the updates as async.max_staleness allows, and has the prompts
    of the iteration after those encoded."""

    def __init__(self, config: Config, collector: RolloutCollector, display: Display):
        self.config = config
        self.collector = collector
        self.display = display
        self.schedule = config.schedule()
        self.prompts, _ = prompts.lists(config)
        self.pending: deque[PendingRollout] = deque()
        self.encoded: dict[int, EncodedTexts] = {}  # by iteration, at most one
        self.method: MethodRun
        self.begin_again(None)
        self.dropped = 0  # trees' iterations that became too old, since the last metrics
        self.said: set[str] = set()

    def begin_again(self, state: Mapping[str, Any] | None) -> None:
        """The method begins again, or goes on from what a checkpoint holds of it. Raises ValueError
        for what is none of its states."""
        self.clear()
        self.method = self.config.method.start(self.config.sampling.steps, self.config.run.seed)
        if state:
            self.method.load(state)

    def next(self, state: TrainState) -> PendingRollout:
        """The next iteration's trees: grown ahead, unless they are too old by now, or grown now."""
        while self.pending:
            pending = self.pending.popleft()
            if state.version - pending.version <= self.config.async_.max_staleness:
                return pending
            self.dropped += 1
        return self._grow(state.iteration, state.version)

    def fill(self, state: TrainState) -> None:
        """Grow while the learner updates. The prompts of the iteration after that are not waited
        for: perhaps those who encode them are at work on the update."""
        last = self.config.run.iterations or np.inf
        while (iteration := state.iteration + 1 + len(self.pending)) < last:
            if len(self.pending) >= self.config.async_.max_staleness:
                self.encoded = {iteration: self.collector.encode(self._samples(iteration))}
                return
            self.pending.append(self._grow(iteration, state.version))

    def settle(self) -> float:
        """After the update: until the prompts are encoded, so that all workers are idle and get the
        new weights at once. Returns the seconds that this took."""
        return sum(encoded.wait() for encoded in self.encoded.values())

    def clear(self) -> None:
        """After a fault: what was grown or encoded may be gone."""
        self.pending.clear()
        self.encoded.clear()

    def take_dropped(self) -> int:
        """How many were too old, since the last call."""
        found, self.dropped = self.dropped, 0
        return found

    def _grow(self, iteration: int, version: int) -> PendingRollout:
        config = self.config
        plan = config.plan(self.method, iteration, self.schedule)
        chosen, samples = self.chosen(iteration), self._samples(iteration)
        batch = scouts.collect(
            config,
            self.collector,
            plan,
            self.method.scouting(self.schedule),
            iteration=iteration,
            version=version,
            prompts=chosen,
            samples=samples,
            encoded=self.encoded.pop(iteration, None),
        )
        # once: what does not end a run, and is easily overlooked; each iteration's count is in the
        # metrics
        for kind, text in overlooked(batch, len(chosen)).items():
            if kind not in self.said:
                self.said.add(kind)
                self.display.note(text)
        return PendingRollout(
            iteration=iteration, version=version, plan=plan, samples=samples, batch=batch
        )

    def chosen(self, iteration: int) -> list[int]:
        """An iteration's prompts, by their indices in the list."""
        count, seed = self.config.rollout.prompts, self.config.run.seed
        return prompts.deal(len(self.prompts), count, iteration, seed)

    def _samples(self, iteration: int) -> list[Sample]:
        return [self.prompts[index] for index in self.chosen(iteration)]
