"""A worker's states: what may follow what, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import worker as module
from cluster.actor import Place
from cluster.tasks import Task, Tasks
from cluster.worker import TRANSITIONS, Attempt, IllegalTransition, State, Worker

HERE = Place("node", 1)

REACH: dict[State, list[Callable[[Worker], Any]]] = {
    State.WAITING: [],
    State.STARTING: [lambda worker: worker.begin_loading(HERE)],
    State.READY: [lambda worker: worker.begin_loading(HERE), lambda worker: worker.become_ready()],
    State.DRAINING: [lambda worker: worker.begin_loading(HERE), lambda worker: worker.drain()],
    State.GONE: [lambda worker: worker.leave()],
}

STEPS: dict[str, Callable[[Worker], Any]] = {
    "begin_loading": lambda worker: worker.begin_loading(HERE),
    "begin_sync": lambda worker: worker.begin_sync(1),
    "become_ready": lambda worker: worker.become_ready(),
    "drain": lambda worker: worker.drain("preempted"),
    "leave": lambda worker: worker.leave(),
}

W, S, R, D, G = State
ILLEGAL = None
TABLE: dict[str, dict[State, State | None]] = {
    "begin_loading": {W: S, S: S, R: R, D: D, G: G},
    "begin_sync": {W: W, S: ILLEGAL, R: S, D: ILLEGAL, G: ILLEGAL},
    "become_ready": {W: R, S: R, R: ILLEGAL, D: D, G: ILLEGAL},
    "drain": {W: D, S: D, R: D, D: ILLEGAL, G: ILLEGAL},
    "leave": {W: G, S: G, R: G, D: G, G: ILLEGAL},
}
"""What each step makes of each state."""


def made(state: State) -> Worker:
    found = Worker(index=3, name="rollout-3", handle=None)  # type: ignore[arg-type]
    for step in REACH[state]:
        step(found)
    assert found.state is state
    return found


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", STEPS)
def test_every_step_in_every_state(step: str, state: State) -> None:
    worker, after = made(state), TABLE[step][state]
    if after is None:
        with pytest.raises(IllegalTransition, match=rf"^worker 3: expected .* after {state}, got "):
            STEPS[step](worker)
        assert worker.state is state
        return
    STEPS[step](worker)
    assert worker.state is after
    if after is not state:
        assert after in TRANSITIONS[state]


def test_the_table_has_every_state_and_its_end() -> None:
    assert set(TRANSITIONS) == set(State) and not TRANSITIONS[State.GONE]
    assert TRANSITIONS[State.DRAINING] == {State.GONE}
    reached = {after for row in TABLE.values() for before, after in row.items() if after != before}
    assert reached - {None} == set(State) - {State.WAITING}


def test_no_state_is_set_but_by_a_step() -> None:
    worker = made(State.READY)
    with pytest.raises(AttributeError):
        worker.state = State.GONE  # type: ignore[misc]
    for path in Path(module.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("._state =") == (path.name == "worker.py"), path.name


def test_what_a_worker_that_was_never_ready_is() -> None:
    worker = made(State.WAITING)
    assert worker.new and not worker.idle
    worker.begin_sync(4)
    worker.begin_loading(HERE)
    worker.become_ready()
    assert (worker.new, worker.idle, worker.sync_round, worker.place) == (False, True, 4, HERE)
    worker.begin_sync(5)
    assert (worker.new, worker.idle, worker.sync_round) == (False, False, 5)


def test_a_worker_s_tasks() -> None:
    worker, tasks = made(State.READY), Tasks()
    task = Task(method="grow", arguments=(), returns=1, then=lambda found: None, tasks=tasks)
    first, second = (Attempt(worker, [], task, 0.0) for _ in range(2))
    worker.pending += [first, second]
    task.attempts = 1
    assert (worker.tasks, worker.idle, worker.suspect) == (2, False, False)
    task.attempts = 2  # another worker has it as well
    assert worker.suspect
    worker.answered(first, 7.0)
    assert (worker.pending, second.began, worker.last_answer) == ([second], 7.0, 7.0)
    worker.pending = [Attempt(worker, [], None, 0.0)]
    assert (worker.tasks, worker.idle, worker.suspect) == (0, False, False)
