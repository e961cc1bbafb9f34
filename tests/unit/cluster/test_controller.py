"""What is wanted of a run, what it says of itself, and how that looks; without Ray. The rest is in
integration/test_control_ray.py."""

from __future__ import annotations

import json
import time
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support.refusals import refusal

from cluster import controller
from cluster.board import Board
from cluster.controller import RunController
from cluster.status import Snapshot, WorkerState, plain, render

DESIRED = {"rollout": 2, "reward": 1, "learner": 1}
LIMITS = {"rollout": [1, 8], "reward": [1, 4], "learner": [1, 2]}
ROLES = (*DESIRED, "stop")


class Head:
    """The part of Ray's GcsClient that a board uses: keys, and jobs that live or not."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.jobs = {b"\1": False}

    def internal_kv_put(
        self, key: bytes, value: bytes, overwrite: bool, space: bytes, timeout: float
    ) -> int:
        new = key not in self.kept
        if new or overwrite:
            self.kept[key] = value
        return int(new)

    def internal_kv_keys(self, begin: bytes, space: bytes, timeout: float) -> list[bytes]:
        return [key for key in self.kept if key.startswith(begin)]

    def internal_kv_multi_get(
        self, keys: list[bytes], space: bytes, timeout: float
    ) -> dict[bytes, bytes]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    def internal_kv_del(self, key: bytes, by_beginning: bool, space: bytes, timeout: float) -> None:
        self.kept = {
            one: value
            for one, value in self.kept.items()
            if one != key and not (by_beginning and one.startswith(key))
        }

    def get_all_job_info(self, timeout: float, **_: bool) -> dict[bytes, Any]:
        return {job: SimpleNamespace(is_dead=dead) for job, dead in self.jobs.items()}


@pytest.fixture
def head() -> Head:
    return Head()


def notice(**told: Any) -> dict[str, Any]:
    return {
        "run": "demo",
        "job": "01",
        "wanted": DESIRED,
        "limits": LIMITS,
        "updated": time.time(),
        **told,
    }


@pytest.fixture
def watched(head: Head) -> RunController:
    board = Board(head, "127.0.0.1:1")
    board.claim("demo", notice())
    return RunController(board, "demo")


def report(watched: RunController, told: Snapshot, **changed: Any) -> None:
    watched.board.post("demo", notice(**{**told, "updated": time.time()} | changed))


def worker(name: str, state: str = "ready", version: int = 3) -> WorkerState:
    return {"name": name, "state": state, "version": version, "node": "node-a", "busy": 1}


SNAPSHOT: Snapshot = {
    "ready": {"rollout": 1, "reward": 1, "learner": 1},
    "phase": "training",
    "iteration": 7,
    "planned": 20,
    "reward": 0.5,
    "held_out": {"ocr/exact": 0.25},
    "seconds": {"grow": 1.5, "update": 0.25},
    "workers": {
        "rollout": [worker("demo/rollout-0"), worker("demo/rollout-1", "starting", -1)],
        "reward": [worker("demo/reward-0")],
        "learner": [worker("demo/learner-0")],
    },
    "version": 3,
    "fence": 1,
    "restarts": {"died": 2},
    "checkpoint": {"iteration": 6, "path": "/runs/[demo]/6"},
    "started": 100.0,
    "trained": 90.0,
}


def test_scaling_sets_what_is_wanted_and_says_when(watched: RunController) -> None:
    changed = watched.scale({"rollout": 6, "learner": 2})
    assert changed == {
        "rollout": {"from": 2, "to": 6, "when": "now"},
        "learner": {"from": 1, "to": 2, "when": "at the next checkpoint"},
    }
    assert watched.status()["desired"] == {"rollout": 6, "reward": 1, "learner": 2}
    again = watched.scale({"rollout": 6, "learner": 2})
    assert {role: (change["from"], change["to"]) for role, change in again.items()} == {
        "rollout": (6, 6),
        "learner": (2, 2),
    }
    assert watched.board.requests("demo", ROLES) == {"rollout": 6, "learner": 2}


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"critic": 2}, ["rollout, reward, learner", "'critic'"]),
        ({"rollout": 9}, ["1 … 8 rollout", "got 9"]),
        ({"rollout": 4, "reward": 0}, ["1 … 4 reward", "got 0"]),
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(
    watched: RunController, counts: dict[str, int], words: list[str]
) -> None:
    line = refusal(watched.scale, counts)
    assert all(word in line for word in words)
    assert watched.status()["desired"] == DESIRED and not watched.board.requests("demo", ROLES)


def test_status_counts_ready_workers_and_what_is_to_come(watched: RunController) -> None:
    report(watched, SNAPSHOT, updated=time.time() - 5)
    status = watched.status()
    assert 5 <= status["age"] < 8 and status["iteration"] == 7
    assert status["ready"] == {"rollout": 1, "reward": 1, "learner": 1} and status["pending"] == {
        "rollout": "now"
    }
    watched.scale({"rollout": 1, "learner": 2})
    assert watched.status()["pending"] == {"learner": "at the next checkpoint"}
    report(watched, SNAPSHOT, updated=time.time() + 60)  # a clock that is ahead
    assert watched.status()["age"] == 0


def test_stopping_is_asked_once_and_for_all(watched: RunController) -> None:
    assert not watched.status()["stopping"]
    watched.stop()
    assert watched.board.requests("demo", ROLES) == {"stop": 1} and watched.status()["stopping"]


def test_a_role_that_follows_the_cluster_is_not_scaled(watched: RunController) -> None:
    report(watched, {"following": {"rollout": 5}})
    line = refusal(watched.scale, {"rollout": 3, "reward": 1})
    assert (
        line
        == "scale: rollout workers follow the cluster by themselves (rollout.workers: auto), got 3"
    )
    assert watched.status()["desired"] == {"rollout": 5, "reward": 1, "learner": 1}


def test_a_number_that_cannot_be_had_says_why(watched: RunController) -> None:
    watched.scale({"learner": 2})
    report(watched, SNAPSHOT, refused={"learner": "cluster: expected room"})
    assert watched.status()["pending"]["learner"] == "cluster: expected room"
    assert line_of(text_of(watched.status()), "learner ").startswith("1/2, cluster: expected room")


def test_a_run_whose_driver_is_gone_is_no_run_and_its_name_is_free(
    head: Head, watched: RunController
) -> None:
    watched.stop()
    assert "run.name: expected one that no run" in refusal(watched.board.claim, "demo", notice())
    head.jobs[b"\1"] = True
    assert watched.board.runs() == [] and "demo has ended" in refusal(watched.status) == refusal(
        watched.scale, {}
    ) == refusal(watched.stop)
    head.jobs[b"\2"] = False
    watched.board.claim("other", notice(job="02"))
    assert [key for key in head.kept] == [b"run:other"]  # what the dead left is swept
    watched.board.claim("demo", notice(job="02"))
    assert watched.board.runs() == ["demo", "other"] and not watched.status()["stopping"]
    watched.board.forget("other")
    assert watched.board.runs() == ["demo"]


def test_runs_of_several_rays_are_told_apart(head: Head, watched: RunController) -> None:
    second = Head()
    far = Board(second, "127.0.0.1:2")
    both = [watched.board, far]
    assert controller.find(both, "") == watched  # the only run, whatever else is there
    for name in ("far-1", "far-2", "demo-2"):
        far.claim(name, notice())
    assert (
        controller.find(both, "far-1").board is far
        and controller.find(both, "/some/runs/far-2").run == "far-2"
    )
    assert controller.find(both, "demo") == watched and controller.find(
        both, "demo-"
    ) == RunController(far, "demo-2")
    places = (
        "demo (--address 127.0.0.1:1), demo-2 (--address 127.0.0.1:2), far-1 (--address "
        "127.0.0.1:2), far-2 (--address 127.0.0.1:2)"
    )
    assert refusal(controller.find, both, "") == f"--run: expected one of {places}, got none"
    assert (
        refusal(controller.find, both, "far")
        == f"--run: expected one of {places}, got 'far', which begins several"
    )
    assert (
        refusal(controller.find, [far], "nobody")
        == "--run: expected one of demo-2, far-1, far-2, got 'nobody'"
    )
    second.jobs[b"\1"] = True
    assert (
        refusal(controller.find, [far], "")
        == "--run: expected a run on the Ray at 127.0.0.1:2, there is none"
    )


def text_of(status: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=160, color_system=None)
    console.print(render(status))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def line_of(text: str, begin: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(begin)]
    return " ".join(found.removeprefix(begin).split())


def test_a_status_on_a_terminal(watched: RunController) -> None:
    report(watched, SNAPSHOT, started=time.time() - 120)
    watched.scale({"learner": 2})
    text = text_of(watched.status())
    assert line_of(text, "run ") == "demo"
    assert line_of(text, "phase") == "training (reported 0 s ago)"
    assert line_of(text, "running for") == "2.0 min"
    assert line_of(text, "trained for") == "1.5 min"
    assert line_of(text, "iterations") == "7 of 20"
    assert line_of(text, "held out") == "ocr/exact 0.2500"
    assert line_of(text, "seconds") == "grow 1.50, update 0.25"
    assert line_of(text, "restarts") == "died 2"
    assert line_of(text, "weights") == "v3, learner fence 1"
    assert line_of(text, "checkpoint") == "iteration 6: /runs/[demo]/6"  # a bracket is no markup
    assert line_of(text, "rollout ") == "1/2 demo/rollout-0 ready v3 1 node-a"
    assert "demo/rollout-1 starting – 1 node-a" in " ".join(text.split())
    assert (
        line_of(text, "learner ") == "1/2, at the next checkpoint demo/learner-0 ready v3 1 node-a"
    )


def test_a_status_before_the_first_checkpoint(watched: RunController) -> None:
    report(watched, SNAPSHOT, checkpoint={"iteration": 0, "path": "/runs/demo"})
    assert (
        line_of(text_of(watched.status()), "checkpoint") == "none yet, they will be in /runs/demo"
    )


def test_a_status_before_the_first_report(watched: RunController) -> None:
    watched.stop()
    text = text_of(watched.status())
    assert line_of(text, "run ") == "demo, ends after this iteration"
    assert line_of(text, "phase") == "no report for 0 s"
    assert line_of(text, "rollout ") == "0/2"


def test_json_has_no_nan() -> None:
    value = {
        "reward": float("nan"),
        "seconds": {"grow": 1.5},
        "workers": [float("inf"), 2],
        "name": "x",
    }
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "reward": None,
        "seconds": {"grow": 1.5},
        "workers": [None, 2],
        "name": "x",
    }


def test_a_run_that_starts_waits_for_no_checkpoint(watched: RunController) -> None:
    none = {**SNAPSHOT["workers"], "learner": []}
    report(watched, SNAPSHOT, workers=none, ready={**SNAPSHOT["ready"], "learner": 0})
    assert line_of(text_of(watched.status()), "learner ").split()[0] == "0/1"
