"""Composes the actors of one run, and what they run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from branchgrpo.app import roles
from branchgrpo.config import secrets
from branchgrpo.config.schema import Config
from branchgrpo.data import check as prompt_check
from branchgrpo.data import prompts

if TYPE_CHECKING:
    from branchgrpo.report.terminal import Display
    from cluster.ray_service import RayService

MARK = 0.001
"""What each actor reserves of the custom resource that marks its nodes: any number of actors
fits."""


def ray_service(config: Config, learning: bool = True, run: str = "") -> RayService:
    """The actors of one run, not formed yet. run: in whose name others find it; empty: nobody
    does."""
    import ray

    from actors.learner import Learner
    from actors.reward import RewardWorker
    from actors.rollout import RolloutWorker
    from cluster.byte_counter import DriverByteCounter
    from cluster.pool import Pool
    from cluster.rank_group import RankGroup
    from cluster.ray_service import RayService

    byte_counter = DriverByteCounter()
    retry_policy = _retry_policy(config)
    rollout = config.rollout
    scorer = config.reward_workers
    learner = config.learner
    rollouts = Pool(
        cls=RolloutWorker,
        role="rollout",
        count=roles.rollouts(config),
        resources=actor_options(rollout),
        arguments=(config,),
        byte_counter=byte_counter,
        retry_policy=retry_policy,
        run=run,
    )
    rewards = []
    for index, group in enumerate(config.reward_groups):
        resources = actor_options(
            scorer,
            secrets.given(config.rewards[group[0]].runtime_env, f"rewards.{group[0]}.runtime_env"),
        )
        rewards.append(
            Pool(
                cls=RewardWorker,
                role=f"reward{index or ''}",
                count=scorer.workers,
                resources=resources,
                arguments=(config, group),
                byte_counter=byte_counter,
                retry_policy=retry_policy,
                run=run,
            )
        )
    make = partial(_learner_arguments, config, ray.get)
    rank_groups = (
        [
            RankGroup(
                cls=Learner,
                role="learner",
                ranks=learner.ranks,
                resources=actor_options(learner),
                make=make,
                byte_counter=byte_counter,
                deadlines=learner.deadlines,
                run=run,
            )
        ]
        if learning
        else []
    )
    # their number changes at checkpoints
    ranks = (1, learner.max_ranks) if config.checkpoint.kept else (learner.ranks, learner.ranks)
    limits = {
        "rollout": (rollout.min_workers, rollout.max_workers),
        "reward": (scorer.min_workers, scorer.max_workers),
        "learner": ranks,
    }
    auto = rollout.workers == "auto"
    return RayService(
        rollouts=rollouts,
        rewards=rewards,
        rank_groups=rank_groups,
        byte_counter=byte_counter,
        limits=limits,
        max_failures=config.cluster.max_restarts,
        run=run,
        auto=auto,
        request=rollout.request_workers,
    )


def configure(made: RayService, config: Config) -> RayService:
    """All actors begin again with the untrained model, for a config of the same roles."""
    import ray

    for pool in made.pools:
        pool.reset(config, *pool.arguments[1:])
        pool.broadcast("configure", config)
    for rank_group in made.rank_groups:
        rank_group.make = partial(_learner_arguments, config, ray.get)
        rank_group.call("configure", config)
        made.chunks = rank_group.call("chunks")[0]
    return made


def actor_options(role: Any, runtime_env: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A role's resources as Ray's actor options."""
    options: dict[str, Any] = {"num_cpus": role.cpus, "num_gpus": role.gpus}
    options |= {"resources": {role.resource: MARK}} if role.resource else {}
    return options | ({"runtime_env": runtime_env} if runtime_env else {})


def _retry_policy(config: Config) -> Any:
    from cluster.pool import RetryPolicy

    options = config.cluster
    return RetryPolicy(
        task_timeout_seconds=options.task_timeout_seconds,
        straggler_factor=options.straggler_factor,
        straggler_seconds=options.straggler_seconds,
        max_restarts=options.max_restarts,
        max_attempts=options.max_attempts,
    )


def _learner_arguments(config: Config, fetch: Any, rank: int) -> tuple[Any, ...]:
    return config, rank, fetch


def encode(config: Config, display: Display) -> int:
    """Encode the prompts of a config with model.encode: precompute that are not encoded yet, on the
    rollout workers' resources; returns how many."""
    from actors.encoder import Encoder
    from branchgrpo.data.encodings import Encodings, encode_missing
    from cluster.admission import place_alone
    from cluster.byte_counter import DriverByteCounter
    from cluster.pool import Pool

    store = Encodings.open(config.model)
    train, held_out = prompts.lists(config)
    texts = list(store.missing(chain(train, held_out, [config.model.negative_prompt])))
    if texts:
        display.phase(f"encoding {len(texts)} prompts into {store.folder}")
        pool = Pool(
            cls=Encoder,
            role="encoder",
            count=roles.rollouts(config),
            resources=actor_options(config.rollout),
            arguments=(config,),
            byte_counter=DriverByteCounter(),
            retry_policy=_retry_policy(config),
        )
        try:
            place_alone(pool, config.cluster.wait_seconds, display.note)
            pool.wait_ready()
            encode_missing(pool, store, texts, display.advance)
        finally:
            pool.stop()
    return len(texts)


@contextmanager
def started(
    config: Config, display: Display, learning: bool = True, run: str = ""
) -> Iterator[Callable[[Config], RayService]]:
    """Ray with all actors; gives what sets them up for a config of the same roles. Ends with the
    block."""
    from cluster import placement, session

    found = roles.begun(config, learning)
    wanted = {
        role: [placement.bundle(actor_options(one))] * count for role, (one, count) in found.items()
    }
    if session.target(config.cluster.address) == "local":
        placement.require_here(wanted)
    for line in prompt_check.notes(config):
        display.note(line)
    display.phase("starting Ray")
    connected = session.start(
        config.cluster.address,
        config.cluster.object_store_mb,
        config.cluster.dashboard,
        display.note,
    )
    with ExitStack() as ending:
        ending.callback(session.stop)
        for line in connected.notes():
            display.note(line)
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
        yield lambda other: made if other == config else configure(made, other)
