"""Actors that die, hang and are killed: the run goes on, a learner's from its checkpoint, to the
same weights and rewards, bit by bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.small_runs import ITERATIONS, Run, Stage, busy, config, impatient, kill, same

from actors.calls import LearnerCalls
from branchgrpo.errors import GateError
from cluster.ray_service import RayService

TWO = {"learner.ranks": "2"}
LAYOUTS = {"separate": TWO, "shared": TWO | {"cluster.layout": "shared", "rollout.workers": "1"}}
SHARED = pytest.param("shared", marks=pytest.mark.slow)
"""Its actors take long to start again; faults/test_lent_ranks.py has tiny ones, always."""
separate = pytest.mark.parametrize("layout", ["separate"], indirect=True)
shared = pytest.mark.parametrize("layout", [SHARED], indirect=True)
both = pytest.mark.parametrize("layout", ["separate", SHARED], indirect=True)


@pytest.fixture(scope="module")
def layout(request: pytest.FixtureRequest) -> dict[str, str]:
    """Options of one layout."""
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def stage(ray_session: None, layout: dict[str, str]) -> Iterator[Stage]:
    made = Stage()
    yield made
    made.end()


@pytest.fixture(scope="module")
def plain(stage: Stage, layout: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without faults."""
    return stage.played(tmp_path_factory.mktemp("plain") / "plain-run", config(**layout))


class Stopped:
    """Processes that hang; they end with the test."""

    def __init__(self) -> None:
        self.processes: list[int] = []

    def stop(self, process: int) -> None:
        os.kill(process, signal.SIGSTOP)
        self.processes.append(process)


@pytest.fixture
def stopped() -> Iterator[Stopped]:
    made = Stopped()
    yield made
    for process in made.processes:
        with suppress(ProcessLookupError):
            kill(process)


# rollout workers


@pytest.mark.slow
@separate
def test_every_worker_killed_once_in_the_middle_of_a_task(
    stage: Stage, plain: Run, tmp_path: Path
) -> None:
    first: list[int] = []

    def sabotage(made: RayService, iteration: int) -> None:
        if iteration == 0:
            first.extend(worker.index for worker in made.rollout_pool.workers)
        if 1 <= iteration <= 2:
            busy(made, 0, kill)  # the oldest: the newcomer is the last

    found = stage.played(tmp_path / "run", config(**TWO), sabotage)
    same(found, plain)
    pool = found.service.rollout_pool
    assert pool.restarts == {"died": 2} and not found.service.learner_group.restarts
    assert pool.workers.created == first[-1] + 3
    assert not set(first) & {worker.index for worker in pool.workers}
    for number in (1, 2):
        assert [
            note
            for note in found.notes
            if " died (" in note and f", restart {number} of 20" in note and "; rollout-" in note
        ]


@separate
def test_a_worker_that_hangs_costs_at_most_three_times_an_iteration(
    stage: Stage, plain: Run, stopped: Stopped, tmp_path: Path
) -> None:
    with ExitStack() as stack:

        def sabotage(made: RayService, iteration: int) -> None:
            if iteration == 2:
                stack.enter_context(impatient(made, 2.0))
                busy(made, 1, stopped.stop)

        found = stage.played(tmp_path / "run", config(**TWO), sabotage)
    assert stopped.processes
    same(found, plain)
    assert found.service.rollout_pool.reissued >= 1
    assert found.summary["iterations"] == ITERATIONS


# learner ranks


def updating(made: RayService, act: Any, deadline: float = 300.0) -> None:
    """Act on rank 1's process soon after the next update has begun, which has so many seconds."""
    begin = made.learner_group.begin

    def begun(method: Any, *arguments: Any, **options: Any) -> Any:
        call = begin(method, *arguments, **options)
        if method is LearnerCalls.update:
            made.learner_group.begin = begin  # type: ignore[method-assign]
            call.deadline = time.monotonic() + deadline
            process = made.learner_group.places[1].process
            threading.Timer(0.05, lambda: act(process)).start()
        return call

    made.learner_group.begin = begun  # type: ignore[method-assign]


