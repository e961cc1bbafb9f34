"""Commands that look at a run from another process: a real local Ray, a driver here, and what a
person starts beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.control import COMMAND, DOCTOR, JOB, answers, begin

from cluster import controller
from cluster.board import Board
from cluster.byte_counter import DriverByteCounter
from cluster.errors import PlacementError
from cluster.rank_group import RankGroup
from cluster.reporter import Reporter
from cluster.retry_policy import RetryPolicy
from cluster.session import Session
from cluster.status import WorkerState
from cluster.worker_pool import WorkerPool

LIMITS = {"rollout": (1, 8), "reward": (1, 4), "learner": (1, 2)}


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Session]:
    from cluster import session

    yield session.start("local", 128, dashboard=False)
    session.stop()


def reporter(run: str) -> Reporter:
    """Of a driver that has no actors yet."""
    retry_policy = RetryPolicy()
    rollouts, rewards = (
        WorkerPool(
            cls=object,
            role=role,
            count=count,
            resources={},
            arguments=(),
            byte_counter=DriverByteCounter(),
            retry_policy=retry_policy,
            run=run,
        )
        for role, count in (("rollout", 2), ("reward", 1))
    )
    return Reporter(
        run=run,
        rollouts=rollouts,
        rewards=[rewards],
        rank_groups=[
            RankGroup(
                cls=object,
                role="learner",
                ranks=1,
                resources={},
                make=tuple,
                byte_counter=DriverByteCounter(),
                deadlines=(1.0, 3.0, 1.0),
                run=run,
            )
        ],
        limits=LIMITS,
        phases=(),
    )


def workers(role: str, ready: int, starting: int = 0) -> list[WorkerState]:
    states = ["ready"] * ready + ["starting"] * starting
    return [
        {"name": f"demo/{role}-{index}", "state": state, "version": 4, "node": "here", "busy": 0}
        for index, state in enumerate(states)
    ]


def test_a_run_is_found_watched_scaled_and_waited_for_and_no_job_appears(
    ray_session: Session,
) -> None:
    made = reporter("demo-1")
    present = {"rollout": 2, "reward": 1, "learner": 1}

    def report(starting: int = 0) -> None:
        found = {
            role: workers(role, count, starting if role == "rollout" else 0)
            for role, count in present.items()
        }
        made.last |= {
            "iteration": 5,
            "phase": "training",
            "reward": float("nan"),
            "workers": found,
            "ready": dict(present),
        }
        made.board.post("demo-1", made._notice())

    report()
    before = made.board._jobs()
    steps = [
        ["status", [""]],
        ["scale", ["demo", {"rollout": 4}]],
        ["wait", ["/some/runs/demo-1", {"rollout": 4}, 60]],
        ["stop", [""]],
    ]
    process = begin(ray_session.address, COMMAND, json.dumps(steps))
    deadline = time.monotonic() + 100
    while present["rollout"] < 4 and time.monotonic() < deadline:  # as a driver reconciles
        if made.requests()[1]["rollout"] > present["rollout"]:
            report(starting=1)
            time.sleep(2 * controller.POLL_SECONDS)
            present["rollout"] += 1
            report()
        time.sleep(0.1)
    status, changed, *progress, stopped = answers(process)
    assert (
        status["run"] == "demo-1"
        and status["iteration"] == 5
        and status["reward"] is None
        and status["age"] >= 0
    )
    assert status["ready"] == present | {"rollout": 2} and status["pending"] == {}
    assert changed == {"rollout": {"from": 2, "to": 4, "when": "now"}}
    assert (
        progress[-1] == "rollout 4/4 ready"
        and "rollout 3/4 ready" in " ".join(progress)
        and "1 starting" in " ".join(progress)
    )
    assert stopped is None and made.requests() == (True, {"rollout": 4, "reward": 1, "learner": 1})
    jobs = made.board.client.get_all_job_info()
    assert {job.hex() for job in jobs} == before  # people who ask are no drivers
    made.close()
    assert made.board.runs() == []


def test_a_board_that_is_lost_comes_back_with_what_was_wished_for(ray_session: Session) -> None:
    made = reporter("demo-2")
    watched = controller.find([Board.at(ray_session.address)], "demo")
    watched.scale({"rollout": 5, "learner": 2})
    assert made.requests() == (False, {"rollout": 5, "reward": 1, "learner": 2})
    made.board.forget("demo-2")  # as when the head comes back without its memory
    assert made.requests() == (False, {"rollout": 5, "reward": 1, "learner": 2})
    with pytest.raises(PlacementError, match="demo-2 has ended"):
        watched.status()
    made.post({})
    status = watched.status()
    assert status["desired"] == {"rollout": 5, "reward": 1, "learner": 2} and not status["stopping"]
    watched.stop()
    assert made.requests()[0]
    made.board.forget("demo-2")
    made.report(
        {
            "phase": "training",
            "metrics": {"time/grow": 1.5, "time/training": 90.0, "reward/total": 0.5},
        },
        {},
    )
    status = watched.status()
    assert (
        status["stopping"]
        and status["seconds"] == {"grow": 1.5}
        and status["trained"] == 90.0
        and status["reward"] == 0.5
    )
    made.close()


def test_what_cannot_be_is_said_in_one_line(ray_session: Session) -> None:
    one, two = (reporter(f"many-{number}") for number in (1, 2))
    with pytest.raises(PlacementError, match=r"run\.name: .* many-1"):
        reporter("many-1")
    steps = [
        ["status", [""]],
        ["status", ["nobody"]],
        ["status", ["many"]],
        ["scale", ["many-1", {"rollout": 99}]],
        ["scale", ["many-1", {"critic": 1}]],
        ["scale", ["many-1", {"rollout": 3, "learner": 2}]],
        ["wait", ["many-1", {"rollout": 3, "learner": 2}, 1]],
        ["wait", ["many-1", {"rollout": 5}, 60]],
    ]
    several, nobody, both, large, critic, _, told, late, again, overruled = answers(
        begin(ray_session.address, COMMAND, json.dumps(steps))
    )
    assert several == ["error", "--run: expected one of many-1, many-2, got none"]
    assert nobody == ["error", "--run: expected one of many-1, many-2, got 'nobody'"]
    assert both[1].startswith(
        "--run: expected one of many-1, many-2, got 'many', which begins several"
    )
    assert large == ["error", "scale: expected 1 … 8 rollout workers, got 99"]
    assert critic == ["error", "scale: expected a role of rollout, reward, learner, got 'critic'"]
    assert (
        told == "rollout 0/3 ready, learner 0/2 ready (at the next checkpoint)"
        and again == "rollout 0/5 ready"
    )
    assert late[1].startswith(
        f"scale: expected 3 rollout and 2 learner within 1 s, got {told} (reported "
    )
    assert overruled == [
        "error",
        "scale: expected 5 rollout, but somebody has asked for 3 rollout meanwhile",
    ]
    one.close()
    two.close()
    with pytest.raises(PlacementError, match=f"on the Ray at {ray_session.address}, there is none"):
        controller.find([Board.at(ray_session.address)], "")


def test_jobs_that_start_together_take_turns_and_each_has_all_its_room_or_none(
    ray_session: Session,
) -> None:
    """Room for one: each has two actors of half the machine, which both would hold and wait for."""
    import ray

    half = ray.cluster_resources()["CPU"] / 2
    both = [
        begin(ray_session.address, JOB, name, ray_session.address, str(half), "300", "5")
        for name in ("run-a", "run-b")
    ]
    short = begin(ray_session.address, JOB, "run-c", ray_session.address, str(2 * half), "1", "0")
    found = [answers(process) for process in both]
    assert all(
        [event[0] for event in events if event[0] != "told"] == ["begun", "done"]
        for events in found
    ), found
    first, second = sorted(found, key=lambda events: events[-1][2])
    began = next(when for what, _, when in second if what == "begun")
    assert began >= first[-1][2] - 0.5, "both ran at once"
    told = [text for what, text, _ in second if what == "told"]
    assert any(
        text.startswith("waiting for room: cluster: expected room for 1 rollout")
        and "missing" in text
        for text in told
    ), told
    assert len(told) <= 3  # said seldom
    (what, line, _) = answers(short)[-1]
    assert (
        what == "error"
        and line.startswith(f"cluster: expected room for 1 rollout × {2 * half:g} CPU")
        and " free after 1 s: missing" in line
    )


def test_a_turn_of_a_run_that_died_is_taken_over(ray_session: Session) -> None:
    import ray

    board, job = Board.at(ray_session.address), ray.get_runtime_context().get_job_id()
    assert (
        board.take_turn({"run": "one", "job": job}) == ""
        and board.take_turn({"run": "two", "job": job}) == "one"
    )
    board.end_turn()
    assert (
        board.take_turn({"run": "dead", "job": "7f000000"}) == ""
        and board.take_turn({"run": "two", "job": job}) == ""
    )
    board.end_turn()


def test_a_wrong_token_is_one_line_at_once(ray_session: Session) -> None:
    process = begin(
        ray_session.address,
        COMMAND,
        '[["status", [""]]]',
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="0123456789abcdef",
    )
    ((kind, line),) = answers(process)
    assert (
        kind == "error"
        and line.startswith(f"the Ray at {ray_session.address} asks for a token")
        and "0123456789abcdef" not in line
    )


def test_the_doctor_looks_at_every_node(ray_session: Session, tmp_path: Path) -> None:
    both = [begin(ray_session.address, DOCTOR, str(tmp_path), which) for which in ("new", "old")]
    ((new,), (old,)) = (answers(process) for process in both)
    found, worse = ({finding["check"]: finding for finding in listing} for listing in (new, old))
    for check in (
        "ray",
        "authentication",
        "versions",
        "gpus",
        "object store",
        "clocks",
        "storage good",
    ):
        assert found[check]["state"] == "ok", found[check]
    assert (
        ray_session.address in found["ray"]["text"]
        and "1 node and here" in found["versions"]["text"]
    )
    assert (
        "128.0 MiB" in found["object store"]["text"]
        and "written and seen by 2 machines" in found["storage good"]["text"]
    )
    # here and on the node
    assert (
        found["storage closed"]["state"] == "fail"
        and found["storage closed"]["text"].count("PermissionError") == 2
    )
    assert (
        found["files on nodes"]["state"] == "fail"
        and found["files on nodes"]["text"].count("/sys/no/model_index.json") == 2
    )
    assert found["ports"]["state"] == "warn"  # no dashboard
    assert not list(tmp_path.iterdir())
    assert worse["versions"]["state"] == "fail" and "has torch 0.0.1" in worse["versions"]["text"]
