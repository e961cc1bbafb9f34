"""The commands report and runs: what run folders hold, for people."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from branchgrpo.config.schema import Config
    from branchgrpo.runs.listing import RunRow


def report_options(command: argparse.ArgumentParser) -> None:
    """Of the command report."""
    command.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders")
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the page goes (default: report.html in the run's folder; of several runs "
        "report-DIGEST.html beside the first)",
    )


def runs_options(command: argparse.ArgumentParser) -> None:
    """Of the command runs."""
    command.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        help="where run folders are, also deeper, such as those of comparisons (default: runs)",
    )
    command.add_argument("--json", action="store_true", help="for programs")


def report(found: argparse.Namespace) -> int:
    """Write the page and say where it is. Returns the exit code."""
    from branchgrpo.pages import written

    print(written.report(found.folders, found.out))
    return 0


def runs(found: argparse.Namespace) -> int:
    """List runs, the newest first. Returns the exit code."""
    from rich.console import Console

    from branchgrpo.runs.listing import listed

    if not found.folder.is_dir():
        raise UserError(f"runs: expected a folder, got {found.folder}")
    rows = listed(found.folder)
    if found.json:
        print(json.dumps([row.plain() for row in rows], indent=1))
    elif rows:
        console = Console()
        if not console.is_terminal:  # a file or a pipe has no width of its own
            console = Console(width=200)
        console.print(table(rows))
    else:
        print(f"no runs in {found.folder}")
    return 0


def table(rows: Sequence[RunRow]) -> Table:
    """Of runs, for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from branchgrpo.pages.run_page import change

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("run", overflow="fold", min_width=18)
    drawn.add_column("method", overflow="fold")
    drawn.add_column("seed", justify="right")
    drawn.add_column("iterations", justify="right")
    drawn.add_column("score, before → after", min_width=13)
    drawn.add_column("state", overflow="fold", min_width=11)
    for row in rows:
        planned = f"/{row.planned}" if row.planned else ""
        seed = "" if row.seed is None else str(row.seed)
        score = f"{row.metric} {change(row)}".strip()
        cells = (row.name, row.method, seed, f"{row.iterations}{planned}", score, row.state)
        drawn.add_row(*map(Text, cells))
    return drawn


def closing(config: Config, folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """The last lines of a run: what it came to, where to look, and three commands that may come
    next. summary: summary.json."""
    metric = summary["metric"]
    score = summary["held_out"][metric]
    lines = [f"{metric} {score['before']:.3f} → {score['after']:.3f} on held-out prompts"]
    page = folder / "report.html"
    if page.is_file():
        lines.append(f"look: {page}")
    return [*lines, "next:", *(f"  {line}" for line in _nexts(config, folder)[:3])]


def _nexts(config: Config, folder: Path) -> list[str]:
    """Commands, of which the first ones are told: what can be done with what the run has kept."""
    from shlex import quote

    from branchgrpo.runs.lease import read_object

    # as the run itself was called: outside of uv's environment there is no such command
    program = "uv run branchgrpo" if "UV_RUN_RECURSION_DEPTH" in os.environ else "branchgrpo"
    run, runs = quote(str(folder)), quote(str(folder.parent))
    held_out = read_object(folder / "held_out.json") or {}
    prompt = quote(str((held_out.get("prompts") or ["a prompt of yours"])[0]))
    weights = config.run.export != "none" or config.checkpoint.kept
    found = {
        f"{program} tree {run}": config.checkpoint.kept,
        f"{program} sample {run} {prompt}": weights and not config.model.pictures_taken[0],
        f"{program} eval {run}": weights,
        f"{program} report {run} OTHER_RUN": True,
        f"{program} runs {runs}": True,
    }
    return [line for line, possible in found.items() if possible]
