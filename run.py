"""Command line of branchgrpo: composes the method, its actors and the cluster, and starts them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from branchgrpo import config as configs
from branchgrpo import prompt_check, prompts, roles, run_folder, secrets
from branchgrpo.cli import QUICKSTART, REWARD_KEYS, WATCHING, parse
from branchgrpo.config import Config
from branchgrpo.errors import UserError
from branchgrpo.exits import exit_code
from branchgrpo.interruption import Interruption
from branchgrpo.metrics import check_sinks

if TYPE_CHECKING:
    from branchgrpo.compare import Comparison
    from branchgrpo.display import Display
    from branchgrpo.measured import Target
    from cluster.crew import Crew


MARK = 0.001
"""What each actor reserves of the custom resource that marks its nodes: any number of actors fits."""


def crew(config: Config, learning: bool = True, run: str = "") -> Crew:
    """The actors of one run, not formed yet. run: in whose name others find it; empty: nobody does."""
    import ray

    from actors.learner import Learner
    from actors.reward import RewardWorker
    from actors.rollout import RolloutWorker
    from cluster.crew import Crew
    from cluster.gang import Gang
    from cluster.meter import Meter
    from cluster.pool import Pool

    meter, patience, rollout, scorer, learner = Meter(), _patience(config), config.rollout, config.reward_workers, config.learner
    rollouts = Pool(RolloutWorker, "rollout", roles.rollouts(config), _resources(rollout), (config,), meter, patience, run)
    rewards = []
    for index, group in enumerate(config.reward_groups):
        resources = _resources(scorer, secrets.given(config.rewards[group[0]].runtime_env, f"rewards.{group[0]}.runtime_env"))
        rewards.append(Pool(RewardWorker, f"reward{index or ''}", scorer.workers, resources, (config, group), meter, patience, run))
    make = partial(_learner_arguments, config, ray.get)
    gangs = [Gang(Learner, "learner", learner.ranks, _resources(learner), make, meter, learner.deadlines, run)] if learning else []
    ranks = (1, learner.max_ranks) if config.checkpoint.kept else (learner.ranks, learner.ranks)  # their number changes at checkpoints
    limits = {"rollout": (rollout.min_workers, rollout.max_workers), "reward": (scorer.min_workers, scorer.max_workers), "learner": ranks}
    auto = rollout.workers == "auto"
    return Crew(rollouts, rewards, gangs, meter, limits, config.cluster.max_restarts, run, auto, rollout.request_workers)


def configure(made: Crew, config: Config) -> Crew:
    """All actors begin again with the untrained model, for a config of the same roles."""
    import ray

    for pool in made.pools:
        pool.renew(config, *pool.arguments[1:])
        pool.broadcast("configure", config)
    for gang in made.gangs:
        gang.make = partial(_learner_arguments, config, ray.get)
        gang.call("configure", config)
        made.chunks = gang.call("chunks")[0]
    return made


def _resources(role: Any, runtime_env: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A role's resources as Ray's actor options."""
    options: dict[str, Any] = {"num_cpus": role.cpus, "num_gpus": role.gpus}
    options |= {"resources": {role.resource: MARK}} if role.resource else {}
    return options | ({"runtime_env": runtime_env} if runtime_env else {})


def _patience(config: Config) -> Any:
    from cluster.pool import Patience

    options = config.cluster
    return Patience(options.task_timeout_seconds, options.straggler_factor, options.straggler_seconds, options.max_restarts, options.max_attempts)


def _learner_arguments(config: Config, fetch: Any, rank: int) -> tuple[Any, ...]:
    return config, rank, fetch


def check(config: Config, folder: Path | None = None) -> None:
    """What can be known to be wrong before anything starts. Raises UserError. folder: what is written, where it is not run.folder."""
    config.model.check()
    config.schedule()
    for index, reward in enumerate(config.rewards):
        reward.check()
        secrets.given(reward.runtime_env, f"rewards.{index}.runtime_env")
    check_sinks(config.run.wandb, config.run.mlflow)
    prompt_check.check(config)
    run_folder.check_folders(config, folder)


