"""Every key of a configuration, its meaning, default and bounds; the sections that components fill
take whatever their table finds (registry.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.loss.base import LossOptions
from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.pruning.base import PruningOptions
from branchgrpo.config import registry
from branchgrpo.config.roles import Learner, RewardRole, Rollout
from branchgrpo.config.sections import (
    Asynchronous,
    Checkpoint,
    Cluster,
    Evaluation,
    Gates,
    Reward,
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
Sink = Annotated[SinkOptions, registry.SINKS]


class Keys(Section):
    """Every key of a config, by section."""

    run: Run = Field(default_factory=Run, description="name, folder, seed and length")
    model: Model = Field(description="what is trained")
    prompts: str = Field(
        description="training prompts: a text, .jsonl, .json, .csv, .tsv or .parquet file, "
        "embedded:NAME, hpsv2:STYLE, or suite:NAME"
    )
    held_out: str = Field(
        description="held-out prompts, likewise; or split:N = N of the different training "
        "prompts, the same for every seed; or split:N:OTHERS = N of those that are not among "
        "OTHERS, a second held-out list, which is then neither trained on nor measured"
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

    @property
    def all_rewards(self) -> tuple[RewardOptions, ...]:
        """Those that train, and after them those that held-out checks measure alone."""
        return (*self.rewards, *self.evaluation.rewards)

    def reward_key(self, index: int) -> str:
        """Where the config has one of `all_rewards`."""
        trained = len(self.rewards)
        return f"rewards.{index}" if index < trained else f"evaluation.rewards.{index - trained}"
