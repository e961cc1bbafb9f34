"""Flow-GRPO-Fast: a deterministic trunk, all children of the group at one step, and a short random
window there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.methods.window import Window
from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import BranchPlan


class TrunkMethod(MethodOptions):
    """A tree that splits once, where its random window begins."""

    name: Literal["trunk"] = Field("trunk", description="the method family")
    children: int = Field(24, ge=2, description="leaves of a tree")
    kernel: Literal["dance", "flow", "cps"] = Field(
        "cps", description="transition kernel of the window"
    )
    eta: float = Field(0.8, gt=0, description="noise level of the kernel")
    window: Window = Field(
        Window(size=2, strategy="random", reach=0.5),
        description="random steps; the tree splits at the first",
    )

    def check(self, steps: int) -> None:
        super().check(steps)
        if not self.window.size:
            raise ValueError(
                "window.size: expected at least 1 random step, got 0: all leaves would be equal"
            )

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        steps = schedule.steps
        window = self.window.at(iteration, steps, seed)
        fanout = tuple(self.children if step == window[0] else 1 for step in range(steps))
        kernel = tuple(self.kernel if step in window else "ode" for step in range(steps))
        scale = tuple(self.eta if step in window else 0.0 for step in range(steps))
        return BranchPlan(schedule.levels, fanout, kernel, scale, branch_noise="independent")
