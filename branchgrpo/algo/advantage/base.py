"""What an advantage estimator is."""

from __future__ import annotations

from branchgrpo.types import BranchPlan, Component, TreeCredit, TreeHeader


class AdvantageOptions(Component):
    """Base of all estimators."""

    @property
    def compares_in_tree(self) -> bool:
        """It compares edges, or divides by a spread, within one tree: of one leaf there is
        nothing."""
        return False

    def credit(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """Credit of each tree, in order; `keep` marks every stochastic edge. The same on every
        rank."""
        raise NotImplementedError
