"""What an update trains on, by the process that its loss is of: the random edges of trees, or their
clean leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from branchgrpo.algo.loss.forward import ForwardLoss
from branchgrpo.config.schema import Config
from branchgrpo.learner import shard
from branchgrpo.learner.batches import MicroBatches, Texts
from branchgrpo.learner.forward import ForwardPass
from branchgrpo.learner.payloads import PayloadStore
from branchgrpo.learner.point_shards import split_points
from branchgrpo.learner.points import PointBatch, PointBatches
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.types import BranchPlan, LearnerShard, PointShard, TreeCredit, TreeHeader

Part = TypeVar("Part", LearnerShard, PointShard)
Rows = TypeVar("Rows", MicroBatches, PointBatches)


@dataclass(frozen=True, kw_only=True)
class Task:
    """An iteration's trees and their credit."""

    plan: BranchPlan
    iteration: int
    trees: list[TreeHeader]
    credits: list[TreeCredit]


class Training(ABC, Generic[Part, Rows]):
    """One policy's updates; the same on every rank."""

    gated = False  # rollout and learner can be held against one another before the first update

    def __init__(self, config: Config, policy: PolicyUpdate):
        self.config, self.policy = config, policy

    @abstractmethod
    def shards(self, task: Task, ranks: int) -> list[list[Part]]:
        """[optimiser step][rank]."""

    @abstractmethod
    def batches(self, task: Task, part: Part, store: PayloadStore, texts: Texts, size: int) -> Rows:
        """A shard in micro-batches of so many rows at most."""

    @abstractmethod
    def begin(self, task: Task, steps: list[Rows], tally: Tally) -> None:
        """Before the first of these optimiser steps."""

    @abstractmethod
    def step(self, task: Task, batches: Rows, tally: Tally) -> float:
        """One optimiser step; returns the gradient norm before clipping."""

    def deviation(self, task: Task, batches: Rows, tally: Tally) -> float:
        """Where `gated`: max |ratio − 1| to the policy that grew the trees."""
        raise NotImplementedError

    def end(self, task: Task) -> None:
        """After the last optimiser step: the second weights follow."""
        if self.policy.second is not None:
            self.policy.second.move(self.config.loss.decay(task.iteration + 1))


class EdgeTraining(Training[LearnerShard, MicroBatches]):
    """On the random edges that pruning has left."""

    gated = True

    def shards(self, task: Task, ranks: int) -> list[list[LearnerShard]]:
        return shard.split(
            task.plan,
            credits=task.credits,
            ranks=ranks,
            optimiser_steps=self.config.learner.optimiser_steps,
            seed=self.config.run.seed + task.iteration,
            every=self.config.loss.every,
        )

    def batches(
        self, task: Task, part: LearnerShard, store: PayloadStore, texts: Texts, size: int
    ) -> MicroBatches:
        return MicroBatches(
            task.plan,
            shard=part,
            trees=task.trees,
            latents=store.latents,
            texts=texts,
            size=size,
            device=self.policy.model.device,
            velocities=store.behaviour if self.config.keeps_behaviour_mean else None,
        )

    def begin(self, task: Task, steps: list[MicroBatches], tally: Tally) -> None:
        self.policy.begin(task.plan, steps, tally)

    def step(self, task: Task, batches: MicroBatches, tally: Tally) -> float:
        return self.policy.step(task.plan, batches, tally)

    def deviation(self, task: Task, batches: MicroBatches, tally: Tally) -> float:
        return self.policy.deviation(task.plan, batches, tally)


class LeafTraining(Training[PointShard, PointBatches]):
    """On the clean leaves that pruning has left, at several noise levels each."""

    def __init__(self, config: Config, policy: PolicyUpdate):
        super().__init__(config, policy)
        assert isinstance(config.loss, ForwardLoss)
        self.loss = config.loss
        self.forward = ForwardPass(self.loss, policy.model, policy.second)

    def shards(self, task: Task, ranks: int) -> list[list[PointShard]]:
        return split_points(
            task.plan,
            trees=task.trees,
            credits=task.credits,
            loss=self.loss,
            ranks=ranks,
            optimiser_steps=self.config.learner.optimiser_steps,
            seed=self.config.run.seed,
            shuffle=self.config.run.seed + task.iteration,
        )

    def batches(
        self, task: Task, part: PointShard, store: PayloadStore, texts: Texts, size: int
    ) -> PointBatches:
        return PointBatches(
            part,
            trees=task.trees,
            latents=store.latents,
            texts=texts,
            size=size,
            device=self.policy.model.device,
            seed=self.config.run.seed,
            grouped=self.loss.grouped,
        )

    def begin(self, task: Task, steps: list[PointBatches], tally: Tally) -> None:
        self.policy.first_ratio = None
        tally.halved += self.forward.begin(steps, self.policy.portions)

    def step(self, task: Task, batches: PointBatches, tally: Tally) -> float:
        def backward(first: int, rows: PointBatch) -> None:
            total, sums = self.forward.loss(rows)
            self.policy.backward(total)
            tally.add(loss=total, **sums)

        tally.halved += self.forward.prepare(batches, self.policy.portions)
        return self.policy.descend(batches, backward, tally)


def training_of(config: Config, policy: PolicyUpdate) -> Training[Any, Any]:
    """By the process that the loss is of."""
    if config.loss.process == "forward":
        return LeafTraining(config, policy)
    return EdgeTraining(config, policy)
