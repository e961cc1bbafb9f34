"""Values of a run as Ray metrics, which every node serves to Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from threading import Event, Lock, Thread

from ray.util.metrics import Counter, Gauge

from cluster import ray_private
from cluster.metric_table import METRICS, PHASE_SECONDS, SCORES

REFRESH_SECONDS = 5.0
"""Ray 2.60 reports a gauge once and forgets it 20 s later (2 × metrics_report_interval_ms), less
than an iteration takes; so gauges are set again this often. Those of a dead driver still go away,
as they should."""


class RunMetrics:
    """Writes the metrics of one run; needs a connection to Ray. Ray sends them to the node's agent,
    at once or later."""

    def __init__(self, run: str, phases: Iterable[str]):
        """phases: parts of an iteration; time/PHASE says how long each took, in seconds."""
        self._metrics = {metric.name: metric for metric in METRICS}
        self._writers = {
            metric.name: (Gauge if metric.kind == "gauge" else Counter)(
                metric.name, metric.description, ("run", *metric.labels)
            ).set_default_tags({"run": run})
            for metric in METRICS
        }
        self._sources = {
            source: (metric.name, labels)
            for metric in METRICS
            for source, labels in metric.sources.items()
        }
        self._sources |= {f"time/{phase}": (PHASE_SECONDS, {"phase": phase}) for phase in phases}
        self._held: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self._lock, self._closed = Lock(), Event()
        for metric in METRICS:
            if metric.kind == "counter" and not metric.labels:
                self.begin(metric.name)
        for name, labels in self._sources.values():
            if labels and self._metrics[name].kind == "counter":
                self.begin(name, **labels)
        self._refresher = Thread(target=self._refresh, name="metrics", daemon=True)
        self._refresher.start()

    def iteration(self, values: Mapping[str, float]) -> None:
        """Take over the values of one iteration, named as in metrics.jsonl; those that no metric
        follows are ignored."""
        for source, value in values.items():
            name, labels = self._sources.get(source) or _score(source)
            if name == "branchgrpo_iterations":
                value = 1.0  # the source says that an iteration was done, and how long it took
            if not name:
                continue
            if self._metrics[name].kind == "gauge":
                self.set(name, value, **labels)
            else:
                self.add(name, value, **labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge. Raises ValueError for a name or labels that METRICS lacks."""
        self._check(name, "gauge", labels)
        with self._lock:
            self._held[name, frozenset(labels.items())] = value
            self._writers[name].set(value, tags=labels)

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Raise a counter. Raises ValueError for a name or labels that METRICS lacks, and for a
        value below 0 or not finite."""
        self._check(name, "counter", labels)
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: expected a finite value of at least 0, got {value}")
        if value > 0:  # Ray refuses 0
            self._writers[name].inc(value, tags=labels)

    def begin(self, name: str, **labels: str) -> None:
        """Export a counter at 0, so that `increase` sees its first event. Raises ValueError as
        `add` does."""
        self._check(name, "counter", labels)
        ray_private.export_zero(self._writers[name], labels)

    def forget(self, **labels: str) -> None:
        """Stop reporting gauges that have all these labels, such as those of a worker that left;
        they fade within 20 s."""
        with self._lock:
            self._held = {
                (name, held): value
                for (name, held), value in self._held.items()
                if not labels.items() <= dict(held).items()
            }

    def close(self) -> None:
        """Stop refreshing, before Ray is left."""
        self._closed.set()
        self._refresher.join()

    def _check(self, name: str, kind: str, labels: Mapping[str, str]) -> None:
        metric = self._metrics.get(name)
        if metric is None or metric.kind != kind:
            raise ValueError(
                f"metrics: expected the name of a {kind}, one of "
                f"{[one.name for one in METRICS if one.kind == kind]}, got {name!r}"
            )
        if set(labels) != set(metric.labels):
            raise ValueError(
                f"{name}: expected the labels {sorted(metric.labels)}, got {sorted(labels)}"
            )

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            with self._lock:
                for (name, labels), value in self._held.items():
                    self._writers[name].set(value, tags=dict(labels))


def _score(source: str) -> tuple[str, dict[str, str]]:
    """The metric and label of a mean score; an empty name for any other source."""
    kind, _, score = source.partition("/")
    return (
        (SCORES[kind], {"score": score})
        if kind in SCORES and (score == "total" or "/" in score)
        else ("", {})
    )
