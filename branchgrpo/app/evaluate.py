"""The command eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.app.check import check

if TYPE_CHECKING:
    from branchgrpo.runs.measured import Target


def evaluate(target: Target) -> int:
    """The command eval. Returns the exit code."""
    from branchgrpo.runs.measured import listing

    folder, row = evaluated(target)
    print(f"{listing(row)}\nwritten to {folder}")
    return 0


def evaluated(target: Target, quiet: bool = False) -> tuple[Path, dict[str, Any]]:
    """Measure a model as it is, and write eval.json and a picture to a folder of their own. Returns
    the folder and what eval.json holds."""
    from rich.console import Console

    from branchgrpo.report.terminal import Display
    from branchgrpo.runs.measured import prepared, write
    from branchgrpo.training.carry_out import measure

    check(target.config)
    from branchgrpo.app.roles import without_learners
    from branchgrpo.app.service import started

    with prepared(target) as (config, folder):
        config = without_learners(config)
        config.model.check()
        console = Console(quiet=quiet)
        with (
            Display("branchgrpo eval", 1, config.metric, console=console) as display,
            started(config, display, learning=False) as form,
        ):
            row, _ = measure(
                config,
                service=form(config),
                display=display,
                picture=folder / "samples.png",
                title=target.name,
            )
        return folder, write(target, folder, row)
