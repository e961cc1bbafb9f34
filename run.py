"""Command line of branchgrpo: composes the method, its actors and the cluster, and starts them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from branchgrpo import config as configs
from branchgrpo import prompts
from branchgrpo.config import Config
from branchgrpo.errors import GateError, UserError

if TYPE_CHECKING:
    from branchgrpo.compare import Comparison
    from branchgrpo.display import Display

ROOT = Path(__file__).resolve().parent
QUICKSTART = ROOT / "configs" / "quickstart.yaml"

DESCRIPTION = """Align text-to-image models with human preference by BranchGRPO, on Ray.

Without arguments: train the embedded model on the quick-start config, about 5 minutes on two cores."""

EPILOG = """examples:
  run.py train                                              the quick start
  run.py train --preset branchgrpo                          another method: the paper's full tree
  run.py compare dancegrpo branchgrpo branchgrpo-splits --seeds 3 --budget 4m
  run.py eval runs/quickstart-20261121-120000               the scores of a saved model
  run.py train my.yaml --run.seed 1 --rollout.workers 8     any key of a config, dotted
  run.py config my.yaml                                     the resolved config
  run.py config --schema                                    every key, its meaning and default (JSON schema)
"""


class Service:
    """The actors of one run. Satisfies branchgrpo.service.Service, without learners where nothing is trained."""

    def __init__(self, config: Config, learning: bool = True):
        import ray

        from actors.learner import Learner
        from actors.reward import RewardWorker
        from actors.rollout import RolloutWorker
        from cluster.gang import Gang
        from cluster.pool import Meter, Pool

        self.meter, self.config = Meter(), config
        timeout = config.cluster.task_timeout_seconds
        rollout, reward, learner = config.rollout, config.reward_workers, config.learner
        self.rollouts = Pool(RolloutWorker, "rollout", rollout.workers, rollout.cpus, rollout.gpus, (config,), self.meter, timeout)
        self.rewards = Pool(RewardWorker, "reward", reward.workers, reward.cpus, reward.gpus, (config,), self.meter, timeout)
        make, self.gangs = partial(_learner_arguments, config, ray.get), []
        if learning:
            self.learners = Gang(Learner, "learner", learner.ranks, learner.cpus, learner.gpus, make, self.meter, learner.timeout_seconds)
            self.gangs = [self.learners]

    def form(self) -> None:
        """Wait until every actor has loaded its models."""
        self.rollouts.wait_ready()
        self.rewards.wait_ready()
        for gang in self.gangs:
            gang.form()
            self.chunks = gang.call("chunks")[0]

    def configure(self, config: Config) -> Service:
        """All actors begin again with the untrained model, for a config of the same roles."""
        if config == self.config:
            return self
        self.config = config
        for pool in (self.rollouts, self.rewards):
            pool.broadcast("configure", config)
        for gang in self.gangs:
            gang.call("configure", config)
            self.chunks = gang.call("chunks")[0]
        return self

    def publish(self, weights: str = "policy") -> int:
        """Weights of the learners, or their exponential mean, to every rollout worker; returns their version."""
        from cluster.publish import publish

        return publish(self.learners, self.rollouts, self.chunks, weights)

    def driver_bytes(self) -> int:
        """Bytes through the driver since the last call."""
        return self.meter.take()


def _learner_arguments(config: Config, fetch: Any, rank: int) -> tuple[Any, ...]:
    return config, rank, fetch


def check(config: Config) -> None:
    """What can be known to be wrong before anything starts. Raises UserError."""
    config.model.check()
    train, held_out = prompts.read("prompts", config.prompts), prompts.read("held_out", config.held_out)
    prompts.deal(len(train), config.rollout.prompts, 0, config.run.seed)
    wanted = max(config.evaluation.prompts, config.evaluation.pictures, config.evaluation.diversity)
    if len(held_out) < wanted:
        raise UserError(f"held_out: expected at least {wanted} prompts for evaluation, got {len(held_out)} in {config.held_out}")
    for reward in config.rewards:
        reward.check_prompts(train + held_out)


@contextmanager
def started(config: Config, display: Display, learning: bool = True) -> Iterator[Callable[[Config], Service]]:
    """Ray with all actors; gives what sets them up for a config of the same roles. Ends with the block."""
    from cluster import placement, session

    display.phase("starting Ray")
    connected = session.start(config.cluster.address, config.cluster.object_store_mb, config.cluster.dashboard)
    try:
        if connected.dashboard:
            display.note(f"Ray dashboard: {connected.dashboard}")
        roles = {"rollout": (config.rollout, config.rollout.workers), "reward": (config.reward_workers, config.reward_workers.workers)}
        roles |= {"learner": (config.learner, config.learner.ranks)} if learning else {}
        placement.require({role: [placement.bundle(one.cpus, one.gpus)] * count for role, (one, count) in roles.items()}, config.cluster.wait_seconds)
        display.phase("loading models: " + ", ".join(f"{count} {role}" for role, (_, count) in roles.items()))
        service = Service(config, learning)
        service.form()
        yield service.configure
    finally:
        session.stop()


def train(config: Config) -> int:
    """Train, evaluate before and after, write the run folder. Returns the exit code."""
    from branchgrpo.display import Display
    from branchgrpo.experiment import carry_out

    check(config)
    begun, interrupted = perf_counter(), Interruption()
    folder = Path(config.run.folder) / f"{config.run.name}-{datetime.now():%Y%m%d-%H%M%S}"
    with Display(f"branchgrpo {config.run.name}", config.run.iterations, config.metric, max_minutes=config.run.max_minutes) as display:
        with started(config, display) as form:
            summary = carry_out(config, form(config), folder, display, interrupted, perf_counter() - begun)
    from rich.console import Console

    from branchgrpo.report import table

    Console().print(table(summary))
    return 0


def compare(base: Path, methods: list[str], seeds: int, budget: str, overrides: dict[str, str], folder: Path | None) -> int:
    """Run methods one after another on one cluster, and write the tables and pictures."""
    from branchgrpo.compare import Budget, Comparison
    from branchgrpo.display import Display

    comparison = Comparison(base, methods, seeds, Budget.parse(budget), overrides, folder)
    for config in comparison.configs.values():
        check(config)
    interrupted, finished = Interruption(), True
    if comparison.open():
        first = next(iter(comparison.configs.values()))
        with Display("branchgrpo compare", first.run.iterations, first.metric, max_minutes=first.run.max_minutes) as display:
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


def evaluate(config: Config) -> int:
    """Measure a model as it is, and write eval.json and a picture to a folder of their own."""
    from branchgrpo.display import Display
    from branchgrpo.experiment import measure

    check(config)
    folder = Path(config.run.folder) / f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    with Display("branchgrpo eval", 1, config.metric) as display, started(config, display, learning=False) as form:
        folder.mkdir(parents=True)
        row, _ = measure(config, form(config), display, folder / "samples.png")
    (folder / "eval.json").write_text(json.dumps({"model": config.model.path} | row, indent=1) + "\n", encoding="utf-8")
    for name, value in (row["held_out"] | ({"diversity": row["diversity"]} if row["diversity"] else {})).items():
        print(f"{name:16} {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}] of {value['n']} prompts")
    print(f"written to {folder}")
    return 0


class Interruption:
    """The first Ctrl-C or SIGTERM ends training after the iteration in flight, the second ends the program."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        del frame
        if self.asked:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.asked = True
        print("\nfinishing this iteration, then writing what was reached; once more ends at once", file=sys.stderr)

    def __call__(self) -> bool:
        return self.asked


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Subcommand with its options, and the dotted overrides. Raises UserError for anything else."""
    parser = argparse.ArgumentParser("run.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    texts = {
        "train": "train a model",
        "compare": "run several methods on the same prompts, seeds, reward and evaluation; the same command again goes on where it stopped",
        "eval": "measure a model folder as it is: held-out scores with intervals, diversity, pictures",
        "config": "print the resolved config, or its schema",
    }
    preset = f"a method: {', '.join(configs.presets())}; or a YAML file of such keys"
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text, epilog="any key of the config can be set: --dotted.key VALUE")
        if name == "compare":
            command.add_argument("methods", nargs="+", metavar="METHOD", help=preset)
            command.add_argument("--seeds", type=int, default=1, help="runs of each method, seeds 0, 1, … (default: 1)")
            command.add_argument("--budget", default="50", help="training of each run: iterations (50), seconds (240s) or minutes (4m) (default: 50)")
            command.add_argument("--folder", type=Path, help="where it is kept (default: runs/compare-DIGEST of the request)")
            command.add_argument("--config", type=Path, default=QUICKSTART, help="model, prompts and rewards (default: the quick start's)")
            continue
        if name == "eval":
            command.add_argument("folder", type=Path, help="a pipeline folder, or a run folder with weights/")
            command.add_argument("--config", type=Path, default=QUICKSTART, help="model family, prompts and rewards (default: the quick start's)")
            continue
        command.add_argument("config", nargs="?", type=Path, default=QUICKSTART, help="a YAML file (default: the quick start)")
        command.add_argument("--preset", help=preset)
        if name == "config":
            command.add_argument("--schema", action="store_true", help="print the JSON schema instead: every key, its meaning and default")
    plain, overrides = _overrides(arguments)
    found = parser.parse_args(plain or ["train"])
    if found.command is None:
        parser.error(f"expected a command: {', '.join(texts)}")
    if found.command == "compare" and found.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {found.seeds}")
    return found, overrides


def _overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--dotted.key value` and `--dotted.key=value` out of the arguments."""
    plain: list[str] = []
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--") or not ("." in key or key[2:] in Config.model_fields):
            plain.append(key + equals + value)
            continue
        if not equals:
            if not rest:
                raise UserError(f"command line: expected a value after {key}")
            value = rest.pop(0)
        overrides[key[2:]] = value
    return plain, overrides


def main() -> int:
    """Exit codes: 0 done, 1 internal failure (with its trace), 2 bad input or missing resources (one line), 130 interrupted."""
    try:
        found, overrides = parse(sys.argv[1:])
        if found.command == "config" and found.schema:
            print(json.dumps(Config.model_json_schema(), indent=1))
            return 0
        if found.command == "compare":
            return compare(found.config, found.methods, found.seeds, found.budget, overrides, found.folder)
        if found.command == "eval":
            weights = found.folder / "weights" if (found.folder / "weights").is_dir() else found.folder
            return evaluate(configs.load(found.config, {"evaluation.diversity": "32", **overrides, "model.path": json.dumps(str(weights))}))
        config = configs.load(found.config, overrides, found.preset)
        if found.command == "config":
            print(configs.dump(config), end="")
            return 0
        return train(config)
    except (UserError, GateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if type(error).__name__ != "PlacementError":  # named, not imported: cluster needs Ray, which `config` must not load
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # torch's idle threads soon sleep: actors share cores, and spinning starves the others
    sys.exit(main())
