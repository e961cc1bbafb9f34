"""The command line: subcommands, their options, and dotted overrides of the config."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from branchgrpo import __version__
from branchgrpo.config.kinds import closest, fields, suggestion
from branchgrpo.config.references import FORMS
from branchgrpo.config.registry import REWARDS
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART, names, presets
from branchgrpo.config.tree import Node
from branchgrpo.errors import UserError

CONFIG_KEYS = list(fields(Config))
"""Keys of a config at its top."""

REWARD_KEYS = "reward."
"""Begins the overrides of serve-reward, which name keys of the reward itself."""

WATCHING = ("status", "scale", "stop")
"""Commands about a run that goes on: no config, and --rollout means a count."""

DESCRIPTION = """Align text-to-image models with human preference by BranchGRPO, on Ray.

Without arguments: train the embedded model on the quick-start config, about 5 minutes on two
cores."""

EPILOG = """examples:
  branchgrpo train                  the quick start
  branchgrpo train --preset branchgrpo
                                    another method: the paper's full tree
  branchgrpo compare dancegrpo branchgrpo branchgrpo-splits --seeds 3 --budget 4m
  branchgrpo eval runs/quickstart-20261121-120000
                                    the scores of a run's weights
  branchgrpo train my.yaml --run.seed 1 rollout.workers=8
                                    any key of a config, dotted; lists: --method.splits 3,6,9,12
  branchgrpo encode my.yaml         encode all prompts once, where model.encode is precompute
  branchgrpo prompts my.yaml        what was read of its prompt files: counts, examples, what
                                    rewards refuse
  branchgrpo serve-reward ocr --port 8600
                                    a reward behind HTTP, for another environment or machine
  branchgrpo status                 what the run on this cluster is doing; --json for programs
  branchgrpo scale --rollout 6 --wait
                                    more rollout workers while it trains
  branchgrpo stop                   end it after the present iteration, with a checkpoint
  branchgrpo doctor my.yaml         is this cluster, or this machine, fit for that config?
  branchgrpo config my.yaml         the resolved config
  branchgrpo new reward warmth      a reward of your own, warmth.py, and its test
  branchgrpo config --schema        every key, its meaning and default (JSON schema)
