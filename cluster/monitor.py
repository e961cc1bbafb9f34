"""Figures of a run as Ray metrics, which every node serves to Prometheus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import Literal

from ray.util.metrics import Counter, Gauge

REFRESH_SECONDS = 5.0
"""Ray 2.60 reports a gauge once and forgets it 20 s later (2 × metrics_report_interval_ms), less than an
iteration takes; so gauges are set again this often. Those of a dead driver still go away, as they should."""

PHASES = ("encode", "grow", "score", "update", "publish")


@dataclass(frozen=True)
class Metric:
    """One metric. Prometheus sees ray_NAME, and ray_NAME_total for a counter, with the labels `run` and `labels`."""

    name: str
    kind: Literal["gauge", "counter"]
    panel: str  # where the Grafana board shows it
    unit: str  # as Grafana calls it; "unixtime" = seconds since 1970, shown as an age
    description: str
    labels: tuple[str, ...] = ()
    figures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # those of metrics.jsonl that it follows, and their labels

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


CAUSES = ("preempted", "scaled", "start", "memory", "node", "unavailable", "died", "unresponsive", "lost", "error")
"""Why actors are replaced: all there are, so that each is exported before its first event."""

METRICS = (
    Metric("branchgrpo_reward_mean", "gauge", "Reward", "short", "mean over the iteration's leaves", ("score",)),
    Metric("branchgrpo_reward_spread", "gauge", "Reward spread", "short", "mean std of a prompt's leaves", (), {"reward/spread": {}}),
    Metric("branchgrpo_held_out_mean", "gauge", "Held-out score", "short", "mean over held-out prompts", ("score",)),
    Metric("branchgrpo_advantage_abs", "gauge", "Advantage", "short", "mean |A| of kept edges", (), {"update/advantage_abs": {}}),
    Metric("branchgrpo_clip_fraction", "gauge", "Clip fraction", "percentunit", "part of the edges whose gradient is cut", (), {"update/clip_fraction": {}}),
    Metric("branchgrpo_kl", "gauge", "KL to the base", "short", "mean over trained edges", (), {"update/kl": {}}),
    Metric("branchgrpo_gradient_norm", "gauge", "Gradient norm", "short", "before clipping, mean over optimiser steps", (), {"update/gradient_norm": {}}),
    Metric("branchgrpo_learning_rate", "gauge", "Learning rate", "sci", "of the last optimiser step", (), {"update/learning_rate": {}}),
    Metric("branchgrpo_iterations", "counter", "Iterations per second", "ops", "iterations done", (), {"time/iteration": {}}),
    Metric("branchgrpo_iteration", "gauge", "Progress", "short", "iterations done, those of earlier drivers too"),
    Metric("branchgrpo_iterations_planned", "gauge", "Progress", "short", "iterations to do; 0: until a time limit"),
    Metric("branchgrpo_staleness", "gauge", "Staleness", "short", "updates behind which trees were trained on", (), {"tree/staleness": {}}),
    Metric("branchgrpo_trees", "counter", "Trees and leaves per second", "ops", "trees grown", (), {"tree/trees": {}}),
    Metric("branchgrpo_leaves", "counter", "Trees and leaves per second", "ops", "leaves scored", (), {"tree/leaves": {}}),
    Metric(
        "branchgrpo_forwards", "counter", "Forwards per second", "ops", "rows sent through the model", ("phase",),
        {"tree/forwards": {"phase": "rollout"}, "update/forwards": {"phase": "training"}},
    ),
    Metric(
        "branchgrpo_phase_seconds", "counter", "Time by phase", "percentunit", "seconds spent in a phase of an iteration", ("phase",),
        {f"time/{phase}": {"phase": phase} for phase in PHASES},
    ),
    Metric("branchgrpo_driver_bytes", "counter", "Bytes through the driver", "Bps", "messages that the driver sent and received", (), {"driver/bytes": {}}),
    Metric("branchgrpo_queue_length", "gauge", "Queue length", "short", "tasks waiting or running", ("role",)),
    Metric("branchgrpo_workers_desired", "gauge", "Workers", "short", "workers asked for", ("role",)),
    Metric("branchgrpo_workers_ready", "gauge", "Workers", "short", "workers that take tasks", ("role",)),
    Metric(
        "branchgrpo_weight_version", "gauge", "Weight version", "short", "version of the weights that a worker holds", ("role", "worker"),
        {"update/version": {"role": "learner", "worker": "learner-0"}},
    ),
    Metric(
        "branchgrpo_retries", "counter", "Retries", "short", "tasks issued again, and further attempts of rewards", ("role",),
        {"reward/retries": {"role": "reward"}},
    ),
    Metric("branchgrpo_restarts", "counter", "Restarts", "short", "actors replaced; of learners: gangs", ("role", "cause")),
    Metric("branchgrpo_recoveries", "counter", "Recoveries", "short", "failures of machines after which the run went on"),
    Metric(
        "branchgrpo_skipped_steps", "counter", "Left out", "short", "optimiser steps skipped since the gradient was not finite", (),
        {"update/skipped_steps": {}},
    ),
    Metric("branchgrpo_dropped_groups", "counter", "Left out", "short", "prompt groups without usable rewards", (), {"reward/dropped_groups": {}}),
    Metric(
        "branchgrpo_stale_rejections", "counter", "Left out", "short", "checkpoints of an old epoch, trees of an over-stale policy", ("cause",),
        {"checkpoint/rejected": {"cause": "epoch"}, "tree/stale_dropped": {"cause": "policy"}},
    ),
    Metric("branchgrpo_checkpoint_timestamp_seconds", "gauge", "Checkpoint age", "unixtime", "when the newest checkpoint was committed"),
    Metric("branchgrpo_checkpoint_iteration", "gauge", "Checkpoint and epoch", "short", "iteration of the newest checkpoint"),
    Metric("branchgrpo_epoch", "gauge", "Checkpoint and epoch", "short", "grows with each restore; older ones are fenced"),
)  # fmt: skip
"""All metrics. The Grafana board and Prometheus' filter are generated from this table: python -m cluster.deploy.generate."""

