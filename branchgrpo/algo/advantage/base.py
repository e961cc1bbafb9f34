"""What an advantage estimator is."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from branchgrpo.types import BranchPlan, Component, TreeCredit, TreeHeader


class AdvantageOptions(Component):
    """Base of all estimators."""

    # the edge into a leaf gets what that leaf earns beside others: what losses on leaves train by
    credits_leaves: ClassVar[bool] = True

    min_spread: float = Field(
        0.0,
        ge=0,
        description="a group whose leaf rewards have a std below this, in units of the reward, "
        "gets no advantage; 0 = only groups without any spread (1e-6)",
    )

    @property
    def compares_in_tree(self) -> bool:
        """It compares edges, or divides by a spread, within one tree: of one leaf there is
        nothing."""
        return False

    @property
    def group_is_tree(self) -> bool:
        """`min_spread` judges each tree by itself; else all trees of a prompt together."""
        return self.compares_in_tree

    def credit(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """Credit of each tree, in order; `keep` marks every stochastic edge. The same on every
        rank."""
        raise NotImplementedError
