"""The head is lost, and all actors with it: the driver ends soon, and the run goes on, on another cluster, to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from small_cluster import environment, head
from small_runs import ITERATIONS, ROOT
from test_drivers import FIGURES, arguments, finished

from branchgrpo.metrics import read

SECONDS = 50
"""In which the driver must end: Ray alone lets it wait for the head for 60."""


def last_state(folder: Path) -> dict[str, bytes]:
    """Weights, their mean and the optimiser's moments in the last checkpoint."""
    newest = max((folder / "checkpoints").glob(f"epoch-*-iteration-{ITERATIONS:08d}-*"))
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


@pytest.mark.slow
def test_a_lost_head_ends_the_driver_and_the_run_goes_on_elsewhere(tmp_path: Path) -> None:
    runs, told, every = tmp_path / "runs", tmp_path / "told", {"checkpoint.every": "1"}
    with ThreadPoolExecutor(1) as pool, ExitStack() as leftovers:
        with head() as first:
            with told.open("w") as file:
                command = arguments(runs, **every, **{"cluster.address": first.address})
                driver = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
            leftovers.callback(driver.kill)
            deadline = time.monotonic() + 200
            while not any(record["iteration"] == 2 for log in runs.glob("*/metrics.jsonl") for record in read(log)):
                assert time.monotonic() < deadline and driver.poll() is None, told.read_text()
                time.sleep(0.02)
            driver.send_signal(signal.SIGSTOP)  # else it may finish before anybody notices
            (server,) = first.processes("gcs_server")
            os.kill(server, signal.SIGKILL)
            first.process.wait(timeout=60)  # ends, and takes the node's raylet and workers with it
            driver.send_signal(signal.SIGCONT)
            ended = pool.submit(driver.wait, SECONDS)
        (folder,) = runs.iterdir()
        with head() as second:
            options = every | {"cluster.address": second.address}
            plain = subprocess.run(arguments(tmp_path / "plain", **options), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
            assert plain.returncode == 0, plain.stdout + plain.stderr
            assert ended.result() not in (0, -signal.SIGKILL) and not (folder / "summary.json").exists(), told.read_text()
            done = subprocess.run(arguments(runs, **options), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from the checkpoint of iteration 2" in done.stdout and list(runs.iterdir()) == [folder]
    (other,) = (tmp_path / "plain").iterdir()
    (records, held_out), (others, others_held_out) = finished(folder), finished(other)
    assert [[record.get(name) for name in FIGURES] for record in records] == [[record.get(name) for name in FIGURES] for record in others]
    assert held_out == others_held_out and len(records) == ITERATIONS + 2
    assert last_state(folder) == last_state(other) and len(last_state(folder)) >= 3