def encode(config: Config, display: Display) -> int:
    """Encode the prompts of a config with model.encode: precompute that are not encoded yet, on the rollout workers' resources; returns how many."""
    from actors.encoder import Encoder
    from branchgrpo.encodings import Encodings, encode_missing
    from cluster.admission import place_alone
    from cluster.meter import Meter
    from cluster.pool import Pool

    store = Encodings.open(config.model)
    train, held_out = prompts.lists(config)
    texts = list(store.missing(chain(train, held_out, [config.model.negative_prompt])))
    if texts:
        display.phase(f"encoding {len(texts)} prompts into {store.folder}")
        pool = Pool(Encoder, "encoder", roles.rollouts(config), _resources(config.rollout), (config,), Meter(), _patience(config))
        try:
            place_alone(pool, config.cluster.wait_seconds, display.note)
            pool.wait_ready()
            encode_missing(pool, store, texts, display.advance)
        finally:
            pool.stop()
    return len(texts)


@contextmanager
def started(config: Config, display: Display, learning: bool = True, run: str = "") -> Iterator[Callable[[Config], Crew]]:
    """Ray with all actors; gives what sets them up for a config of the same roles. Ends with the block."""
    from cluster import placement, session

    found = roles.begun(config, learning)
    wanted = {role: [placement.bundle(_resources(one))] * count for role, (one, count) in found.items()}
    if session.target(config.cluster.address) == "local":
        placement.require_here(wanted)
    for line in prompt_check.notes(config):
        display.note(line)
    display.phase("starting Ray")
    connected = session.start(config.cluster.address, config.cluster.object_store_mb, config.cluster.dashboard, display.note)
    with ExitStack() as ending:
        ending.callback(session.stop)
        for line in connected.notes():
            display.note(line)
        if config.model.precomputed:
            encode(config, display)
        made = crew(config, learning, run)
        ending.callback(made.stop)
        display.phase("placing " + ", ".join(f"{count} {role}" for role, (_, count) in found.items()))
        made.enter(config.cluster.wait_seconds, display.note)
        display.phase("loading models")
        made.form(display.note)
        yield lambda other: made if other == config else configure(made, other)


def train(config: Config, resume: str = "") -> int:
    """Train, evaluate before and after, write the run folder. Returns the exit code.

    resume: "auto" goes on with the newest run of this name and seed that was cut off, if there is one; a run folder with that one; a
    checkpoint's folder or URL begins a run there.
    """
    from branchgrpo.display import Display
    from branchgrpo.experiment import carry_out

    check(config)
    begun, interrupted = perf_counter(), Interruption()
    title = f"branchgrpo {config.run.name}"
    with run_folder.driving(config, resume) as driver, Display(title, config.run.iterations, config.metric, max_minutes=config.run.max_minutes) as display:
        with started(config, display, run=driver.folder.name) as form:
            seconds = perf_counter() - begun
            summary = carry_out(config, form(config), driver.folder, display, interrupted, seconds, None, driver.origin, driver.resumed, driver.lease)
        driver.ended = summary["stopped_by"]
    from rich.console import Console

    from branchgrpo.report import table

    Console().print(table(summary))
    return 0


def compare(base: Path, methods: list[str], seeds: int, budget: str, overrides: dict[str, str], folder: Path | None, gain: float | None) -> int:
    """Run methods one after another on one cluster, and write the tables and pictures."""
    from branchgrpo.compare import Budget, Comparison
    from branchgrpo.display import Display

    comparison = Comparison(base, methods, seeds, Budget.parse(budget), overrides, folder, gain)
    for config in comparison.configs.values():
        check(config, folder)
    interrupted, finished = Interruption(), True
    if comparison.open():
        first = next(iter(comparison.configs.values()))
        title, limit = "branchgrpo compare", first.run.max_minutes
        with run_folder.alone(comparison.folder), Display(title, first.run.iterations, first.metric, max_minutes=limit) as display:
            try:
                with started(first, display) as form:
                    finished = comparison.run(form, display, interrupted)
            except BaseException:  # what is finished is worth a table whatever ended the rest
                _table(comparison)
                raise
    print(_table(comparison))
    print(f"written to {comparison.folder}" + ("" if finished else "; interrupted: the same command goes on"))
    return 0 if finished else 130


def _table(comparison: Comparison) -> str:
    from branchgrpo.compare_report import write

    return write(comparison, next(iter(comparison.configs.values())).metric)


