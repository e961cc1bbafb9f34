"""Drivers that are killed, told to end, or lose their head: started again, the run goes on to the same weights and rewards, bit by bit."""

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
from small_cluster import environment, head
from small_runs import ITERATIONS, ROOT, SMALL, Run, carried, config

from branchgrpo.metrics import read

SECONDS = 50
"""In which the driver must end when its head is lost: Ray alone lets it wait for 60."""


@pytest.fixture(scope="module")
def plain(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without faults."""
    return carried(tmp_path_factory.mktemp("plain") / "plain-run", config())


def arguments(folder: Path, **options: str) -> list[str]:
    keys = SMALL | {"run.folder": str(folder), "cluster.dashboard": "false"} | options
    return [sys.executable, str(ROOT / "run.py"), "train", "--resume", "auto", *(part for key, value in keys.items() for part in (f"--{key}", value))]


def finished(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return read(folder / "metrics.jsonl"), json.loads((folder / "held_out.json").read_text())


FIGURES = ("iteration", "reward/total", "reward/spread", "update/loss", "update/gradient_norm", "update/version")


def last_state(folder: Path) -> dict[str, bytes]:
    """Weights, their mean and the optimiser's moments in the last checkpoint."""
    newest = max((folder / "checkpoints").glob(f"epoch-*-iteration-{ITERATIONS:08d}-*"))
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


def until(process: subprocess.Popen[Any], runs: Path, iteration: int, told: Path) -> None:
    """Wait until the run has got so far."""
    deadline = time.monotonic() + 300
    while not any(record["iteration"] >= iteration for log in runs.glob("*/metrics.jsonl") for record in read(log)):
        assert time.monotonic() < deadline and process.poll() is None, told.read_text()
        time.sleep(0.02)


def as_if_nothing_had_happened(folder: Path, plain: Run) -> None:
    """The same figures, held-out scores, weights and optimiser."""
    (records, held_out), (others, others_held_out) = finished(folder), finished(plain.folder)
    assert [[record.get(name) for name in FIGURES] for record in records] == [[record.get(name) for name in FIGURES] for record in others]
    assert held_out == others_held_out and len(records) == ITERATIONS + 2
    assert last_state(folder) == last_state(plain.folder) and len(last_state(folder)) >= 3


@pytest.mark.slow
def test_a_driver_that_is_killed_and_then_told_to_end_goes_on_each_time(plain: Run, tmp_path: Path) -> None:
    runs, told = tmp_path / "runs", tmp_path / "told"
    with told.open("w") as file:
        killed = subprocess.Popen(arguments(runs), cwd=ROOT, stdout=file, stderr=file)
        until(killed, runs, 3, told)
        killed.kill()
        killed.wait()
    (folder,) = runs.iterdir()
    assert not (folder / "summary.json").exists()

    process = subprocess.Popen(arguments(runs), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    went_on = False
    for line in process.stdout:
        if "going on from the checkpoint of iteration 2" in line:
            went_on = True
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0 and went_on
    assert list(runs.iterdir()) == [folder] and json.loads((folder / "summary.json").read_text())["stopped_by"] == "interrupted"

    done = subprocess.run(arguments(runs), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "going on from the checkpoint of iteration" in done.stdout, done.stdout + done.stderr
    assert list(runs.iterdir()) == [folder]
    as_if_nothing_had_happened(folder, plain)


@pytest.mark.slow
def test_a_lost_head_ends_the_driver_and_the_run_goes_on_elsewhere(plain: Run, tmp_path: Path) -> None:
    """All actors are lost with it: the driver ends soon, and the run goes on, on another cluster."""
    runs, told, every = tmp_path / "runs", tmp_path / "told", {"checkpoint.every": "1"}
    with ThreadPoolExecutor(1) as pool, ExitStack() as leftovers:
        with head() as first:
            with told.open("w") as file:
                command = arguments(runs, **every, **{"cluster.address": first.address})
                driver = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
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
            assert ended.result() not in (0, -signal.SIGKILL) and not (folder / "summary.json").exists(), told.read_text()
            given = arguments(runs, **every, **{"cluster.address": second.address})
            done = subprocess.run(given, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from the checkpoint of iteration 2" in done.stdout and list(runs.iterdir()) == [folder]
    as_if_nothing_had_happened(folder, plain)
