"""Grafana's board, Prometheus' settings and alerts: they speak of the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.deploy import generate, grafana
from cluster.deploy.generate import FOLDER
from cluster.metric_table import METRICS


def test_the_board_shows_every_metric_once_and_only_what_there_is() -> None:
    board = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
    texts = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    named = [
        name for text in texts for name in sorted(set(re.findall(r"ray_branchgrpo_\w+", text)))
    ]
    assert sorted(named) == sorted(metric.exported for metric in METRICS)
    for text in texts:
        assert text.count("(") == text.count(")") and (
            "ray_node" in text or "ray_object" in text or 'run=~"$run"' in text
        ), text
    titles = [panel["title"] for panel in board["panels"]]
    assert len(set(titles)) == len(titles) and {metric.panel for metric in METRICS} <= set(titles)
    assert len({panel["id"] for panel in board["panels"]}) == len(titles)
    assert all(
        "datasource" not in panel or panel["datasource"]["uid"] == "${datasource}"
        for panel in board["panels"]
    )
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    # no panel covers another
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_expressions() -> None:
    found = {
        metric.name.removeprefix("branchgrpo_"): grafana.expression(metric) for metric in METRICS
    }
    assert found["kl"] == 'max by (run) (ray_branchgrpo_kl{run=~"$run"})'
    assert (
        found["phase_seconds"]
        == 'sum by (run, phase) (rate(ray_branchgrpo_phase_seconds_total{run=~"$run"}[$window]))'
    )
    assert (
        found["restarts"]
        == 'sum by (run, role, cause) (ray_branchgrpo_restarts_total{run=~"$run"})'
    )
    assert (
        found["checkpoint_timestamp_seconds"]
        == 'time() - max by (run) (ray_branchgrpo_checkpoint_timestamp_seconds{run=~"$run"})'
    )


def test_prometheus_looks_where_ray_writes_and_keeps_what_the_board_needs() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = load("prometheus.yaml")["scrape_configs"]
    (named,) = job["file_sd_configs"][0]["files"]
    assert named == f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"
    (keep,) = [rule["regex"] for rule in job["metric_relabel_configs"] if rule["action"] == "keep"]
    board = (FOLDER / "grafana.json").read_text(encoding="utf-8")
    for name in set(re.findall(r"ray_\w+", board)):
        assert re.fullmatch(keep, name), name
    assert not re.fullmatch(keep, "ray_tasks")


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


FINE = "0+1x120"  # an iteration a minute


STANDS = "0+1x30 30+0x90"


def restarts(run: str, cause: str) -> str:
    """The series of restarted rollout workers."""
    return f'ray_branchgrpo_restarts_total{{run="{run}",role="rollout",cause="{cause}"}}'


PROMTOOL = {
    "rule_files": ["alerts.yaml"],
    "evaluation_interval": "1m",
    "tests": [
        {
            "interval": "1m",
            "input_series": [
                {"series": 'ray_branchgrpo_iterations_total{run="fine"}', "values": FINE},
                {"series": 'ray_branchgrpo_fence{run="fine"}', "values": "1+0x120"},
                {"series": 'ray_branchgrpo_iterations_total{run="stands"}', "values": STANDS},
                {"series": 'ray_branchgrpo_fence{run="stands"}', "values": "1+0x120"},
                # counters stay, gauges go
                {"series": 'ray_branchgrpo_iterations_total{run="ended"}', "values": STANDS},
                {"series": 'ray_branchgrpo_fence{run="ended"}', "values": "1+0x30 stale"},
                {
                    "series": 'ray_branchgrpo_iterations_total{run="starts"}',
                    "values": "_x90 0+0x30",
                },
                {"series": 'ray_branchgrpo_fence{run="starts"}', "values": "_x90 1+0x30"},
                {
                    "series": 'ray_branchgrpo_checkpoint_timestamp_seconds{run="fine"}',
                    "values": "3000+60x150",
                },
                {
                    "series": 'ray_branchgrpo_checkpoint_timestamp_seconds{run="stands"}',
                    "values": "60+0x150",
                },
                {
                    "series": restarts("fine", "scaled"),
                    "values": "0+1x120",
                },
                {
                    "series": restarts("fine", "died"),
                    "values": "0+0x60 4+0x60",
                },
                {
                    "series": restarts("stands", "died"),
                    "values": "0+0x60 8+0x60",
                },
            ],
            "alert_rule_test": [
                {"eval_time": "25m", "alertname": "BranchgrpoStalled", "exp_alerts": []},
                {
                    "eval_time": "75m",
                    "alertname": "BranchgrpoStalled",
                    "exp_alerts": [
                        {
                            "exp_labels": {"run": "stands", "severity": "warning"},
                            "exp_annotations": {
                                "summary": "stands has finished no iteration for 30 minutes"
                            },
                        }
                    ],
                },
                {"eval_time": "119m", "alertname": "BranchgrpoCheckpointOld", "exp_alerts": []},
                {
                    "eval_time": "140m",
                    "alertname": "BranchgrpoCheckpointOld",
                    "exp_alerts": [
                        {
                            "exp_labels": {"run": "stands", "severity": "warning"},
                            "exp_annotations": {
                                "summary": "the newest checkpoint of stands is 2h 19m 0s old"
                            },
                        }
                    ],
                },
                {"eval_time": "50m", "alertname": "BranchgrpoRestarts", "exp_alerts": []},
                {
                    "eval_time": "70m",
                    "alertname": "BranchgrpoRestarts",
                    "exp_alerts": [
                        {
                            "exp_labels": {
                                "run": "stands",
                                "role": "rollout",
                                "severity": "warning",
                            },
                            "exp_annotations": {
                                "summary": "stands has replaced 8 rollout actors within an hour"
                            },
                        }
                    ],
                },
            ],
        }
    ],
}


def test_alerts_speak_of_metrics_that_there_are() -> None:
    (group,) = load("alerts.yaml")["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [alert.name for alert in generate.ALERTS]
    (listed,) = load("prometheus.yaml")["rule_files"]
    assert (FOLDER / listed).is_file()
    exported = {metric.exported for metric in METRICS}
    for rule in group["rules"]:
        assert (
            set(re.findall(r"ray_\w+", rule["expr"])) <= exported and rule["annotations"]["summary"]
        )


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool, of the package prometheus"
)
def test_alerts_fire_for_what_they_are_for_and_for_nothing_else(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "alerts.yaml", tmp_path)
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(PROMTOOL))
    for command in (
        ["check", "config", str(FOLDER / "prometheus.yaml")],
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "cases.yaml"],
    ):
        done = subprocess.run(
            ["promtool", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
