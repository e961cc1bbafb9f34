"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.sinks.base import (
    FLUSH_SECONDS,
    RichSink,
    Shown,
    SinkOptions,
    first_line,
    identity,
)
from branchgrpo.types import F32


class WandbOptions(SinkOptions):
    """A project of Weights & Biases."""

    package: ClassVar[str] = "wandb"

    name: Literal["wandb"] = Field("wandb", description="the sink")
    project: str = Field(min_length=1, description="project that gets the metrics")

    def open(self, key: str, folder: Path, config: Mapping[str, Any]) -> WandbSink:
        return WandbSink(self.project, key, folder, config)


class WandbSink(RichSink):
    """A W&B run. W&B sends in a process of its own; WANDB_MODE=offline keeps everything in
    FOLDER/wandb for `wandb sync`."""

    def __init__(self, project: str, key: str, folder: Path, config: Mapping[str, Any]):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=identity(folder),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                allow_val_change=True,
                # the metadata hold the command line, with its secrets
                settings={"finish_timeout": FLUSH_SECONDS, "x_disable_meta": True},
            )
        except wandb.Error as error:
            raise UserError(
                f"{key}: cannot start a run in project {project!r}: {first_line(error)}"
            ) from error
        # W&B's own step never goes back, an iteration does after a resume
        self._run.define_metric("*", step_metric="iteration")

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log({"iteration": iteration, **values})

    def pictures(self, iteration: int, tag: str, shown: Sequence[Shown]) -> None:
        """See RichSink."""
        import wandb

        images = [wandb.Image(one.tile, caption=one.caption) for one in shown]
        self._run.log({"iteration": iteration, tag: images})

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """See RichSink."""
        import wandb

        drawn = {tag: wandb.Histogram(own) for tag, own in values.items()}
        self._run.log({"iteration": iteration, **drawn})

    def close(self, failed: bool) -> None:
        """See Sink."""
        self._run.finish(exit_code=int(failed))