def evaluate(target: Target) -> int:
    """Measure a model as it is, and write eval.json and a picture to a folder of their own."""
    from branchgrpo.display import Display
    from branchgrpo.experiment import measure
    from branchgrpo.measured import prepared, written

    check(target.config)
    with prepared(target) as (config, folder):
        config.model.check()
        with Display("branchgrpo eval", 1, config.metric) as display, started(config, display, learning=False) as form:
            row, _ = measure(config, form(config), display, folder / "samples.png", target.name)
        written(target, folder, row)
    return 0


def encode_alone(config: Config) -> int:
    """The job behind `run.py encode`. Returns the exit code."""
    from branchgrpo.display import Display
    from cluster import session

    check(config)
    if not config.model.precomputed:
        raise UserError(f"model.encode: expected precompute, got {getattr(config.model, 'encode', 'inline')}: there is nothing to encode before training")
    with Display("branchgrpo encode", 1, config.metric) as display:
        display.phase("starting Ray")
        session.start(config.cluster.address, config.cluster.object_store_mb, config.cluster.dashboard, display.note)
        try:
            count = encode(config, display)
        finally:
            session.stop()
    print(f"{count} prompts encoded" if count else "all prompts were encoded already")
    return 0


def doctor(config: Config, address: str, as_json: bool) -> int:
    """Look at the cluster, or at this machine. Returns the exit code."""
    from rich.console import Console

    from branchgrpo import checks
    from cluster.doctor import Needs, diagnose, exit_code, listing, render

    needs = Needs(
        machine=checks.machine,
        own=checks.own(config),
        files=checks.files(config),
        folders=checks.folders(config),
        checkpoints=config.checkpoint.folder or config.run.folder,
        gpus=roles.gpus(config),
        object_store_mb=config.cluster.object_store_mb,
        published_bytes=checks.published(config),
        trained=checks.trained(config),
    )
    found = diagnose(config.cluster.address if address == "auto" else address, needs)
    found = {name: replace(one, text=secrets.masked_text(one.text), advice=secrets.masked_text(one.advice)) for name, one in found.items()}
    print(json.dumps(listing(found), indent=1)) if as_json else Console().print(render(found))
    return exit_code(found)


def serve_reward(found: Any, overrides: dict[str, str]) -> int:
    """The server behind `run.py serve-reward`; runs until it is told to end."""
    from branchgrpo.rewards.server import serve

    strange = [key for key in overrides if not key.startswith(REWARD_KEYS)]
    if strange:
        raise UserError(f"--{strange[0]}: expected --{REWARD_KEYS}KEY, a key of the reward")
    serve(
        configs.reward(found.name, {key.removeprefix(REWARD_KEYS): text for key, text in overrides.items()}, REWARD_KEYS),
        found.host,
        found.port,
        found.token_env,
        found.max_mb,
        found.threads,
        found.device,
        ready=lambda url: print(f"serving {found.name} at {url}", flush=True),
    )
    return 0


def main() -> int:
    """Exit codes: see branchgrpo/exits.py."""
    return exit_code(_command)


def _command() -> int:
    found, overrides = parse(sys.argv[1:])
    if found.command == "config" and found.schema:
        print(json.dumps(Config.model_json_schema(), indent=1))
        return 0
    if found.command == "compare":
        return compare(found.config, found.methods, found.seeds, found.budget, overrides, found.folder, found.gain)
    if found.command == "eval":
        from branchgrpo.measured import chosen

        return evaluate(chosen(found.folder, found.config, overrides, found.checkpoint, QUICKSTART))
    if found.command == "serve-reward":
        return serve_reward(found, overrides)
    if found.command in WATCHING:
        from cluster.watch import watch

        return watch(found)
    config = configs.load(found.config, overrides, found.preset)
    if found.command == "doctor":
        return doctor(config, found.address, found.json)
    if found.command == "prompts":
        from branchgrpo.prompt_report import report

        return report(config, found.json)
    if found.command == "encode":
        return encode_alone(config)
    if found.command == "config":
        print(configs.dump(config), end="")
        return 0
    return train(config, found.resume)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # torch's idle threads soon sleep: actors share cores, and spinning starves the others
    sys.exit(main())
