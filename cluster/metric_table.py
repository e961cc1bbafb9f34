"""All metrics of a run, by which name Prometheus sees them and what they follow.

The Grafana board and Prometheus' filter are generated from this table: python -m
cluster.deploy.generate.
"""

from __future__ import annotations

from cluster.metric import counter, gauge

PHASE_SECONDS = "branchgrpo_phase_seconds"
"""What time/PHASE goes to; those who make a RunMetrics name the phases."""

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
    gauge(
        "reward_mean",
        "mean over the iteration's leaves",
        panel="Reward",
        unit="short",
        labels=("score",),
    ),
    gauge(
        "reward_spread",
        "mean std of a prompt's leaves",
        panel="Reward spread",
        unit="short",
        source="reward/spread",
    ),
    gauge(
        "flat_groups",
        "share of prompts whose leaves have next to no spread",
        panel="Flat groups",
        unit="percentunit",
        source="reward/flat_groups",
    ),
    gauge(
        "effective_samples",
        "independent leaves that a prompt's leaves are worth",
        panel="Effective samples",
        unit="short",
        source="tree/effective_samples",
    ),
    gauge(
        "scout_agreement",
        "rank correlation of scouts' rewards with those of what was grown in full after them",
        panel="Scouts' agreement",
        unit="short",
        source="scout/agreement",
    ),
    gauge(
        "held_out_mean",
        "mean over held-out prompts",
        panel="Held-out score",
        unit="short",
        labels=("score",),
    ),
    gauge(
        "hacking",
        "measured scores that fell at the last held-out check while the trained reward rose",
        panel="Reward hacking",
        unit="short",
        source="alarm/hacking",
    ),
    gauge(
        "velocity_norm",
        "of the velocity, divided by what it was when the run began",
        panel="Velocity norm",
        unit="short",
        source="update/velocity_norm",
    ),
    gauge(
        "norm_alarm",
        "1 where the norm of the velocity is too far from what it was",
        panel="Velocity norm",
        unit="short",
        source="alarm/norm",
    ),
    gauge(
        "advantage_abs",
        "mean |A| of kept edges",
        panel="Advantage",
        unit="short",
        source="update/advantage_abs",
    ),
    gauge(
        "clip_fraction",
        "part of the edges whose gradient is cut",
        panel="Clip fraction",
        unit="percentunit",
        source="update/clip_fraction",
    ),
    gauge(
        "kl", "mean over trained edges", panel="KL to the base", unit="short", source="update/kl"
    ),
    gauge(
        "gradient_norm",
        "before clipping, mean over optimiser steps",
        panel="Gradient norm",
        unit="short",
        source="update/gradient_norm",
    ),
    gauge(
        "learning_rate",
        "of the last optimiser step",
        panel="Learning rate",
        unit="sci",
        source="update/learning_rate",
    ),
    counter(
        "iterations",
        "iterations done",
        panel="Iterations per second",
        unit="ops",
        source="time/iteration",
    ),
    gauge(
        "iteration", "iterations done, those of earlier drivers too", panel="Progress", unit="short"
    ),
    gauge(
        "iterations_planned",
        "iterations to do; 0: until a time limit",
        panel="Progress",
        unit="short",
    ),
    gauge(
        "staleness",
        "updates after which trees were trained on",
        panel="Staleness",
        unit="short",
        source="tree/staleness",
    ),
    counter(
        "trees", "trees grown", panel="Trees and leaves per second", unit="ops", source="tree/trees"
    ),
    counter(
        "leaves",
        "leaves scored",
        panel="Trees and leaves per second",
        unit="ops",
        source="tree/leaves",
    ),
    counter(
        "forwards",
        "rows sent through the model",
        panel="Forwards per second",
        unit="ops",
        labels=("phase",),
        sources={"tree/forwards": {"phase": "rollout"}, "update/forwards": {"phase": "training"}},
    ),
    counter(
        "phase_seconds",
        "seconds spent in a phase of an iteration",
        panel="Time by phase",
        unit="percentunit",
        labels=("phase",),
    ),
    counter(
        "driver_bytes",
        "messages that the driver sent and received",
        panel="Bytes through the driver",
        unit="Bps",
        source="driver/bytes",
    ),
    gauge(
        "queue_length",
        "tasks waiting or running",
        panel="Queue length",
        unit="short",
        labels=("role",),
    ),
    gauge("workers_desired", "workers asked for", panel="Workers", unit="short", labels=("role",)),
    gauge(
        "workers_ready", "workers that take tasks", panel="Workers", unit="short", labels=("role",)
    ),
    gauge(
        "weight_version",
        "version of the weights that a worker holds",
        panel="Weight version",
        unit="short",
        labels=("role", "worker"),
        sources={"update/version": {"role": "learner", "worker": "learner-0"}},
    ),
    counter(
        "retries",
        "tasks issued again, and further attempts of rewards",
        panel="Retries",
        unit="short",
        labels=("role",),
        sources={"reward/retries": {"role": "reward"}},
    ),
    counter(
        "restarts",
        "actors replaced; of learners: rank_groups",
        panel="Restarts",
        unit="short",
        labels=("role", "cause"),
    ),
    counter(
        "recoveries",
        "failures of machines after which the run went on",
        panel="Recoveries",
        unit="short",
    ),
    counter(
        "skipped_steps",
        "optimiser steps skipped since the gradient was not finite",
        panel="Left out",
        unit="short",
        source="update/skipped_steps",
    ),
    counter(
        "dropped_groups",
        "prompt groups without usable rewards",
        panel="Left out",
        unit="short",
        source="reward/dropped_groups",
    ),
    counter(
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
    gauge(
        "checkpoint_timestamp_seconds",
        "when the newest checkpoint was committed",
        panel="Checkpoint age",
        unit="unixtime",
    ),
    gauge(
        "checkpoint_iteration",
        "iteration of the newest checkpoint",
        panel="Checkpoint and fence",
        unit="short",
    ),
    gauge(
        "fence",
        "grows with each restore; older ones are fenced",
        panel="Checkpoint and fence",
        unit="short",
    ),
)

SCORES = {"reward": "branchgrpo_reward_mean", "held_out": "branchgrpo_held_out_mean"}
"""Values reward/total and reward/NAME/SCORE, likewise held_out/…, go to one metric with the rest
as label `score`."""
