"""A small run in one process, for the loop's tests."""

from __future__ import annotations

from branchgrpo.config.schema import Config
from branchgrpo.models import weights as wire
from support.in_process import Service
from support.small_trees import quickstart

SMALL = {
    "run.iterations": "4",
    "run.export": "none",
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.workers": "1",
    "rollout.threads": "1",
    "learner.threads": "1",
    "rollout.prompts": "2",
    "evaluation.prompts": "4",
    "evaluation.every": "0",
    "evaluation.steps": "4",
    "checkpoint.every": "2",
    "learner.warmup": "2",
    "learner.ema": "0.5",
    "learner.learning_rate": "0.001",
}


def config(**options: str) -> Config:
    return quickstart(SMALL | options)


def weights(service: Service) -> str:
    learner = service.learner
    return wire.digest_of(learner.model.trainable()) + wire.digest_of(learner.policy.ema)
