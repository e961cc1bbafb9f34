"""Drivers that are killed or told to end: started again, the run goes on to the same weights and rewards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import ITERATIONS, ROOT, SMALL, Run, carried, config

from branchgrpo.metrics import read


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


@pytest.mark.slow
def test_a_killed_driver_goes_on_when_it_is_started_again(plain: Run, tmp_path: Path) -> None:
    runs, told = tmp_path / "runs", tmp_path / "told"
    with told.open("w") as file:
        process = subprocess.Popen(arguments(runs), cwd=ROOT, stdout=file, stderr=file)
    deadline = time.monotonic() + 200
    while not any(record["iteration"] == 3 for log in runs.glob("*/metrics.jsonl") for record in read(log)):
        assert time.monotonic() < deadline and process.poll() is None, told.read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    (folder,) = runs.iterdir()
    assert not (folder / "summary.json").exists()
    done = subprocess.run(arguments(runs), cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from the checkpoint of iteration 2" in done.stdout and list(runs.iterdir()) == [folder]
    records, held_out = finished(folder)
    others, others_held_out = finished(plain.folder)
    assert [[record.get(name) for name in FIGURES] for record in records] == [[record.get(name) for name in FIGURES] for record in others]
    assert held_out == others_held_out and len(records) == ITERATIONS + 2


@pytest.mark.slow
def test_sigterm_saves_and_a_new_start_goes_on(plain: Run, tmp_path: Path) -> None:
    given = arguments(tmp_path, **{"checkpoint.every": "100"})
    process = subprocess.Popen(given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("2/"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "summary.json").read_text())["stopped_by"] == "interrupted"
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "going on from the checkpoint of iteration" in done.stdout, done.stdout + done.stderr
    _, held_out = finished(folder)
    assert held_out == finished(plain.folder)[1]
