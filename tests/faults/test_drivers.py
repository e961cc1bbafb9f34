"""Drivers that are killed, told to end, or fail their head: started again, the run goes on to the
same weights and rewards, bit by bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.small_cluster import environment, head
from support.small_runs import ITERATIONS, ROOT, Run, carried, config, small
from support.small_trees import METHOD

from branchgrpo.report.sinks import read

SECONDS = 50
"""In which the driver must end when its head is lost: Ray alone lets it wait for 60."""


ALONE = {"rollout.workers": "1"}
"""How many there are is not the point, and each takes long to start."""


@pytest.fixture(scope="module")
def plain(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without faults."""
    return carried(tmp_path_factory.mktemp("plain") / "plain-run", config(**ALONE))


def arguments(folder: Path, **options: str) -> list[str]:
    keys = small() | ALONE | {"run.folder": str(folder), "cluster.dashboard": "false"} | options
    return [
        sys.executable,
        str(ROOT / "run.py"),
        "train",
        *("--preset", METHOD, "--resume", "auto"),
        *(part for key, value in keys.items() for part in (f"--{key}", value)),
    ]


def finished(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records of its iterations, and its held-out scores."""
    records = [record for record in read(folder / "metrics.jsonl") if "update/loss" in record]
    return records, json.loads((folder / "held_out.json").read_text())


FIGURES = (
    "iteration",
    "reward/total",
    "reward/spread",
    "update/loss",
    "update/gradient_norm",
    "update/version",
)


def last_state(folder: Path) -> dict[str, bytes]:
    """Weights, their mean and the optimiser's moments in the last checkpoint."""
    newest = max((folder / "checkpoints").glob(f"fence-*-iteration-{ITERATIONS:08d}-*"))
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


def until(process: subprocess.Popen[Any], runs: Path, iteration: int, told: Path) -> None:
    """Wait until the run has got so far."""
    deadline = time.monotonic() + 300
    while not any(
        record["iteration"] >= iteration
        for log in runs.glob("*/metrics.jsonl")
        for record in read(log)
    ):
        assert time.monotonic() < deadline and process.poll() is None, told.read_text()
        time.sleep(0.02)


def as_if_nothing_had_happened(folder: Path, plain: Run) -> None:
    """The same metrics of each iteration, held-out scores, weights and optimiser."""
    (records, held_out), (others, others_held_out) = finished(folder), finished(plain.folder)
    assert [[record[name] for name in FIGURES] for record in records] == [
        [record[name] for name in FIGURES] for record in others
    ]
    assert len(records) == ITERATIONS and held_out == others_held_out
    assert last_state(folder) == last_state(plain.folder) and len(last_state(folder)) >= 3


def signalled(command: list[str], words: str, number: signal.Signals) -> tuple[int, str]:
    """Exit code and output of a driver that got this signal when it had said this."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = list[str]()
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if words in line:
            process.send_signal(number)
    return process.wait(timeout=300), "".join(lines)


@pytest.mark.slow
def test_a_driver_that_is_told_to_end_and_then_killed_goes_on_each_time(
    plain: Run, tmp_path: Path
) -> None:
    command = arguments(tmp_path, **{"checkpoint.every": "100"})
    code, told = signalled(command, "2/4 ", signal.SIGTERM)
    assert code == 0, told
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "summary.json").read_text())["stopped_by"] == "interrupted"

    code, told = signalled(command, "going on from the checkpoint of iteration", signal.SIGKILL)
    assert code == -signal.SIGKILL, told
    assert json.loads((folder / "summary.json").read_text())["stopped_by"] == "interrupted"

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "going on from the checkpoint of iteration" in done.stdout, (
        done.stdout + done.stderr
    )
    assert list(tmp_path.iterdir()) == [folder]
    as_if_nothing_had_happened(folder, plain)


@pytest.mark.slow
def test_a_lost_head_ends_the_driver_and_the_run_goes_on_elsewhere(
    plain: Run, tmp_path: Path
) -> None:
    """All actors are lost with it: the driver ends soon, and the run goes on, on another
    cluster."""
    runs = tmp_path / "runs"
    told = tmp_path / "told"
    every = {"checkpoint.every": "1"}
    with ThreadPoolExecutor(1) as pool, ExitStack() as leftovers:
        with head() as first:
            with told.open("w") as file:
                command = arguments(runs, **every, **{"cluster.address": first.address})
                driver = subprocess.Popen(
                    command, cwd=ROOT, env=environment(), stdout=file, stderr=file
                )
            leftovers.callback(driver.kill)
            until(driver, runs, 2, told)
            driver.send_signal(signal.SIGSTOP)  # else it may finish before anybody notices
            (server,) = first.processes("gcs_server")
            os.kill(server, signal.SIGKILL)
            first.process.wait(timeout=60)  # ends, and takes the node's raylet and workers with it
            driver.send_signal(signal.SIGCONT)
            ended = pool.submit(driver.wait, SECONDS)
        (folder,) = runs.iterdir()
        with head() as second:
            assert (
                ended.result() not in (0, -signal.SIGKILL)
                and not (folder / "summary.json").exists()
            ), told.read_text()
            given = arguments(runs, **every, **{"cluster.address": second.address})
            done = subprocess.run(
                given, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
            )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from the checkpoint of iteration 2" in done.stdout and list(
        runs.iterdir()
    ) == [folder]
    as_if_nothing_had_happened(folder, plain)
