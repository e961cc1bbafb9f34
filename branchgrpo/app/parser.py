"""The command line: subcommands, their options, and dotted overrides of the config."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from branchgrpo import __version__
from branchgrpo.app import compare_options, report, sample, serve_reward
from branchgrpo.app.compare_options import preset_help
from branchgrpo.app.help_texts import DESCRIPTION, EPILOG
from branchgrpo.app.overrides import overrides, valued
from branchgrpo.config.kinds import suggestion
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART, names
from branchgrpo.config.tree import Node

WATCHING = ("status", "scale", "stop")
"""Commands about a run that goes on: no config, and --rollout means a count."""

PLAIN = (*WATCHING, "sample", "report", "runs")
"""Commands that take no keys of the config: --prompts is an option, and a=b may be a prompt, or a
folder."""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Subcommand with its options, and the dotted overrides. Raises UserError for anything else."""
    parser = argparse.ArgumentParser(
        "branchgrpo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"branchgrpo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (text, options, keys) in COMMANDS.items():
        options(commands.add_parser(name, help=text, description=text, epilog=keys))
    named = next((one for one in arguments if not one.startswith("-")), "")
    plain, found_keys = arguments, dict[str, str]()
    if named not in PLAIN:
        taking = [one for name, one in commands.choices.items() if name not in PLAIN]
        plain, found_keys = overrides(arguments, valued(taking))
    found, strange = parser.parse_known_args(plain or ["train"])
    if strange:
        hint = ""
        if named not in PLAIN:
            key = strange[0].lstrip("-").partition("=")[0]
            hint = suggestion(key, Node({}, ""), Config, "--")
        parser.error(f"unrecognized arguments: {' '.join(strange)}{hint}")
    if found.command is None:
        parser.error(f"expected a command: {', '.join(COMMANDS)}")
    if found.command == "scale" and found.rollout is found.reward is found.learner is None:
        parser.error("scale: expected at least one of --rollout, --reward, --learner")
    if found.command == "train" and (found.card or found.json) and not found.dry_run:
        parser.error("train: --card and --json are of --dry-run")
    if found.command == "compare":
        compare_options.check(parser, found)
    return found, found_keys


def _eval(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "folder", type=Path, help="a run folder, whatever it exported, or a pipeline folder"
    )
    command.add_argument(
        "--config",
        type=Path,
        help="model family, prompts and rewards: a YAML file, or a shipped config's name "
        "(default: the run's own config.yaml; else the quick start's)",
    )
    command.add_argument(
        "--checkpoint",
        type=int,
        metavar="N",
        help="of a run: the weights of iteration N's checkpoint",
    )


def _tree(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="a run folder")
    command.add_argument(
        "--iteration",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="one, or two to stand side by side, of which there are checkpoints; 0 is before "
        "training (default: 0 and the newest)",
    )
    command.add_argument(
        "--prompt",
        type=int,
        metavar="I",
        help="number of a prompt in the training list, from 0 (default: the first of the newest "
        "iteration)",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE.html", help="the page (default: in FOLDER/trees)"
    )


def _configured(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=QUICKSTART,
        help=f"a YAML file, or one of {', '.join(names())} (default: quickstart)",
    )
    command.add_argument("--preset", help=preset_help())


def _train(command: argparse.ArgumentParser) -> None:
    _configured(command)
    either = command.add_mutually_exclusive_group()
    either.add_argument(
        "--resume",
        default="",
        metavar="auto|FOLDER|CHECKPOINT",
        help="go on with the newest run of this name that was cut off, if there is one; or "
        "with this run folder; or begin at this checkpoint",
    )
    either.add_argument(
        "--smoke",
        action="store_true",
        help="only try it: one iteration of everything with a small random model of the same "
        "family, on this machine",
    )
    either.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would need, and start nothing: memory by role, GPUs, work and "
        "seconds; exit code 1 when it does not fit",
    )
    _card(command)
    command.add_argument("--json", action="store_true", help="of --dry-run, for programs")


