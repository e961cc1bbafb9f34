"""Metrics of a run: one JSON line an iteration, the same as TensorBoard events, and copies for the
sinks (branchgrpo/sinks)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np

from branchgrpo.files.whole import write_whole
from branchgrpo.report.about import About
from branchgrpo.report.events import EventFiles
from branchgrpo.report.shown import shown
from branchgrpo.sinks.base import RichSink, Sink, SinkOptions
from branchgrpo.types import F32, U8

PHASES = ("encode", "grow", "score", "update", "publish")
"""Parts of an iteration, in their order; time/PHASE is how long each took, in seconds."""


class MetricsLog:
    """Writes FOLDER/metrics.jsonl and TensorBoard events in FOLDER/tensorboard, and to `sinks`.
    Makes the folder."""

    def __init__(
        self,
        folder: Path,
        sinks: Iterable[Sink] = (),
        about: About | None = None,
        machine: Callable[[], dict[str, float]] | None = None,
    ):
        """about: what the run is, for TensorBoard. machine: figures that TensorBoard and sinks get
        beside an iteration's metrics."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = EventFiles(folder / "tensorboard", about)
        self._machine = machine
        self._sinks = tuple(sinks)
        self._rich = [sink for sink in self._sinks if isinstance(sink, RichSink)]
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
            closing.callback(self._events.close, failed=error is not None)
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
        copies = metrics | self._machine() if self._machine else metrics
        self._events.scalars(iteration, copies)
        for sink in self._sinks:
            sink.write(iteration, copies)

    def pictures(self, iteration: int, tag: str, pixels: U8, captions: Sequence[str]) -> None:
        """See branchgrpo.service.Log."""
        drawn = shown(pixels, captions)
        if not drawn:
            return
        self._events.pictures(iteration, tag, drawn)
        for sink in self._rich:
            sink.pictures(iteration, tag, drawn)

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """See branchgrpo.service.Log. What is not finite is left out."""
        finite = {tag: np.asarray(own)[np.isfinite(own)] for tag, own in values.items()}
        kept = {tag: own for tag, own in finite.items() if len(own)}
        if not kept:
            return
        self._events.histograms(iteration, kept)
        for sink in self._rich:
            sink.histograms(iteration, kept)

    def rewind(self, iteration: int) -> None:
        """Forget metrics of later iterations: they are done again. `elapsed` goes on from what is
        kept. TensorBoard is told to leave them out; W&B and MLflow take nothing back."""
        self._events.rewind(iteration)
        self._file.close()
        path = Path(self._file.name)
        kept = [record for record in read(path) if record["iteration"] <= iteration]
        write_whole(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._begun = perf_counter() - (kept[-1]["elapsed"] if kept else 0.0)


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
