"""Write what follows from other files: of the metrics the Grafana board, Prometheus' scrape config
and its alerts, of the RayCluster the RayJob.

python -m cluster.deploy.generate
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.metric_table import METRICS, Metric

FOLDER = Path(__file__).parent

ROWS = {
    "Learning": (
        "Reward",
        "Reward spread",
        "Held-out score",
        "Advantage",
        "Clip fraction",
        "KL to the base",
        "Gradient norm",
        "Learning rate",
        "Staleness",
    ),
    "Speed": (
        "Progress",
        "Iterations per second",
        "Trees and leaves per second",
        "Forwards per second",
        "Time by phase",
        "Bytes through the driver",
    ),
    "Actors": ("Workers", "Queue length", "Weight version"),
    "Faults": (
        "Retries",
        "Restarts",
        "Recoveries",
        "Left out",
        "Checkpoint age",
        "Checkpoint and fence",
    ),
    "Nodes": ("CPU", "Memory", "GPU", "Object store"),
}
"""Rows of the board and the titles of their panels."""

NODES = {
    "CPU": ("percent", "{{instance}}", "ray_node_cpu_utilization"),
    "Memory": (
        "percentunit",
        "{{instance}}",
        "sum by (instance) (ray_node_mem_used) / sum by (instance) (ray_node_mem_total)",
    ),
    "GPU": ("percent", "{{instance}} {{GpuIndex}}", "ray_node_gpus_utilization"),
    "Object store": (
        "percentunit",
        "{{instance}}",
        "sum by (instance) (ray_object_store_used_memory)"
        " / (sum by (instance) (ray_object_store_used_memory) + sum by (instance) "
        "(ray_object_store_available_memory))",
    ),
}
"""Panels of Ray's own metrics: unit, legend and expression."""

WIDTH = 6
HEIGHT = 7
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def expression(metric: Metric) -> str:
    """PromQL for a metric. A run that was resumed has series of several processes: gauges of the
    dead one fade, its counters stay, so counters are summed. Rare events show their count, for
    `increase` misses the first one."""
    selected, by = f'{metric.exported}{{run=~"$run"}}', ", ".join(("run", *metric.labels))
    if metric.unit == "unixtime":
        return f"time() - max by ({by}) ({selected})"
    if metric.kind == "gauge":
        return f"max by ({by}) ({selected})"
    return (
        f"sum by ({by}) "
        f"({selected if metric.panel in ROWS['Faults'] else f'rate({selected}[$window])'})"
    )


def _target(metric: Metric, alone: bool, letter: str) -> dict[str, Any]:
    labels = " ".join(f"{{{{{label}}}}}" for label in ("run", *metric.labels))
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": expression(metric),
        "legendFormat": labels if alone else f"{labels} {_short(metric)}",
    }


def _short(metric: Metric) -> str:
    return metric.name.removeprefix("branchgrpo_").replace("_", " ")


def _panel(title: str) -> dict[str, Any]:
    if title in NODES:
        unit, legend, text = NODES[title]
        return _series(
            title,
            "",
            unit,
            [{"refId": "A", "datasource": DATASOURCE, "expr": text, "legendFormat": legend}],
        )
    metrics = [metric for metric in METRICS if metric.panel == title]
    (unit,) = {"s" if metric.unit == "unixtime" else metric.unit for metric in metrics}
    description = "; ".join(f"{_short(metric)}: {metric.description}" for metric in metrics)
    return _series(
        title,
        description,
        unit,
        [
            _target(metric, len(metrics) == 1, chr(ord("A") + index))
            for index, metric in enumerate(metrics)
        ],
    )


def _series(
    title: str, description: str, unit: str, targets: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": unit, "custom": {"fillOpacity": 5, "showPoints": "auto"}},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
        "targets": targets,
    }


def board() -> str:
    """The Grafana board as JSON."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, titles in ROWS.items():
        panels.append(
            {
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            }
        )
        top += 1
        for index, title in enumerate(titles):
            place = {
                "x": index * WIDTH % COLUMNS,
                "y": top + index * WIDTH // COLUMNS * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            }
            panels.append(_panel(title) | {"gridPos": place})
        top += -(-len(titles) * WIDTH // COLUMNS) * HEIGHT
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "run",
            "type": "query",
            "datasource": DATASOURCE,
            "query": "label_values(ray_branchgrpo_iterations_total, run)",
            "label": "Run",
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            "refresh": 2,
            "sort": 2,
        },
        {
            "name": "window",
            "type": "custom",
            "label": "Rate over",
            "query": "5m,15m,1h",
            "current": {"text": "15m", "value": "15m"},
            "options": [
                {"text": text, "value": text, "selected": text == "15m"}
                for text in ("5m", "15m", "1h")
            ],
        },
    ]
    found = {
        "uid": "branchgrpo",
        "title": "branchgrpo",
        "tags": ["ray", "branchgrpo"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }
    return json.dumps(found, indent=1) + "\n"


SCRAPE = """\
# Written by `python -m cluster.deploy.generate`. Run Prometheus on the head node, where Ray keeps
# the list of its nodes; a Ray started with --temp-dir keeps it there instead of in /tmp/ray.
global:
  scrape_interval: 10s  # no more often than Ray reports (metrics_report_interval_ms)
