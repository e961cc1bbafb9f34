"""BranchGRPO (arXiv 2509.06040): a tree that splits at chosen denoising steps."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from branchgrpo.algo.methods.adaptive import SplitChooser
from branchgrpo.algo.methods.base import MethodOptions, MethodRun
from branchgrpo.algo.methods.window import Window
from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import BranchPlan


class BranchMethod(MethodOptions):
    """Where trees split, and which steps are random."""

    name: Literal["branchgrpo"] = Field("branchgrpo", description="the method family")
    splits: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 3, 6, 9), min_length=1, description="denoising steps at which every node splits, rising"
    )
    fanout: int = Field(2, ge=2, description="children per node at a split")
    leaves: int = Field(
        0,
        ge=0,
        validate_default=True,
        description="leaves per tree: fanout to the power of the number of splits; 0 = just that",
    )
    stochastic: Literal["all", "window", "splits"] = Field(
        "all",
        description="random steps: all but the last (the paper's tree); the splits and a window "
        "that moves over training (Mix); the splits alone",
    )
    window: Window = Field(
        Window(stride=4, interval=30), description="the window of stochastic: window"
    )
    branch_noise: Literal["correlated", "scaled", "antithetic", "independent"] = Field(
        "correlated", description="how siblings' noises relate, see docs/methods.md"
    )
    branch_scale: float = Field(
        4.0, gt=0, description="s of `correlated`; factor on std of `scaled`; the others have none"
    )
    train_last_edge: bool = Field(
        False,
        description="make the last step random and train it, though its noise cannot reach the "
        "picture (the paper's count)",
    )
    adapt_every: int = Field(
        0,
        ge=0,
        description="iterations between choices of new splits by measured reward variance; 0 = "
        "the splits stay",
    )

    @field_validator("leaves")
    @classmethod
    def _reached(cls, leaves: int, info: ValidationInfo) -> int:
        if not {"splits", "fanout"} <= info.data.keys():  # one of them is wrong itself
            return leaves
        splits, fanout = len(info.data["splits"]), info.data["fanout"]
        reached: int = fanout**splits
        if leaves not in (0, reached):
            raise ValueError(
                f"{splits} splits of fanout {fanout} give {reached} leaves, expected {leaves}"
            )
        return reached

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if list(self.splits) != sorted(set(self.splits)):
            raise ValueError(
                f"splits: expected rising steps without duplicates, got {list(self.splits)}"
            )
        if self.branch_noise == "antithetic" and self.fanout % 2:
            raise ValueError(
                "fanout: antithetic noise pairs children, expected an even number, got "
                f"{self.fanout}"
            )
        return self

    def check(self, steps: int) -> None:
        super().check(steps)
        if self.splits[-1] > steps - 2:
            raise ValueError(
                f"splits: expected steps 0 … {steps - 2} of {steps} (the last is never "
                f"stochastic), got {self.splits[-1]}"
            )
        if self.adapt_every and self.stochastic != "splits":
            raise ValueError(
                "adapt_every: expected stochastic: splits, where all noise is at the "
                f"splits that are measured, got {self.stochastic}"
            )
        if self.train_last_edge and (
            self.kernel == "cps" or self.stochastic == "splits" or self.tail == "dpm"
        ):
            raise ValueError(
                "train_last_edge: expected the kernel dance or flow, stochastic: all or "
                "window, and tail: ode"
            )

    def start(self, steps: int, seed: int) -> MethodRun:
        if not self.adapt_every:
            return super().start(steps, seed)
        return SplitChooser(self, steps, seed)

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        steps = schedule.steps
        fanout = tuple(self.fanout if step in self.splits else 1 for step in range(steps))
        random = set(self.splits)
        if self.stochastic == "all":
            random |= set(range(steps - 1))
        elif self.stochastic == "window":
            random |= set(self.window.at(iteration, steps, seed))
        if self.train_last_edge and steps - 2 in random:
            random.add(steps - 1)
        kernel = tuple(self.kernel if step in random else "ode" for step in range(steps))
        scale = tuple(self.eta if step in random else 0.0 for step in range(steps))
        return BranchPlan(
            sigmas=schedule.levels,
            fanout=fanout,
            kernel=kernel,
            noise_scale=scale,
            branch_noise=self.branch_noise,
            branch_scale=self.branch_scale,
            last_edge=self.train_last_edge,
        )
