"""Sections of the configuration that are neither components nor roles of actors: every key's
meaning, default and bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from branchgrpo.config import conditions, registry
from branchgrpo.rewards.base import RewardOptions

Reward = Annotated[RewardOptions, registry.REWARDS]


class Section(BaseModel):
    """Unknown keys are errors; every key has a description and is read somewhere (tests see to
    both)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class Run(Section):
    """What to call a run and where it goes."""

    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9._-]+$",
        description="name of the run; its folder is NAME-LABEL-seedSEED-DATE-TIME",
    )
    label: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="what stands after the name in that of the run folder; where none is given, "
        "the preset; empty: nothing",
    )
    folder: str = Field("runs", description="where run folders are made")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    iterations: int = Field(100, ge=0, description="iterations to train; 0 = until max_minutes")
    max_minutes: float = Field(
        0,
        ge=0,
        description="stop after this many minutes of training, held-out checks not counted; 0 = "
        "no limit",
    )
    stop_when: tuple[str, ...] = Field(
        (),
        description="end training, in good order, after an iteration with such a figure: FIGURE < "
        "VALUE (or >, <=, >=), figures as in metrics.jsonl; alarm/hacking > 0 ends it at the first "
        "alarm of evaluation.alarm, alarm/norm > 0 at that of evaluation.norm_alarm",
    )
    export: Literal["pipeline", "transformer", "lora", "none"] = Field(
        "pipeline",
        description="write the trained weights: a whole pipeline, the transformer alone, the "
        "LoRA adapters alone, or nothing",
    )
    wandb: str = Field(
        "",
        description="project of Weights & Biases that gets the metrics as well, as sinks: "
        "[{name: wandb, project: …}] has it; empty: none",
    )
    mlflow: str = Field(
        "",
        description="tracking URI of MLflow that gets the metrics as well, as sinks: "
        "[{name: mlflow, uri: …}] has it; empty: none",
    )

    @field_validator("stop_when")
    @classmethod
    def _conditions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for condition in value:
            conditions.parsed(condition)
        return value


class Sampling(Section):
    """The denoising schedule."""

    steps: int = Field(20, ge=2, description="T, denoising steps")
    shift: float | None = Field(
        None,
        gt=0,
        description="static shift of the noise levels; unset (null) = the schedule that the "
        "model's own pipeline makes",
    )


class Checkpoint(Section):
    """What a run can be resumed from."""

    every: int = Field(0, ge=0, description="iterations between checkpoints; 0 = none of that kind")
    every_minutes: float = Field(
        10, ge=0, description="minutes of training between checkpoints; 0 = none of that kind"
    )
    keep: int = Field(2, ge=2, description="newest checkpoints that are kept")
    folder: str = Field(
        "",
        description="where they go: a folder or a URL that fsspec knows, with a folder of the "
        "run's name in it; empty: the run folder",
    )

    @property
    def kept(self) -> bool:
        """Are there any?"""
        return bool(self.every or self.every_minutes)


class Asynchronous(Section):
    """Growing trees while the learner updates."""

    max_staleness: int = Field(
        0,
        ge=0,
        description="updates that trees may be older than the weights which they train; 0 = "
        "grow, update, grow, update",
    )


class Evaluation(Section):
    """The held-out check."""

    prompts: int = Field(256, ge=2, description="held-out prompts before and after training")
    steps: int = Field(0, ge=0, description="denoising steps of evaluation; 0 = sampling.steps")
    height: int = Field(
        0,
        ge=0,
        description="height in pixels of what is drawn in evaluation, which may be larger than "
        "in training; 0 = the model's",
    )
    width: int = Field(0, ge=0, description="and its width; 0 = the model's")
    weights: Literal["policy", "ema"] = Field(
        "policy", description="which weights are evaluated and exported"
    )
    every: int = Field(0, ge=0, description="iterations between checks on the way; 0 = none")
    every_seconds: float = Field(
        0, ge=0, description="seconds of training between checks on the way; 0 = none"
    )
    diversity: int = Field(
        0,
        ge=0,
        description="prompts of which several pictures are drawn before and after training, to "
        "measure how far apart they are: in pixels, the autoencoder's latents, and the features of "
        "rewards that have some; 0 = none",
    )
    prompts_between: int = Field(64, ge=2, description="held-out prompts of those checks")
    suites: str = Field(
        "suites",
        description="where published suites of prompts are, a folder for each: suite:NAME is in "
        "SUITES/NAME",
    )
    category: str = Field(
        "",
        description="metadata of held-out prompts by whose values scores are shown as well, a mean "
        "for each; empty: what the suite has",
    )
    kept_mb: int = Field(
        2048,
        ge=0,
        description="largest size of their encodings, in the object store, that are kept from "
        "check to check; larger ones are made again",
    )
    pictures: int = Field(32, ge=1, description="pictures in samples/before.png and after.png")
    save: int = Field(
        0,
        ge=0,
        description="held-out pictures before and after training, the first ones, that are kept as "
        "files of their own, with a list of what they are: samples/saved; 0 = none",
    )
    trees: int = Field(
        0,
        ge=0,
        description="prompts of the first iteration whose trees are grown and drawn at each "
        "held-out check, as pages and PNGs in trees/; 0 = none",
    )
    metric: str = Field(
        "", description="the reported score that decides; empty: the first one reported"
    )
    rewards: tuple[Reward, ...] = Field(
        (),
        description="rewards that are measured at held-out checks alone: they tell whether what is "
        "trained on is hacked",
    )
    alarm: float = Field(
        2.0,
        ge=0,
        description="held-out checks warn of reward hacking where a score of these rewards fell "
        "while what is trained on rose, each by more than so many standard errors (of the paired "
        "difference, over prompts); 0 = never",
    )
    norm_alarm: float = Field(
        0.15,
        ge=0,
        description="warn where the norm of the velocity has moved by more than this part of what "
        "it was when the run began; 0 = never",
    )


class Gates(Section):
    """Checks at start-up, a few seconds each."""

    enabled: bool = Field(True, description="run them")
    on_policy_tolerance: float = Field(
        1e-5, gt=0, description="largest |ratio − 1| before the first update"
    )
    fingerprint_tolerance: float = Field(
        1e-4,
        gt=0,
        description="largest difference of velocities between learner and rollout worker",
    )


class Cluster(Section):
    """How to reach Ray."""

    address: str = Field(
        "auto",
        description="auto: RAY_ADDRESS if set (as in a submitted job), else a new Ray on this "
        "machine; or an address",
    )
    dashboard: bool = Field(True, description="serve the dashboard when Ray is started here")
    layout: Literal["separate", "shared"] = Field(
        "separate",
        description="every role has its own actors, or each learner rank also grows trees, with "
        "its own model, between updates; rollout workers are then beside the ranks, and there "
        "may be none",
    )
    wait_seconds: float = Field(30, ge=0, description="how long to wait for the resources")
    object_store_mb: int = Field(512, ge=80, description="object store of a Ray started here")
    task_timeout_seconds: float = Field(
        1800, gt=0, description="longest a rollout, scoring or publishing task may take"
    )
    straggler_factor: float = Field(
        3,
        gt=1,
        description="a task that takes so many times the median of its like is given to another "
        "worker as well",
    )
    straggler_seconds: float = Field(5, gt=0, description="… but never before so many seconds")
    max_restarts: int = Field(
        20,
        ge=0,
        description="workers of a role that may be replaced in a run, preempted ones apart; and "
        "learner groups",
    )
    max_attempts: int = Field(4, ge=1, description="workers that one task may take with it")
