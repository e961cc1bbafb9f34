"""All metrics of a run, by which name Prometheus sees them and what they follow.

The Grafana board and Prometheus' filter are generated from this table: python -m
cluster.deploy.generate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

PHASE_SECONDS = "branchgrpo_phase_seconds"
"""What time/PHASE goes to; those who make a RunMetrics name the phases."""


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


CAUSES = tuple(
    "preempted scaled start memory node unavailable died unresponsive lost error".split()
)
"""Why actors are replaced: all there are, so that each is exported before its first event."""


def _metric(
    kind: Literal["gauge", "counter"],
    name: str,
    description: str,
    *,
    panel: str,
    unit: str,
    labels: tuple[str, ...] = (),
    source: str = "",
    sources: Mapping[str, Mapping[str, str]] | None = None,
) -> Metric:
    """source: the only one, without labels."""
    return Metric(
        name=f"branchgrpo_{name}",
        kind=kind,
        panel=panel,
        unit=unit,
        description=description,
        labels=labels,
        sources=sources or ({source: {}} if source else {}),
    )


_gauge = partial(_metric, "gauge")
_counter = partial(_metric, "counter")

METRICS = (
    _gauge(
        "reward_mean",
        "mean over the iteration's leaves",
        panel="Reward",
        unit="short",
        labels=("score",),
    ),
    _gauge(
        "reward_spread",
        "mean std of a prompt's leaves",
        panel="Reward spread",
        unit="short",
        source="reward/spread",
    ),
    _gauge(
        "flat_groups",
        "share of prompts whose leaves have next to no spread",
        panel="Flat groups",
        unit="percentunit",
        source="reward/flat_groups",
    ),
    _gauge(
        "effective_samples",
        "independent leaves that a prompt's leaves are worth",
        panel="Effective samples",
        unit="short",
        source="tree/effective_samples",
    ),
    _gauge(
        "scout_agreement",
        "rank correlation of scouts' rewards with those of what was grown in full after them",
        panel="Scouts' agreement",
        unit="short",
        source="scout/agreement",
    ),
    _gauge(
        "held_out_mean",
        "mean over held-out prompts",
        panel="Held-out score",
        unit="short",
        labels=("score",),
    ),
    _gauge(
        "hacking",
        "measured scores that fell at the last held-out check while the trained reward rose",
        panel="Reward hacking",
        unit="short",
        source="alarm/hacking",
    ),
    _gauge(
        "advantage_abs",
        "mean |A| of kept edges",
        panel="Advantage",
        unit="short",
        source="update/advantage_abs",
    ),
    _gauge(
        "clip_fraction",
        "part of the edges whose gradient is cut",
        panel="Clip fraction",
        unit="percentunit",
        source="update/clip_fraction",
    ),
    _gauge(
        "kl", "mean over trained edges", panel="KL to the base", unit="short", source="update/kl"
    ),
    _gauge(
        "gradient_norm",
        "before clipping, mean over optimiser steps",
        panel="Gradient norm",
        unit="short",
        source="update/gradient_norm",
    ),
    _gauge(
        "learning_rate",
        "of the last optimiser step",
        panel="Learning rate",
        unit="sci",
        source="update/learning_rate",
    ),
    _counter(
        "iterations",
        "iterations done",
        panel="Iterations per second",
        unit="ops",
        source="time/iteration",
    ),
    _gauge(
        "iteration", "iterations done, those of earlier drivers too", panel="Progress", unit="short"
    ),
    _gauge(
        "iterations_planned",
        "iterations to do; 0: until a time limit",
        panel="Progress",
        unit="short",
    ),
    _gauge(
        "staleness",
        "updates after which trees were trained on",
        panel="Staleness",
        unit="short",
        source="tree/staleness",
    ),
    _counter(
        "trees", "trees grown", panel="Trees and leaves per second", unit="ops", source="tree/trees"
    ),
    _counter(
        "leaves",
        "leaves scored",
        panel="Trees and leaves per second",
        unit="ops",
        source="tree/leaves",
    ),
    _counter(
        "forwards",
        "rows sent through the model",
        panel="Forwards per second",
        unit="ops",
        labels=("phase",),
        sources={"tree/forwards": {"phase": "rollout"}, "update/forwards": {"phase": "training"}},
    ),
    _counter(
        "phase_seconds",
        "seconds spent in a phase of an iteration",
        panel="Time by phase",
        unit="percentunit",
        labels=("phase",),
    ),
    _counter(
        "driver_bytes",
        "messages that the driver sent and received",
        panel="Bytes through the driver",
        unit="Bps",
        source="driver/bytes",
    ),
    _gauge(
        "queue_length",
        "tasks waiting or running",
        panel="Queue length",
        unit="short",
        labels=("role",),
    ),
    _gauge("workers_desired", "workers asked for", panel="Workers", unit="short", labels=("role",)),
    _gauge(
        "workers_ready", "workers that take tasks", panel="Workers", unit="short", labels=("role",)
    ),
    _gauge(
        "weight_version",
        "version of the weights that a worker holds",
        panel="Weight version",
        unit="short",
        labels=("role", "worker"),
        sources={"update/version": {"role": "learner", "worker": "learner-0"}},
    ),
    _counter(
        "retries",
        "tasks issued again, and further attempts of rewards",
        panel="Retries",
        unit="short",
        labels=("role",),
        sources={"reward/retries": {"role": "reward"}},
    ),
    _counter(
        "restarts",
        "actors replaced; of learners: rank_groups",
        panel="Restarts",
        unit="short",
        labels=("role", "cause"),
    ),
    _counter(
        "recoveries",
        "failures of machines after which the run went on",
        panel="Recoveries",
        unit="short",
    ),
    _counter(
        "skipped_steps",
        "optimiser steps skipped since the gradient was not finite",
        panel="Left out",
        unit="short",
        source="update/skipped_steps",
    ),
    _counter(
        "dropped_groups",
        "prompt groups without usable rewards",
        panel="Left out",
        unit="short",
        source="reward/dropped_groups",
    ),
    _counter(
        "stale_rejections",
        "checkpoints of an old fence, trees of an over-stale policy",
        panel="Left out",
        unit="short",
        labels=("cause",),
        sources={
            "checkpoint/rejected": {"cause": "fence"},
            "tree/stale_dropped": {"cause": "policy"},
        },
    ),
    _gauge(
        "checkpoint_timestamp_seconds",
        "when the newest checkpoint was committed",
        panel="Checkpoint age",
        unit="unixtime",
    ),
    _gauge(
        "checkpoint_iteration",
        "iteration of the newest checkpoint",
        panel="Checkpoint and fence",
        unit="short",
    ),
    _gauge(
        "fence",
        "grows with each restore; older ones are fenced",
        panel="Checkpoint and fence",
        unit="short",
    ),
)

SCORES = {"reward": "branchgrpo_reward_mean", "held_out": "branchgrpo_held_out_mean"}
"""Values reward/total and reward/NAME/SCORE, likewise held_out/…, go to one metric with the rest
as label `score`."""
