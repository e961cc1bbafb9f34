"""Figures of a run: one JSON line an iteration, and the same as TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

PHASES = ("encode", "grow", "score", "update", "publish")
"""Parts of an iteration, in their order; time/PHASE is how long each took, in seconds."""


class MetricsLog:
    """Writes FOLDER/metrics.jsonl and TensorBoard events in FOLDER/tensorboard. Makes the folder."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        self._begun = perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        finally:
            self._writer.close()

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Keep an iteration's figures, on disk when this returns. `elapsed` is in seconds since the log began."""
        figures = {name: float(value) for name, value in values.items()}
        record: dict[str, Any] = {"iteration": iteration, "elapsed": round(perf_counter() - self._begun, 3)}
        record |= {name: value if math.isfinite(value) else None for name, value in figures.items()}  # JSON has no NaN
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, oldest first.

    A last line that was cut off while it was written is left out. Raises ValueError, naming the line, for any
    other line that is not a JSON object.
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
    """Exponential mean up to each value: the newest counts `weight`. Corrected, so that it starts at the first value."""
    means, total, mass = [], 0.0, 0.0
    for value in values:
        total += weight * (value - total)
        mass += weight * (1 - mass)
        means.append(total / mass)
    return means