@both
@pytest.mark.parametrize("at", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rank_killed_inside_an_update(
    stage: Stage, layout: dict[str, str], plain: Run, tmp_path: Path, at: int
) -> None:
    """At 1 there is no checkpoint yet: the run begins again; at 3 it goes back to that of 2."""

    def sabotage(made: RayService, iteration: int) -> None:
        if iteration == at and not made.learner_group.restarts:
            updating(made, kill)

    found = stage.played(tmp_path / "run", config(**layout), sabotage)
    same(found, plain)
    assert (
        sum(found.service.learner_group.restarts.values()) == 1
        and found.records[-2]["service/recoveries"] == 1
    )
    assert any("recovering: RankGroupError" in note for note in found.notes)
    assert any(
        "): learners begin again from the checkpoint, restart 1 of 20" in note
        for note in found.notes
    )
    assert any("checkpoint of iteration 2" in note for note in found.notes) == (at == 3)


@shared
def test_a_rank_killed_while_it_grows(
    stage: Stage, layout: dict[str, str], plain: Run, tmp_path: Path
) -> None:
    """What it holds is lost as in an update: the run goes back to the checkpoint of iteration 2."""

    def sabotage(made: RayService, iteration: int) -> None:
        if iteration == 3 and not made.learner_group.restarts:
            busy(made, 1, kill, lent=True)

    found = stage.played(tmp_path / "run", config(**layout), sabotage)
    same(found, plain)
    assert sum(found.service.learner_group.restarts.values()) == 1
    assert not found.service.rollout_pool.restarts
    assert any("recovering: RankGroupError: learner: rank 1 died" in note for note in found.notes)
    assert any("checkpoint of iteration 2" in note for note in found.notes)


@shared
def test_a_worker_beside_ranks_killed_while_it_grows(
    stage: Stage, layout: dict[str, str], plain: Run, tmp_path: Path
) -> None:
    def sabotage(made: RayService, iteration: int) -> None:
        if iteration == 1:
            busy(made, 0, kill)

    found = stage.played(tmp_path / "run", config(**layout), sabotage)
    same(found, plain)
    assert found.service.rollout_pool.restarts == {"died": 1}
    assert not found.service.learner_group.restarts


@both
@pytest.mark.slow
def test_a_rank_that_hangs_ends_at_the_deadline(
    stage: Stage, layout: dict[str, str], plain: Run, stopped: Stopped, tmp_path: Path
) -> None:
    def sabotage(made: RayService, iteration: int) -> None:
        if iteration == 3 and not made.learner_group.restarts:
            updating(made, stopped.stop, 8.0)

    found = stage.played(tmp_path / "run", config(**layout), sabotage)
    same(found, plain)
    assert stopped.processes and found.service.learner_group.restarts == {"unresponsive": 1}
    assert any("ranks [0, 1] missed the deadline" in note for note in found.notes)


@both  # the last of each layout: the service ends with it
def test_an_error_of_one_rank_ends_the_run_and_is_named(
    stage: Stage, layout: dict[str, str], tmp_path: Path
) -> None:
    def sabotage(made: RayService, iteration: int) -> None:
        # credit that differs between ranks stops both before a collective of the update
        if iteration == 1:
            begin = lambda method, *arguments, **_: damaged(made, method, *arguments)  # noqa: E731
            made.learner_group.begin = begin  # type: ignore[method-assign]

    def damaged(made: RayService, method: Any, *arguments: Any) -> Any:
        from cluster.rank_calls import Call

        calls = []
        for rank, actor in enumerate(made.learner_group.ranks):
            request, *rest = arguments
            if method is LearnerCalls.update and rank:
                turned = {key: values[:, ::-1].copy() for key, values in request.scores.items()}
                request = replace(request, scores=turned)
            calls.append(getattr(actor, method.__name__).remote(request, *rest))
        return Call(method=method.__name__, references=calls, deadline=time.monotonic() + 300)

    with pytest.raises(GateError, match="credit differ between learner ranks"):
        stage.played(tmp_path / "run", config(**layout), sabotage)
