"""Pools whose workers die, hang, dawdle, come and go; tiny workers on a local Ray. Every task is
answered exactly once."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError
from support.small_actors import Unfit, Worker, logs, pool, results, until

from cluster import pings
from cluster.errors import BudgetError, loss_cause

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


# results and errors


def test_results_come_as_they_finish_and_errors_as_themselves(tmp_path: Path) -> None:
    made = pool(tmp_path, 2)
    made.wait_ready()
    found = results(made, [(Worker.task, 0, 1.0), *((Worker.task, key) for key in range(1, 6))])
    assert sorted(key for key, _, _ in found) == list(range(6))
    assert found[0][0] != 0  # others overtook it
    for message in ("of three\nlines\nin all", ""):
        with pytest.raises(ZeroDivisionError) as caught:
            results(made, [(Worker.task, 6, 0.2), (Worker.raises, message), (Worker.task, 7)])
        assert type(caught.value) is ZeroDivisionError and str(caught.value) == message
        made.forget()
    assert [key for key, _, _ in results(made, [(Worker.task, 8)])] == [8]
    with pytest.raises(ZeroDivisionError):
        made.broadcast(Worker.raises, "all")
    assert made.restarts == {} and made.reissued == 0
    made.stop()


def test_a_worker_that_cannot_get_ready_says_why(tmp_path: Path) -> None:
    """Its sync calls fail too, for want of what `ready` makes: that is not what is told."""
    made = pool(tmp_path, 1, Unfit)
    made.sync([(Worker.load_weights, ("v1",))])
    with pytest.raises(FileNotFoundError, match="no weights here"):
        made.wait_ready()
    made.stop()


# stragglers


@pytest.mark.parametrize("act", ["hang", "overtaken"])
def test_a_straggler_loses_against_its_duplicate(tmp_path: Path, act: str) -> None:
    """A hung worker is ended then; one that is overtaken gives a second result, which nobody
    sees."""
    made = pool(tmp_path, 2, straggler_seconds=0.5 if act == "hang" else 2.0)
    made.wait_ready()
    processes = {worker.index: worker.place.process for worker in made.workers}
    for key in range(3):
        (tmp_path / f"once-{key}").touch()
    # how long its like takes
    assert len(results(made, [(Worker.once, key, act) for key in range(3)])) == 3
    ((key, worker, _),) = results(made, [(Worker.once, 9, act)])
    tried = [index for index, lines in logs(tmp_path).items() if "task 9" in lines]
    assert (key, made.reissued, len(tried)) == (9, 1, 2) and worker in tried
    other = sum(tried) - worker
    if act == "hang":
        until(
            made,
            lambda: (
                len(made.workers) == 2
                and all(one.state == "ready" for one in made.workers)
                and made.workers.created == 3
            ),
        )
        assert made.restarts == {"unresponsive": 1} and other not in [
            one.index for one in made.workers
        ]
        os.kill(processes[other], signal.SIGKILL)
    else:
        until(made, lambda: not made.dispatcher.attempts)
        assert made.restarts == {} and made.workers.created == 2
    assert len(results(made, [(Worker.task, key) for key in range(6)])) == 6
    made.stop()


def test_a_task_that_hangs_everywhere_ends_named(tmp_path: Path) -> None:
    """It is issued again, its workers are ended, and each time it gets twice as long."""
    made = pool(tmp_path, 2, straggler_seconds=0.3, max_attempts=2)
    made.wait_ready()
    made.workers.deadlines.seconds["hangs"] = deque([0.001])
    with pytest.raises(
        BudgetError, match=r"^rollout\.hangs: 2 workers were lost with this task \(unresponsive\)"
    ):
        results(made, [(Worker.hangs,)])
    assert made.restarts == {"unresponsive": 2} and made.reissued >= 1
    made.stop()


def test_how_long_a_task_may_take_is_judged_by_its_size(tmp_path: Path) -> None:
    """Ten times the size, five times the time: no straggler. As large as the others: one."""
    made = pool(tmp_path, 2, straggler_seconds=0.3)
    made.wait_ready()
    results(made, [(Worker.task, key, 0.2) for key in range(4)])
    for size, reissued in ((10.0, 0), (1.0, 1)):
        tasks = made.tasks()
        made.submit(tasks, Worker.task, 9, 1.0, size=size, then=lambda references: None)
        tasks.run()
        assert made.reissued == reissued
    made.stop()


def test_what_has_finished_while_nobody_looked_is_not_overdue(tmp_path: Path) -> None:
    made = pool(tmp_path, 2, straggler_seconds=0.2)
    made.wait_ready()
    results(made, [(Worker.task, key, 0.1) for key in range(4)])
    tasks, found = made.tasks(), list[Any]()
    made.submit(tasks, Worker.task, 9, 0.3, then=found.append)
    time.sleep(4.0)  # as while the learner updates
    made.last_poll = 0.0
    made.poll()
    tasks.run()
    assert len(found) == 1 and not made.restarts and not made.reissued
    made.stop()


def test_a_broadcast_does_not_wait_for_one_that_hangs(tmp_path: Path) -> None:
    made = pool(tmp_path, 3, straggler_seconds=0.5)
    made.wait_ready()
    hung = made.workers[1].place
    assert hung
    os.kill(hung.process, signal.SIGSTOP)
    assert made.broadcast(Worker.load_weights, "new") == ["new", "new"]
    assert made.restarts == {"unresponsive": 1} and len(made.workers) == 2
    made.stop()


def test_what_workers_are_made_with_changes_for_all(tmp_path: Path) -> None:
    """One that is busy cannot be told: it is replaced."""
    other = tmp_path / "other"
    other.mkdir()
    made = pool(tmp_path, 2)
    made.wait_ready()
    tasks = made.tasks()
    made.submit(tasks, Worker.task, 0, 0.5, then=lambda references: None)
    (busy,) = [worker.index for worker in made.workers if worker.pending]
    made.forget()
    made.reset(str(other))
    assert made.restarts == {"scaled": 1} and [worker.index for worker in made.workers] == [
        1 - busy
    ]
    made.wait_ready()
    assert list(logs(other)) == [2] and sorted(logs(tmp_path)) == [0, 1]
    made.stop()


def test_a_worker_that_waits_for_room_is_not_hung(tmp_path: Path) -> None:
    made = pool(tmp_path, 1)
    made.wait_ready()
    made.workers.deadlines.policy = replace(made.retry_policy, task_timeout_seconds=3.0)
    usual, made.workers.resources = made.resources, made.resources | {"num_cpus": 1000}
    made.desired = 2
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        results(made, [(Worker.task, 0, 0.1)])
    assert [(state["name"], state["state"]) for state in made.states()] == [
        ("rollout-0", "ready"),
        ("rollout-1", "waiting"),
    ]
    assert not made.restarts
    made.workers.resources, made.desired = usual, 1
    results(made, [(Worker.task, 0)])
    assert made.restarts == {"scaled": 1} and [worker.index for worker in made.workers] == [0]
    made.stop()


# workers that die


def test_a_dead_worker_s_tasks_go_to_others(tmp_path: Path) -> None:
    made = pool(tmp_path, 2)
    made.wait_ready()
    found = results(
        made,
        [
            (Worker.once, 0, "die"),
            (Worker.once, 1, "die"),
            *((Worker.task, key) for key in range(2, 8)),
        ],
    )
    assert sorted(key for key, _, _ in found) == list(range(8))
    assert made.restarts == {"died": 2} and made.workers.created == 4
    made.stop()


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGSTOP, "unresponsive"), (signal.SIGKILL, "died")]
)
def test_an_idle_worker_that_hangs_or_dies_is_replaced_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, why: str
) -> None:
    monkeypatch.setattr(pings, "PING_SECONDS", 0.5)
    made = pool(tmp_path, 2)
    made.wait_ready()
    first, second = made.workers
    until(made, lambda: first.ping is not None or first.pinged > 0)  # those who answer stay
    assert first.place
    os.kill(first.place.process, number)
    monkeypatch.setattr(pings, "PING_TIMEOUT", 6.0)
    until(
        made,
        lambda: (
            first not in made.workers and [worker.state for worker in made.workers] == ["ready"] * 2
        ),
    )
    assert made.restarts == {why: 1} and made.workers[0] is second
    made.stop()


def test_a_task_that_kills_its_workers_ends_named_and_its_neighbours_are_not_blamed(
    tmp_path: Path,
) -> None:
    made = pool(tmp_path, 1, max_attempts=2)
    made.wait_ready()
    tasks, found = made.tasks(), list[Any]()
    made.submit(tasks, Worker.kills, 0, then=found.append)
    made.submit(tasks, Worker.task, 1, then=found.append)
    running, after = [attempt.task for attempt in made.workers[0].pending]
    with pytest.raises(
        BudgetError, match=r"^rollout\.kills: 2 workers were lost with this task \(died\): [^\n]+$"
    ):
        tasks.run()
    assert running and after and (running.failures, after.failures) == (2, 0)
    # it was repeated first
    assert [
        line for lines in logs(tmp_path).values() for line in lines if line.startswith("task")
    ] == ["task 0"] * 2
    made.stop()


def test_the_budget_of_restarts(tmp_path: Path) -> None:
    made = pool(tmp_path, 1, max_attempts=9, max_restarts=1)
    made.wait_ready()
    with pytest.raises(
        BudgetError, match=r"^rollout: 2 losses of workers, 1 are allowed: 2 died; last: [^\n]+$"
    ):
        results(made, [(Worker.kills, 0)])
    made.stop()


def died(preempted: bool) -> ActorDiedError:
    """As Ray makes it when a node is gone."""
    reason = (
        NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
        if preempted
        else NodeDeathInfo.UNEXPECTED_TERMINATION
    )
    return ActorDiedError(
        ActorDiedErrorContext(
            actor_id=b"0" * 16, error_message="gone", node_death_info=NodeDeathInfo(reason=reason)
        )
    )


def test_preemption_is_not_counted_against_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (loss_cause(died(True)), loss_cause(died(False))) == ("preempted", "died")
    made = pool(tmp_path, 1, max_restarts=0, max_attempts=1)
    made.wait_ready()
    tasks, found = made.tasks(), list[Any]()
    made.submit(tasks, Worker.task, 5, 0.5, then=found.append)

    def fail(preempted: bool) -> None:
        ((reference, attempt),) = [
            (one, attempt) for one, attempt in made.dispatcher.attempts.items() if attempt.task
        ]
        with monkeypatch.context() as patched:
            patched.setattr(ray, "get", lambda *_: (_ for _ in ()).throw(died(preempted)))
            made.on_result(reference)
        assert attempt.task and (attempt.task.failures, list(made.dispatcher.queue)) == (
            0,
            [attempt.task],
        )

    for _ in range(2):
        fail(preempted=True)
        until(made, lambda: any(attempt.task for attempt in made.dispatcher.attempts.values()))
    assert made.restarts == {"preempted": 2}
    with pytest.raises(
        BudgetError, match=r"^rollout: 1 losses of workers, 0 are allowed: 1 died, 2 preempted"
    ):
        fail(preempted=False)
    tasks.run()
    assert len(found) == 1
    made.stop()


# sync calls, growing and shrinking


def test_who_was_busy_or_not_there_at_a_publish_is_greeted_before_its_next_task(
    tmp_path: Path,
) -> None:
    made = pool(tmp_path, 2)
    made.wait_ready()
    tasks, found = made.tasks(), list[Any]()
    made.submit(
        tasks, Worker.task, 0, 0.5, then=lambda references: found.append(made.fetch(references[0]))
    )
    assert made.broadcast(Worker.load_weights, "v1") == ["v1"]  # the idle one
    made.sync([(Worker.load_weights, ("v1",))])
    made.desired = 3
    tasks.run()
    until(
        made,
        lambda: len(made.workers) == 3 and all(worker.state == "ready" for worker in made.workers),
    )
    later = results(made, [(Worker.task, key, 0.1) for key in range(1, 13)])
    assert found == [(0, found[0][1], "none")] and {weights for _, _, weights in later} == {"v1"}
    noted = logs(tmp_path)
    assert noted[found[0][1]][:5] == ["made", "ready", "task 0", "done 0", "load v1"]
    assert noted[2][:3] == ["made", "ready", "load v1"]
    assert all(lines.count("load v1") == 1 for lines in noted.values())
    made.stop()


def test_sync_calls_are_taken_back_while_a_worker_is_busy(tmp_path: Path) -> None:
    made = pool(tmp_path, 1)
    made.wait_ready()
    made.sync([(Worker.load_weights, ("v1",))])
    tasks = made.tasks()
    made.submit(tasks, Worker.task, 0, 0.3, then=lambda references: None)
    made.sync([])
    tasks.run()
    assert len(results(made, [(Worker.task, 1)])) == 1 and made.restarts == {}
    made.stop()


def test_from_two_workers_to_six_to_one_under_load(tmp_path: Path) -> None:
    made = pool(tmp_path, 2)
    made.wait_ready()
    made.broadcast(Worker.load_weights, "v1")
    made.sync([(Worker.load_weights, ("v1",))])
    tasks = made.tasks()
    found = list[int]()
    issued = [0]
    phases = list[int]()

    def submit() -> None:
        made.submit(tasks, Worker.task, issued[0], 0.05, then=finished)
        issued[0] += 1

    def finished(references: list[Any]) -> None:
        key, _, weights = made.fetch(references[0])
        assert weights == "v1"
        found.append(key)
        if 1 not in phases:
            submit()

    def between() -> None:
        if not phases and len(found) >= 4:
            made.desired = 6
            phases.append(6)
        tried = [
            worker for worker in made.workers if any(attempt.task for attempt in worker.pending)
        ]
        if phases == [6] and len(tried) == 6:
            made.desired = 1
            phases.append(1)

    for _ in range(12):
        submit()
    tasks.run(between)
    until(made, lambda: len(made.workers) == 1)
    assert phases == [6, 1] and sorted(found) == list(range(issued[0]))
    assert made.restarts == {"scaled": 5} and made.workers.created == 6
    noted = logs(tmp_path)
    assert len(noted) == 6
    for lines in noted.values():
        assert lines[:3] == ["made", "ready", "load v1"]
        began = [line.split()[1] for line in lines if line.startswith("task")]
        assert began == [line.split()[1] for line in lines if line.startswith("done")]
    tasks = [line for lines in noted.values() for line in lines if line.startswith("task")]
    assert len(tasks) == len(set(tasks)) == issued[0]
    made.stop()
