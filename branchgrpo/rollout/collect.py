"""Growing and scoring an iteration's trees on a pool of workers.

Prompts are encoded once, or were before; trunks grow, their frontier latents stay where they are,
subtrees read them by reference; leaves are scored as soon as a subtree has them, while others still
grow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from branchgrpo.algo.tree import auto_fork_depth, fork_level, topology
from branchgrpo.config.schema import Config
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.service import Reference, Service
from branchgrpo.types import (
    EVALUATION,
    F32,
    BranchPlan,
    GrownSegment,
    RewardScores,
    SegmentHeader,
    SegmentRequest,
    Subtree,
    TreeKey,
)

T = TypeVar("T")

FORWARD_ROWS = 4
"""A forward takes about as long as so many rows more would."""


@dataclass
class RolloutBatch:
    """Grown and scored trees: headers and scores here, everything large by reference."""

    # → Conditioning of one row, by prompt index
    conditioning: list[Reference] = field(default_factory=list)
    segments: list[tuple[SegmentHeader, Reference]] = field(default_factory=list)
    media: list[tuple[tuple[Subtree, ...], Reference]] = field(default_factory=list)
    # (prompt index, tree) → trained scores [R, L]
    scores: dict[tuple[int, int], F32] = field(default_factory=dict)
    # (prompt index, tree) → their weighted sum [L]
    rewards: dict[tuple[int, int], F32] = field(default_factory=dict)
    parts: dict[str, dict[tuple[int, int], F32]] = field(default_factory=dict)
    truncated: int = 0  # prompts that the text encoders cut short
    retries: int = 0  # of rewards
    # prompt indices without rewards, whose trees are left out; and why
    dropped: dict[int, str] = field(default_factory=dict)
    # encode, grow, score: from the end of the phase before to the end of its last task; of
    # encoding, what was waited for
    seconds: dict[str, float] = field(default_factory=dict)

    def edges(self, plan: BranchPlan) -> int:
        """Stochastic edges of all trees: as many as an update may train on, at least 1."""
        return max(1, len(self.scores) * int(topology(plan).stochastic.sum()))

    def part(self, name: str) -> F32:
        """Scores of all leaves under one name, by (prompt index, tree, leaf)."""
        scores = self.parts[name]
        return np.concatenate([scores[key] for key in sorted(scores)])

    def leaf_rewards(self) -> F32:
        """[trees, L] rewards, trees by (prompt index, tree)."""
        return np.stack([self.rewards[key] for key in sorted(self.rewards)])

    def total(self) -> F32:
        """Rewards of all leaves, in the same order."""
        return np.concatenate([self.rewards[key] for key in sorted(self.rewards)])


class RolloutCollector:
    """Grows trees of one policy version."""

    def __init__(self, config: Config, service: Service, run: str):
        self.config = config
        self.service = service
        self.run = run

    def encode(self, texts: list[str]) -> EncodedTexts:
        """Have prompts encoded, without waiting for it."""
        return EncodedTexts(self.service.rollouts, texts, self.config.rollout.encode_batch)

    def collect(
        self,
        plan: BranchPlan,
        iteration: int,
        version: int,
        prompts: list[int],
        texts: list[str],
        trees: int,
        encoded: EncodedTexts | None = None,
    ) -> RolloutBatch:
        """Grow and score `trees` trees for each prompt: indices in the prompt list, and their
        texts. encoded: encodings that begin with theirs; None: they are made now."""
        return _Collection(
            collector=self,
            plan=plan,
            iteration=iteration,
            version=version,
            prompts=prompts,
            texts=texts,
            trees=trees,
            encoded=encoded or self.encode(texts),
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
        texts: list[str],
        trees: int,
        encoded: EncodedTexts,
    ):
        self.config = collector.config
        self.plan = plan
        self.version = version
        self.texts, self.encoded = texts, encoded
        # A held-out check compares the same prompts before and after, so none may be missing.
        self.may_drop = (
            collector.config.reward_workers.on_failure == "drop_group" and iteration != EVALUATION
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
        self.batch, self.begun = RolloutBatch(), perf_counter()

    def run(self) -> RolloutBatch:
        self.encoded.wait()
        self._clock("encode")
        self.batch.truncated = self.encoded.truncated
        self.batch.conditioning = self.encoded.references(len(self.texts))
        if self.fork:
            for group in _groups(self.trees, len(self.rollouts)):
                self._grow(group, [], 0, self.fork)
        else:
            self._to_leaves(self.trees, [], 0)
        self.tasks.run()
        self._drop()
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
        subtrees = header.subtrees
        self.batch.media.append((subtrees, segment.media))
        texts = [self.texts[subtree.prompt_index] for subtree in subtrees]
        leaves = topology(self.plan).leaf_count
        pictures = sum(int(leaves[subtree.node]) for subtree in subtrees)
        for pool, group in zip(self.rewards, self.config.reward_groups, strict=True):
            then = partial(self._scored, group, subtrees)
            pool.score(self.tasks, segment.media, texts, size=pictures, then=then)

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
            trained[list(group), leaves] = scores.trained[:, rows]
            for name, part in scores.parts.items():
                self.batch.parts.setdefault(name, {}).setdefault(
                    key, np.full(topo.leaves, np.nan, np.float32)
                )[leaves] = part[rows]

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
