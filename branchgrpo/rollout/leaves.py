"""What is asked of reward workers about leaves, as soon as a segment has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from branchgrpo.algo.tree import topology
from branchgrpo.config.schema import Config
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.whole_groups import WholeGroups
from branchgrpo.service import Reference, RewardPool, Tasks
from branchgrpo.types import F32, BranchPlan, RewardScores, Sample, ScoreRequest, Subtree


class Leaves(ABC):
    """The leaves of one collection, all of whose answers go into `batch`."""

    def __init__(
        self,
        *,
        config: Config,
        pools: Sequence[RewardPool],
        plan: BranchPlan,
        samples: Sequence[Sample],
        tasks: Tasks,
        batch: RolloutBatch,
        group: int,
        evaluated: bool,
    ):
        """samples: by prompt index. group: subtrees of a prompt. evaluated: by the rewards that are
        only measured as well."""
        self.config, self.pools, self.plan = config, pools, plan
        self.samples, self.tasks, self.batch = samples, tasks, batch
        self.whole_groups = WholeGroups(group)
        self.evaluated = evaluated
        self.each = topology(plan).leaf_count

    @abstractmethod
    def add(self, subtrees: tuple[Subtree, ...], media: Reference) -> None:
        """Ask about the leaves of a segment."""

    @abstractmethod
    def finish(self) -> None:
        """All answers are there."""

    def size(self, subtrees: tuple[Subtree, ...]) -> int:
        """Leaves of subtrees."""
        return sum(int(self.each[subtree.node]) for subtree in subtrees)

    def request(
        self,
        rewards: tuple[int, ...],
        subtrees: tuple[Subtree, ...],
        places: Sequence[tuple[int, int]],
    ) -> ScoreRequest:
        """What is asked for of some rewards."""
        return ScoreRequest(
            rewards=rewards,
            subtrees=subtrees,
            places=tuple(places),
            samples=tuple(self.samples[subtree.prompt_index] for subtree in subtrees),
        )


class Scores(Leaves):
    """Their rewards."""

    def add(self, subtrees: tuple[Subtree, ...], media: Reference) -> None:
        whole = self.whole_groups.add(subtrees, media)
        rewards = self.config.all_rewards[: None if self.evaluated else len(self.config.rewards)]
        for pool, group in zip(self.pools, self.config.reward_groups, strict=True):
            asked = [index for index in group if index < len(rewards)]
            grouped = tuple(index for index in asked if rewards[index].grouped)
            if alone := tuple(index for index in asked if index not in grouped):
                self._ask(pool, alone, subtrees, in_order(subtrees), [media])
            for members, places, pictures in whole if grouped else ():
                self._ask(pool, grouped, members, places, pictures)

    def finish(self) -> None:
        self._drop()
        self._sort()
        self.batch.rewards = self.config.credit.totals(self.batch.scores)

    def _ask(
        self,
        pool: RewardPool,
        rewards: tuple[int, ...],
        subtrees: tuple[Subtree, ...],
        places: Sequence[tuple[int, int]],
        media: Sequence[Reference],
    ) -> None:
        pool.score(
            self.tasks,
            self.request(rewards, subtrees, places),
            media,
            size=self.size(subtrees),
            then=partial(self._scored, rewards, subtrees),
        )

    def _scored(
        self, group: tuple[int, ...], subtrees: tuple[Subtree, ...], scores: RewardScores
    ) -> None:
        self.batch.retries += scores.retries
        topo, each = topology(self.plan), len(scores.ok) // len(subtrees)
        # A held-out check compares the same prompts before and after, so none may be missing.
        may_drop = self.config.reward_workers.on_failure == "drop_group" and not self.evaluated
        for index, subtree in enumerate(subtrees):
            rows = slice(index * each, (index + 1) * each)
            key = (subtree.prompt_index, subtree.key.tree)
            if not scores.ok[rows].all():
                if not may_drop:
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


class Features(Leaves):
    """Their features, by every reward that has some."""

    def add(self, subtrees: tuple[Subtree, ...], media: Reference) -> None:
        rewards = self.config.all_rewards
        for pool, group in zip(self.pools, self.config.reward_groups, strict=True):
            if asked := tuple(index for index in group if rewards[index].has_features):
                pool.features(
                    self.tasks,
                    self.request(asked, subtrees, in_order(subtrees)),
                    [media],
                    size=self.size(subtrees),
                    then=partial(self._found, subtrees),
                )

    def finish(self) -> None:
        pass  # whoever compares them takes them by key

    def _found(self, subtrees: tuple[Subtree, ...], found: Mapping[str, F32]) -> None:
        for name, features in found.items():
            rows = self.batch.features.setdefault(name, {})
            for subtree, part in zip(subtrees, np.split(features, len(subtrees)), strict=True):
                rows[subtree.prompt_index, subtree.key.tree] = part


def in_order(subtrees: tuple[Subtree, ...]) -> list[tuple[int, int]]:
    """Places of all subtrees of one LeafMedia."""
    return [(0, row) for row in range(len(subtrees))]
