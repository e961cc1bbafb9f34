"""MLflow."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
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

PARAMETERS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
"""MLflow's limits for one request."""

QUANTILES = (("min", 0.0), ("p10", 0.1), ("median", 0.5), ("p90", 0.9), ("max", 1.0))
"""What it gets of a histogram."""


class MlflowOptions(SinkOptions):
    """A tracking server of MLflow."""

    package: ClassVar[str] = "mlflow"

    name: Literal["mlflow"] = Field("mlflow", description="the sink")
    uri: str = Field(min_length=1, description="tracking URI that gets the metrics")

    def open(self, key: str, folder: Path, config: Mapping[str, Any]) -> MlflowSink:
        return MlflowSink(self.uri, key, folder, config)


class MlflowSink(RichSink):
    """A run in MLflow's experiment MLFLOW_EXPERIMENT_NAME, by default "branchgrpo". A thread sends,
    as the server may be slow or away."""

    def __init__(self, uri: str, key: str, folder: Path, config: Mapping[str, Any]):
        import mlflow
        from mlflow.entities import Param

        self._key = key
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "branchgrpo")
        own = identity(folder)
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            experiment = self._client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else self._client.create_experiment(name)
            found = self._client.search_runs(
                [place], f"tags.`branchgrpo.run` = '{own}'", max_results=1
            )
            if found:
                self._run = found[0].info.run_id
                self._client.update_run(self._run, status="RUNNING")
            else:
                self._run = self._client.create_run(
                    place, run_name=folder.name, tags={"branchgrpo.run": own}
                ).info.run_id
                parameters = [Param(key, str(value)) for key, value in flat(config)]
                for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
                    self._client.log_batch(
                        self._run, params=parameters[start : start + PARAMETERS_AT_ONCE]
                    )
        except mlflow.MlflowException as error:
            raise UserError(f"{key}: cannot start a run at {uri}: {first_line(error)}") from error
        self._lost, self._queue = 0, SimpleQueue[Callable[[], None] | None]()
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._queue.put(partial(self._client.log_text, self._run, text, "config.yaml"))
        self._sender = Thread(target=self._send, name="mlflow", daemon=True)
        self._sender.start()

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._queue.put(partial(self._figures, iteration, now(), dict(values)))

    def pictures(self, iteration: int, tag: str, shown: Sequence[Shown]) -> None:
        """See RichSink. With their captions below: MLflow has no place for them."""
        self._queue.put(partial(self._pictures, iteration, now(), tag, shown))

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """See RichSink. MLflow has none: quantiles, as figures."""
        levels = np.array([level for _, level in QUANTILES])
        figures = {
            f"{tag}/{name}": float(value)
            for tag, own in values.items()
            for (name, _), value in zip(QUANTILES, np.quantile(own, levels), strict=True)
        }
        self._queue.put(partial(self._figures, iteration, now(), figures))

    def _figures(self, iteration: int, milliseconds: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, milliseconds, iteration) for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._run, metrics=metrics[start : start + METRICS_AT_ONCE])

    def _pictures(
        self, iteration: int, milliseconds: int, tag: str, shown: Sequence[Shown]
    ) -> None:
        for number, one in enumerate(shown):
            self._client.log_image(
                self._run,
                one.labelled,
                key=f"{tag}/{number:02}",
                step=iteration,
                timestamp=milliseconds,
            )

    def close(self, failed: bool) -> None:
        """See Sink. Logs a warning when something was lost or is not sent after
        FLUSH_SECONDS."""
        from mlflow import MlflowException

        self._queue.put(None)
        self._sender.join(FLUSH_SECONDS)
        if self._sender.is_alive() or self._lost:
            logging.getLogger(__name__).warning(
                "%s: %d records were not sent; the run folder has them",
                self._key,
                self._lost + self._queue.qsize(),
            )
        else:
            try:
                self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
            except MlflowException as error:
                logging.getLogger(__name__).warning(
                    "%s: the run stays open: %s", self._key, first_line(error)
                )

    def _send(self) -> None:
        from mlflow import MlflowException

        while send := self._queue.get():
            try:
                send()
            # training goes on without its tracking server, or its store of files; close() tells
            except (MlflowException, OSError):
                self._lost += 1


def now() -> int:
    """Milliseconds since 1970."""
    return round(1000 * time.time())


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of a nested config under dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
