"""A run in one process that was interrupted, and goes on with another config."""

from __future__ import annotations

from pathlib import Path

from branchgrpo.config.schema import Config
from branchgrpo.runs.folder import driving
from branchgrpo.training.carry_out import carry_out
from support.in_process import Service
from support.quiet_display import Quiet
from support.small_trees import quickstart
from support.training import CHANGEABLE


def config(**options: str) -> Config:
    return quickstart(CHANGEABLE | options)


SERVICES: list[Service] = []


def service_for(loaded: Config) -> Service:
    """One for all: loading the recogniser takes longer than an iteration."""
    if not SERVICES:
        SERVICES.append(Service(loaded))
    return SERVICES[0].configure(loaded)


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("fence-*"))


def interrupted(parent: Path) -> tuple[Path, Config]:
    """A run of two iterations that was interrupted, by a driver that noted losses; its folder."""
    loaded, asked = config(**{"run.folder": str(parent)}), [False, True]
    with driving(loaded, "") as driver:
        service = service_for(loaded)
        service.lost = {"died": 2}
        summary = carry_out(
            loaded,
            service=service,
            folder=driver.folder,
            display=Quiet(),
            interrupted=lambda: asked.pop(0),
            start_up=1.0,
            lease=driver.lease,
        )
        service.lost = {}
        driver.ended = summary["stopped_by"]
    return driver.folder, loaded
