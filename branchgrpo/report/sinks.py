"""Metrics of a run: one JSON line an iteration, the same as TensorBoard events, and copies for the
sinks (branchgrpo/sinks)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from branchgrpo.files.whole import write_whole
from branchgrpo.sinks.base import Sink, SinkOptions

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

PHASES = ("encode", "grow", "score", "update", "publish")
"""Parts of an iteration, in their order; time/PHASE is how long each took, in seconds."""


class MetricsLog:
    """Writes FOLDER/metrics.jsonl and TensorBoard events in FOLDER/tensorboard, and to `sinks`.
    Makes the folder."""

    def __init__(self, folder: Path, sinks: Iterable[Sink] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = folder / "tensorboard"
        self._purged: int | None = None  # see _purge
        self._writer: EventFileWriter | None = None
        self._sinks = tuple(sinks)
        self._begun = perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as closing:  # each is closed, whatever another one raises
            for sink in self._sinks:
                closing.callback(sink.close, failed=error is not None)
            if self._writer:
                closing.callback(self._writer.close)
            closing.callback(self._file.close)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Keep an iteration's metrics, on disk when this returns. `elapsed` is in seconds since the
        log began."""
        metrics = {name: float(value) for name, value in values.items()}
        record: dict[str, Any] = {
            "iteration": iteration,
            "elapsed": round(perf_counter() - self._begun, 3),
        }
        # JSON has no NaN
        record |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        self._write_events(iteration, metrics)
        for sink in self._sinks:
            sink.write(iteration, metrics)

    def _write_events(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = _event_writer(self._events, self._purged)
        self._writer.add_event(_scalars(iteration, metrics))

    def rewind(self, iteration: int) -> None:
        """Forget metrics of later iterations: they are done again. `elapsed` goes on from what is
        kept. TensorBoard is told to leave them out; W&B and MLflow take nothing back."""
        if self._writer:  # another file's name might come before this one's within a second
            self._writer.add_event(_purge(iteration + 1))
        else:
            self._purged = iteration + 1
        self._file.close()
        path = Path(self._file.name)
        kept = [record for record in read(path) if record["iteration"] <= iteration]
        write_whole(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._begun = perf_counter() - (kept[-1]["elapsed"] if kept else 0.0)


def _event_writer(folder: Path, purged: int | None) -> EventFileWriter:
    """A new file of events; with `_purge` first. TensorBoard's own package writes them: torch's
    writer would load torch into the driver."""
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder), flush_secs=10)
    if purged is not None:
        writer.add_event(_purge(purged))
    return writer


def _purge(iteration: int) -> Event:
    """TensorBoard leaves out what it has read before from this iteration on."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    log = SessionLog(status=SessionLog.START)
    return Event(wall_time=time(), step=iteration, session_log=log)


def _scalars(iteration: int, metrics: Mapping[str, float]) -> Event:
    """An iteration's metrics as TensorBoard has scalars."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    return Event(wall_time=time(), step=iteration, summary=Summary(value=values))


def check_sinks(sinks: Mapping[str, SinkOptions]) -> None:
    """Raise UserError, naming the key, when what is behind one is not installed. sinks: by key of
    the config."""
    for key, options in sinks.items():
        options.check(key)


def open_sinks(
    sinks: Mapping[str, SinkOptions], folder: Path, config: Mapping[str, Any]
) -> list[Sink]:
    """Sinks for the run in this folder. A resumed folder goes on with its run.

    sinks: by key of the config. config: nested. Raises UserError when a package is not installed or
    refuses to start.
    """
    check_sinks(sinks)
    return [options.open(key, folder, config) for key, options in sinks.items()]


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, oldest first.

    A last line that was cut off while it was written is left out. Raises ValueError, naming the
    line, for any other line that is not a JSON object.
    """
    *lines, rest = path.read_bytes().split(b"\n")  # `rest` is empty when the last line is whole
    records = [_parse(line) for line in lines]
    if None in records:
        raise ValueError(f"{path}: line {records.index(None) + 1}: expected a JSON object")
    return [record for record in (*records, _parse(rest)) if record is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def smooth(values: Iterable[float], weight: float = 0.1) -> list[float]:
    """Exponential mean up to each value: the newest counts `weight`. Corrected, so that it starts
    at the first value."""
    means = []
    total = 0.0
    mass = 0.0
    for value in values:
        total += weight * (value - total)
        mass += weight * (1 - mass)
        means.append(total / mass)
    return means
