"""Group-relative advantage: every leaf is compared with all leaves of its prompt (GRPO)."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import numpy as np
from pydantic import Field

from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.advantage.fusion import back_up, fuse
from branchgrpo.algo.credit import MIN_SPREAD
from branchgrpo.algo.tree import topology
from branchgrpo.types import BranchPlan, TreeCredit, TreeHeader


class GroupRelative(AdvantageOptions):
    """DanceGRPO's and Flow-GRPO's estimator; on a tree, an edge earns the mean advantage of the
    leaves below it, by choice a weighted one (TreeGRPO)."""

    name: Literal["group"] = Field("group", description="the estimator")
    std: Literal["group", "global"] = Field(
        "group",
        description="what divides: spread of the prompt's leaves, or of all leaves of the "
        "iteration",
    )
    unbiased: bool = Field(
        True,
        description="divide by the unbiased spread (DanceGRPO), or by the population's (Flow-GRPO)",
    )
    weights: Literal["uniform", "likelihood"] = Field(
        "uniform",
        description="of the children of a node, in what the edge into it earns: alike, or by "
        "softmax of their log-probs (TreeGRPO)",
    )
    epsilon: float = Field(1e-8, gt=0, description="added to the divisor; Flow-GRPO takes 1e-4")
    clamp: float = Field(5.0, gt=0, description="advantages are clamped to ± this")

    def credit(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """Credit of each tree, in order; `keep` marks every stochastic edge.

        advantage(leaf) = (r − mean) / (std + ε) over the leaves of all trees of its prompt; 0
        without spread. advantage(edge into a node) = Σ w · advantage over the node's children, w
        by `weights`; with `uniform` that is the mean over its leaves.
        """
        topo = topology(plan)
        groups: dict[int, list[int]] = defaultdict(list)
        for index, tree in enumerate(trees):
            groups[tree.prompt_index].append(index)
        every = np.concatenate([tree.leaf_reward for tree in trees]).astype(np.float64)
        found: dict[int, TreeCredit] = {}
        for members in groups.values():
            rewards = np.stack([trees[index].leaf_reward for index in members]).astype(np.float64)
            compared = rewards if self.std == "group" else every
            spread = compared.std(ddof=int(self.unbiased)) if compared.size > 1 else 0.0
            flat = np.ptp(rewards) < MIN_SPREAD or spread < MIN_SPREAD
            leaf = (
                np.zeros_like(rewards)
                if flat
                else ((rewards - rewards.mean()) / (spread + self.epsilon)).clip(
                    -self.clamp, self.clamp
                )
            )
            for index, row in zip(members, leaf.astype(np.float32), strict=True):
                tree = trees[index]
                reward, _ = fuse(topo, tree.leaf_reward, tree.log_prob, 0.0)
                advantage, entropy = (
                    fuse(topo, row, tree.log_prob, 0.0)
                    if self.weights == "uniform"
                    else back_up(topo, row, tree.log_prob)
                )
                found[index] = TreeCredit(reward, advantage, topo.stochastic.copy(), entropy)
        return [found[index] for index in range(len(trees))]
