"""Separate chains, as DanceGRPO (arXiv 2505.07818), Flow-GRPO (2505.05470) and MixGRPO (2507.21802)
sample them."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.methods.base import MethodOptions, Shape
from branchgrpo.algo.methods.window import Window
from branchgrpo.algo.plan import ode_plan, with_tail
from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import BranchPlan


class ChainMethod(MethodOptions):
    """A group of chains for each prompt."""

    shape: ClassVar[Shape] = "chain"

    name: Literal["chains"] = Field("chains", description="the method family")
    chains: int = Field(16, ge=2, description="chains in a prompt's group")
    root: Literal["shared", "private"] = Field(
        "shared", description="whether a group's chains start from one noise"
    )
    stochastic: Literal["all", "window", "none"] = Field(
        "all",
        description="random steps: all but the last; a window that moves over training; or none, "
        "for losses on leaves",
    )
    window: Window = Field(Window(at_end="stay"), description="that window")
    train_last_edge: bool = Field(
        False,
        description="make the last step random and train it, though its noise cannot reach the "
        "picture (DanceGRPO's count)",
    )

    scouts: int = Field(
        0,
        ge=0,
        description="candidates of a group that are grown cheaply first, of which the best and the "
        "worst, `chains` in all, are grown again in full; 0: none",
    )
    scout_steps: int = Field(
        0, ge=0, description="steps of DPM-Solver++ of a scout; 0: a third of sampling.steps"
    )

    @property
    def random(self) -> bool:
        return self.stochastic != "none"

    def check(self, steps: int) -> None:
        super().check(steps)
        if self.stochastic == "none" and self.root == "shared":
            raise ValueError(
                "root: expected private with stochastic: none, got shared: all chains of a group "
                "would be equal"
            )
        if self.stochastic == "window" and not self.window.size:
            raise ValueError(
                "window.size: expected at least 1 random step, got 0: all chains of a "
                "group would be equal"
            )
        if self.train_last_edge and (
            self.kernel == "cps" or self.stochastic != "all" or self.tail == "dpm"
        ):
            raise ValueError(
                "train_last_edge: expected the kernel dance or flow, stochastic: all, and tail: ode"
            )

        if self.scouts and self.root == "shared":
            raise ValueError(
                "scouts: expected 0 with root: shared, where all chains start from one noise, got "
                f"{self.scouts}"
            )
        if 0 < self.scouts <= self.chains:
            raise ValueError(
                f"scouts: expected more than chains, {self.chains}, or 0, got {self.scouts}"
            )
        if self.scouts and self.scout_steps > steps:
            raise ValueError(
                f"scout_steps: expected at most sampling.steps, {steps}, got {self.scout_steps}"
            )

    def scouting(self, schedule: Schedule) -> BranchPlan | None:
        if not self.scouts:
            return None
        steps = self.scout_steps or max(1, round(schedule.steps / 3))
        plan = with_tail(ode_plan(schedule), steps / schedule.steps, schedule)
        return replace(plan, chains=self.scouts, shared_root=False)

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        steps = schedule.steps
        random: set[int] = set()
        if self.stochastic == "all":
            random = set(range(steps - 1))
        elif self.stochastic == "window":
            random = set(self.window.at(iteration, steps, seed))
        if self.train_last_edge:
            random.add(steps - 1)
        kernel = tuple(self.kernel if step in random else "ode" for step in range(steps))
        scale = tuple(self.eta if step in random else 0.0 for step in range(steps))
        return BranchPlan(
            schedule.levels,
            (1,) * steps,
            kernel,
            scale,
            chains=self.chains,
            shared_root=self.root == "shared",
            last_edge=self.train_last_edge,
        )
