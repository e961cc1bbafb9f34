"""Depth-wise advantage: every edge is compared with all edges of its depth in the prompt's
group."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import numpy as np
from pydantic import Field

from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.advantage.fusion import fuse
from branchgrpo.algo.credit import MIN_SPREAD
from branchgrpo.algo.tree import topology
from branchgrpo.types import F32, BranchPlan, TreeCredit, TreeHeader

_EPSILON = 1e-8


class DepthWise(AdvantageOptions):
    """BranchGRPO's estimator: fuse leaf rewards upward, then normalise at each depth."""

    name: Literal["depthwise"] = Field("depthwise", description="the estimator")
    path_beta: float = Field(
        0.0, ge=0, description="β of the path-probability weights of reward fusion; 0 = uniform"
    )
    group: Literal["prompt", "tree"] = Field(
        "prompt", description="what is compared: all trees of a prompt, or each tree with itself"
    )
    std: Literal["depth", "tree", "global"] = Field(
        "depth",
        description="what divides: spread of the depth in the prompt's group, of the tree's "
        "leaves, or of all leaves of the iteration",
    )
    clamp: float = Field(5.0, gt=0, description="advantages are clamped to ± this")

    @property
    def compares_in_tree(self) -> bool:
        return "tree" in (self.group, self.std)

    def credit(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """Credit of each tree, in order; `keep` marks every stochastic edge.

        advantage(edge into n at depth d) = (r̄(n) − mean_d) / (std_d + ε), mean and unbiased std
        over all nodes of depth d in all trees of the same prompt. (On a comb, of the random edges
        of that depth.) A depth with one node, or a divisor below 1e-6, gets 0.
        """
        topo = topology(plan)
        fused = [fuse(topo, tree.leaf_reward, tree.log_prob, self.path_beta) for tree in trees]
        reward = np.stack([nodes for nodes, _ in fused])  # [trees, N]
        advantage = np.zeros_like(reward)
        groups: dict[int, list[int]] = defaultdict(list)
        for index, tree in enumerate(trees):
            groups[tree.prompt_index if self.group == "prompt" else index].append(index)
        every_leaf = np.concatenate([tree.leaf_reward for tree in trees])
        for members in groups.values():
            for level in range(1, plan.steps + 1):
                nodes = topo.level(level)
                nodes = nodes[topo.stochastic[nodes]] if topo.stochastic[nodes].any() else nodes
                rows = np.ix_(np.array(members), nodes)
                values = reward[rows]
                if values.size < 2 or np.ptp(values) < MIN_SPREAD:
                    continue
                spread = self._spread(
                    values, [trees[index].leaf_reward for index in members], every_leaf
                )
                advantage[rows] = np.where(
                    spread < MIN_SPREAD, 0.0, (values - values.mean()) / (spread + _EPSILON)
                )
        advantage = advantage.clip(-self.clamp, self.clamp)
        return [
            TreeCredit(reward[i], advantage[i], topo.stochastic.copy(), fused[i][1])
            for i in range(len(trees))
        ]

    def _spread(self, values: F32, leaves: list[F32], every_leaf: F32) -> F32:
        """Divisor, broadcastable to values [trees of the prompt, nodes of the depth]."""
        if self.std == "depth":
            return np.asarray(values.std(ddof=1), np.float32)
        if self.std == "tree":
            return np.array(
                [[leaf.std(ddof=1) if len(leaf) > 1 else 0.0] for leaf in leaves], np.float32
            )
        return np.asarray(every_leaf.std(ddof=1), np.float32)
