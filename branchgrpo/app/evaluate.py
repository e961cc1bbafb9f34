"""The command eval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchgrpo.app.check import check

if TYPE_CHECKING:
    from branchgrpo.runs.measured import Target


def evaluate(target: Target) -> int:
    """Measure a model as it is, and write eval.json and a picture to a folder of their own."""
    from branchgrpo.report.terminal import Display
    from branchgrpo.runs.measured import prepared, written
    from branchgrpo.train.carry_out import measure

    check(target.config)
    from branchgrpo.app.service import started

    with prepared(target) as (config, folder):
        config.model.check()
        with (
            Display("branchgrpo eval", 1, config.metric) as display,
            started(config, display, learning=False) as form,
        ):
            row, _ = measure(
                config,
                service=form(config),
                display=display,
                picture=folder / "samples.png",
                title=target.name,
            )
        written(target, folder, row)
    return 0
