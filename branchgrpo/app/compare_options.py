"""Options of the command compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from branchgrpo.config.shipped import QUICKSTART, presets


def preset_help() -> str:
    """What may name a method."""
    return f"a method: {', '.join(presets())}; or a YAML file of such keys"


def add(command: argparse.ArgumentParser) -> None:
    """To the command."""
    command.add_argument("methods", nargs="+", metavar="METHOD", help=preset_help())
    command.add_argument(
        "--seeds", type=int, default=1, help="runs of each method, seeds 0, 1, … (default: 1)"
    )
    command.add_argument(
        "--budget",
        default="50",
        help="training of each run: iterations (50), seconds (240s) or minutes (4m) (default: 50)",
    )
    command.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FILE.yaml|KEY=V1,V2",
        help="tune each method before, on training prompts alone: dotted keys with values, all "
        "combinations of which are tried; the best goes into the comparison; may be repeated",
    )
    command.add_argument(
        "--grid-seeds", type=int, default=1, help="runs of each combination (default: 1)"
    )
    command.add_argument(
        "--grid-budget", default="", help="training of each of these runs (default: --budget)"
    )
    command.add_argument(
        "--gain",
        type=float,
        help="gain of the held-out reward whose time counts, named before the runs (default: half "
        "of the best method's)",
    )
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


def check(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """End the program for options that don't go together."""
    for option in ("seeds", "grid_seeds"):
        if (count := getattr(found, option)) < 1:
            parser.error(f"--{option.replace('_', '-')}: expected at least 1, got {count}")
    if not found.grid and (found.grid_budget or found.grid_seeds != 1):
        parser.error("compare: --grid-seeds and --grid-budget are of --grid")
