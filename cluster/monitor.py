"""Values of a run as Ray metrics, which every node serves to Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import Literal

from ray.util.metrics import Counter, Gauge

from cluster import ray_private

REFRESH_SECONDS = 5.0
"""Ray 2.60 reports a gauge once and forgets it 20 s later (2 × metrics_report_interval_ms), less
than an iteration takes; so gauges are set again this often. Those of a dead driver still go away,
as they should."""

PHASE_SECONDS = "branchgrpo_phase_seconds"
"""What time/PHASE goes to; those who make a Monitor name the phases."""


@dataclass(frozen=True)
class Metric:
    """One metric. Prometheus sees ray_NAME, and ray_NAME_total for a counter, with the labels `run`
    and `labels`."""

    name: str
    kind: Literal["gauge", "counter"]
    panel: str  # where the Grafana board shows it
    unit: str  # as Grafana calls it; "unixtime" = seconds since 1970, shown as an age
    description: str
    labels: tuple[str, ...] = ()
    # those of metrics.jsonl that it follows, and their labels
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


CAUSES = (
    "preempted",
    "scaled",
    "start",
    "memory",
    "node",
    "unavailable",
    "died",
    "unresponsive",
    "lost",
    "error",
)
"""Why actors are replaced: all there are, so that each is exported before its first event."""

METRICS = (
    Metric(
        name="branchgrpo_reward_mean",
        kind="gauge",
        panel="Reward",
        unit="short",
        description="mean over the iteration's leaves",
        labels=("score",),
    ),
    Metric(
        name="branchgrpo_reward_spread",
        kind="gauge",
        panel="Reward spread",
        unit="short",
        description="mean std of a prompt's leaves",
        labels=(),
        sources={"reward/spread": {}},
    ),
    Metric(
        name="branchgrpo_held_out_mean",
        kind="gauge",
        panel="Held-out score",
        unit="short",
        description="mean over held-out prompts",
        labels=("score",),
    ),
    Metric(
        name="branchgrpo_advantage_abs",
        kind="gauge",
        panel="Advantage",
        unit="short",
        description="mean |A| of kept edges",
        labels=(),
        sources={"update/advantage_abs": {}},
    ),
    Metric(
        name="branchgrpo_clip_fraction",
        kind="gauge",
        panel="Clip fraction",
        unit="percentunit",
        description="part of the edges whose gradient is cut",
        labels=(),
        sources={"update/clip_fraction": {}},
    ),
    Metric(
        name="branchgrpo_kl",
        kind="gauge",
        panel="KL to the base",
        unit="short",
        description="mean over trained edges",
        labels=(),
        sources={"update/kl": {}},
    ),
    Metric(
        name="branchgrpo_gradient_norm",
        kind="gauge",
        panel="Gradient norm",
        unit="short",
        description="before clipping, mean over optimiser steps",
        labels=(),
        sources={"update/gradient_norm": {}},
    ),
    Metric(
        name="branchgrpo_learning_rate",
        kind="gauge",
        panel="Learning rate",
        unit="sci",
        description="of the last optimiser step",
        labels=(),
        sources={"update/learning_rate": {}},
    ),
    Metric(
        name="branchgrpo_iterations",
        kind="counter",
        panel="Iterations per second",
        unit="ops",
        description="iterations done",
        labels=(),
        sources={"time/iteration": {}},
    ),
    Metric(
        name="branchgrpo_iteration",
        kind="gauge",
        panel="Progress",
        unit="short",
        description="iterations done, those of earlier drivers too",
    ),
    Metric(
        name="branchgrpo_iterations_planned",
        kind="gauge",
        panel="Progress",
        unit="short",
        description="iterations to do; 0: until a time limit",
    ),
    Metric(
        name="branchgrpo_staleness",
        kind="gauge",
        panel="Staleness",
        unit="short",
        description="updates after which trees were trained on",
        labels=(),
        sources={"tree/staleness": {}},
    ),
    Metric(
        name="branchgrpo_trees",
        kind="counter",
        panel="Trees and leaves per second",
        unit="ops",
        description="trees grown",
        labels=(),
        sources={"tree/trees": {}},
    ),
    Metric(
        name="branchgrpo_leaves",
        kind="counter",
        panel="Trees and leaves per second",
        unit="ops",
        description="leaves scored",
        labels=(),
        sources={"tree/leaves": {}},
    ),
    Metric(
        name="branchgrpo_forwards",
        kind="counter",
        panel="Forwards per second",
        unit="ops",
        description="rows sent through the model",
        labels=("phase",),
        sources={"tree/forwards": {"phase": "rollout"}, "update/forwards": {"phase": "training"}},
    ),
    Metric(
        name=PHASE_SECONDS,
        kind="counter",
        panel="Time by phase",
        unit="percentunit",
        description="seconds spent in a phase of an iteration",
        labels=("phase",),
    ),
    Metric(
        name="branchgrpo_driver_bytes",
        kind="counter",
        panel="Bytes through the driver",
        unit="Bps",
        description="messages that the driver sent and received",
        labels=(),
        sources={"driver/bytes": {}},
    ),
    Metric(
        name="branchgrpo_queue_length",
        kind="gauge",
        panel="Queue length",
        unit="short",
        description="tasks waiting or running",
        labels=("role",),
    ),
    Metric(
        name="branchgrpo_workers_desired",
        kind="gauge",
        panel="Workers",
        unit="short",
        description="workers asked for",
        labels=("role",),
    ),
    Metric(
        name="branchgrpo_workers_ready",
        kind="gauge",
        panel="Workers",
        unit="short",
        description="workers that take tasks",
        labels=("role",),
    ),
    Metric(
        name="branchgrpo_weight_version",
        kind="gauge",
        panel="Weight version",
        unit="short",
        description="version of the weights that a worker holds",
        labels=("role", "worker"),
        sources={"update/version": {"role": "learner", "worker": "learner-0"}},
    ),
    Metric(
        name="branchgrpo_retries",
        kind="counter",
        panel="Retries",
        unit="short",
        description="tasks issued again, and further attempts of rewards",
        labels=("role",),
        sources={"reward/retries": {"role": "reward"}},
    ),
    Metric(
        name="branchgrpo_restarts",
        kind="counter",
        panel="Restarts",
        unit="short",
        description="actors replaced; of learners: rank_groups",
        labels=("role", "cause"),
    ),
    Metric(
        name="branchgrpo_recoveries",
        kind="counter",
        panel="Recoveries",
        unit="short",
        description="failures of machines after which the run went on",
    ),
    Metric(
        name="branchgrpo_skipped_steps",
        kind="counter",
        panel="Left out",
        unit="short",
        description="optimiser steps skipped since the gradient was not finite",
        labels=(),
        sources={"update/skipped_steps": {}},
    ),
    Metric(
        name="branchgrpo_dropped_groups",
        kind="counter",
        panel="Left out",
        unit="short",
        description="prompt groups without usable rewards",
        labels=(),
        sources={"reward/dropped_groups": {}},
    ),
    Metric(
        name="branchgrpo_stale_rejections",
        kind="counter",
        panel="Left out",
        unit="short",
        description="checkpoints of an old fence, trees of an over-stale policy",
        labels=("cause",),
        sources={
            "checkpoint/rejected": {"cause": "fence"},
            "tree/stale_dropped": {"cause": "policy"},
        },
    ),
    Metric(
        name="branchgrpo_checkpoint_timestamp_seconds",
        kind="gauge",
        panel="Checkpoint age",
        unit="unixtime",
        description="when the newest checkpoint was committed",
    ),
    Metric(
        name="branchgrpo_checkpoint_iteration",
        kind="gauge",
        panel="Checkpoint and fence",
        unit="short",
        description="iteration of the newest checkpoint",
    ),
    Metric(
        name="branchgrpo_fence",
        kind="gauge",
        panel="Checkpoint and fence",
        unit="short",
        description="grows with each restore; older ones are fenced",
    ),
)
"""All metrics. The Grafana board and Prometheus' filter are generated from this table: python -m
cluster.deploy.generate."""

SCORES = {"reward": "branchgrpo_reward_mean", "held_out": "branchgrpo_held_out_mean"}
"""Values reward/total and reward/NAME/SCORE, likewise held_out/…, go to one metric with the rest
as label `score`."""


class Monitor:
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
