"""Sections of the configuration about actors: rollout workers, reward workers, learner ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from branchgrpo.config.sections import Section


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

    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        2,
        description="rollout actors; auto: as many as the cluster has room for, as that changes; "
        "0: the learner ranks alone, with cluster.layout: shared",
    )
    min_workers: int = Field(
        1,
        ge=0,
        description="never fewer, whatever `auto` or `branchgrpo scale` say; none where workers "
        "is 0",
    )
    max_workers: int = Field(64, ge=1, description="never more")
    request_workers: int = Field(
        0,
        ge=0,
        description="with workers: auto, ask an autoscaler for room for so many, beside all "
        "other actors, until the run ends; 0 = take what there is",
    )
    prompts: int = Field(4, ge=1, description="prompts per iteration")
    encode_batch: int = Field(
        16,
        ge=1,
        description="prompts that a text encoder gets at once; more workers encode where there are "
        "more prompts",
    )
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

    @property
    def least(self) -> int:
        """Never fewer workers."""
        return self.min_workers if self.workers else 0

    @property
    def begun(self) -> int:
        """Workers to begin with."""
        return self.least if self.workers == "auto" else self.workers


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
    offload: bool = Field(
        False,
        description="on GPUs: networks of rewards rest in pinned main memory and are on the card "
        "only while they score",
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
    shard: int = Field(
        0,
        ge=0,
        description="ranks that share a copy of the weights with parallel: fsdp, of one node where "
        "they can be; gradients are summed over the copies; 0 = all ranks. After `branchgrpo "
        "scale` the largest number up to this that divides the ranks",
    )
    reduce: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="in what gradients travel between ranks with parallel: fsdp; they are summed "
        "over micro-batches in float32 anyway",
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
    micro_batch: int = Field(
        64,
        ge=1,
        description="parents, or leaves at one noise level each, per forward and backward; halved "
        "where they don't fit into a GPU's memory",
    )
    token_budget: int = Field(
        0,
        ge=0,
        description="latent and text tokens per forward and backward, which may make "
        "micro-batches smaller; 0 = no limit",
    )
    old: Literal["behaviour", "recompute"] = Field(
        "behaviour",
        description="old side of the ratio: the rollout workers' log-probs, or the learner's own, "
        "of its weights before the iteration's first step",
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

    def sharing(self, ranks: int) -> int:
        """Of so many ranks, those that share a copy of the weights."""
        if self.parallel == "ddp":
            return 1
        most = min(self.shard or ranks, ranks)
        return next(count for count in range(most, 0, -1) if ranks % count == 0)

    @property
    def deadlines(self) -> tuple[float, float, float]:
        """Of calls: at most, times the median, at least."""
        return self.timeout_seconds, self.stall_factor, self.stall_seconds