"""


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
    texts = {
        "train": "train a model",
        "compare": (
            "run several methods on the same prompts, seeds, reward and evaluation; the "
            "same command again goes on where it stopped"
        ),
        "eval": (
            "measure a run's weights, one of its checkpoints, or a model folder: held-out "
            "scores with intervals, diversity, pictures"
        ),
        "encode": (
            "encode all prompts once, where model.encode is precompute; goes on where it stopped"
        ),
        "prompts": (
            "what was read of the prompt files, and what a run could not use; exit code 2 then"
        ),
        "serve-reward": (
            "score pictures for other environments or machines over HTTP (docs/remote-rewards.md)"
        ),
        "status": "what a run that goes on is doing",
        "scale": "change a run's workers while it trains; learners follow at the next checkpoint",
        "stop": (
            "end a run after the present iteration: it saves a checkpoint and writes what "
            "it reached"
        ),
        "doctor": (
            "is the cluster, or this machine, fit for a run? Exit code 1 when something is wrong"
        ),
        "config": "print the resolved config, or its schema",
        "new": "write a component of your own and its test into this folder (docs/plugins.md)",
    }
    preset = f"a method: {', '.join(presets())}; or a YAML file of such keys"
    for name, text in texts.items():
        if name == "serve-reward":
            _serve_reward(
                commands.add_parser(
                    name,
                    help=text,
                    description=text,
                    epilog="any key of the reward can be set: --reward.KEY VALUE",
                )
            )
            continue
        if name == "new":
            _new(commands.add_parser(name, help=text, description=text))
            continue
        if name in WATCHING:
            _watching(name, commands.add_parser(name, help=text, description=text))
            continue
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog="any key of the config can be set: --dotted.key VALUE, or dotted.key=VALUE",
        )
        if name == "compare":
            command.add_argument("methods", nargs="+", metavar="METHOD", help=preset)
            command.add_argument(
                "--seeds",
                type=int,
                default=1,
                help="runs of each method, seeds 0, 1, … (default: 1)",
            )
            command.add_argument(
                "--budget",
                default="50",
                help="training of each run: iterations (50), seconds (240s) or minutes (4m) "
                "(default: 50)",
            )
            text = (
                "gain of the held-out reward whose time counts, named before the runs "
                "(default: half of the best method's)"
            )
            command.add_argument("--gain", type=float, help=text)
            command.add_argument(
                "--folder",
                type=Path,
                help="where it is kept (default: runs/compare-DIGEST of the request)",
            )
            command.add_argument(
                "--config",
                type=Path,
                default=QUICKSTART,
                help="model, prompts and rewards: a YAML file, or a shipped config's name "
                "(default: the quick start's)",
            )
            continue
        if name == "eval":
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
            continue
        command.add_argument(
            "config",
            nargs="?",
            type=Path,
            default=QUICKSTART,
            help=f"a YAML file, or one of {', '.join(names())} (default: quickstart)",
        )
        command.add_argument("--preset", help=preset)
        if name == "doctor":
            _connecting(command)
        if name == "prompts":
            command.add_argument("--json", action="store_true", help="for programs")
        if name == "train":
            text = (
                "go on with the newest run of this name that was cut off, if there is one; or "
                "with this run folder; or begin at this checkpoint"
            )
            command.add_argument(
                "--resume", default="", metavar="auto|FOLDER|CHECKPOINT", help=text
            )
        if name == "config":
            command.add_argument(
                "--schema",
                action="store_true",
                help="print the JSON schema instead: every key, its meaning and default",
            )
    watching = (
        next((argument for argument in arguments if not argument.startswith("-")), "") in WATCHING
    )
    plain, overrides = (
        (arguments, {}) if watching else _overrides(arguments, _valued(commands.choices.values()))
    )
    found, strange = parser.parse_known_args(plain or ["train"])
    if strange:
        hint = (
            ""
            if watching
            else suggestion(strange[0].lstrip("-").partition("=")[0], Node({}, ""), Config, "--")
        )
        parser.error(f"unrecognized arguments: {' '.join(strange)}{hint}")
    if found.command is None:
        parser.error(f"expected a command: {', '.join(texts)}")
    if found.command == "scale" and found.rollout is found.reward is found.learner is None:
        parser.error("scale: expected at least one of --rollout, --reward, --learner")
    if found.command == "compare" and found.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {found.seeds}")
    return found, overrides


def _connecting(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address",
        default="auto",
        help="HOST:PORT of Ray's GCS (default: RAY_ADDRESS, else the Ray on this machine)",
    )
    command.add_argument("--json", action="store_true", help="for programs")


def _watching(name: str, command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run",
        default="",
        metavar="NAME",
        help="name of its run folder, or how that begins (default: the only run)",
    )
    _connecting(command)
    if name == "scale":
        for role in ("rollout", "reward", "learner"):
            command.add_argument(
                f"--{role}",
                type=int,
                metavar="COUNT",
                help=f"{role} {'ranks' if role == 'learner' else 'workers'}",
            )
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


def _serve_reward(command: argparse.ArgumentParser) -> None:
    known = f"{', '.join(REWARDS.shipped)}; or {FORMS}"
    command.add_argument("name", metavar="NAME", help=f"a reward: {known}")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; others than this machine's own need a token (default: "
        "127.0.0.1)",
    )
    command.add_argument("--port", type=int, default=8600, help="0 = any free one (default: 8600)")
    command.add_argument(
        "--token-env",
        default="",
        metavar="VARIABLE",
        help="environment variable with the token that clients must send (default: none)",
    )
    command.add_argument("--max-mb", type=int, default=256, help="largest request (default: 256)")
    command.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    command.add_argument("--device", default="cpu", help="torch device (default: cpu)")


def _valued(commands: Iterable[argparse.ArgumentParser]) -> set[str]:
    """Options of these commands that take a value."""
    return {
        name
        for command in commands
        for action in command._actions
        if action.nargs != 0
        for name in action.option_strings
    }


def _overrides(arguments: list[str], valued: set[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--dotted.key value`, `--dotted.key=value` and `dotted.key=value` out of the arguments;
    `valued` are the other options with a value."""
    plain: list[str] = []
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        key, equals, value = first.partition("=")
        if first in valued and rest:
            plain += [first, rest.pop(0)]
            continue
        if equals and _names_key(key) and not Path(first).exists():
            overrides[key] = value
            continue
        if not key.startswith("--") or not ("." in key or key[2:] in CONFIG_KEYS):
            plain.append(first)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                begins = f" ({key}=VALUE where it begins with --)" if rest else ""
                raise UserError(f"command line: expected a value after {key}{begins}")
            value = rest.pop(0)
        overrides[key[2:]] = value
    return plain, overrides


def _names_key(text: str) -> bool:
    """Is this, without dashes, meant as a key of the config, or of a reward that is served?"""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", text):
        return False
    first, dot, _ = text.partition(".")
    return first in CONFIG_KEYS or bool(
        dot and (first + dot == REWARD_KEYS or closest(first, CONFIG_KEYS))
    )
