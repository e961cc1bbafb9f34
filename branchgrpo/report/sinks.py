"""Metrics of a run: one JSON line an iteration, the same as TensorBoard events, and copies for W&B
and MLflow."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from branchgrpo.config.secrets import masked_text
from branchgrpo.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PHASES = ("encode", "grow", "score", "update", "publish")
"""Parts of an iteration, in their order; time/PHASE is how long each took, in seconds."""


FLUSH_SECONDS = 60
"""How long the end of a run waits for a tracking server that does not answer."""

PARAMETERS_AT_ONCE = 100
"""MLflow's limit for one request."""


class Sink(Protocol):
    """Where copies of the metrics go."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Send an iteration's metrics; returns at once, and does not raise when the server is
        away."""

    def close(self, failed: bool) -> None:
        """Send the rest and mark the run as finished or failed."""


class MetricsLog:
    """Writes FOLDER/metrics.jsonl and TensorBoard events in FOLDER/tensorboard, and to `sinks`.
    Makes the folder."""

    def __init__(self, folder: Path, sinks: Iterable[Sink] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = folder / "tensorboard"
        # TensorBoard leaves out earlier events from this iteration on
        self._purged: int | None = None
        self._writer: SummaryWriter | None = None
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
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events), flush_secs=10, purge_step=self._purged)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def rewind(self, iteration: int) -> None:
        """Forget metrics of later iterations: they are done again. `elapsed` goes on from what is
        kept. TensorBoard is told to leave them out; W&B and MLflow take nothing back."""
        if self._writer:
            self._writer.close()
        self._writer, self._purged = None, iteration + 1
        self._file.close()
        path = Path(self._file.name)
        kept = [record for record in read(path) if record["iteration"] <= iteration]
        partial = path.with_name(path.name + ".partial")
        partial.write_text(
            "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept), encoding="utf-8"
        )
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._begun = perf_counter() - (kept[-1]["elapsed"] if kept else 0.0)


def check_sinks(wandb: str, mlflow: str) -> None:
    """Raise UserError, naming the key, when the package behind run.wandb or run.mlflow is wanted
    and not installed."""
    for package, value in (("wandb", wandb), ("mlflow", mlflow)):
        if value and find_spec(package) is None:
            raise UserError(
                f"run.{package}: expected the package {package}, which is not installed: "
                f"pip install 'branchgrpo[{package}]'"
            )


def open_sinks(wandb: str, mlflow: str, folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """Sinks for a W&B project and an MLflow tracking URI; an empty string is no sink. A resumed
    folder goes on with its run.

    config: nested. Raises UserError when a package is not installed or refuses to start.
    """
    check_sinks(wandb, mlflow)
    sinks: list[Sink] = []
    if wandb:
        sinks.append(WandbSink(wandb, folder, config))
    if mlflow:
        sinks.append(MlflowSink(mlflow, folder, config))
    return sinks


def _identity(folder: Path) -> str:
    """Names a run folder among all: comparisons have folders of equal names."""
    return f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


class WandbSink:
    """A W&B run. W&B sends in a process of its own; WANDB_MODE=offline keeps everything in
    FOLDER/wandb for `wandb sync`."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=_identity(folder),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                allow_val_change=True,
                # the metadata hold the command line, with its secrets
                settings={"finish_timeout": FLUSH_SECONDS, "x_disable_meta": True},
            )
        except wandb.Error as error:
            raise UserError(
                f"run.wandb: cannot start a run in project {project!r}: {_first_line(error)}"
            ) from error
        # W&B's own step never goes back, an iteration does after a resume
        self._run.define_metric("*", step_metric="iteration")

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log({"iteration": iteration, **values})

    def close(self, failed: bool) -> None:
        """See Sink."""
        self._run.finish(exit_code=int(failed))


class MlflowSink:
    """A run in MLflow's experiment MLFLOW_EXPERIMENT_NAME, by default "branchgrpo". A thread sends,
    as the server may be slow or away."""

    def __init__(self, uri: str, folder: Path, config: Mapping[str, Any]):
        import mlflow
        from mlflow.entities import Param

        name, identity = os.environ.get("MLFLOW_EXPERIMENT_NAME", "branchgrpo"), _identity(folder)
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            experiment = self._client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else self._client.create_experiment(name)
            found = self._client.search_runs(
                [place], f"tags.`branchgrpo.run` = '{identity}'", max_results=1
            )
            if found:
                self._run = found[0].info.run_id
                self._client.update_run(self._run, status="RUNNING")
            else:
                self._run = self._client.create_run(
                    place, run_name=folder.name, tags={"branchgrpo.run": identity}
                ).info.run_id
                parameters = [Param(key, str(value)) for key, value in _flat(config)]
                for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
                    self._client.log_batch(
                        self._run, params=parameters[start : start + PARAMETERS_AT_ONCE]
                    )
        except mlflow.MlflowException as error:
            raise UserError(
                f"run.mlflow: cannot start a run at {uri}: {_first_line(error)}"
            ) from error
        self._lost, self._queue = 0, SimpleQueue[tuple[int, int, dict[str, float]] | None]()
        self._sender = Thread(target=self._send, name="mlflow", daemon=True)
        self._sender.start()

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._queue.put((iteration, round(1000 * time.time()), dict(values)))

    def close(self, failed: bool) -> None:
        """See Sink. Logs a warning when iterations were lost or are not sent after
        FLUSH_SECONDS."""
        from mlflow import MlflowException

        self._queue.put(None)
        self._sender.join(FLUSH_SECONDS)
        if self._sender.is_alive() or self._lost:
            logging.getLogger(__name__).warning(
                "run.mlflow: %d iterations were not recorded; metrics.jsonl has them",
                self._lost + self._queue.qsize(),
            )
        else:
            try:
                self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
            except MlflowException as error:
                logging.getLogger(__name__).warning(
                    "run.mlflow: the run stays open: %s", _first_line(error)
                )

    def _send(self) -> None:
        from mlflow import MlflowException
        from mlflow.entities import Metric

        while item := self._queue.get():
            iteration, milliseconds, values = item
            try:
                self._client.log_batch(
                    self._run,
                    metrics=[
                        Metric(name, value, milliseconds, iteration)
                        for name, value in values.items()
                    ],
                )
            except MlflowException:  # training goes on without its tracking server; close() tells
                self._lost += 1


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of a nested config under dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _first_line(error: Exception) -> str:
    return masked_text(next(iter(str(error).splitlines()), type(error).__name__))


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
