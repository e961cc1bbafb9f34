"""What a method family is, and options that several share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import BranchPlan, Component


class MethodOptions(Component):
    """Options every family has."""

    name: str
    kernel: Literal["dance", "flow", "cps"] = Field(
        "dance", description="transition kernel of random steps"
    )
    eta: float = Field(
        0.3, gt=0, description="noise level of the kernel (η of dance, a of flow and cps)"
    )
    tail: Literal["ode", "dpm"] = Field(
        "ode",
        description="steps after the last random one: as the schedule has them, or fewer of "
        "DPM-Solver++",
    )
    tail_ratio: float = Field(0.4, gt=0, le=1, description="what part of those steps `dpm` takes")

    def check(self, steps: int) -> None:
        """Raise ValueError when the method doesn't fit a schedule of `steps` steps."""
        del steps
        if self.kernel == "cps" and self.eta > 1:
            raise ValueError(f"eta: expected at most 1 with the kernel cps, got {self.eta:g}")

    def plan(self, iteration: int, schedule: Schedule, seed: int = 0) -> BranchPlan:
        """The plan of one iteration, a pure function of its arguments."""
        raise NotImplementedError
