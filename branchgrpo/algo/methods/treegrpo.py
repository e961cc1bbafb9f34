"""TreeGRPO (arXiv 2512.08153): a tree that splits at every step of a short window, which is drawn
anew each iteration, early ones most often."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.methods.window import Window
from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import BranchPlan


class TreeMethod(MethodOptions):
    """A deterministic trunk to the window, random children of every node within it, deterministic
    chains after it."""

    name: Literal["treegrpo"] = Field("treegrpo", description="the method family")
    fanout: int = Field(3, ge=2, description="children per node at each step of the window")
    kernel: Literal["dance", "flow", "cps"] = Field(
        "flow", description="transition kernel of the window"
    )
    eta: float = Field(0.7, gt=0, description="noise level of the kernel")
    window: Window = Field(
        Window(size=3, strategy="geometric"),
        description="random steps, at each of which every node splits",
    )

    def check(self, steps: int) -> None:
        super().check(steps)
        sizes = {len(position) for position in self.window.positions(steps)}
        if sizes != {max(1, self.window.size)}:
            raise ValueError(
                "window: expected at least 1 step, and as many at each of its positions, so that "
                f"all trees have as many leaves, got {min(sizes)} … {max(sizes)} of "
                f"{self.window.size} on a schedule of {steps}"
            )

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        steps = schedule.steps
        window = self.window.at(iteration, steps, seed)
        return BranchPlan(
            schedule.levels,
            fanout=tuple(self.fanout if step in window else 1 for step in range(steps)),
            kernel=tuple(self.kernel if step in window else "ode" for step in range(steps)),
            noise_scale=tuple(self.eta if step in window else 0.0 for step in range(steps)),
            branch_noise="independent",
        )
