"""The Grafana board, from the table of metrics."""

from __future__ import annotations

import json
from typing import Any

from cluster.metric import Metric
from cluster.metric_table import METRICS

ROWS = {
    "Learning": (
        "Reward",
        "Reward spread",
        "Flat groups",
        "Effective samples",
        "Scouts' agreement",
        "Held-out score",
        "Reward hacking",
        "Velocity norm",
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


def _variables() -> list[dict[str, Any]]:
    return [
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
    found = {
        "uid": "branchgrpo",
        "title": "branchgrpo",
        "tags": ["ray", "branchgrpo"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }
    return json.dumps(found, indent=1) + "\n"
