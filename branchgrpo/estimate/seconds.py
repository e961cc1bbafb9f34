"""Seconds of an iteration on a named card, and which GPUs wait meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from branchgrpo.config.schema import Config
from branchgrpo.estimate.cards import Card
from branchgrpo.estimate.iteration import Counts
from branchgrpo.estimate.model import ModelNeeds
from branchgrpo.estimate.work import Work

PUBLISH_SECONDS, PUBLISH_RATE = 2.5, 0.35e9
"""Of publishing through the object store: for digests and calls, and bytes a second of gathering,
hashing, sending and loading."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of an iteration. ± 40 %: ratios of such figures are better than that."""

    growing: float  # trees, with decoding
    scoring: float
    updating: float
    publishing: float
    iteration: float
    busy: Mapping[str, float]  # by role: share of the time in which one process of it works
    idle: float  # share of GPU time in which no process on a card works


def times(
    config: Config,
    counts: Counts,
    model: ModelNeeds,
    *,
    scoring: float,
    workers: int,
    cards: int,
    card: Card,
) -> Times:
    """scoring: FLOPs of all rewards for a picture. workers: dedicated rollout workers."""
    shared = in_turns(config)
    ranks, scorers = config.learner.ranks, config.reward_workers.workers
    growing = counts.grown * card.seconds(model.forward)
    growing += counts.pictures * card.seconds(model.decode)
    updating = counts.trained * card.seconds(model.training)
    updating += counts.compared * card.seconds(model.forward)
    score = counts.pictures * card.seconds(Work(matrix=scoring)) if _on_card(config) else 0.0
    growers = workers + (ranks if shared else 0)
    grow, update = growing / max(1, growers), updating / ranks
    publish = 0.0
    if workers:
        publish = PUBLISH_SECONDS + model.trained_bytes / PUBLISH_RATE
    rollouts = max(grow, score / scorers)
    if shared and _on_card(config) and 0 < config.reward_workers.gpus < 1:
        rollouts = grow + score / max(scorers, growers)  # on the same cards
    ahead = config.async_.max_staleness > 0 and workers > 0
    total = rollouts + update + publish
    if ahead and shared:  # workers go on while ranks update
        both = (growing + updating) / (workers + ranks)
        total = max(both, update, score / scorers) + publish
    elif ahead:
        total = max(rollouts, update) + publish
    work = growing + updating + score
    busy = {"rollout": growing / growers / total, "learner": update / total}
    if shared:
        busy["learner"] = min(1.0, (update + grow) / total)
    return Times(
        growing=grow,
        scoring=score / scorers,
        updating=update,
        publishing=publish,
        iteration=total,
        busy=busy | {"reward": score / scorers / total},
        idle=max(0.0, 1.0 - work / (total * cards)),
    )


def in_turns(config: Config) -> bool:
    """Learner ranks grow trees as well."""
    return config.cluster.layout == "shared"


def _on_card(config: Config) -> bool:
    return config.reward_workers.gpus > 0
