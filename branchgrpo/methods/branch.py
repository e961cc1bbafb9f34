"""BranchGRPO (arXiv 2509.06040): a tree that splits at chosen denoising steps."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from branchgrpo.plan import sigmas
from branchgrpo.table import Component
from branchgrpo.types import BranchPlan


class BranchMethod(Component):
    """Where trees split, and which steps are random."""

    name: Literal["branchgrpo"] = Field("branchgrpo", description="the method family")
    splits: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 3, 6, 9), min_length=1, description="denoising steps at which every node splits, rising")
    fanout: int = Field(2, ge=2, description="children per node at a split")
    leaves: int = Field(16, ge=2, description="leaves per tree; must be fanout to the power of the number of splits")
    stochastic: Literal["all", "splits"] = Field(
        "all", description="steps with noise: all but the last (the paper's tree), or the splits alone (the rest is ODE; trains 12 times fewer nodes)"
    )
    kernel: Literal["dance"] = Field("dance", description="transition kernel of stochastic steps")
    eta: float = Field(0.3, gt=0, description="noise level η of the kernel")
    branch_noise: Literal["correlated", "scaled", "antithetic"] = Field("correlated", description="how siblings' noises relate, see docs/method.md")
    branch_scale: float = Field(4.0, gt=0, description="s of `correlated`; factor on std of `scaled`; `antithetic` has none")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if list(self.splits) != sorted(set(self.splits)):
            raise ValueError(f"splits: expected rising steps without duplicates, got {list(self.splits)}")
        reached = self.fanout ** len(self.splits)
        if reached != self.leaves:
            raise ValueError(f"leaves: {len(self.splits)} splits of fanout {self.fanout} give {reached} leaves, expected {self.leaves}")
        if self.branch_noise == "antithetic" and self.fanout % 2:
            raise ValueError(f"fanout: antithetic noise pairs children, expected an even number, got {self.fanout}")
        return self

    def check(self, steps: int) -> None:
        """Raise ValueError when the splits don't fit a schedule of `steps` steps."""
        if self.splits[-1] > steps - 2:
            raise ValueError(f"splits: expected steps 0 … {steps - 2} of {steps} (the last is never stochastic), got {self.splits[-1]}")

    def plan(self, iteration: int, steps: int, shift: float) -> BranchPlan:
        """The plan of one iteration; this family's is the same for all."""
        del iteration
        fanout = tuple(self.fanout if step in self.splits else 1 for step in range(steps))
        random = set(self.splits) if self.stochastic == "splits" else set(range(steps - 1))
        kernel = tuple(self.kernel if step in random else "ode" for step in range(steps))
        scale = tuple(self.eta if step in random else 0.0 for step in range(steps))
        return BranchPlan(sigmas(steps, shift), fanout, kernel, scale, self.branch_noise, self.branch_scale)
