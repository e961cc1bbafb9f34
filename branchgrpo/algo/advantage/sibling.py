"""Sibling-centred advantage (ours): every edge is compared with its siblings alone."""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.advantage.fusion import fuse
from branchgrpo.algo.credit import MIN_SPREAD
from branchgrpo.algo.tree import Topology, topology
from branchgrpo.types import F32, BranchPlan, TreeCredit, TreeHeader

_EPSILON = 1e-8


class SiblingCentred(AdvantageOptions):
    """Fuse leaf rewards upward, subtract the siblings' mean, divide by one spread for each depth:
    an edge earns nothing by the luck of its ancestors."""

    credits_leaves: ClassVar[bool] = False

    name: Literal["sibling"] = Field("sibling", description="the estimator")
    std: Literal["depth", "tree", "global"] = Field(
        "depth",
        description="what divides: spread between siblings of the depth in the prompt's group, "
        "spread of the tree's leaves, or of all leaves of the iteration",
    )
    clamp: float = Field(5.0, gt=0, description="advantages are clamped to ± this")

    @property
    def compares_in_tree(self) -> bool:
        return True

    @property
    def group_is_tree(self) -> bool:
        return self.std == "tree"

    def credit(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """Credit of each tree, in order; `keep` marks every stochastic edge.

        advantage(edge into n at depth d) = (r̄(n) − mean of r̄ over n and its siblings) / (std_d
        + ε). The mean is r̄ of the parent; of a comb's trunk, of its random children alone.
        std_d² = Σ of squared differences at depth d in all trees of the prompt / Σ over their
        parents of (children − 1): unbiased, where siblings are independent, for the variance of
        r̄(n) given the parent. An edge without siblings gets 0, and so does a depth whose divisor
        is below 1e-6.
        """
        topo = topology(plan)
        reward = np.stack([fuse(topo, tree.leaf_reward, tree.log_prob, 0.0)[0] for tree in trees])
        apart = differences(topo, reward)
        advantage = np.zeros_like(reward)
        groups: dict[int, list[int]] = defaultdict(list)
        for index, tree in enumerate(trees):
            groups[tree.prompt_index].append(index)
        leaves = np.stack([tree.leaf_reward for tree in trees]).astype(np.float64)
        for members in groups.values():
            for step in plan.splits:
                nodes = topo.level(step + 1)
                nodes = nodes[topo.stochastic[nodes]]
                rows = np.ix_(np.array(members), nodes)
                # siblings' differences sum to 0: one of them less is free
                freedom = len(members) * (len(nodes) - len(np.unique(topo.parent[nodes])))
                spread = self._spread(apart[rows], freedom, leaves, members)
                advantage[rows] = np.where(
                    spread < MIN_SPREAD, 0.0, apart[rows] / (spread + _EPSILON)
                )
        advantage = advantage.clip(-self.clamp, self.clamp)
        return [
            TreeCredit(row, advantage[index], topo.stochastic.copy())
            for index, row in enumerate(reward)
        ]

    def _spread(
        self,
        apart: NDArray[np.float64],
        freedom: int,
        leaves: NDArray[np.float64],
        members: list[int],
    ) -> NDArray[np.float64]:
        """Divisor, broadcastable to differences [trees of the prompt, edges of the depth]."""
        if self.std == "depth":
            return np.array(np.sqrt((apart**2).sum() / freedom))
        if self.std == "tree":
            return np.array(leaves[members].std(axis=1, ddof=1, keepdims=True))
        return np.array(leaves.std(ddof=1))


def differences(topo: Topology, reward: F32) -> NDArray[np.float64]:
    """Of each random edge, r̄ of its node less the mean of r̄ over its parent's random children:
    [trees, N] of reward [trees, N]; 0 elsewhere, and without siblings."""
    edges = np.flatnonzero(topo.stochastic)
    parents = topo.parent[edges]
    count = np.bincount(parents, minlength=topo.nodes)
    found = np.zeros(reward.shape)
    for tree, values in enumerate(reward[:, edges].astype(np.float64)):
        total = np.bincount(parents, values, minlength=topo.nodes)
        found[tree, edges] = values - (total / np.maximum(count, 1))[parents]
    return found
