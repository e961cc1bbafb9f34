"""Which keys of a configuration go together: each check gives a line for what does not, KEY: words.

A component is asked for what it declares, never for its name.
"""

from __future__ import annotations

from collections.abc import Iterator

from branchgrpo.config.keys import Keys
from branchgrpo.config.registry import ADVANTAGE, LOSS, PRUNING


def problems(config: Keys) -> list[str]:
    """All lines."""
    return [
        line
        for check in (_method, _length, _counts, _layout, _suits, _loss, _scores)
        for line in check(config)
    ]


def _method(config: Keys) -> Iterator[str]:
    """What of the method does not go with the schedule."""
    try:
        config.method.check(config.sampling.steps)
    except ValueError as error:
        yield f"method.{error}"


def _length(config: Keys) -> Iterator[str]:
    """What needs another key, of those about the run's course."""
    run, evaluation = config.run, config.evaluation
    if not run.iterations and not run.max_minutes:
        yield (
            "run.iterations: expected a number of iterations, or run.max_minutes above 0, "
            "got 0 for both"
        )
    elif not run.iterations and config.learner.schedule != "constant":
        yield f"learner.schedule: {config.learner.schedule} needs run.iterations, got 0"
    if evaluation.diversity == 1:
        yield "evaluation.diversity: expected 0 or at least 2 prompts, got 1: one has no interval"
    if evaluation.weights == "ema" and not config.learner.ema:
        yield "evaluation.weights: ema needs learner.ema above 0"
    if (evaluation.height or evaluation.width) and not config.model.any_size:
        yield (
            "evaluation.height, evaluation.width: expected 0 for both with model.name: "
            f"{config.model.called}, which draws one size, got {evaluation.height}, "
            f"{evaluation.width}"
        )
    if run.export == "lora" and not config.model.adapter_rank:
        yield "run.export: lora needs model.lora_rank above 0"


def _counts(config: Keys) -> Iterator[str]:
    """Roles that begin with a number of actors that they may not have."""
    rollout = config.rollout
    reward = config.reward_workers
    learner = config.learner
    for key, count, least, most in (
        ("rollout.workers", rollout.begun, rollout.least, rollout.max_workers),
        ("reward_workers.workers", reward.workers, reward.min_workers, reward.max_workers),
        ("learner.ranks", learner.ranks, 1, learner.max_ranks),
    ):
        if not least <= count <= most:
            yield f"{key}: expected {least} … {most} (least and most of that role), got {count}"
    if rollout.request_workers and rollout.workers != "auto":
        yield f"rollout.request_workers: needs rollout.workers: auto, got {rollout.workers}"


def _layout(config: Keys) -> Iterator[str]:
    """Who grows trees, and when."""
    learner = config.learner
    if learner.shard and learner.parallel != "fsdp":
        yield f"learner.shard: expected 0 with learner.parallel ddp, got {learner.shard}"
    elif learner.shard and learner.ranks % learner.shard:
        yield (
            f"learner.shard: expected a number that divides learner.ranks, {learner.ranks}, got "
            f"{learner.shard}"
        )
    if config.rollout.least:
        return
    key = "rollout.min_workers" if config.rollout.workers else "rollout.workers"
    if config.cluster.layout == "separate":
        yield f"{key}: expected at least 1 with cluster.layout: separate, got 0"
    elif config.async_.max_staleness:
        yield (
            f"{key}: expected at least 1 with async.max_staleness above 0, since learner ranks "
            "grow nothing during an update, got 0"
        )


def _suits(config: Keys) -> Iterator[str]:
    """Parts that do not go with the shape of the method's trees."""
    method, rules = config.method, [rule.called for rule in config.pruning]
    if method.shape == "comb":
        if config.rollout.fork_depth not in ("auto", 0):
            yield (
                f"rollout.fork_depth: expected auto or 0 with {method.called}, whose trees are "
                "not cut"
            )
        if not all(rule.prunes_combs for rule in config.pruning):
            fit = [f"`{name}`" for name in PRUNING.shipped if PRUNING.find(name).prunes_combs]
            yield (
                f"pruning: expected only {', '.join(fit)} with {method.called}, whose random edges "
                f"all lie on one trunk, got {rules}"
            )
    if method.shape == "chain" and config.advantage.compares_in_tree:
        names = ADVANTAGE.shipped
        fit = [f"`{name}`" for name in names if not ADVANTAGE.find(name)().compares_in_tree]
        yield (
            f"advantage: expected no comparison within a tree with {method.called}, which have "
            f"one leaf each: {' or '.join(fit)} with their defaults, got "
            f"`{config.advantage.called}`"
        )
    for rule in config.pruning:
        try:
            rule.check(method)
        except ValueError as error:
            yield f"pruning: {error}"


def _loss(config: Keys) -> Iterator[str]:
    """Parts that do not go with what the loss trains on."""
    loss, learner = config.loss, config.learner
    if loss.second != "none" and learner.parallel == "fsdp":
        yield (
            f"learner.parallel: expected ddp with the loss {loss.called}, which holds a second "
            "set of weights, got fsdp"
        )
    if loss.process == "reverse":
        if not config.method.random:
            fit = [name for name in LOSS.shipped if LOSS.find(name).process == "forward"]
            yield (
                f"loss: expected a loss on leaves ({', '.join(fit)}) with {config.method.called} "
                f"without random steps, got {loss.called}, which trains those"
            )
        return
    if learner.old != "behaviour":
        yield (
            f"learner.old: expected behaviour with the loss {loss.called}, which has no ratio of "
            f"edges, got {learner.old}"
        )
    if not config.advantage.credits_leaves:
        yield (
            f"advantage: expected an estimator that compares leaves with the loss {loss.called}, "
            f"got {config.advantage.called}"
        )
    if any(not rule.prunes_leaves for rule in config.pruning):
        yield (
            f"pruning: expected only rules that leave out leaves with the loss {loss.called}, got "
            f"{[rule.called for rule in config.pruning]}"
        )


def _scores(config: Keys) -> Iterator[str]:
    """Names of scores that are taken twice, or that there are not."""
    titles = [reward.title for reward in config.all_rewards]
    if len(set(titles)) < len(titles):
        yield (
            "rewards: expected different labels (rewards.N.label) where a reward comes "
            f"twice, got {titles}"
        )
    reported = [
        f"{reward.title}/{score}" for reward in config.all_rewards for score in reward.reported()
    ]
    metric = config.evaluation.metric
    if metric and metric not in reported:
        yield f"evaluation.metric: expected one of {reported}, got {metric!r}"
