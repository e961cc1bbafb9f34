"""Growing and scoring an iteration's trees on a pool of workers.

Prompts are encoded once, or were before; trunks grow, their frontier latents stay where they are,
subtrees read them by reference; leaves are scored as soon as a subtree has them, while others still
grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TypeVar

import numpy as np

from branchgrpo.algo.tree import auto_fork_depth, fork_level, topology
from branchgrpo.config.schema import Config
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.leaves import Features, Scores
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.service import Reference, Service
from branchgrpo.types import (
    EVALUATION,
    BranchPlan,
    GrownSegment,
    Sample,
    SegmentRequest,
    Subtree,
    TreeKey,
)

T = TypeVar("T")

FORWARD_ROWS = 4
"""A forward takes about as long as so many rows more would."""


class RolloutCollector:
    """Grows trees of one policy version."""

    def __init__(self, config: Config, service: Service, run: str):
        self.config = config
        self.service = service
        self.run = run

    def encode(self, samples: list[Sample], evaluated: bool = False) -> EncodedTexts:
        """Have records encoded, without waiting for it. evaluated: as held-out checks need
        them."""
        batch = self.config.rollout.encode_batch
        return EncodedTexts(self.service.rollouts, samples, batch, evaluated=evaluated)

    def collect(
        self,
        plan: BranchPlan,
        iteration: int,
        version: int,
        prompts: list[int],
        samples: list[Sample],
        trees: int | Sequence[Sequence[int]],
        encoded: EncodedTexts | None = None,
        compared: bool = False,
        trained: bool = True,
        viewed: bool = False,
    ) -> RolloutBatch:
        """Grow and score trees for each prompt: indices in the prompt list, and the records there.
        trees: how many of each, or their numbers by prompt, as many of each or none. encoded:
        encodings that begin with theirs; None: they are made now. compared: not the leaves' scores
        are wanted, but their latents and features. trained: losses on leaves find them kept.
        viewed: with what nodes on the way would have become, for pictures of trees."""
        return _Collection(
            collector=self,
            plan=plan,
            iteration=iteration,
            version=version,
            prompts=prompts,
            samples=samples,
            trees=trees,
            encoded=encoded or self.encode(samples),
            compared=compared,
            trained=trained,
            viewed=viewed,
        ).run()


class _Collection:
    """One call of RolloutCollector.collect: the task graph of an iteration."""

    def __init__(
        self,
        collector: RolloutCollector,
        plan: BranchPlan,
        iteration: int,
        version: int,
        prompts: list[int],
        samples: list[Sample],
        trees: int | Sequence[Sequence[int]],
        encoded: EncodedTexts,
        compared: bool,
        trained: bool,
        viewed: bool,
    ):
        self.config = collector.config
        self.plan = plan
        self.version = version
        self.samples, self.encoded, self.viewed = samples, encoded, viewed
        evaluated = iteration == EVALUATION
        trained = trained and not evaluated
        self.clean = compared or (trained and self.config.credit.trained == "leaves")
        numbers = [range(trees)] * len(prompts) if isinstance(trees, int) else trees
        self.rollouts = collector.service.rollouts
        self.trees = [
            Subtree(TreeKey(collector.run, iteration, prompt, tree), row, 0)
            for row, prompt in enumerate(prompts)
            for tree in numbers[row]
        ]
        depth = self.config.rollout.fork_depth
        self.fork = fork_level(
            plan,
            auto_fork_depth(plan, len(self.trees), len(self.rollouts))
            if depth == "auto"
            else depth,
        )
        self.frontier = topology(plan).level(self.fork).tolist()
        self.tasks, self.shared_plan = self.rollouts.tasks(), self.rollouts.share(plan)
        self.batch, self.begun = RolloutBatch(), perf_counter()
        self.leaves = (Features if compared else Scores)(
            config=self.config,
            pools=collector.service.rewards,
            plan=plan,
            samples=samples,
            tasks=self.tasks,
            batch=self.batch,
            group=max(map(len, numbers)) * len(self.frontier),
            evaluated=evaluated,
        )

    def run(self) -> RolloutBatch:
        self.encoded.wait()
        self._clock("encode")
        self.batch.truncated = self.encoded.truncated
        self.batch.conditioning = self.encoded.references(len(self.samples))
        if self.fork:
            for group in _groups(self.trees, len(self.rollouts)):
                self._grow(group, [], 0, self.fork)
        else:
            self._to_leaves(self.trees, [], 0)
        self.tasks.run()
        self._clock("score")
        self.leaves.finish()
        seconds, previous = self.batch.seconds, 0.0
        # from ends to durations: what follows the phase before
        for phase in ("encode", "grow", "score"):
            seconds[phase], previous = seconds[phase] - previous, seconds[phase]
        return self.batch

    def _clock(self, phase: str) -> None:
        self.batch.seconds[phase] = perf_counter() - self.begun

    def _to_leaves(self, subtrees: list[Subtree], roots: list[Reference], start: int) -> None:
        """Split subtrees into tasks that keep every worker busy and none above max_batch leaves."""
        rollout, leaves = self.config.rollout, topology(self.plan).leaf_count
        # of the iteration's subtrees
        share = len(subtrees) / (len(self.trees) * len(self.frontier))
        tasks = max(
            share * len(self.rollouts) * rollout.tasks_per_worker,
            sum(int(leaves[one.node]) for one in subtrees) / rollout.max_batch,
        )
        for rows in _groups(list(range(len(subtrees))), int(np.ceil(tasks))):
            self._grow(
                [subtrees[row] for row in rows],
                [roots[row] for row in rows] if roots else [],
                start,
                self.plan.steps,
            )

    def _grow(self, subtrees: list[Subtree], roots: list[Reference], start: int, stop: int) -> None:
        request = SegmentRequest(
            version=self.version,
            subtrees=tuple(subtrees),
            start=start,
            stop=stop,
            clean=self.clean,
            viewed=self.viewed,
        )
        below, levels = topology(self.plan).below, range(start, stop)
        size = FORWARD_ROWS * len(levels) + sum(
            len(below(subtree.node, level)) for subtree in subtrees for level in levels
        )
        self.rollouts.grow(
            self.tasks,
            self.shared_plan,
            request,
            conditioning=[self.batch.conditioning[prompt] for prompt in request.prompts],
            roots=roots,
            frontier=len(self.frontier) if stop < self.plan.steps else 0,
            size=size,
            then=self._grown,
        )

    def _grown(self, segment: GrownSegment) -> None:
        self._clock("grow")
        header = segment.header
        self.batch.segments.append((header, segment.payload))
        if self.viewed:
            self.batch.views.append(segment.views)
        if header.stop < self.plan.steps:
            below = [
                Subtree(tree.key, tree.prompt_index, node)
                for tree in header.subtrees
                for node in self.frontier
            ]
            self._to_leaves(below, list(segment.frontier), header.stop)
            return
        self.batch.media.append((header.subtrees, segment.media))
        self.leaves.add(header.subtrees, segment.media)


def _groups(items: list[T], count: int) -> list[list[T]]:
    """At most `count` runs of nearly equal length, none empty."""
    parts = np.array_split(np.arange(len(items)), max(1, min(count, len(items))))
    return [[items[i] for i in part] for part in parts]
