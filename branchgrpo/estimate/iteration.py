"""How many forwards, pictures and latents an iteration takes: from the run's own plans, credit and
pruning, on random rewards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from branchgrpo.algo.loss.forward import ForwardLoss
from branchgrpo.algo.schedule import Schedule
from branchgrpo.algo.tree import auto_fork_depth, fork_level, topology, trainable
from branchgrpo.config.schema import Config
from branchgrpo.learner import shard
from branchgrpo.learner.point_shards import split_points
from branchgrpo.types import BranchPlan, TreeHeader, TreeKey

SAMPLED = 30
"""Iterations of the run that are looked at, by one prompt of each."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of an iteration, mean over the run."""

    prompts: int
    trees: float
    pictures: float  # leaves, scouts among them, each decoded and scored
    scouts: float  # cheap candidates, of which trees are chosen
    grown: float  # latents through the denoiser in rollouts
    scouted: float  # of them, scouts'
    # distinct parents, or leaves at each level, through it in the update, with backward
    trained: float
    compared: float  # the same once more: for the frozen base, the ratio's old side, and the like
    stored: float  # latents kept for training
    frontier: float  # latents that go from one rollout task to another


def counts(config: Config, schedule: Schedule, workers: int) -> Counts:
    """Mean of an iteration. workers: that trees are cut for."""
    method = config.method.start(schedule.steps, config.run.seed)
    length = config.run.iterations or 1000
    at = np.unique(np.linspace(0, length - 1, SAMPLED).round().astype(int))
    found = [
        _of(config, config.plan(method, int(iteration), schedule), int(iteration), workers)
        for iteration in at
    ]
    means = {
        name: float(np.mean([getattr(one, name) for one in found]))
        for name in ("trees", "pictures", "grown", "trained", "compared", "stored", "frontier")
    }
    scouts = scouted = 0
    if scouting := method.scouting(schedule):
        scouts = config.rollout.prompts * config.rollout.trees_per_prompt * scouting.chains
        scouted = scouts * scouting.steps
    means["pictures"] += scouts
    means["grown"] += scouted
    return Counts(prompts=config.rollout.prompts, scouts=scouts, scouted=scouted, **means)


def _of(config: Config, plan: BranchPlan, iteration: int, workers: int) -> Counts:
    topo, prompts = topology(plan), config.rollout.prompts
    each = config.rollout.trees_per_prompt * plan.chains
    trees = prompts * each
    edges = np.flatnonzero(trainable(plan))
    leaves = config.loss.process == "forward"
    depth = config.rollout.fork_depth
    trained = _parents(config, plan, iteration, each) * prompts
    fork = fork_level(plan, auto_fork_depth(plan, trees, workers) if depth == "auto" else depth)
    return Counts(
        prompts=prompts,
        trees=trees,
        pictures=trees * topo.leaves,
        scouts=0,
        grown=trees * (topo.nodes - topo.leaves),
        scouted=0,
        trained=trained,
        compared=trained * _compared(config),
        stored=trees * (topo.leaves if leaves else len(np.union1d(edges, topo.parent[edges]))),
        frontier=trees * len(topo.level(fork)) if fork else 0,
    )


def _compared(config: Config) -> float:
    """Further forwards without a gradient that a parent, or a leaf at one level, takes in the
    update: those of the loss; and of the weights before the first optimiser step, unless it is in
    that one itself."""
    steps, options = config.learner.optimiser_steps, config.learner
    recomputed = (steps - 1) / steps if options.old == "recompute" else 0.0
    return recomputed + config.loss.compared(steps)


def _parents(config: Config, plan: BranchPlan, iteration: int, trees: int) -> int:
    """Distinct parents that a prompt's trees train, or leaves, each once a level, when no group is
    flat and no two rewards are equal."""
    topo, rewards = topology(plan), len(config.rewards)
    draw = np.random.default_rng((config.run.seed, iteration))
    wide = 1.0 + 1e4 * config.advantage.min_spread
    scores = {
        (0, tree): (wide * draw.standard_normal((rewards, topo.leaves))).astype(np.float32)
        for tree in range(trees)
    }
    leaves = config.credit.leaf_rewards(scores)
    headers = [
        TreeHeader(
            key=TreeKey("", iteration, *name),
            prompt_index=0,
            policy_version=0,
            log_prob=np.zeros(topo.nodes, np.float32),
            leaf_reward=leaves[name],
        )
        for name in sorted(scores)
    ]
    credits = config.credit.assign(plan, headers, iteration, scores)
    if isinstance(config.loss, ForwardLoss):
        ((points,),) = split_points(
            plan,
            trees=headers,
            credits=credits,
            loss=config.loss,
            ranks=1,
            optimiser_steps=1,
            seed=config.run.seed,
            shuffle=0,
        )
        return len(points.leaves)
    ((share,),) = shard.split(
        plan,
        credits=credits,
        ranks=1,
        optimiser_steps=1,
        seed=0,
        every=config.loss.every,
    )
    return len(share.parents)
