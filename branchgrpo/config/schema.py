"""The configuration: every key, its meaning, default and bounds; the sections that components fill
take whatever their table finds (registry.py)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.credit import Credit
from branchgrpo.algo.loss.base import LossOptions
from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.pruning.base import PruningOptions
from branchgrpo.algo.schedule import Schedule
from branchgrpo.config import cross_checks, registry
from branchgrpo.config.roles import Learner, RewardRole, Rollout
from branchgrpo.config.sections import (
    Asynchronous,
    Checkpoint,
    Cluster,
    Evaluation,
    Gates,
    Run,
    Sampling,
    Section,
)
from branchgrpo.models.base import ModelOptions
from branchgrpo.rewards.base import RewardOptions
from branchgrpo.sinks.base import SinkOptions

Advantage = Annotated[AdvantageOptions, registry.ADVANTAGE]
Loss = Annotated[LossOptions, registry.LOSS]
Method = Annotated[MethodOptions, registry.METHODS]
Model = Annotated[ModelOptions, registry.MODELS]
Pruning = Annotated[PruningOptions, registry.PRUNING]
Reward = Annotated[RewardOptions, registry.REWARDS]
Sink = Annotated[SinkOptions, registry.SINKS]


class Config(Section):
    """Everything a run is made of."""

    run: Run = Field(default_factory=Run, description="name, folder, seed and length")
    model: Model = Field(description="what is trained")
    prompts: str = Field(
        description="training prompts: a text, .jsonl, .json, .csv, .tsv or .parquet file, "
        "embedded:NAME, or hpsv2:STYLE"
    )
    held_out: str = Field(
        description="held-out prompts, likewise; or split:N = N of the different training "
        "prompts, the same for every seed"
    )
    sampling: Sampling = Field(default_factory=Sampling, description="the denoising schedule")
    method: Method = Field(description="where trees branch")
    rewards: tuple[Reward, ...] = Field(min_length=1, description="what is wanted")
    combine: Literal["reward", "advantage"] = Field(
        "reward",
        description="several rewards: sum their scores by weight and compare the sums, or "
        "compare each and sum the advantages by weight",
    )
    advantage: Advantage = Field(description="how edges earn credit")
    pruning: tuple[Pruning, ...] = Field((), description="what is left out of the gradient")
    loss: Loss = Field(description="the policy loss")
    rollout: Rollout = Field(default_factory=Rollout, description="rollout actors")
    reward_workers: RewardRole = Field(default_factory=RewardRole, description="reward actors")
    learner: Learner = Field(default_factory=Learner, description="learner ranks and optimiser")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="the held-out check")
    async_: Asynchronous = Field(
        default_factory=Asynchronous,
        alias="async",
        description="growing trees while the learner updates",
    )
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="what a run can be resumed from"
    )
    sinks: tuple[Sink, ...] = Field(
        (), description="where metrics go beside metrics.jsonl and TensorBoard"
    )
    gates: Gates = Field(default_factory=Gates, description="start-up checks")
    cluster: Cluster = Field(default_factory=Cluster, description="how to reach Ray")

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
    def credit(self) -> Credit:
        """How scores become every edge's advantage."""
        return Credit(
            weights=tuple(reward.weight for reward in self.rewards),
            combine=self.combine,
            estimator=self.advantage,
            pruning=self.pruning,
            seed=self.run.seed,
        )

    @property
    def reward_groups(self) -> list[tuple[int, ...]]:
        """Places of rewards that one worker scores: those that share a runtime_env."""
        groups: dict[str, list[int]] = {}
        for index, reward in enumerate(self.rewards):
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
