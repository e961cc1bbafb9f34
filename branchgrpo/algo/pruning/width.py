"""Width pruning: after the last split, keep whole chains of some leaves. On separate chains,
`extremes` is best-of-n."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from branchgrpo.algo.pruning.base import PruningOptions
from branchgrpo.algo.tree import topology
from branchgrpo.types import Bool, BranchPlan, TreeHeader

if TYPE_CHECKING:
    from branchgrpo.algo.methods.base import MethodOptions


class WidthPruning(PruningOptions):
    """Keep every edge up to and with the last split, and after it the chains of chosen leaves."""

    prunes_leaves: ClassVar[bool] = True

    name: Literal["width"] = Field("width", description="the rule")
    mode: Literal["parent_top1", "extremes"] = Field(
        "parent_top1",
        description="parent_top1: the better child of each last split; extremes: the best and "
        "the worst leaves of the prompt, half each",
    )
    ratio: float = Field(0.5, gt=0, le=1, description="share of leaves that `extremes` keeps")

    def check(self, method: MethodOptions) -> None:
        if self.mode == "parent_top1" and method.shape == "chain":
            raise ValueError(
                f"expected width mode `extremes` with {method.called}, which have no splits, "
                f"got `{self.mode}`"
            )

    def keep(
        self, plan: BranchPlan, trees: list[TreeHeader], iteration: int, seed: int = 0
    ) -> list[Bool]:
        """[N] per tree: True where an edge stays in the gradient. Ties keep the leaf with the lower
        number."""
        del iteration, seed
        topo, last = topology(plan), max(plan.splits, default=-1)
        chosen = self._top1(plan, trees) if self.mode == "parent_top1" else self._extremes(trees)
        masks = []
        for leaves in chosen:
            on_chain = leaves[topo.leaf_first]  # after the last split every node has one leaf
            masks.append((topo.step <= last) | on_chain)
        return masks

    def _top1(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[Bool]:
        if not plan.splits or plan.comb:
            raise ValueError(
                "pruning width parent_top1: expected a tree that splits, got separate "
                "chains or a comb"
            )
        children = plan.fanout[plan.splits[-1]]
        chosen = []
        for tree in trees:
            siblings = tree.leaf_reward.reshape(-1, children)
            mask = np.zeros(siblings.shape, bool)
            mask[np.arange(len(siblings)), siblings.argmax(1)] = True
            chosen.append(mask.reshape(-1))
        return chosen

    def _extremes(self, trees: list[TreeHeader]) -> list[Bool]:
        chosen = [np.zeros(len(tree.leaf_reward), bool) for tree in trees]
        groups: dict[int, list[int]] = defaultdict(list)
        for index, tree in enumerate(trees):
            groups[tree.prompt_index].append(index)
        for members in groups.values():
            rewards = np.concatenate([trees[index].leaf_reward for index in members])
            keep = max(2, round(self.ratio * len(rewards)))
            flat = np.zeros(len(rewards), bool)
            flat[np.argsort(-rewards, kind="stable")[: keep - keep // 2]] = True
            worst = [leaf for leaf in np.argsort(rewards, kind="stable") if not flat[leaf]]
            flat[worst[: keep // 2]] = True
            for index, part in zip(members, np.split(flat, len(members)), strict=True):
                chosen[index] = part
        return chosen
