"""Credit: from the leaves' scores to the advantage of every edge. Rewards are combined, compared,
and pruned."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from branchgrpo.algo.tree import topology, trainable
from branchgrpo.types import F32, Bool, BranchPlan, TreeCredit, TreeHeader

Scores = Mapping[tuple[int, int], F32]
"""(prompt index, tree) → the trained score of every reward [R, L]."""

MIN_SPREAD = 1e-6
"""Rewards closer than this carry no signal."""

FLAT = 0.01
"""Groups of a smaller spread count as flat, where no `min_spread` is set."""


class Estimator(Protocol):
    """An entry of `branchgrpo.algo.advantage`."""

    @property
    def min_spread(self) -> float:
        """Groups whose leaves have a smaller std get no advantage."""

    @property
    def group_is_tree(self) -> bool:
        """Whether such a group is one tree, or all trees of a prompt."""

    def credit(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """Credit of each tree, in order; `keep` marks every stochastic edge."""


class PruningRule(Protocol):
    """An entry of `branchgrpo.algo.pruning`."""

    def keep(
        self, plan: BranchPlan, trees: list[TreeHeader], iteration: int, seed: int = 0
    ) -> list[Bool]:
        """[N] per tree: True where an edge stays in the gradient."""


@dataclass(frozen=True, kw_only=True)
class Credit:
    """How scores become credit. The same inputs give the same credit on every rank."""

    weights: tuple[float, ...]  # [R] of the rewards
    # sum scores and compare the sums, or compare each reward and sum advantages
    combine: Literal["reward", "advantage"]
    estimator: Estimator
    pruning: Sequence[PruningRule]
    seed: int
    # what is trained: the random edges, or the leaves alone, by the credit of the edges into them
    trained: Literal["edges", "leaves"] = "edges"

    def totals(self, scores: Scores) -> dict[tuple[int, int], F32]:
        """Σ weight · score [L] of each tree, on the rewards' own scales: what metrics show."""
        weights = np.array(self.weights, np.float32)
        return {key: weights @ values for key, values in scores.items()}

    def leaf_rewards(self, scores: Scores) -> dict[tuple[int, int], F32]:
        """[L] of each tree: what pruning goes by and nodes fuse.

        combine: reward gives `totals`. combine: advantage gives Σ weight · (r − mean)/std with mean
        and unbiased std over all leaves of the prompt, so that no reward counts for more because
        its scale is wider; 0 where the prompt's leaves have a std below `min_spread`.
        """
        if self.combine == "reward":
            return self.totals(scores)
        groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key in scores:
            groups[key[0]].append(key)
        weights = np.array(self.weights, np.float32)
        found: dict[tuple[int, int], F32] = {}
        for keys in groups.values():
            # [R, leaves of the prompt]
            values = np.concatenate([scores[key] for key in keys], 1).astype(np.float64)
            spread = (
                values.std(1, ddof=1, keepdims=True)
                if values.shape[1] > 1
                else np.zeros((len(values), 1))
            )
            deviation = (values - values.mean(1, keepdims=True)) / np.maximum(spread, MIN_SPREAD)
            bound = self.estimator.min_spread
            flat = (spread < MIN_SPREAD) | (values.std(1, keepdims=True) < bound)
            level = np.where(flat, 0.0, deviation)
            ends = np.cumsum([scores[key].shape[1] for key in keys])[:-1]
            found |= dict(
                zip(keys, np.split((weights @ level).astype(np.float32), ends), strict=True)
            )
        return found

    def assign(
        self, plan: BranchPlan, trees: list[TreeHeader], iteration: int, scores: Scores
    ) -> list[TreeCredit]:
        """Credit of each tree, in order; its leaves have `leaf_rewards` of `scores`. Advantages
        always see the whole tree; pruning, and steps of weights that don't train, only clear
        `keep`."""
        credits = self._compared(plan, trees, scores)
        if self.trained == "leaves":
            topo = topology(plan)
            leaves = np.arange(topo.nodes) >= topo.nodes - topo.leaves
            credits = [replace(one, keep=leaves.copy()) for one in credits]
        else:
            learning = trainable(plan)
            credits = [replace(one, keep=one.keep & learning) for one in credits]
        for rule in self.pruning:
            masks = rule.keep(plan, trees, iteration, self.seed)
            credits = [
                replace(one, keep=one.keep & mask) for one, mask in zip(credits, masks, strict=True)
            ]
        return credits

    def _compared(
        self, plan: BranchPlan, trees: list[TreeHeader], scores: Scores
    ) -> list[TreeCredit]:
        """combine: advantage asks the estimator once for every reward and sums weight · advantage;
        node rewards stay those of `leaf_rewards`."""
        credits = self._estimated(plan, trees)
        if self.combine == "reward":
            return credits
        advantage = np.zeros((len(trees), len(credits[0].advantage)), np.float32)
        for index, weight in enumerate(self.weights):
            alone = [
                replace(tree, leaf_reward=scores[tree.prompt_index, tree.key.tree][index])
                for tree in trees
            ]
            advantage += np.float32(weight) * np.stack(
                [one.advantage for one in self._estimated(plan, alone)]
            )
        return [replace(one, advantage=row) for one, row in zip(credits, advantage, strict=True)]

    def _estimated(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """The estimator's credit, without advantages in groups that spread less than its
        `min_spread`."""
        names = [(tree.prompt_index, tree.key.tree) for tree in trees]
        spreads = self._spreads(
            {name: tree.leaf_reward for name, tree in zip(names, trees, strict=True)}
        )
        return [
            replace(one, advantage=np.zeros_like(one.advantage))
            if spreads[self._group(name)] < self.estimator.min_spread
            else one
            for name, one in zip(names, self.estimator.credit(plan, trees), strict=True)
        ]

    def _group(self, name: tuple[int, int]) -> tuple[int, ...]:
        return name if self.estimator.group_is_tree else name[:1]

    def _spreads(self, leaves: Mapping[tuple[int, int], F32]) -> dict[tuple[int, ...], float]:
        """Std of the leaf rewards of each group, of those given."""
        groups: dict[tuple[int, ...], list[F32]] = defaultdict(list)
        for name, rewards in leaves.items():
            groups[self._group(name)].append(rewards)
        return {
            group: float(np.concatenate(rewards).astype(np.float64).std())
            for group, rewards in groups.items()
        }

    def flat_groups(self, scores: Scores) -> float:
        """Share of groups whose leaves have a std below `min_spread`, or below FLAT where that is
        not set; with combine: advantage its mean over rewards."""
        compared = (
            [self.totals(scores)]
            if self.combine == "reward"
            else [
                {name: values[index] for name, values in scores.items()}
                for index in range(len(self.weights))
            ]
        )
        bound = self.estimator.min_spread or FLAT
        return float(
            np.mean([[s < bound for s in self._spreads(one).values()] for one in compared])
        )


def digest(credits: list[TreeCredit]) -> str:
    """sha256 of all credit; ranks compare it before they train."""
    found = hashlib.sha256()
    for credit in credits:
        for array in (credit.node_reward, credit.advantage, credit.keep):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
