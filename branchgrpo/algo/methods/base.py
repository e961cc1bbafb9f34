"""What a method family is, and options that several share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.plan import with_tail
from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import F32, BranchPlan, Component

Shape = Literal["tree", "chain", "comb"]


class MethodRun:
    """A method in a run. Most know nothing but their options; one that learns on the way keeps what
    it has learned."""

    def __init__(self, options: MethodOptions, seed: int):
        self.options, self.seed = options, seed

    def plan(self, iteration: int, schedule: Schedule) -> BranchPlan:
        """The plan of one iteration."""
        return self.options.plan(iteration, schedule, self.seed)

    def scouting(self, schedule: Schedule) -> BranchPlan | None:
        """As of MethodOptions."""
        return self.options.scouting(schedule)

    def observe(self, plan: BranchPlan, rewards: F32) -> dict[str, float]:
        """Take note of the rewards [trees, L] of an iteration's leaves; returns metrics."""
        return {}

    def state(self) -> dict[str, Any]:
        """What it has learned, for a checkpoint; any JSON."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for what `state` does not return."""


class MethodOptions(Component):
    """Options every family has."""

    # of its plans: trees that split, chains of one leaf each, or combs (BranchPlan.comb), which are
    # not cut into subtrees
    shape: ClassVar[Shape] = "tree"

    @property
    def random(self) -> bool:
        """Its plans have random steps, which losses of the reverse process train."""
        return True

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

    def start(self, steps: int, seed: int) -> MethodRun:
        """The method in a run on schedules of `steps` steps."""
        return MethodRun(self, seed)

    def plan(self, iteration: int, schedule: Schedule, seed: int = 0) -> BranchPlan:
        """The plan of one iteration with the tail that the options ask for, a pure function of its
        arguments."""
        plan = self.full_plan(iteration, schedule, seed)
        return with_tail(plan, self.tail_ratio, schedule) if self.tail == "dpm" else plan

    def scouting(self, schedule: Schedule) -> BranchPlan | None:
        """The plan of cheap candidates, `chains` of them a group: the best and the worst, as many
        as the iteration's plan has, are grown again by that one. None: all that are grown are
        trained on."""
        del schedule
        return None

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        """The plan of one iteration with all steps of the schedule, a pure function of its
        arguments: what a method is."""
        raise NotImplementedError
