"""Command line of branchgrpo: composes the method, its actors and the cluster, and starts them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
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
    from branchgrpo.display import Display
    from branchgrpo.trainer import Outcome, Scores, Trainer

ROOT = Path(__file__).resolve().parent
QUICKSTART = ROOT / "configs" / "quickstart.yaml"

DESCRIPTION = """Align text-to-image models with human preference by BranchGRPO, on Ray.

Without arguments: train the embedded model on the quick-start config, about 5 minutes on two cores."""

EPILOG = """examples:
  run.py train                                              the quick start
  run.py train --method.stochastic all --method.splits "[0, 3, 6, 9]"    the paper's full tree
  run.py train my.yaml --run.seed 1 --rollout.workers 8     any key of a config, dotted
  run.py config my.yaml                                     the resolved config
  run.py config --schema                                    every key, its meaning and default (JSON schema)
"""


class Service:
    """The actors of one run. Satisfies branchgrpo.service.Service."""

    def __init__(self, config: Config):
        import ray

        from actors.learner import Learner
        from actors.reward import RewardWorker
        from actors.rollout import RolloutWorker
        from cluster.gang import Gang
        from cluster.pool import Meter, Pool

        self.meter = Meter()
        timeout = config.cluster.task_timeout_seconds
        rollout, reward, learner = config.rollout, config.reward_workers, config.learner
        self.rollouts = Pool(RolloutWorker, "rollout", rollout.workers, rollout.cpus, rollout.gpus, (config,), self.meter, timeout)
        self.rewards = Pool(RewardWorker, "reward", reward.workers, reward.cpus, reward.gpus, (config,), self.meter, timeout)
        make = partial(_learner_arguments, config, ray.get)
        self.learners = Gang(Learner, "learner", learner.ranks, learner.cpus, learner.gpus, make, self.meter, learner.timeout_seconds)

    def form(self) -> None:
        """Wait until every actor has loaded its models."""
        self.rollouts.wait_ready()
        self.rewards.wait_ready()
        self.learners.form()
        self.chunks = self.learners.call("chunks")[0]

    def publish(self) -> int:
        """Weights of the learners to every rollout worker; returns their version."""
        from cluster.publish import publish

        return publish(self.learners, self.rollouts, self.chunks)

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
    wanted = max(config.evaluation.prompts, config.evaluation.pictures)
    if len(held_out) < wanted:
        raise UserError(f"held_out: expected at least {wanted} prompts for evaluation, got {len(held_out)} in {config.held_out}")
    for reward in config.rewards:
        reward.check_prompts(train + held_out)


def train(config: Config) -> int:
    """Train, evaluate before and after, write the run folder. Returns the exit code."""
    from branchgrpo.display import Display
    from cluster import placement, session

    check(config)
    begun, interrupted = perf_counter(), Interruption()
    name = f"{config.run.name}-{datetime.now():%Y%m%d-%H%M%S}"
    with Display(f"branchgrpo {config.run.name}", config.run.iterations, config.metric, max_minutes=config.run.max_minutes) as display:
        display.phase("starting Ray")
        connected = session.start(config.cluster.address, config.cluster.object_store_mb, config.cluster.dashboard)
        try:
            if connected.dashboard:
                display.note(f"Ray dashboard: {connected.dashboard}")
            roles = {"rollout": (config.rollout, config.rollout.workers), "reward": (config.reward_workers, config.reward_workers.workers)}
            roles["learner"] = (config.learner, config.learner.ranks)
            placement.require({role: [placement.bundle(one.cpus, one.gpus)] * count for role, (one, count) in roles.items()}, config.cluster.wait_seconds)
            display.phase("loading models: " + ", ".join(f"{count} {role}" for role, (_, count) in roles.items()))
            service = Service(config)
            service.form()
            return _run(config, service, display, name, begun, interrupted)
        finally:
            session.stop()


def _run(config: Config, service: Service, display: Display, name: str, begun: float, interrupted: Interruption) -> int:
    """Everything between start-up and shutdown: before, training, after."""
    from branchgrpo.metrics import MetricsLog, read
    from branchgrpo.trainer import Trainer

    folder = Path(config.run.folder) / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    trainer = Trainer(config, service, name, display, interrupted)
    seconds = {"start_up": perf_counter() - begun}
    pictures = min(config.evaluation.pictures, config.evaluation.prompts)
    display.phase(f"held-out check before training: {config.evaluation.prompts} prompts")
    started = perf_counter()
    before, pixels = trainer.evaluate(config.evaluation.prompts, pictures)
    seconds["evaluation_before"] = perf_counter() - started
    _sheet(config, trainer, folder / "samples" / "before.png", before, pixels, "before training")
    with MetricsLog(folder) as log:
        start = {f"held_out/{key}": float(values[: config.evaluation.prompts_between].mean()) for key, values in before.items()}
        log.write(0, start)
        display.update(0, start)
        display.phase("training")
        started = perf_counter()
        outcome = trainer.train(log)
        seconds["training"] = perf_counter() - started
        display.phase("held-out check after training")
        started = perf_counter()
        after, pixels = trainer.evaluate(config.evaluation.prompts, pictures)
        seconds["evaluation_after"] = perf_counter() - started
        end = {f"held_out/{key}": float(values[: config.evaluation.prompts_between].mean()) for key, values in after.items()}
        log.write(outcome.iterations, end)
    _sheet(config, trainer, folder / "samples" / "after.png", after, pixels, f"after {outcome.iterations} iterations")
    if config.run.export == "pipeline":
        display.phase("writing weights")
        service.learners.call("save", (folder / "weights").resolve())
    _report(config, folder, before, after, read(folder / "metrics.jsonl"), seconds, outcome, display)
    return 0


def _sheet(config: Config, trainer: Trainer, path: Path, scores: Scores, pixels: Any, title: str) -> None:
    """A contact sheet of the first held-out prompts."""
    from branchgrpo.report import pictures

    path.parent.mkdir(exist_ok=True)
    pictures(path, pixels, trainer.held_out[: len(pixels)], scores[config.metric][: len(pixels)], config.metric, title)


def _report(
    config: Config, folder: Path, before: Scores, after: Scores, records: list[dict[str, Any]], seconds: dict[str, float], outcome: Outcome, display: Display
) -> None:
    """curve.png, summary.json, and the table at the end."""
    from rich.console import Console

    from branchgrpo import report

    display.phase("drawing the curve")
    title = f"{config.run.name}, seed {config.run.seed}"
    report.curve(folder / "curve.png", records, config.metric, title)
    summary = report.summary(config.run.name, config.run.seed, before, after, config.metric, records, seconds, outcome.stopped_by)
    summary["gates"] = outcome.gates
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    display.note(f"run folder: {folder}")
    Console().print(report.table(summary))


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
    for name, text in (("train", "train a model"), ("config", "print the resolved config, or its schema")):
        command = commands.add_parser(name, help=text, description=text, epilog="any key of the config can be set: --dotted.key VALUE")
        command.add_argument("config", nargs="?", type=Path, default=QUICKSTART, help="a YAML file (default: the quick start)")
        if name == "config":
            command.add_argument("--schema", action="store_true", help="print the JSON schema instead: every key, its meaning and default")
    plain, overrides = _overrides(arguments)
    found = parser.parse_args(plain or ["train"])
    if found.command is None:
        parser.error("expected a command: train or config")
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
        config = configs.load(found.config, overrides)
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
    sys.exit(main())