SCORES = {"reward": "branchgrpo_reward_mean", "held_out": "branchgrpo_held_out_mean"}
"""Figures reward/total and reward/NAME/SCORE, likewise held_out/…, go to one metric with the rest as label `score`."""


class Monitor:
    """Writes the metrics of one run; needs a connection to Ray. Ray sends them to the node's agent, at once or later."""

    def __init__(self, run: str):
        self._metrics = {metric.name: metric for metric in METRICS}
        self._writers = {
            metric.name: (Gauge if metric.kind == "gauge" else Counter)(metric.name, metric.description, ("run", *metric.labels)).set_default_tags({"run": run})
            for metric in METRICS
        }
        self._figures = {figure: (metric.name, labels) for metric in METRICS for figure, labels in metric.figures.items()}
        self._held: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self._lock, self._closed = Lock(), Event()
        for metric in METRICS:
            if metric.kind == "counter":
                for labels in metric.figures.values() if metric.labels else [{}]:
                    self.begin(metric.name, **labels)
        self._refresher = Thread(target=self._refresh, name="metrics", daemon=True)
        self._refresher.start()

    def iteration(self, values: Mapping[str, float]) -> None:
        """Take over the figures of one iteration, named as in metrics.jsonl; those that no metric follows are ignored."""
        for figure, value in values.items():
            name, labels = self._figures.get(figure) or _score(figure)
            if name == "branchgrpo_iterations":
                value = 1.0  # the figure says that an iteration was done, and how long it took
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
        """Raise a counter. Raises ValueError for a name or labels that METRICS lacks, and for a value below 0 or not finite."""
        self._check(name, "counter", labels)
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: expected a finite value of at least 0, got {value}")
        if value > 0:  # Ray refuses 0
            self._writers[name].inc(value, tags=labels)

    def begin(self, name: str, **labels: str) -> None:
        """Export a counter at 0, so that `increase` sees its first event. Raises ValueError as `add` does."""
        self._check(name, "counter", labels)
        self._writers[name]._record(0.0, tags=labels)  # what inc does, which refuses 0

    def forget(self, **labels: str) -> None:
        """Stop reporting gauges that have all these labels, such as those of a worker that left; they fade within 20 s."""
        with self._lock:
            self._held = {(name, held): value for (name, held), value in self._held.items() if not labels.items() <= dict(held).items()}

    def close(self) -> None:
        """Stop refreshing, before Ray is left."""
        self._closed.set()
        self._refresher.join()

    def _check(self, name: str, kind: str, labels: Mapping[str, str]) -> None:
        metric = self._metrics.get(name)
        if metric is None or metric.kind != kind:
            raise ValueError(f"metrics: expected the name of a {kind}, one of {[one.name for one in METRICS if one.kind == kind]}, got {name!r}")
        if set(labels) != set(metric.labels):
            raise ValueError(f"{name}: expected the labels {sorted(metric.labels)}, got {sorted(labels)}")

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            with self._lock:
                for (name, labels), value in self._held.items():
                    self._writers[name].set(value, tags=dict(labels))


def _score(figure: str) -> tuple[str, dict[str, str]]:
    """The metric and label of a mean score; an empty name for any other figure."""
    kind, _, score = figure.partition("/")
    return (SCORES[kind], {"score": score}) if kind in SCORES and (score == "total" or "/" in score) else ("", {})
