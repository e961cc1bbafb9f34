"""Growing and scoring an iteration's trees on a pool of workers.

Prompts are encoded once, or were before; trunks grow, their frontier latents stay where they are,
subtrees read them by reference; leaves are scored as soon as a subtree has them, while others still
grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from branchgrpo.algo.tree import auto_fork_depth, fork_level, topology
from branchgrpo.config.schema import Config
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.rollout.whole_groups import WholeGroups
from branchgrpo.service import Reference, RewardPool, Service
from branchgrpo.types import (
    EVALUATION,
    BranchPlan,
    GrownSegment,
    RewardScores,
    Sample,
    ScoreRequest,
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
        trees: int,
        encoded: EncodedTexts | None = None,
    ) -> RolloutBatch:
        """Grow and score `trees` trees for each prompt: indices in the prompt list, and the records
        there. encoded: encodings that begin with theirs; None: they are made now."""
        return _Collection(
            collector=self,
            plan=plan,
            iteration=iteration,
            version=version,
            prompts=prompts,
            samples=samples,
            trees=trees,
            encoded=encoded or self.encode(samples),
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
        trees: int,
        encoded: EncodedTexts,
    ):
        self.config = collector.config
        self.plan = plan
        self.version = version
        self.samples, self.encoded = samples, encoded
        self.measures = iteration == EVALUATION
        # A held-out check compares the same prompts before and after, so none may be missing.
        self.may_drop = (
            collector.config.reward_workers.on_failure == "drop_group" and not self.measures
        )
        self.rollouts, self.rewards = collector.service.rollouts, collector.service.rewards
        self.trees = [
            Subtree(TreeKey(collector.run, iteration, prompt, tree), row, 0)
            for row, prompt in enumerate(prompts)
            for tree in range(trees)
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
        self.whole_groups = WholeGroups(trees * len(self.frontier))
        self.batch, self.begun = RolloutBatch(), perf_counter()

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
        self._drop()
        self._sort()
        self.batch.rewards = self.config.credit.totals(self.batch.scores)
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
            version=self.version, subtrees=tuple(subtrees), start=start, stop=stop
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
        if header.stop < self.plan.steps:
            below = [
                Subtree(tree.key, tree.prompt_index, node)
                for tree in header.subtrees
                for node in self.frontier
            ]
            self._to_leaves(below, list(segment.frontier), header.stop)
            return
        self.batch.media.append((header.subtrees, segment.media))
        whole = self.whole_groups.add(header.subtrees, segment.media)
        rewards = self.config.all_rewards[: None if self.measures else len(self.config.rewards)]
        for pool, group in zip(self.rewards, self.config.reward_groups, strict=True):
            asked = [index for index in group if index < len(rewards)]
            grouped = tuple(index for index in asked if rewards[index].grouped)
            if alone := tuple(index for index in asked if index not in grouped):
                places = [(0, row) for row in range(len(header.subtrees))]
                self._score(pool, alone, header.subtrees, places, [segment.media])
            for subtrees, places, media in whole if grouped else ():
                self._score(pool, grouped, subtrees, places, media)

    def _score(
        self,
        pool: RewardPool,
        rewards: tuple[int, ...],
        subtrees: tuple[Subtree, ...],
        places: Sequence[tuple[int, int]],
        media: Sequence[Reference],
    ) -> None:
        leaves = topology(self.plan).leaf_count
        pool.score(
            self.tasks,
            ScoreRequest(
                rewards=rewards,
                subtrees=subtrees,
                places=tuple(places),
                samples=tuple(self.samples[subtree.prompt_index] for subtree in subtrees),
            ),
            media,
            size=sum(int(leaves[subtree.node]) for subtree in subtrees),
            then=partial(self._scored, rewards, subtrees),
        )

    def _scored(
        self, group: tuple[int, ...], subtrees: tuple[Subtree, ...], scores: RewardScores
    ) -> None:
        self._clock("score")
        self.batch.retries += scores.retries
        topo, each = topology(self.plan), len(scores.ok) // len(subtrees)
        for index, subtree in enumerate(subtrees):
            rows = slice(index * each, (index + 1) * each)
            key = (subtree.prompt_index, subtree.key.tree)
            if not scores.ok[rows].all():
                if not self.may_drop:
                    raise RuntimeError(
                        f"{subtree.key}: {int((~scores.ok[rows]).sum())} of {each} leaves "
                        f"have no reward: {scores.reason}"
                    )
                self.batch.dropped[subtree.prompt_index] = scores.reason
            first = int(topo.leaf_first[subtree.node])
            leaves = slice(first, first + each)
            trained = self.batch.scores.setdefault(
                key, np.full((len(self.config.rewards), topo.leaves), np.nan, np.float32)
            )
            trains = [place for place, index in enumerate(group) if index < len(trained)]
            trained[[group[place] for place in trains], leaves] = scores.trained[trains][:, rows]
            for name, part in scores.parts.items():
                self.batch.parts.setdefault(name, {}).setdefault(
                    key, np.full(topo.leaves, np.nan, np.float32)
                )[leaves] = part[rows]

    def _sort(self) -> None:
        """Trees by (prompt index, tree): in the order of their arrival, sums over them would differ
        in the last bit from run to run."""
        batch = self.batch
        batch.scores = dict(sorted(batch.scores.items()))
        batch.parts = {name: dict(sorted(part.items())) for name, part in batch.parts.items()}

    def _drop(self) -> None:
        """Leave out all trees of prompts that lack a reward: what is left of a group would be
        compared wrongly."""
        batch = self.batch
        for table in (batch.scores, *batch.parts.values()):
            for key in [key for key in table if key[0] in batch.dropped]:
                del table[key]
        if not batch.scores:
            raise RuntimeError(
                f"all {len(batch.dropped)} prompt groups were dropped: "
                f"{next(iter(batch.dropped.values()))}"
            )


def _groups(items: list[T], count: int) -> list[list[T]]:
    """At most `count` runs of nearly equal length, none empty."""
    parts = np.array_split(np.arange(len(items)), max(1, min(count, len(items))))
    return [[items[i] for i in part] for part in parts]
