"""Every key of the configuration: its meaning, default and bounds, and which go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from branchgrpo import models, rewards
from branchgrpo.algo import advantage, loss, methods, pruning
from branchgrpo.algo.credit import Credit
from branchgrpo.algo.schedule import Schedule
from branchgrpo.config.registry import union

if TYPE_CHECKING:
    from branchgrpo.algo.advantage.depthwise import DepthWise as Advantage
    from branchgrpo.algo.loss.base import LossOptions as Loss
    from branchgrpo.algo.methods.base import MethodOptions as Method
    from branchgrpo.algo.pruning.width import WidthPruning as Pruning
    from branchgrpo.models.flux import FluxModel as Model
    from branchgrpo.rewards.ocr import OcrReward as Reward
else:
    Advantage = union(advantage.REGISTRY)
    Loss = union(loss.REGISTRY)
    Method = union(methods.REGISTRY)
    Model = union(models.REGISTRY)
    Pruning = union(pruning.REGISTRY)
    Reward = union(rewards.REGISTRY)


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
        description="name of the run; its folder is NAME-DATE-TIME",
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
    export: Literal["pipeline", "transformer", "lora", "none"] = Field(
        "pipeline",
        description="write the trained weights: a whole pipeline, the transformer alone, the "
        "LoRA adapters alone, or nothing",
    )
    wandb: str = Field(
        "", description="project of Weights & Biases that gets the metrics as well; empty: none"
    )
    mlflow: str = Field(
        "", description="tracking URI of MLflow that gets the metrics as well; empty: none"
    )


class Sampling(Section):
    """The denoising schedule."""

    steps: int = Field(20, ge=2, description="T, denoising steps")
    shift: float | None = Field(
        None,
        gt=0,
        description="static shift of the noise levels; unset (null) = the schedule that the "
        "model's own pipeline makes",
    )


class Role(Section):
    """Resources of one kind of actor, as Ray counts them."""

    cpus: float = Field(1.0, ge=0, description="CPUs each actor reserves")
    gpus: float = Field(
        0.0, ge=0, description="GPUs each actor reserves; above 0 it computes there"
    )
    threads: int = Field(
        0, ge=0, description="compute threads of each actor; 0 = its CPUs, at least 1"
    )
    resource: str = Field(
        "",
        description="custom Ray resource that marks the nodes for these actors (ray start "
        "--resources); empty: any node",
    )

    @property
    def compute_threads(self) -> int:
        """Threads to use."""
        return self.threads or max(1, int(self.cpus))

    @property
    def device(self) -> str:
        """torch device of the actor."""
        return "cuda" if self.gpus else "cpu"


class Rollout(Role):
    """Growing trees."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        2, description="rollout actors; auto: as many as the cluster has room for, as that changes"
    )
    min_workers: int = Field(
        1, ge=1, description="never fewer, whatever `auto` or `branchgrpo scale` say"
    )
    max_workers: int = Field(64, ge=1, description="never more")
    request_workers: int = Field(
        0,
        ge=0,
        description="with workers: auto, ask an autoscaler for room for so many, beside all "
        "other actors, until the run ends; 0 = take what there is",
    )
    prompts: int = Field(4, ge=1, description="prompts per iteration")
    trees_per_prompt: int = Field(1, ge=1, description="trees of each prompt; they form one group")
    fork_depth: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        description="splits grown by one worker before a tree is cut into subtrees for all; "
        "auto: as few as keep every worker busy",
    )
    tasks_per_worker: int = Field(
        1,
        ge=1,
        description="pieces each worker's share is cut into; more of them let scoring start "
        "earlier",
    )
    max_batch: int = Field(64, ge=1, description="latents per forward")
    storage_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype in which samples are stored, scored and sent"
    )


class RewardRole(Role):
    """Scoring leaves."""

    workers: int = Field(
        1, ge=1, description="reward actors; as many again for every other runtime_env"
    )
    min_workers: int = Field(1, ge=1, description="never fewer, whatever `branchgrpo scale` says")
    max_workers: int = Field(64, ge=1, description="never more")
    retries: int = Field(
        1,
        ge=0,
        description="further attempts when a reward raises, or gives scores that are not finite "
        "or too few",
    )
    on_failure: Literal["fail", "drop_group"] = Field(
        "fail",
        description="then: end the run, or train without that prompt's trees in this iteration",
    )