def _card(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--card",
        default="",
        metavar="NAME",
        help="GPU that memory and seconds are estimated for, as h100, a100-40gb, rtx4090 "
        "(default: the one that is here)",
    )


def _prompts(command: argparse.ArgumentParser) -> None:
    _configured(command)
    command.add_argument("--json", action="store_true", help="for programs")


def _doctor(command: argparse.ArgumentParser) -> None:
    _configured(command)
    _card(command)
    _connecting(command)


def _config(command: argparse.ArgumentParser) -> None:
    _configured(command)
    command.add_argument(
        "--schema",
        action="store_true",
        help="print the JSON schema instead: every key, its meaning and default",
    )


def _connecting(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address",
        default="auto",
        help="HOST:PORT of Ray's GCS (default: RAY_ADDRESS, else the Ray on this machine)",
    )
    command.add_argument("--json", action="store_true", help="for programs")


def _watching(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run",
        default="",
        metavar="NAME",
        help="name of its run folder, or how that begins (default: the only run)",
    )
    _connecting(command)


def _scale(command: argparse.ArgumentParser) -> None:
    _watching(command)
    for role, what in (("rollout", "workers"), ("reward", "workers"), ("learner", "ranks")):
        command.add_argument(f"--{role}", type=int, metavar="COUNT", help=f"{role} {what}")
    command.add_argument("--wait", action="store_true", help="until they are ready")
    command.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="longest wait (default: 600)",
    )


def _new(command: argparse.ArgumentParser) -> None:
    command.add_argument("kind", choices=("reward", "method", "model"))
    command.add_argument("name", metavar="NAME", help="of the module: NAME.py and test_NAME.py")


KEYS = "any key of the config can be set: --dotted.key VALUE, or dotted.key=VALUE"
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], str | None]] = {
    "train": ("train a model", _train, KEYS),
    "compare": (
        "run several methods on the same prompts, seeds, reward and evaluation; the same command "
        "again goes on where it stopped",
        compare_options.add,
        KEYS,
    ),
    "eval": (
        "measure a run's weights, one of its checkpoints, or a model folder: held-out scores with "
        "intervals, diversity, pictures",
        _eval,
        KEYS,
    ),
    "tree": (
        "grow a run's trees again and look at them: a page and a PNG with pictures, rewards and "
        "advantages",
        _tree,
        KEYS,
    ),
    "sample": (
        "draw prompts of your own with a run's weights, or one of its checkpoints'",
        sample.add,
        None,
    ),
    "encode": (
        "encode all prompts once, where model.encode is precompute; goes on where it stopped",
        _configured,
        KEYS,
    ),
    "prompts": (
        "what was read of the prompt files, and what a run could not use; exit code 2 then",
        _prompts,
        KEYS,
    ),
    "serve-reward": (
        "score pictures for other environments or machines over HTTP (docs/remote-rewards.md)",
        serve_reward.add,
        "any key of the reward can be set: --reward.KEY VALUE",
    ),
    "status": ("what a run that goes on is doing", _watching, None),
    "scale": (
        "change a run's workers while it trains; learners follow at the next checkpoint",
        _scale,
        None,
    ),
    "stop": (
        "end a run after the present iteration: it saves a checkpoint and writes what it reached",
        _watching,
        None,
    ),
    "doctor": (
        "is the cluster, or this machine, fit for a run? Exit code 1 when something is wrong",
        _doctor,
        KEYS,
    ),
    "runs": (
        "list runs: method, seed, iterations, held-out score before and after, state",
        report.runs_options,
        None,
    ),
    "report": (
        "write the page of a run, report.html, or one that compares several",
        report.report_options,
        None,
    ),
    "config": ("print the resolved config, or its schema", _config, KEYS),
    "new": (
        "write a component of your own and its test into this folder (docs/plugins.md)",
        _new,
        None,
    ),
}
"""Each command: what it does, its options, and what else its arguments may be."""
