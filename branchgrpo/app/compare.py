"""The command compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from branchgrpo.app.check import check
from branchgrpo.app.interruption import Interruption
from branchgrpo.runs import folder as run_folder

if TYPE_CHECKING:
    from branchgrpo.compare.runs import Comparison


def compare(
    base: Path,
    methods: list[str],
    seeds: int,
    budget: str,
    overrides: dict[str, str],
    folder: Path | None,
    gain: float | None,
) -> int:
    """Run methods one after another on one cluster, and write the tables and pictures."""
    from branchgrpo.compare.runs import Budget, Comparison
    from branchgrpo.report.terminal import Display

    comparison = Comparison(
        base=base,
        methods=methods,
        seeds=seeds,
        budget=Budget.parse(budget),
        overrides=overrides,
        folder=folder,
        gain=gain,
    )
    for config in comparison.configs.values():
        check(config, folder)
    from branchgrpo.app.service import started

    interrupted, finished = Interruption(), True
    if comparison.open():
        first = next(iter(comparison.configs.values()))
        title, limit = "branchgrpo compare", first.run.max_minutes
        with (
            run_folder.alone(comparison.folder),
            Display(title, first.run.iterations, first.metric, max_minutes=limit) as display,
        ):
            try:
                with started(first, display) as form:
                    finished = comparison.run(form, display, interrupted)
            except BaseException:  # what is finished is worth a table whatever ended the rest
                _table(comparison)
                raise
    print(_table(comparison))
    print(
        f"written to {comparison.folder}"
        + ("" if finished else "; interrupted: the same command goes on")
    )
    return 0 if finished else 130


def _table(comparison: Comparison) -> str:
    from branchgrpo.compare.report import write

    return write(comparison, next(iter(comparison.configs.values())).metric)
