"""The configuration: its keys, checked against one another, and what they come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pydantic import model_validator

from branchgrpo.algo.credit import Credit
from branchgrpo.algo.methods.base import MethodRun
from branchgrpo.algo.schedule import Schedule
from branchgrpo.config import cross_checks, registry
from branchgrpo.config.keys import Keys
from branchgrpo.models.base import ModelOptions
from branchgrpo.sinks.base import SinkOptions
from branchgrpo.types import BranchPlan


class Config(Keys):
    """Everything a run is made of."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if lines := cross_checks.problems(self):
            raise ValueError("\n".join(lines))
        return self

    def schedule(self, steps: int = 0) -> Schedule:
        """Noise levels of so many denoising steps (0: sampling.steps), as the model's family spaces
        them; reads its scheduler's config."""
        return self.model.schedule(steps or self.sampling.steps, self.sampling.shift)

    @property
    def evaluated(self) -> ModelOptions:
        """The model as held-out pictures are drawn with it: the same, perhaps of another size."""
        return self.model.in_evaluation(self.evaluation.height, self.evaluation.width)

    def plan(self, method: MethodRun, iteration: int, schedule: Schedule) -> BranchPlan:
        """The method's plan of an iteration, which knows the steps of the model's frozen
        weights."""
        plan = method.plan(iteration, schedule)
        return replace(plan, frozen=self.model.frozen_steps(plan.sigmas))

    def evaluation_schedule(self, steps: int = 0) -> Schedule:
        """`schedule` of held-out pictures (0: evaluation.steps): a shift may depend on their
        size."""
        return self.evaluated.schedule(steps or self.evaluation_steps, self.sampling.shift)

    @property
    def evaluation_steps(self) -> int:
        """Of denoising, for held-out pictures."""
        return self.evaluation.steps or self.sampling.steps

    @property
    def credit(self) -> Credit:
        """How scores become every edge's advantage."""
        return Credit(
            weights=tuple(reward.weight for reward in self.rewards),
            combine=self.combine,
            estimator=self.advantage,
            pruning=self.pruning,
            seed=self.run.seed,
            trained="leaves" if self.loss.process == "forward" else "edges",
        )

    @property
    def grown_with(self) -> str:
        """Which of the learner's weights trees are grown with: the policy's, or `second`."""
        return "second" if self.loss.second == "sampled" else "policy"

    @property
    def keeps_behaviour_mean(self) -> bool:
        """Rollouts must keep velocities, since the loss measures from the policy that grew."""
        return self.loss.needs_behaviour_mean and self.learner.old == "behaviour"

    @property
    def reward_groups(self) -> list[tuple[int, ...]]:
        """Places in `all_rewards` that one worker scores: those that share a runtime_env."""
        groups: dict[str, list[int]] = {}
        for index, reward in enumerate(self.all_rewards):
            groups.setdefault(repr(reward.runtime_env), []).append(index)
        return [tuple(group) for group in groups.values()]

    @property
    def all_sinks(self) -> dict[str, SinkOptions]:
        """Sinks by the key that names them: those of `sinks`, and the short forms in `run`."""
        found: dict[str, SinkOptions] = {
            f"sinks.{index}": options for index, options in enumerate(self.sinks)
        }
        if self.run.wandb:
            found["run.wandb"] = registry.SINKS.find("wandb")(project=self.run.wandb)
        if self.run.mlflow:
            found["run.mlflow"] = registry.SINKS.find("mlflow")(uri=self.run.mlflow)
        return found

    @property
    def metric(self) -> str:
        """The reported score that decides, as reward/score."""
        first = self.rewards[0]
        return self.evaluation.metric or f"{first.title}/{first.reported()[0]}"
