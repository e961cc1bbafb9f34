"""Rollout workers that die, hang and are killed: the run goes on, to the same weights and rewards, bit by bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from small_runs import ITERATIONS, Run, busy, carried, config, kill, same

from cluster.crew import Crew


def test_a_worker_killed_in_the_middle_of_a_task(plain: Run, tmp_path: Path) -> None:
    def sabotage(made: Crew, iteration: int) -> None:
        if iteration == 1:
            busy(made, 0, kill)

    found = carried(tmp_path / "run", config(), sabotage)
    same(found, plain)
    assert found.crew.rollouts.restarts == {"died": 1} and not found.crew.learners.restarts


def test_every_worker_killed_once(plain: Run, tmp_path: Path) -> None:
    def sabotage(made: Crew, iteration: int) -> None:
        if 1 <= iteration <= 2:
            busy(made, 0, kill)  # the oldest: the newcomer is the last

    found = carried(tmp_path / "run", config(), sabotage)
    same(found, plain)
    assert found.crew.rollouts.restarts == {"died": 2} and found.crew.rollouts.made == 4


def test_a_worker_that_hangs_costs_at_most_three_times_an_iteration(plain: Run, tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop(process: int) -> None:
        os.kill(process, signal.SIGSTOP)
        stopped.append(process)

    def sabotage(made: Crew, iteration: int) -> None:
        if iteration == 2:
            busy(made, 1, stop)

    found = carried(tmp_path / "run", config(), sabotage)
    for process in stopped:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            time.sleep(0)
    assert stopped
    same(found, plain)
    assert found.crew.rollouts.reissued >= 1
    assert found.summary["iterations"] == ITERATIONS
