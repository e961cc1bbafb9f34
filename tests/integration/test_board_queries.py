"""Every query of the Grafana board, asked of a real Prometheus that scrapes our metrics by the
shipped settings."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import yaml

from cluster.deploy.generate import FOLDER
from cluster.deploy.grafana import NODES
from cluster.metric_table import METRICS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("prometheus"), reason="needs prometheus, of the package of that name"
    ),
]
RUNS = ("one", "two")
NODE_VALUES = {
    "ray_node_cpu_utilization": 12.5,
    "ray_node_mem_used": 3e9,
    "ray_node_mem_total": 12e9,
    "ray_node_gpus_utilization": 80.0,
    "ray_object_store_used_memory": 1e9,
    "ray_object_store_available_memory": 3e9,
}
"""What Ray itself exports, by names that `test_names_of_ray` holds against Ray's source."""
NODE_PANELS = {"CPU": 12.5, "Memory": 0.25, "GPU": 80.0, "Object store": 0.25}
STEP = 3.0


class Exporter(BaseHTTPRequestHandler):
    """A node's endpoint: gauges stand, counters rise by STEP with each scrape."""

    scrapes = 0

    def do_GET(self) -> None:
        type(self).scrapes += 1
        body = "".join(exposed(self.scrapes)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


def exposed(scrapes: int) -> Iterator[str]:
    """Lines of our metrics of each run, and of Ray's."""
    for metric in METRICS:
        yield f"# TYPE {metric.exported} {metric.kind}\n"
        for run in RUNS:
            labels = {"run": run, **{label: f"some {label}" for label in metric.labels}}
            shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
            value = gauge_of(run) if metric.kind == "gauge" else STEP * scrapes
            yield f"{metric.exported}{{{shown}}} {value}\n"
    for name, value in NODE_VALUES.items():
        yield f'{name}{{GpuIndex="0"}} {value}\n'
    yield "ray_tasks 1\n"


def gauge_of(run: str) -> float:
    return 1.0 + RUNS.index(run)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that has scraped twice and more."""
    folder = tmp_path_factory.mktemp("prometheus")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    Thread(target=server.serve_forever, daemon=True).start()
    (folder / "nodes.json").write_text(
        json.dumps([{"targets": [f"127.0.0.1:{server.server_port}"]}])
    )
    settings = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    settings["global"]["scrape_interval"] = "1s"
    settings["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(folder / "nodes.json")]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(FOLDER / "alerts.yaml", folder)
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while Exporter.scrapes < 4 or not ready(address):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=60)
        server.shutdown()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, path: str, **parameters: str) -> Any:
    """`data` of an answer of Prometheus' HTTP API, which must be a success."""
    with urllib.request.urlopen(
        f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
    ) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return found["data"]


def board() -> Any:
    return json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))


QUERIES = [
    (panel["title"], target["expr"])
    for panel in board()["panels"]
    for target in panel.get("targets", [])
]


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_shows_what_was_fed(prometheus: str, title: str, query: str) -> None:
    text = query.replace("$run", "one").replace("$window", "5m")
    assert "$" not in text
    found = ask(prometheus, "query", query=text)["result"]
    value = float(found[0]["value"][1]) if found else float("nan")
    if title in NODES:
        assert len(found) == 1 and value == pytest.approx(NODE_PANELS[title])
        return
    (metric,) = [one for one in METRICS if f"{one.exported}{{" in query]
    assert [one["metric"] for one in found] == [
        {"run": "one", **{label: f"some {label}" for label in metric.labels}}
    ]
    if metric.kind == "gauge" and metric.unit != "unixtime":
        assert value == gauge_of("one")
    elif metric.unit == "unixtime":
        assert value == pytest.approx(time.time() - gauge_of("one"), abs=60)
    elif "rate(" in query:  # of the window's 300 s, and what Prometheus adds at the data's ends
        assert STEP <= 300 * value <= STEP * (Exporter.scrapes + 1)
    else:
        assert value >= 3 * STEP and value % STEP == 0


def test_the_choices_of_the_board_are_there(prometheus: str) -> None:
    """As Grafana asks for label_values(METRIC, LABEL); All is a pattern that fits every run."""
    (variable,) = [one for one in board()["templating"]["list"] if one["name"] == "run"]
    metric, _, label = variable["query"].removeprefix("label_values(").rstrip(")").partition(", ")
    found = ask(prometheus, f"label/{label}/values", **{"match[]": metric})
    assert found == list(RUNS)
    query = f'max by (run) ({metric}{{run=~"{variable["allValue"]}"}})'
    assert len(ask(prometheus, "query", query=query)["result"]) == len(RUNS)


def test_only_what_the_board_shows_is_kept(prometheus: str) -> None:
    assert not ask(prometheus, "query", query="ray_tasks")["result"]


def test_alerts_are_loaded_and_sound(prometheus: str) -> None:
    (group,) = ask(prometheus, "rules")["groups"]
    assert len(group["rules"]) == 3
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}


def test_names_of_ray() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    nodes = {name for name in NODE_VALUES if name.startswith("ray_node_")}
    assert nodes <= {f"ray_{name}" for name in METRICS_GAUGES}
