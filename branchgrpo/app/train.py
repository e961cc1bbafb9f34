"""The commands train and encode, and what is checked before either starts."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from branchgrpo.app.check import check
from branchgrpo.app.interruption import Interruption
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.runs import folder as run_folder


def train(config: Config, resume: str = "") -> int:
    """The command train. Returns the exit code."""
    from rich.console import Console

    from branchgrpo.app.report import closing
    from branchgrpo.report.summary import table

    folder, summary = trained(config, resume)
    console = Console()
    console.print(table(summary))
    for line in closing(config, folder, summary):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0


def trained(config: Config, resume: str = "", quiet: bool = False) -> tuple[Path, dict[str, Any]]:
    """Train, evaluate before and after, write the run folder. Returns the folder and its
    summary.json.

    resume: "auto" goes on with the newest run of this name and seed that was cut off, if there is
    one; a run folder with that one; a checkpoint's folder or URL begins a run there.
    """
    from rich.console import Console

    from branchgrpo.report.terminal import Display
    from branchgrpo.training.carry_out import carry_out

    check(config)
    from branchgrpo.app.service import started
    from cluster.nodes import accelerators

    begun, run = perf_counter(), config.run
    with (
        Interruption() as interrupted,
        run_folder.driving(config, resume, say=silent if quiet else print) as driver,
        Display(
            f"branchgrpo {run.name}",
            run.iterations,
            config.metric,
            console=Console(quiet=quiet),
            max_minutes=run.max_minutes,
        ) as display,
    ):
        with started(config, display, run=driver.folder.name) as form:
            seconds = perf_counter() - begun
            summary = carry_out(
                config,
                service=form(config),
                folder=driver.folder,
                display=display,
                interrupted=interrupted,
                start_up=seconds,
                before=None,
                origin=driver.origin,
                resumed=driver.resumed,
                lease=driver.lease,
                cards=accelerators(),
            )
        driver.ended = summary["stopped_by"]
    return driver.folder, summary


def silent(text: str) -> None:
    """Where nobody wants to hear it."""


def encode_alone(config: Config) -> int:
    """The job behind `branchgrpo encode`. Returns the exit code."""
    check(config)
    if not config.model.precomputed:
        raise UserError(
            "model.encode: expected precompute, got inline: there is nothing to encode before "
            "training"
        )
    from branchgrpo.app.encode import encode
    from branchgrpo.app.service import connected
    from branchgrpo.report.terminal import Display

    with Display("branchgrpo encode", 1, config.metric) as display, connected(config, display):
        count = encode(config, display)
    print(f"{count} prompts encoded" if count else "all prompts were encoded already")
    return 0
