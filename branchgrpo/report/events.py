"""TensorBoard's event files, written with its own package: torch's writer would load torch into the
driver."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.report.about import About, ended, tensor
from branchgrpo.sinks.base import Shown
from branchgrpo.types import F32

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

BINS = 30
"""Bars of a histogram."""


class EventFiles:
    """Writes events in a folder; the file is begun with the first one."""

    def __init__(self, folder: Path, about: About | None = None):
        self._folder = folder
        self._about = about
        self._purged: int | None = None  # see rewind
        self._writer: EventFileWriter | None = None

    def close(self, failed: bool = False) -> None:
        """Everything is on disk when this returns."""
        if self._writer:
            if self._about:
                self._writer.add_event(_event(0, [ended(failed)]))
            self._writer.close()

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Figures of an iteration."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(
            iteration, [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )

    def pictures(self, iteration: int, tag: str, shown: Sequence[Shown]) -> None:
        """Pictures with their captions below: the plug-in has no place for them."""
        from tensorboard.plugins.image import metadata

        width, height = shown[0].labelled.size
        items = [str(width).encode(), str(height).encode(), *(_png(one) for one in shown)]
        kind = metadata.create_summary_metadata(display_name="", description="")
        self._add(iteration, [tensor(tag, np.array(items, object), kind)])

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """Values [n] by tag."""
        from tensorboard.plugins.histogram import metadata

        kind = metadata.create_summary_metadata(display_name="", description="")
        self._add(iteration, [tensor(tag, bars(own), kind) for tag, own in values.items()])

    def rewind(self, iteration: int) -> None:
        """Leave out what there is of later iterations: they are done again."""
        if self._writer:  # another file's name might come before this one's within a second
            self._begin_again(self._writer, iteration + 1)
        else:
            self._purged = iteration + 1

    def _add(self, iteration: int, values: Sequence[Summary.Value]) -> None:
        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._writer = EventFileWriter(str(self._folder), flush_secs=10)
            self._begin_again(self._writer, self._purged)
        self._writer.add_event(_event(iteration, values))

    def _begin_again(self, writer: EventFileWriter, purged: int | None) -> None:
        """What the run is stands after the mark of what goes, which may take it along."""
        if purged is not None:
            writer.add_event(_purge(purged))
        if self._about:
            writer.add_event(_event(0, self._about.values()))


def bars(values: F32) -> F32:
    """Bars [k, 3] of values [n]: left, right, count."""
    # in float32 the edges between values that are nearly equal would fall together
    counts, edges = np.histogram(values.astype(np.float64), BINS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1).astype(np.float32)


def _event(iteration: int, values: Sequence[Summary.Value]) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(wall_time=time(), step=iteration, summary=Summary(value=values))


def _purge(iteration: int) -> Event:
    """TensorBoard leaves out what it has read before from this iteration on."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    log = SessionLog(status=SessionLog.START)
    return Event(wall_time=time(), step=iteration, session_log=log)


def _png(shown: Shown) -> bytes:
    file = io.BytesIO()
    shown.labelled.save(file, "PNG")
    return file.getvalue()
