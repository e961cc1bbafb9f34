"""Learner ranks that die or hang, and whole drivers: the run goes back to its checkpoint and on, to the same weights and rewards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import ITERATIONS, ROOT, SMALL, Run, carried, config, kill, same

from branchgrpo.errors import GateError
from branchgrpo.metrics import read
from cluster.crew import Crew

TWO = {"learner.ranks": "2"}


@pytest.fixture(scope="module")
def plain_two(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two ranks, without faults."""
    return carried(tmp_path_factory.mktemp("plain") / "plain-run", config(**TWO))


def updating(made: Crew, act: Any, deadline: float = 60.0) -> None:
    """Act on rank 1's process soon after the next update has begun, which has so many seconds."""
    begin = made.learners.begin

    def begun(method: str, *arguments: Any) -> Any:
        call = begin(method, *arguments)
        if method == "update":
            made.learners.begin = begin  # type: ignore[method-assign]
            call.deadline = time.monotonic() + deadline
            process = made.learners.places[1].process
            threading.Timer(0.05, lambda: act(process)).start()
        return call

    made.learners.begin = begun  # type: ignore[method-assign]


@pytest.mark.parametrize("at", [1, 3])
def test_a_rank_killed_inside_an_update(plain_two: Run, tmp_path: Path, at: int) -> None:
    """At 1 there is no checkpoint yet: the run begins again; at 3 it goes back to that of 2."""

    def sabotage(made: Crew, iteration: int) -> None:
        if iteration == at and not made.learners.restarts:
            updating(made, kill)

    found = carried(tmp_path / "run", config(**TWO), sabotage)
    same(found, plain_two)
    assert sum(found.crew.learners.restarts.values()) == 1 and found.records[-2]["service/recoveries"] == 1
    assert any("recovering: GangError" in note for note in found.notes)
    assert any("checkpoint of iteration 2" in note for note in found.notes) == (at == 3)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_at_the_deadline(plain_two: Run, tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop(process: int) -> None:
        os.kill(process, signal.SIGSTOP)
        stopped.append(process)

    def sabotage(made: Crew, iteration: int) -> None:
        if iteration == 3 and not made.learners.restarts:
            updating(made, stop, 8.0)

    found = carried(tmp_path / "run", config(**TWO), sabotage)
    same(found, plain_two)
    assert stopped and found.crew.learners.restarts == {"unresponsive": 1}
    assert any("ranks [0, 1] missed the deadline" in note for note in found.notes)


def test_an_error_of_one_rank_ends_the_run_and_is_named(ray_session: None, tmp_path: Path) -> None:
    def sabotage(made: Crew, iteration: int) -> None:
        if iteration == 1:  # credit that differs between ranks stops both before a collective of the update
            made.learners.begin = lambda method, *arguments: damaged(made, method, *arguments)  # type: ignore[method-assign]

    def damaged(made: Crew, method: str, *arguments: Any) -> Any:
        from cluster.gang import Call

        calls = []
        for rank, actor in enumerate(made.learners.ranks):
            given = list(arguments)
            if method == "update" and rank:
                given[4] = {key: values[:, ::-1].copy() for key, values in arguments[4].items()}
            calls.append(getattr(actor, method).remote(*given))
        return Call(method, calls, time.monotonic() + 60)

    with pytest.raises(GateError, match="credit differ between learner ranks"):
        carried(tmp_path / "run", config(**TWO), sabotage)


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
