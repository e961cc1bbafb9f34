"""What a pruning rule is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from branchgrpo.types import Bool, BranchPlan, Component, TreeHeader

if TYPE_CHECKING:
    from branchgrpo.algo.methods.base import MethodOptions


class PruningOptions(Component):
    """Base of all rules."""

    # it works on combs, whose random edges all lie on one trunk
    prunes_combs: ClassVar[bool] = False
    # what it leaves out may be leaves, for losses that train those
    prunes_leaves: ClassVar[bool] = False

    def check(self, method: MethodOptions) -> None:
        """Raise ValueError where it does not go with the method's trees."""

    def keep(
        self, plan: BranchPlan, trees: list[TreeHeader], iteration: int, seed: int = 0
    ) -> list[Bool]:
        """[N] per tree: True where an edge stays in the gradient. The same on every rank."""
        raise NotImplementedError
