"""Write what follows from other files: of the metrics the Grafana board, Prometheus' scrape config
and its alerts, of the RayCluster that of the shared layout, and of both the RayJobs.

python -m cluster.deploy.generate
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from cluster.deploy.grafana import board
from cluster.metric_table import METRICS

FOLDER = Path(__file__).parent

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
# {cluster}. kubectl apply -f storage.yaml -f network-policy.yaml -f {file}
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: {name}
spec:
  submissionMode: HTTPMode              # the operator submits, so there is no submitter pod
  entrypoint: >-
{entrypoint}
  runtimeEnvYAML: |
    env_vars:
      RAY_JOB_STOP_WAIT_TIME_S: "120"
  # each try makes a new cluster, which resumes: what helps when the head is lost
  backoffLimit: 3
  shutdownAfterJobFinishes: true
  ttlSecondsAfterFinished: 600
  rayClusterSpec:
"""


SEPARATE = """\
    python /app/run.py train /app/configs/flux.1-dev-4nodes-full.yaml
    --run.folder /shared/runs --resume auto --cluster.wait_seconds 3600
    --rollout.resource rollout --reward_workers.resource reward --learner.resource learner"""
SHARED = """\
    python /app/run.py train /app/configs/flux.1-dev-1node.yaml
    --run.folder /shared/runs --resume auto --cluster.wait_seconds 3600"""


def job(*, cluster: str, file: str, name: str, entrypoint: str) -> str:
    """The RayJob `file`: the spec of a RayCluster, comments and all, two columns to the right."""
    text = shared() if cluster == SHARED_CLUSTER else _cluster()
    _, _, spec = text.partition("\nspec:\n")
    head = JOB.format(cluster=cluster, file=file, name=name, entrypoint=entrypoint)
    return head + "".join(f"  {line}\n" for line in spec.splitlines())


SHARED_CLUSTER = "raycluster-shared.yaml"
SHARED_HEAD = """\
# Written by `python -m cluster.deploy.generate` from raycluster.yaml. Ray on Kubernetes for
# `cluster.layout: shared`: a head without work, and nodes of one kind, on which each GPU has a
# learner rank, which also grows trees, and a part of a reward worker. No node is marked for a role.
# The sizes fit configs/flux.1-dev-1node.yaml: ranks on one node, workers beside them on others.
# kubectl apply -f storage.yaml -f network-policy.yaml -f raycluster-shared.yaml
apiVersion: ray.io/v1
kind: RayCluster
metadata:
  name: branchgrpo-shared
"""
SHARED_CHANGES = {
    "groupName: learner": "groupName: gpu",
    "maxReplicas: 3": "maxReplicas: 4",
    '        resources: \'"{\\"learner\\": 1}"\'\n': "",
    'cpu: "40"': 'cpu: "56"',
    "memory: 640Gi": "memory: 960Gi",
}
"""Of the learner's group, which is what the shared layout wants but for the mark and the sizes."""


def shared() -> str:
    """The RayCluster of the shared layout: of `raycluster.yaml` the head and the first group."""
    head, _, groups = _cluster().partition("    - groupName: ")
    _, _, spec = head.partition("\nspec:\n")
    first, _, _ = groups.partition("    - groupName: ")
    group = f"    - groupName: {first}"
    for before, after in SHARED_CHANGES.items():
        if before not in group:
            raise ValueError(f"raycluster.yaml, first group: expected {before!r}")
        group = group.replace(before, after)
    return f"{SHARED_HEAD}spec:\n{spec}{group}"


def _cluster() -> str:
    return (FOLDER / "raycluster.yaml").read_text(encoding="utf-8")


FILES: dict[str, Callable[[], str]] = {
    "grafana.json": board,
    "prometheus.yaml": scrape,
    "alerts.yaml": alerts,
    "rayjob.yaml": partial(
        job,
        cluster="raycluster.yaml",
        file="rayjob.yaml",
        name="branchgrpo-job",
        entrypoint=SEPARATE,
    ),
    SHARED_CLUSTER: shared,
    "rayjob-shared.yaml": partial(
        job,
        cluster=SHARED_CLUSTER,
        file="rayjob-shared.yaml",
        name="branchgrpo-shared-job",
        entrypoint=SHARED,
    ),
}
"""What is generated, and by what."""


if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
        print(f"wrote {FOLDER / name}")
