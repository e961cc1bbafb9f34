"""Composes the actors of one run, and what they run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import ray

from actors.calls import LearnerCalls, RolloutCalls
from actors.deferred import Learner, RolloutWorker, SharedLearner
from actors.groups import Learners, SharedLearners
from actors.pools import Rewards, Rollouts
from actors.reward import RewardWorker
from branchgrpo.app import fits, roles
from branchgrpo.app.encode import encode
from branchgrpo.app.roles import actor_options, retry_policy
from branchgrpo.config import secrets
from branchgrpo.config.schema import Config
from branchgrpo.data import check as prompt_check
from branchgrpo.report.sinks import PHASES
from branchgrpo.report.terminal import Display
from cluster import nodes, placement, session
from cluster.byte_counter import DriverByteCounter
from cluster.rank_group import RankGroup
from cluster.ray_service import RayService
from cluster.worker_pool import WorkerPool


class TrainingService(RayService):
    """branchgrpo.service.Service on Ray."""

    @cached_property
    def rollouts(self) -> Rollouts:
        """Those that grow trees."""
        return Rollouts(self.rollout_pool)

    @cached_property
    def rewards(self) -> list[Rewards]:
        """Those that score."""
        return [Rewards(pool) for pool in self.reward_pools]

    @cached_property
    def learners(self) -> Learners:
        """Those that train."""
        kind = SharedLearners if self.learner_group.cls is SharedLearner else Learners
        return kind(self.learner_group)

    def publish(self, weights: str = "policy") -> int:
        """The learners' weights of this name to every rollout worker; returns their version."""
        with self.publishing():
            return self.learners.publish(self.rollouts, weights).version


def ray_service(config: Config, learning: bool = True, run: str = "") -> TrainingService:
    """The actors of one run, not formed yet. run: in whose name others find it; empty: nobody
    does."""
    byte_counter = DriverByteCounter()
    rollout, learner = config.rollout, config.learner
    scorer = config.reward_workers
    # the number of ranks changes at checkpoints
    ranks = (1, learner.max_ranks) if config.checkpoint.kept else (learner.ranks, learner.ranks)
    rollouts = _rollouts(config, byte_counter, run)
    rank_groups = [_learners(config, byte_counter, run)] if learning else []
    if config.cluster.layout == "shared":
        for rank_group in rank_groups:
            rollouts.lend(rank_group)
    return TrainingService(
        rollouts=rollouts,
        rewards=_rewards(config, byte_counter, run),
        rank_groups=rank_groups,
        byte_counter=byte_counter,
        limits={
            "rollout": (rollout.least, rollout.max_workers),
            "reward": (scorer.min_workers, scorer.max_workers),
            "learner": ranks,
        },
        max_failures=config.cluster.max_restarts,
        run=run,
        auto=rollout.workers == "auto",
        request=rollout.request_workers,
        phases=PHASES,
    )


def _rollouts(config: Config, byte_counter: DriverByteCounter, run: str) -> WorkerPool:
    return WorkerPool(
        cls=RolloutWorker,
        role="rollout",
        count=config.rollout.begun,
        resources=actor_options(config.rollout),
        arguments=(config,),
        byte_counter=byte_counter,
        retry_policy=retry_policy(config),
        run=run,
    )


def _rewards(config: Config, byte_counter: DriverByteCounter, run: str) -> list[WorkerPool]:
    """One for each environment."""
    pools = []
    for index, group in enumerate(config.reward_groups):
        key = f"{config.reward_key(group[0])}.runtime_env"
        environment = secrets.given(config.all_rewards[group[0]].runtime_env, key)
        pools.append(
            WorkerPool(
                cls=RewardWorker,
                role=f"reward{index or ''}",
                count=config.reward_workers.workers,
                resources=actor_options(config.reward_workers, environment),
                arguments=(config, group),
                byte_counter=byte_counter,
                retry_policy=retry_policy(config),
                run=run,
            )
        )
    return pools


def _learners(config: Config, byte_counter: DriverByteCounter, run: str) -> RankGroup:
    return RankGroup(
        cls=SharedLearner if config.cluster.layout == "shared" else Learner,
        role="learner",
        ranks=config.learner.ranks,
        resources=actor_options(config.learner),
        make=partial(_learner_arguments, config, ray.get),
        byte_counter=byte_counter,
        deadlines=config.learner.deadlines,
        run=run,
    )


def configure(made: TrainingService, config: Config) -> TrainingService:
    """All actors begin again with the untrained model, for a config of the same roles."""

    for pool in made.pools:
        pool.reset(config, *pool.workers.arguments[1:])
    made.rollout_pool.broadcast(RolloutCalls.configure, config)
    for pool in made.reward_pools:
        pool.broadcast(RewardWorker.configure, config)
    for rank_group in made.rank_groups:
        rank_group.make = partial(_learner_arguments, config, ray.get)
        rank_group.call(LearnerCalls.configure, config)
    return made


def _learner_arguments(config: Config, fetch: Any, rank: int) -> tuple[Any, ...]:
    return config, rank, fetch


@contextmanager
def connected(config: Config, display: Display) -> Iterator[None]:
    """Ray, joined or started; left, or ended, with the block."""
    display.phase("starting Ray")
    options = config.cluster
    found = session.start(
        options.address, options.object_store_mb, options.dashboard, note=display.note
    )
    try:
        for line in found.notes():
            display.note(line)
        yield
    finally:
        session.stop()


@contextmanager
def started(
    config: Config, display: Display, learning: bool = True, run: str = ""
) -> Iterator[Callable[[Config], TrainingService]]:
    """Ray with all actors; gives what sets them up for a config of the same roles. Ends with the
    block."""

    found = roles.begun(config, learning)
    wanted = {
        role: [placement.bundle(actor_options(one))] * count for role, (one, count) in found.items()
    }
    if session.target(config.cluster.address) == "local":
        placement.require_here(wanted)
    for line in prompt_check.notes(config):
        display.note(line)
    with connected(config, display), ExitStack() as ending:
        if learning:
            fits.require(config, nodes.accelerators())
        if config.model.precomputed:
            encode(config, display)
        made = ray_service(config, learning, run)
        ending.callback(made.stop)
        display.phase(
            "placing " + ", ".join(f"{count} {role}" for role, (_, count) in found.items())
        )
        made.enter(config.cluster.wait_seconds, display.note)
        display.phase("loading models")
        made.form(display.note)
        fresh = True

        def form(other: Config) -> TrainingService:
            nonlocal fresh
            ready, fresh = fresh and other == config, False
            return made if ready else configure(made, other)

        yield form
