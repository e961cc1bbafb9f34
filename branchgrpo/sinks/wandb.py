"""Weights & Biases."""

from __future__ import annotations

import io
import math
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
from branchgrpo.types import F32, U8

BEST = ("held_out/total", "reward/total")
"""Whose largest value stands in the table of runs, beside the newest."""

HIDDEN = ("checkpoint/*", "driver/*", "latents/*", "prompts/*", "service/*")
"""Of no chart unless one is made: what is left begins with alarms, held-out scores and rewards.
W&B's client cannot order sections otherwise."""

MOVING_FRAMES, MOVING_SIDE = 41, 384
"""Frames of a video that are sent, and their longer side in pixels, at most."""

FRAMES_A_SECOND = 16
"""As on contact sheets."""


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
        for name in BEST:
            self._run.define_metric(name, step_metric="iteration", summary="max,last")
        for pattern in HIDDEN:
            self._run.define_metric(pattern, step_metric="iteration", hidden=True)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log({"iteration": iteration, **values})

    def pictures(self, iteration: int, tag: str, shown: Sequence[Shown]) -> None:
        """See RichSink."""
        import wandb

        drawn = [
            wandb.Image(one.tile, caption=one.caption)
            if len(one.frames) == 1
            else wandb.Video(moving(one.frames), caption=one.caption, format="gif")
            for one in shown
        ]
        self._run.log({"iteration": iteration, tag: drawn})

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """See RichSink."""
        import wandb

        # in float32 the edges between values that are nearly equal would fall together
        drawn = {tag: wandb.Histogram(own.astype("float64")) for tag, own in values.items()}
        self._run.log({"iteration": iteration, **drawn})

    def close(self, failed: bool) -> None:
        """See Sink."""
        self._run.finish(exit_code=int(failed))


def moving(frames: U8) -> io.BytesIO:
    """A GIF of frames [F, H, W, 3], fewer and smaller where they are many or large: W&B makes
    videos of other forms with a package more."""
    from PIL import Image

    every = math.ceil(len(frames) / MOVING_FRAMES)
    pictures = [Image.fromarray(frame) for frame in frames[::every]]
    for picture in pictures:
        picture.thumbnail((MOVING_SIDE, MOVING_SIDE))
    file = io.BytesIO()
    milliseconds = round(1000 * every / FRAMES_A_SECOND)
    first, *others = pictures
    first.save(file, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    file.seek(0)
    return file
