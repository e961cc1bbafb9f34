"""How many actors a run begins with, by role."""

from __future__ import annotations

from typing import Any

from branchgrpo.config.schema import Config


def begun(config: Config, learning: bool = True) -> dict[str, tuple[Any, int]]:
    """A role's section of the config, and how many actors of it there are to begin with. learning:
    with learners."""
    roles: dict[str, tuple[Any, int]] = {
        "rollout": (config.rollout, rollouts(config)),
        "reward": (
            config.reward_workers,
            config.reward_workers.workers * len(config.reward_groups),
        ),
    }
    return roles | ({"learner": (config.learner, config.learner.ranks)} if learning else {})


def rollouts(config: Config) -> int:
    """Rollout workers to begin with."""
    return (
        config.rollout.min_workers if config.rollout.workers == "auto" else config.rollout.workers
    )


def gpus(config: Config) -> dict[str, tuple[int, float]]:
    """Actors that reserve GPUs, by role: how many, and GPUs of each."""
    return {
        name: (count, float(role.gpus))
        for name, (role, count) in begun(config).items()
        if role.gpus
    }