class Learner(Role):
    """Training."""

    ranks: int = Field(1, ge=1, description="learner ranks (data parallel) to begin with")
    max_ranks: int = Field(64, ge=1, description="never more, whatever `branchgrpo scale` says")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="every rank holds all weights (ddp), or a share of weights, gradients and "
        "optimiser state",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="torch.distributed backend; auto: nccl on GPUs, gloo on CPUs"
    )
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW")
    max_grad_norm: float = Field(
        1.0, gt=0, description="the gradient is clipped to this norm before every optimiser step"
    )
    optimiser_steps: int = Field(1, ge=1, description="optimiser steps per iteration")
    micro_batch: int = Field(64, ge=1, description="parents per forward and backward")
    token_budget: int = Field(
        0,
        ge=0,
        description="latent and text tokens per forward and backward, which may make "
        "micro-batches smaller; 0 = no limit",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after the warm-up, over run.iterations"
    )
    warmup: int = Field(
        0, ge=0, description="optimiser steps in which the learning rate rises linearly"
    )
    final_rate: float = Field(
        0.0, ge=0, le=1, description="part of the learning rate that linear and cosine end with"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of an exponential mean of the weights, less in the first steps; 0 = "
        "none",
    )
    ema_every: int = Field(1, ge=1, description="optimiser steps between moves of that mean")
    max_skips: int = Field(3, ge=1, description="non-finite gradients in a row that end the run")
    timeout_seconds: float = Field(
        1800, gt=0, description="longest a collective or an update may take"
    )
    stall_factor: float = Field(
        10,
        gt=1,
        description="an update that takes so many times the median of its like counts as hung: "
        "learners begin again",
    )
    stall_seconds: float = Field(60, gt=0, description="… but never before so many seconds")
    publish_chunk_mb: int = Field(
        256, ge=1, description="size of one object when weights are published"
    )

    @property
    def deadlines(self) -> tuple[float, float, float]:
        """Of calls: at most, times the median, at least."""
        return self.timeout_seconds, self.stall_factor, self.stall_seconds


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
        description="prompts of which several pictures are drawn, to measure how far apart they "
        "are; 0 = none",
    )
    prompts_between: int = Field(64, ge=2, description="held-out prompts of those checks")
    pictures: int = Field(32, ge=1, description="pictures in samples/before.png and after.png")
    metric: str = Field(
        "", description="the reported score that decides; empty: the first one reported"
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
    gates: Gates = Field(default_factory=Gates, description="start-up checks")
    cluster: Cluster = Field(default_factory=Cluster, description="how to reach Ray")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = [
            problem
            for check in (self._method, self._length, self._counts, self._suits, self._scores)
            for problem in check()
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _method(self) -> Iterator[str]:
        """What of the method does not go with the schedule."""
        try:
            self.method.check(self.sampling.steps)
        except ValueError as error:
            yield f"method.{error}"

    def _length(self) -> Iterator[str]:
        """What needs another key, of those about the run's course."""
        if not self.run.iterations and not self.run.max_minutes:
            yield (
                "run.iterations: expected a number of iterations, or run.max_minutes above 0, "
                "got 0 for both"
            )
        elif not self.run.iterations and self.learner.schedule != "constant":
            yield f"learner.schedule: {self.learner.schedule} needs run.iterations, got 0"
        if self.evaluation.diversity == 1:
            yield (
                "evaluation.diversity: expected 0 or at least 2 prompts, got 1: one has no interval"
            )
        if self.evaluation.weights == "ema" and not self.learner.ema:
            yield "evaluation.weights: ema needs learner.ema above 0"
        if self.run.export == "lora" and not getattr(self.model, "lora_rank", 0):
            yield "run.export: lora needs model.lora_rank above 0"

    def _counts(self) -> Iterator[str]:
        """Roles that begin with a number of actors that they may not have."""
        rollout = self.rollout
        reward = self.reward_workers
        learner = self.learner
        begin = rollout.min_workers if rollout.workers == "auto" else rollout.workers
        for key, count, least, most in (
            ("rollout.workers", begin, rollout.min_workers, rollout.max_workers),
            ("reward_workers.workers", reward.workers, reward.min_workers, reward.max_workers),
            ("learner.ranks", learner.ranks, 1, learner.max_ranks),
        ):
            if not least <= count <= most:
                yield f"{key}: expected {least} … {most} (least and most of that role), got {count}"
        if rollout.request_workers and rollout.workers != "auto":
            yield f"rollout.request_workers: needs rollout.workers: auto, got {rollout.workers}"

    def _suits(self) -> Iterator[str]:
        """Parts that do not go with the method's shape of tree."""
        rules = [rule.name for rule in self.pruning]
        if self.method.name == "tempflow":
            if self.rollout.fork_depth not in ("auto", 0):
                yield (
                    "rollout.fork_depth: expected auto or 0 with tempflow, whose trees are not cut"
                )
            if {"width", "depth"} & set(rules):
                yield (
                    "pruning: expected only `steps` with tempflow, whose random edges all lie "
                    f"on one trunk, got {rules}"
                )
        if self.method.name == "chains" and "tree" in (
            getattr(self.advantage, "group", ""),
            getattr(self.advantage, "std", ""),
        ):
            yield (
                "advantage: expected no comparison within a tree with chains, which have one "
                "leaf each"
            )
        modes = [rule.mode for rule in self.pruning if rule.name == "width"]
        if self.method.name == "chains" and "parent_top1" in modes:
            yield (
                "pruning: expected width mode `extremes` with chains, which have no splits, "
                "got `parent_top1`"
            )

    def _scores(self) -> Iterator[str]:
        """Names of scores that are taken twice, or that there are not."""
        titles = [reward.title for reward in self.rewards]
        if len(set(titles)) < len(titles):
            yield (
                "rewards: expected different labels (rewards.N.label) where a reward comes "
                f"twice, got {titles}"
            )
        reported = [
            f"{reward.title}/{score}" for reward in self.rewards for score in reward.reported()
        ]
        if self.evaluation.metric and self.evaluation.metric not in reported:
            yield f"evaluation.metric: expected one of {reported}, got {self.evaluation.metric!r}"

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
    def metric(self) -> str:
        """The reported score that decides, as reward/score."""
        first = self.rewards[0]
        return self.evaluation.metric or f"{first.title}/{first.reported()[0]}"
