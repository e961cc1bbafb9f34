"""Growing and scoring an iteration's trees on a pool of workers.

Prompts are encoded once; trunks grow, their frontier latents stay where they are, subtrees read them by
reference; leaves are scored as soon as a subtree has them, while others still grow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

import numpy as np

from branchgrpo.config import Config
from branchgrpo.service import Reference, Service
from branchgrpo.tree import auto_fork_depth, fork_level, topology
from branchgrpo.types import F32, BranchPlan, RewardScores, SegmentHeader, Subtree, TreeKey

T = TypeVar("T")


@dataclass
class Harvest:
    """Grown and scored trees: headers and scores here, everything large by reference."""

    conditioning: Reference = None
    segments: list[tuple[SegmentHeader, Reference]] = field(default_factory=list)
    media: list[tuple[tuple[Subtree, ...], Reference]] = field(default_factory=list)
    rewards: dict[tuple[int, int], F32] = field(default_factory=dict)  # (prompt row, tree) → [L]
    parts: dict[str, dict[tuple[int, int], F32]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # encode, grow, score: when the last task of each ended

    def part(self, name: str) -> F32:
        """Scores of all leaves under one name, by (prompt row, tree, leaf)."""
        scores = self.parts[name]
        return np.concatenate([scores[key] for key in sorted(scores)])

    def total(self) -> F32:
        """Rewards of all leaves, in the same order."""
        return np.concatenate([self.rewards[key] for key in sorted(self.rewards)])


class Forest:
    """Grows trees of one policy version."""

    def __init__(self, config: Config, service: Service, run: str):
        self.config, self.service, self.run = config, service, run

    def grow(self, plan: BranchPlan, iteration: int, version: int, prompts: list[int], texts: list[str], trees: int) -> Harvest:
        """Grow and score `trees` trees for each prompt: indices in the prompt list, and their texts."""
        return _Growth(self, plan, iteration, version, prompts, texts, trees).run()


class _Growth:
    """One call of Forest.grow: the task graph of an iteration."""

    def __init__(self, forest: Forest, plan: BranchPlan, iteration: int, version: int, prompts: list[int], texts: list[str], trees: int):
        self.config, self.plan, self.version, self.texts = forest.config, plan, version, texts
        self.rollouts, self.rewards = forest.service.rollouts, forest.service.rewards
        self.trees = [Subtree(TreeKey(forest.run, iteration, prompt, tree), row, 0) for row, prompt in enumerate(prompts) for tree in range(trees)]
        depth = self.config.rollout.fork_depth
        self.fork = fork_level(plan, auto_fork_depth(plan, len(self.trees), len(self.rollouts)) if depth == "auto" else depth)
        self.frontier = topology(plan).level(self.fork).tolist()
        self.flow, self.shared_plan = self.rollouts.flow(), self.rollouts.share(plan)
        self.harvest, self.begun = Harvest(), perf_counter()

    def run(self) -> Harvest:
        self.rollouts.submit(self.flow, "encode", self.texts, then=self._encoded)
        self.flow.run()
        seconds, previous = self.harvest.seconds, 0.0
        for phase in ("encode", "grow", "score"):  # from ends to durations: what follows the phase before
            seconds[phase], previous = seconds[phase] - previous, seconds[phase]
        return self.harvest

    def _clock(self, phase: str) -> None:
        self.harvest.seconds[phase] = perf_counter() - self.begun

    def _encoded(self, references: list[Reference]) -> None:
        self._clock("encode")
        self.harvest.conditioning = references[0]
        if self.fork:
            for group in _groups(self.trees, len(self.rollouts)):
                self._grow(group, [], 0, self.fork)
        else:
            self._to_leaves(self.trees, [], 0)

    def _to_leaves(self, subtrees: list[Subtree], roots: list[Reference], start: int) -> None:
        """Split subtrees into tasks that keep every worker busy and none above max_batch leaves."""
        rollout, leaves = self.config.rollout, topology(self.plan).leaf_count
        share = len(subtrees) / (len(self.trees) * len(self.frontier))  # of the iteration's subtrees
        tasks = max(share * len(self.rollouts) * rollout.tasks_per_worker, sum(int(leaves[one.node]) for one in subtrees) / rollout.max_batch)
        for rows in _groups(list(range(len(subtrees))), int(np.ceil(tasks))):
            self._grow([subtrees[row] for row in rows], [roots[row] for row in rows] if roots else [], start, self.plan.steps)

    def _grow(self, subtrees: list[Subtree], roots: list[Reference], start: int, stop: int) -> None:
        returns = 3 if stop == self.plan.steps else 2 + len(subtrees) * len(self.frontier)
        arguments = (self.shared_plan, self.version, tuple(subtrees), start, stop, self.harvest.conditioning, *roots)
        self.rollouts.submit(self.flow, "grow", *arguments, returns=returns, then=self._grown)

    def _grown(self, references: list[Reference]) -> None:
        self._clock("grow")
        header: SegmentHeader = self.rollouts.fetch(references[0])
        self.harvest.segments.append((header, references[1]))
        if header.stop < self.plan.steps:
            below = [Subtree(tree.key, tree.prompt, node) for tree in header.subtrees for node in self.frontier]
            self._to_leaves(below, references[2:], header.stop)
            return
        media, subtrees = references[2], header.subtrees
        self.harvest.media.append((subtrees, media))
        texts = [self.texts[subtree.prompt] for subtree in subtrees]
        self.rewards.submit(self.flow, "score", media, texts, then=lambda scores: self._scored(subtrees, scores[0]))

    def _scored(self, subtrees: tuple[Subtree, ...], reference: Reference) -> None:
        self._clock("score")
        scores: RewardScores = self.rewards.fetch(reference)
        topo, each = topology(self.plan), len(scores.total) // len(subtrees)
        for index, subtree in enumerate(subtrees):
            rows, first = slice(index * each, (index + 1) * each), topo.leaf_first[subtree.node]
            if not scores.ok[rows].all():
                raise RuntimeError(f"{subtree.key}: {int((~scores.ok[rows]).sum())} of {each} rewards are not finite")
            tables = [(self.harvest.rewards, scores.total)]
            tables += [(self.harvest.parts.setdefault(name, {}), part) for name, part in scores.parts.items()]
            for table, values in tables:
                leaves = table.setdefault((subtree.prompt, subtree.key.tree), np.full(topo.leaves, np.nan, np.float32))
                leaves[first : first + each] = values[rows]


def _groups(items: list[T], count: int) -> list[list[T]]:
    """At most `count` runs of nearly equal length, none empty."""
    parts = np.array_split(np.arange(len(items)), max(1, min(count, len(items))))
    return [[items[i] for i in part] for part in parts]