rule_files: [alerts.yaml]
scrape_configs:
  - job_name: ray
    file_sd_configs:
      - files: [/tmp/ray/prom_metrics_service_discovery.json]
        refresh_interval: 30s
    metric_relabel_configs:
      - action: labeldrop  # of OpenTelemetry, the same for all
        regex: otel_scope_.+
      - source_labels: [__name__]  # what the board shows
        action: keep
        regex: {names}
"""


def scrape() -> str:
    """Prometheus' config: finds the nodes as Ray lists them, keeps what the board shows."""
    names = [metric.exported for metric in METRICS] + ["ray_node_.+", "ray_object_store_.+"]
    return SCRAPE.format(names="|".join(names))


@dataclass(frozen=True)
class Alert:
    """A rule of Prometheus. Metrics in `expression` are named as in METRICS, between braces."""

    name: str
    expression: str
    minutes: int  # for which it must hold
    summary: str  # $labels and $value are Prometheus'


STALLED_MINUTES = 30
CHECKPOINT_HOURS = 2
RESTARTS_AN_HOUR = 5
ALERTS = (
    Alert(
        # gauges are there as long as the driver is: a run that has ended is not stalled, nor one
        # that starts
        "BranchgrpoStalled",
        f"sum by (run) (increase({{branchgrpo_iterations}}[{STALLED_MINUTES}m])) == 0"
        f" and on (run) max by (run) ({{branchgrpo_fence}}) and on (run) max by (run) "
        f"({{branchgrpo_fence}} offset {STALLED_MINUTES}m)",
        5,
        f"{{{{ $labels.run }}}} has finished no iteration for {STALLED_MINUTES} minutes",
    ),
    Alert(
        "BranchgrpoCheckpointOld",
        f"time() - max by (run) ({{branchgrpo_checkpoint_timestamp_seconds}}) > "
        f"{3600 * CHECKPOINT_HOURS}",
        5,
        "the newest checkpoint of {{ $labels.run }} is {{ $value | humanizeDuration }} old",
    ),
    Alert(
        "BranchgrpoRestarts",
        "sum by (run, role) "
        f'(increase({{branchgrpo_restarts}}{{{{cause!~"preempted|scaled"}}}}[1h])) > '
        f"{RESTARTS_AN_HOUR}",
        0,
        '{{ $labels.run }} has replaced {{ $value | printf "%.0f" }} {{ $labels.role }} '
        "actors within an hour",
    ),
)


def alerts() -> str:
    """Rules for Prometheus."""
    names = {metric.name: metric.exported for metric in METRICS}
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression.format(**names),
            "for": f"{alert.minutes}m",
            "labels": {"severity": "warning"},
            "annotations": {"summary": alert.summary},
        }
        for alert in ALERTS
    ]
    head = "# Written by `python -m cluster.deploy.generate`. Change the bounds to yours.\n"
    return head + yaml.safe_dump(
        {"groups": [{"name": "branchgrpo", "rules": rules}]}, sort_keys=False, width=200
    )


JOB = """\
# Written by `python -m cluster.deploy.generate`: one run on a cluster of its own, that of
# raycluster.yaml. kubectl apply -f storage.yaml -f network-policy.yaml -f rayjob.yaml
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: branchgrpo-job
spec:
  submissionMode: HTTPMode              # the operator submits, so there is no submitter pod
  entrypoint: >-
    python /app/run.py train /app/configs/flux.1-dev-4nodes-full.yaml
    --run.folder /shared/runs --resume auto --cluster.wait_seconds 3600
    --rollout.resource rollout --reward_workers.resource reward --learner.resource learner
  runtimeEnvYAML: |
    env_vars:
      RAY_JOB_STOP_WAIT_TIME_S: "120"
  # each try makes a new cluster, which resumes: what helps when the head is lost
  backoffLimit: 3
  shutdownAfterJobFinishes: true
  ttlSecondsAfterFinished: 600
  rayClusterSpec:
"""


def job() -> str:
    """The RayJob: the RayCluster's spec, comments and all, two columns to the right."""
    text = (FOLDER / "raycluster.yaml").read_text(encoding="utf-8")
    _, _, spec = text.partition("\nspec:\n")
    return JOB + "".join(f"  {line}\n" for line in spec.splitlines())


FILES: dict[str, Callable[[], str]] = {
    "grafana.json": board,
    "prometheus.yaml": scrape,
    "alerts.yaml": alerts,
    "rayjob.yaml": job,
}
"""What is generated, and by what."""


if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
        print(f"wrote {FOLDER / name}")
