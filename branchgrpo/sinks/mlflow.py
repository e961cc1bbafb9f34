"""MLflow."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.sinks.base import FLUSH_SECONDS, SinkOptions, first_line, identity

PARAMETERS_AT_ONCE = 100
"""MLflow's limit for one request."""


class MlflowOptions(SinkOptions):
    """A tracking server of MLflow."""

    package: ClassVar[str] = "mlflow"

    name: Literal["mlflow"] = Field("mlflow", description="the sink")
    uri: str = Field(min_length=1, description="tracking URI that gets the metrics")

    def open(self, key: str, folder: Path, config: Mapping[str, Any]) -> MlflowSink:
        return MlflowSink(self.uri, key, folder, config)


class MlflowSink:
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
                "%s: %d iterations were not recorded; metrics.jsonl has them",
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


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of a nested config under dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
