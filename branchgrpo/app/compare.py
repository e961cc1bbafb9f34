"""The command compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from branchgrpo.app.check import check
from branchgrpo.app.interruption import Interruption
from branchgrpo.runs import folder as run_folder

if TYPE_CHECKING:
    from branchgrpo.comparison.runs import Comparison


def compare(
    base: Path,
    methods: list[str],
    seeds: int,
    budget: str,
    overrides: dict[str, str],
    folder: Path | None,
    gain: float | None,
    grid: Sequence[str] = (),
    grid_seeds: int = 1,
    grid_budget: str = "",
) -> int:
    """The command compare. Returns the exit code. grid: what follows each --grid."""
    from branchgrpo.comparison.budget import Budget
    from branchgrpo.comparison.grid import Grid, read
    from branchgrpo.comparison.runs import Comparison

    own = Budget.parse(grid_budget or budget, "--grid-budget" if grid_budget else "--budget")
    comparison = Comparison(
        base=base,
        methods=methods,
        seeds=seeds,
        budget=Budget.parse(budget),
        grid=Grid(read(grid), grid_seeds, own) if grid else None,
        overrides=overrides,
        folder=folder,
        gain=gain,
    )
    finished, table = compared(comparison, folder)
    print(table)
    print(
        f"written to {comparison.folder}"
        + ("" if finished else "; interrupted: the same command goes on")
    )
    return 0 if finished else 130


def compared(
    comparison: Comparison, folder: Path | None = None, quiet: bool = False
) -> tuple[bool, str]:
    """Do what is left of a comparison on one cluster, run after run, and write its tables and
    pictures. Returns whether it is finished, not interrupted, and the tables for a terminal.

    folder: where it was asked for, if it was.
    """
    from rich.console import Console

    from branchgrpo.report.terminal import Display

    for config in comparison.configs.values():
        check(config, folder)
    if comparison.tuning:
        comparison.tuning.check(lambda config: check(config, folder))
    from branchgrpo.app.service import started

    finished = True
    if comparison.open() or (comparison.tuning and comparison.tuning.left()):
        first = next(iter(comparison.configs.values()))
        with (
            Interruption() as interrupted,
            run_folder.alone(comparison.folder),
            Display(
                "branchgrpo compare",
                first.run.iterations,
                first.metric,
                console=Console(quiet=quiet),
                max_minutes=first.run.max_minutes,
            ) as display,
        ):
            try:
                with started(first, display) as form:
                    finished = comparison.run(form, display, interrupted)
            except BaseException:  # what is finished is worth a table whatever ended the rest
                _table(comparison)
                raise
    return finished, _table(comparison)


def _table(comparison: Comparison) -> str:
    from branchgrpo.comparison.report import write

    return write(comparison, next(iter(comparison.configs.values())).metric)
