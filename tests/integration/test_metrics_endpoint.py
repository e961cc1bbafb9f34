"""A Monitor's metrics on a node's endpoint, found as Prometheus finds it."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from cluster import ray_metrics
from cluster.deploy.generate import FOLDER
from cluster.metric_table import METRICS
from cluster.ray_metrics import RunMetrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
SAMPLE = re.compile(r"^(ray_branchgrpo_\w+)\{(.*)\} (\S+)$")
LABEL = re.compile(r'(\w+)="([^"]*)"')
REPORT_SECONDS = 1  # Ray's shortest; its default is 10


@pytest.fixture(scope="module")
def targets() -> Iterator[Callable[[], list[str]]]:
    """A Ray of its own; gives the addresses in the file that cluster/deploy/prometheus.yaml names,
    of this session."""
    import ray

    from cluster import session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", str(1000 * REPORT_SECONDS))
        session.start("local", 100, dashboard=True)  # the dashboard writes the file
        (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))[
            "scrape_configs"
        ]
        (named,) = job["file_sd_configs"][0]["files"]
        found = Path(ray._private.worker._global_node.get_session_dir_path()) / Path(named).name

        def read() -> list[str]:
            return (
                [
                    target
                    for group in json.loads(found.read_text(encoding="utf-8"))
                    for target in group["targets"]
                ]
                if found.exists()
                else []
            )

        yield read
        session.stop()


def scrape(targets: list[str]) -> Samples:
    """Samples of this project on all targets, by name and our labels."""
    ours, found = {"run", *(label for metric in METRICS for label in metric.labels)}, {}
    for target in targets:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:  # a target is listed before it answers
            continue
        for line in lines:
            if match := SAMPLE.match(line):
                labels = frozenset(
                    (name, value) for name, value in LABEL.findall(match[2]) if name in ours
                )
                assert (match[1], labels) not in found, line
                found[match[1], labels] = float(match[3])
    return found


def wait_for(read: Callable[[], list[str]], holds: Callable[[Samples], bool]) -> None:
    """Until the samples are as they should be; says what they were when that takes longer than 300
    s."""
    deadline = time.monotonic() + 300
    while not holds(samples := scrape(read())):
        assert time.monotonic() < deadline, samples
        time.sleep(0.5)


@pytest.mark.usefixtures("targets")
def test_a_ray_that_is_started_here_listens_on_loopback_alone() -> None:
    """Whoever reaches Ray's ports can run code: on a laptop nobody else does."""
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def process(self) -> int:
            return os.getpid()

    actor = Actor.remote()
    started = psutil.Process().children(recursive=True)
    assert ray.get(actor.process.remote()) in {process.pid for process in started}
    listening: dict[str, set[str]] = {}
    for process in started:
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    listening.setdefault(process.name(), set()).add(
                        one.laddr.ip.removeprefix("::ffff:")
                    )
    assert {"gcs_server", "raylet"} <= listening.keys() and len(listening) >= 5
    assert set().union(*listening.values()) == {"127.0.0.1"}, listening


def test_metrics_reach_the_endpoint_stay_there_and_go_with_their_run(
    targets: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_metrics, "REFRESH_SECONDS", REPORT_SECONDS / 4)
    one, other = RunMetrics("run-1", ()), RunMetrics("run-2", ())
    one.begin("branchgrpo_restarts", role="rollout", cause="died")
    zeros = {
        (metric.exported, frozenset({"run": run, **labels}.items())): 0.0
        for run in ("run-1", "run-2")
        for metric in METRICS
        if metric.kind == "counter"
        for labels in (metric.sources.values() if metric.labels else [{}])
    }
    zeros[
        "ray_branchgrpo_restarts_total",
        frozenset({"run": "run-1", "role": "rollout", "cause": "died"}.items()),
    ] = 0.0
    wait_for(targets, lambda samples: samples == zeros)  # so that the first event is an increase
    expected = dict(zeros)
    for metric in METRICS:
        labels = {label: f"some {label}" for label in metric.labels}
        if metric.kind == "gauge":
            one.set(metric.name, 0.25, **labels)
        else:
            one.add(metric.name, 1.5, **labels)
            one.add(metric.name, 1.0, **labels)
        expected[metric.exported, frozenset({"run": "run-1", **labels}.items())] = {
            "gauge": 0.25,
            "counter": 2.5,
        }[metric.kind]
    other.set("branchgrpo_fence", 7.0)
    others = {("ray_branchgrpo_fence", frozenset({("run", "run-2")})): 7.0}
    wait_for(targets, lambda samples: samples == expected | others)

    time.sleep(4 * REPORT_SECONDS)  # gauges that are set but once are gone after 2, for good
    wait_for(targets, lambda samples: samples == expected | others)

    other.close()
    one.iteration({"reward/ocr/exact": 0.5, "tree/forwards": 320.0, "time/iteration": 3.0})
    one.forget(worker="some worker")
    (gone,) = [key for key in expected if key[0] == "ray_branchgrpo_weight_version"]
    after = {key: value for key, value in expected.items() if key != gone} | {
        ("ray_branchgrpo_reward_mean", frozenset({("run", "run-1"), ("score", "ocr/exact")})): 0.5,
        (
            "ray_branchgrpo_forwards_total",
            frozenset({("run", "run-1"), ("phase", "rollout")}),
        ): 320.0,
        ("ray_branchgrpo_iterations_total", frozenset({("run", "run-1")})): 3.5,
    }
    wait_for(targets, lambda samples: samples == after)
    one.close()
