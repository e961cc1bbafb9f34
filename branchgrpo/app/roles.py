"""How many actors a run begins with, by role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from branchgrpo.config.roles import Role
from branchgrpo.config.schema import Config
from cluster.retry_policy import RetryPolicy


def begun(config: Config, learning: bool = True) -> dict[str, tuple[Any, int]]:
    """A role's section of the config, and how many actors of it there are to begin with. learning:
    with learners."""
    roles: dict[str, tuple[Any, int]] = {
        "rollout": (config.rollout, config.rollout.begun),
        "reward": (
            config.reward_workers,
            config.reward_workers.workers * len(config.reward_groups),
        ),
    }
    return roles | ({"learner": (config.learner, config.learner.ranks)} if learning else {})


def without_learners(config: Config) -> Config:
    """The same where nobody trains: if learner ranks alone grow trees, rollout workers take their
    number and resources."""
    if config.rollout.begun:
        return config
    same = {key: getattr(config.learner, key) for key in Role.model_fields}
    rollout = config.rollout.model_copy(update=same | {"workers": config.learner.ranks})
    return config.model_copy(update={"rollout": rollout})


def gpus(config: Config) -> dict[str, tuple[int, float]]:
    """Actors that reserve GPUs, by role: how many, and GPUs of each."""
    return {
        name: (count, float(role.gpus))
        for name, (role, count) in begun(config).items()
        if role.gpus
    }


MARK = 0.001
"""What each actor reserves of the custom resource that marks its nodes: any number of actors
fits."""


def actor_options(role: Any, runtime_env: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A role's resources as Ray's actor options."""
    options: dict[str, Any] = {"num_cpus": role.cpus, "num_gpus": role.gpus}
    options |= {"resources": {role.resource: MARK}} if role.resource else {}
    return options | ({"runtime_env": runtime_env} if runtime_env else {})


def retry_policy(config: Config) -> RetryPolicy:
    """How long pools wait, and how often they try again."""
    options = config.cluster
    return RetryPolicy(
        task_timeout_seconds=options.task_timeout_seconds,
        straggler_factor=options.straggler_factor,
        straggler_seconds=options.straggler_seconds,
        max_restarts=options.max_restarts,
        max_attempts=options.max_attempts,
    )
