"""TempFlow-GRPO (arXiv 2508.04324): one deterministic trunk, random children at every step of
it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.methods.base import MethodOptions, Shape
from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import BranchPlan


class TempFlowMethod(MethodOptions):
    """A comb for each seed: K children of each trunk state, each continued without noise to a leaf
    of its own."""

    shape: ClassVar[Shape] = "comb"

    name: Literal["tempflow"] = Field("tempflow", description="the method family")
    children: int = Field(
        6, ge=2, description="K, random children of the trunk at every step but the last"
    )
    seeds: int = Field(4, ge=1, description="trunks of a prompt, each from its own noise")
    kernel: Literal["dance", "flow", "cps"] = Field(
        "flow", description="transition kernel of the children"
    )
    eta: float = Field(0.7, gt=0, description="noise level of the kernel")
    noise_weight: float = Field(
        2.25,
        ge=0,
        description="noise-aware weighting: a step's loss counts this times its std; 0 = all "
        "steps alike",
    )

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        from branchgrpo.algo.kernels import stds

        del iteration, seed
        steps = schedule.steps
        kernel, scale = (self.kernel,) * (steps - 1) + ("ode",), (self.eta,) * (steps - 1) + (0.0,)
        fanout = (self.children,) * (steps - 1) + (1,)
        plan = BranchPlan(
            sigmas=schedule.levels,
            fanout=fanout,
            kernel=kernel,
            noise_scale=scale,
            branch_noise="independent",
            comb=True,
            chains=self.seeds,
            shared_root=False,
        )
        if self.noise_weight:
            plan = replace(
                plan,
                weight=tuple(
                    self.noise_weight * std if random else 1.0
                    for std, random in zip(stds(plan), plan.stochastic, strict=True)
                ),
            )
        return plan
