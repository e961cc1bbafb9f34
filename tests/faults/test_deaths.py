"""Tiny workers and ranks that die, hang or cannot start, and it is said in one line."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import deque
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError
from support.small_actors import Rank, UnfitHere, UnmadeHere, Worker, here, pool, results, until

from cluster import avoid, local, ray_private
from cluster.byte_counter import DriverByteCounter
from cluster.errors import RankGroupError
from cluster.rank_group import RankGroup

pytestmark = pytest.mark.usefixtures("ray_session")


# what cluster/ray_private.py calls


def test_private_calls_of_a_ray_that_runs(tmp_path: Path) -> None:
    node, address = ray.get_runtime_context().get_node_id(), ray.get_runtime_context().gcs_address
    assert ray_private.draining_nodes() == set()
    assert ray_private.available_resources_per_node().keys() == {node}
    assert address in ray_private.addresses_here()
    session = Path(ray.get_runtime_context().get_session_name())
    assert session.name in [path.name for path in ray_private.session_folders(os.getpid())]
    assert local.logs().parent.name == session.name and (local.logs() / "raylet.out").is_file()

    actor = ray.remote(Worker).options(num_cpus=0).remote(str(tmp_path), 7)
    found = ray.get(ray_private.call_in_actor(actor, lambda worker: worker.index), timeout=120)
    assert found == 7 and ray_private.node_of_actor(actor) == node
    ray.kill(actor)
    deadline = time.monotonic() + 120
    with pytest.raises(ray.exceptions.RayActorError):
        while time.monotonic() < deadline:  # it ends a little later
            ray.get(ray_private.call_in_actor(actor, lambda worker: 0), timeout=120)
    assert ray_private.node_of_actor(actor) == node  # of the dead, too

    client, space = ray_private.gcs_client(address), b"test"
    assert client.internal_kv_put(b"a1", b"x", False, space, timeout=60)
    assert not client.internal_kv_put(b"a1", b"y", False, space, timeout=60)
    assert client.internal_kv_put(b"a2", b"y", True, space, timeout=60)
    assert client.internal_kv_multi_get([b"a1", b"no"], space, timeout=60) == {b"a1": b"x"}
    client.internal_kv_del(b"a", True, space, timeout=60)
    assert client.internal_kv_keys(b"a", space, timeout=60) == []
    jobs = client.get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True, timeout=60
    )
    mine = ray.get_runtime_context().get_job_id()
    assert {job.hex(): info.is_dead for job, info in jobs.items()}[mine] is False


def test_large_results_stay_in_the_store_and_small_ones_travel(tmp_path: Path) -> None:
    """As ray_private.start was told."""
    made = pool(tmp_path, 1)
    made.wait_ready()
    actor, where = made.workers[0].handle, ray.experimental.get_object_locations
    small, large = (
        ray_private.call_in_actor(actor, lambda worker, size=size: b"x" * size)
        for size in (local.INLINE_BYTES // 2, 4 * local.INLINE_BYTES)
    )
    ray.wait([small, large], num_returns=2, timeout=120, fetch_local=False)
    deadline = time.monotonic() + 120
    while not where([large])[large]["node_ids"]:  # the store tells the head a little later
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not where([small])[small]["node_ids"]
    made.stop()


# what is said


def test_who_died_of_what_and_who_replaces_it(tmp_path: Path) -> None:
    made, told = pool(tmp_path, 2, max_restarts=9), list[str]()
    made.note = told.append
    made.wait_ready()
    first = made.workers[0]
    assert first.place
    os.kill(first.place.process, signal.SIGKILL)
    results(made, [(Worker.task, key) for key in range(4)])
    until(made, lambda: sum(worker.state == "ready" for worker in made.workers) == 2)
    made.broadcast(Worker.leaves, 3)
    made.poll()
    assert told == [
        f"rollout-0 on {here()} died (killed or crashed: its process ended without a word); "
        "rollout-2 replaces it, restart 1 of 9",
        f"rollout-1 on {here()} died (exit code 3); rollout-3 replaces it, restart 2 of 9",
        f"rollout-2 on {here()} died (exit code 3); rollout-4 replaces it, restart 3 of 9",
    ]
    made.stop()


@pytest.mark.slow
def test_what_is_given_to_another_as_well(tmp_path: Path) -> None:
    made, told = pool(tmp_path, 2, straggler_seconds=1.5), list[str]()
    made.note = told.append
    made.wait_ready()
    results(made, [(Worker.task, key, 0.1) for key in range(4)])
    results(made, [(Worker.once, 9, "dawdle")])
    assert told == []  # its like was never measured
    made.workers.deadlines.seconds["once"] = deque([0.1])
    results(made, [(Worker.once, 10, "dawdle")])
    (line,) = told
    assert re.fullmatch(
        r"rollout-([01]): once takes \d s \(median 0\.1 s\): given to rollout-[01] as well", line
    )
    made.stop()


@pytest.mark.slow
def test_a_broadcast_does_not_wait_for_the_only_worker_when_it_hangs(tmp_path: Path) -> None:
    """Nobody is there whose answer would tell how long it takes: earlier ones do."""
    made, told = pool(tmp_path, 1, straggler_seconds=0.5), list[str]()
    made.note = told.append
    made.wait_ready()
    assert made.broadcast(Worker.task, 1, 0.3) == [(1, 0, "none")]
    # slow, and in time: six times the median
    assert made.broadcast(Worker.task, 2, 1.5) == [(2, 0, "none")]
    (place,) = [worker.place for worker in made.workers]
    assert place
    os.kill(place.process, signal.SIGSTOP)
    began = time.monotonic()
    assert made.broadcast(Worker.task, 3) == []
    assert time.monotonic() - began < 20 and made.restarts == {"unresponsive": 1}
    made.wait_ready()
    assert told[0].startswith(
        f"rollout-0 on {here()} was ended (no answer to task in "
    ) and made.broadcast(Worker.task, 4) == [(4, 1, "none")]
    made.stop()


# newcomers that cannot start


@pytest.mark.parametrize("cls", [UnfitHere, UnmadeHere])
def test_a_newcomer_that_cannot_start_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type
) -> None:
    """Its node is left alone, since others work; in the end it is tried again."""
    made, told = pool(tmp_path, 1, cls), list[str]()
    made.note = told.append
    made.wait_ready()
    (tmp_path / "unfit").write_text(ray.get_runtime_context().get_node_id())
    made.desired = 2
    until(made, lambda: bool(made.restarts))
    assert (
        made.restarts == {"start": 1}
        and len(results(made, [(Worker.task, key) for key in range(4)])) == 4
    )
    assert told == [
        f"rollout-1 on {here()} could not start (ModuleNotFoundError: No module named "
        "'broken'); rollout-2 replaces it, restart 1 of 20"
    ]
    assert [state["state"] for state in made.states()] == ["ready", "waiting"]
    (tmp_path / "unfit").unlink()
    monkeypatch.setattr(made.workers.avoided, "nodes", set)  # it was left alone long enough
    until(made, lambda: [worker.state for worker in made.workers] == ["ready"] * 2)
    assert {why: count for why, count in made.restarts.items() if why != "scaled"} == {"start": 1}
    made.stop()


def test_when_nobody_is_left_some_are_tried_and_the_reason_ends_it(tmp_path: Path) -> None:
    made = pool(tmp_path, 1, UnfitHere, max_attempts=3)
    made.wait_ready()
    (tmp_path / "unfit").write_text(ray.get_runtime_context().get_node_id())
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'broken'$"):
        made.broadcast(Worker.leaves, 1)
        results(made, [(Worker.task, 0)])
    assert made.restarts == {"died": 1, "start": 2}
    made.stop()


def test_at_the_start_it_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "unfit").write_text(ray.get_runtime_context().get_node_id())
    for cls, error in ((UnfitHere, ModuleNotFoundError), (UnmadeHere, ActorDiedError)):
        made = pool(tmp_path, 2, cls)
        with pytest.raises(error, match="No module named 'broken'"):
            made.wait_ready()
        assert not made.restarts
        made.stop()


def test_how_long_a_node_is_left_alone() -> None:
    made = avoid.Avoided()
    for seconds in (600, 1200, 2400):
        made.add("a")
        assert made.until["a"] - time.monotonic() == pytest.approx(
            seconds, abs=1
        ) and made.nodes() == {"a"}
    made.until["a"] = 0.0
    assert made.nodes() == set()


# deadlines


def test_a_rank_that_hangs_after_measured_calls_is_found_in_seconds(
    rank_group: RankGroup, notes: list[str]
) -> None:
    assert (
        rank_group.limit("update", True) == rank_group.limit("update") == 60.0
    )  # nothing is known
    for _ in range(4):
        rank_group.call(Rank.update, 0.1)
    assert rank_group.limit("update") == 1.0  # the least
    # by the size, and not above the timeout
    assert rank_group.limit("update", size=100.0) == pytest.approx(40.0, rel=0.5)
    assert rank_group.limit("update", size=1e6) == 60.0 == rank_group.limit("save")
    stopped = rank_group.places[1].process
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(
        RankGroupError, match=r"^learner\.update: ranks \[1\] missed the deadline of 1 s$"
    ):
        rank_group.call(Rank.update, 0.1)
    assert time.monotonic() - began < 20 and rank_group.restarts == {"unresponsive": 1}
    assert (
        notes[0].startswith("learner-1 on ")
        and (
            ": update not finished in 1 s: learners begin again from the checkpoint, restart 1 "
            "of 20"
        )
        in notes[0]
    )


@pytest.mark.slow
def test_a_slow_call_is_left_alone_and_one_behind_another_waits_for_it(
    rank_group: RankGroup,
) -> None:
    for _ in range(3):
        rank_group.call(Rank.update, 0.5)
    assert 2.0 <= rank_group.limit("update") < 4.0
    assert rank_group.call(Rank.update, 1.5) == [0, 1]  # three times the median
    first, second, third = (rank_group.begin(Rank.update, 1.5) for _ in range(3))
    assert rank_group.finish(third) == [0, 1]  # 4.5 s: each has its own time
    assert first.alone and not second.alone and not rank_group.running and not rank_group.restarts
    assert (
        sorted(rank_group.deadlines.seconds["update", False])[-1] < 4.0
    )  # what waited is no measure


def test_first_calls_of_new_ranks_are_measured_apart(rank_group: RankGroup) -> None:
    """They warm up: load kernels, compile."""
    rank_group.call(Rank.update, 1.0)
    for _ in range(3):
        rank_group.call(Rank.update, 0.0)
    assert rank_group.limit("update") == 1.0 < 4.0 <= rank_group.limit("update", first=True) < 8.0
    rank_group.form()
    assert rank_group.call(Rank.update, 2.0) == [0, 1] and not rank_group.restarts


def test_methods_that_wait_for_storage_have_the_whole_timeout(
    rank_group: RankGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rank.update, "storage_bound", True, raising=False)
    for _ in range(3):
        rank_group.call(Rank.update, 0.0)
    assert rank_group.limit("update") == 60.0


# ranks that cannot start


@pytest.mark.slow
def test_a_new_group_that_cannot_start_is_made_again(
    rank_group: RankGroup, notes: list[str], tmp_path: Path
) -> None:
    (tmp_path / "unfit-1-a").touch()
    with pytest.raises(
        RankGroupError,
        match=r"^learner\.join: rank 1 could not start: ModuleNotFoundError: No module named "
        r"'broken'$",
    ):
        rank_group.form()
    assert rank_group.restarts == {"start": 1} and len(rank_group.room.avoided.nodes()) == 1
    assert notes == [
        f"learner-1 on {here()} could not start (ModuleNotFoundError: No module named "
        "'broken'): learners begin again from the checkpoint, restart 1 of 20"
    ]
    rank_group.form()  # on the same node: there is no other
    assert rank_group.call(Rank.update, 0.0) == [0, 1]


def test_the_first_group_refuses_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "unfit-0-a").touch()
    made = RankGroup(
        cls=Rank,
        role="learner",
        ranks=1,
        resources={"num_cpus": 0},
        make=lambda rank: (str(tmp_path), rank),
        byte_counter=DriverByteCounter(),
        deadlines=(60.0, 4.0, 1.0),
    )
    with pytest.raises(ModuleNotFoundError, match="No module named 'broken'"):
        made.form()
    made.stop()
