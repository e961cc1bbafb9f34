"""Tiny workers and ranks on a Ray whose memory monitor has a low threshold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.small_actors import Rank, Worker, here, pool

from cluster import pings
from cluster.errors import RankGroupError
from cluster.rank_group import RankGroup

pytestmark = pytest.mark.alone  # what others take would count as well

MARGIN = 4 << 30
"""Bytes beside what is used now, above which the monitor ends actors: these take less until they
swell."""


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    from cluster import session

    memory = {
        line.split()[0]: int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text().splitlines()
    }
    total, used = memory["MemTotal:"], memory["MemTotal:"] - memory["MemAvailable:"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_memory_usage_threshold", f"{(used + MARGIN) / total:.5f}")
        patched.setenv("RAY_memory_monitor_refresh_ms", "50")
        session.start("local", 128, dashboard=False)
    yield
    session.stop()


@pytest.mark.slow
def test_a_worker_that_the_memory_monitor_ends_in_a_broadcast_is_replaced(tmp_path: Path) -> None:
    made, told = pool(tmp_path, 2), list[str]()
    made.note = told.append
    made.wait_ready()
    assert made.broadcast(Worker.swell) == []
    assert set(made.restarts) == {"memory"} and sum(made.restarts.values()) == 2
    # what swelled may still be held while others start: then the monitor ends these as well
    made.wait_ready()
    assert [line.split(" on ")[0] for line in sorted(told[:2])] == ["rollout-0", "rollout-1"]
    assert all(
        " died (out of memory: ended by Ray's memory monitor); rollout-" in line
        and " replaces it, restart " in line
        for line in told
    )
    assert set(made.restarts) == {"memory"} and sum(made.restarts.values()) == len(told)
    newcomers = [worker.index for worker in made.workers]
    assert len(newcomers) == 2 and min(newcomers) >= 2
    assert made.broadcast(Worker.task, 1) == [(1, index, "none") for index in newcomers]
    made.stop()


@pytest.mark.slow
def test_an_idle_worker_that_the_memory_monitor_ended_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pings, "PING_SECONDS", 0.0)
    made = pool(tmp_path, 1)
    made.wait_ready()
    swelling = made.workers[0].handle.swell.remote()
    deadline = time.monotonic() + 300
    while not made.restarts:
        assert time.monotonic() < deadline
        made.workers.look_after(time.monotonic())
        time.sleep(0.05)
    assert made.restarts == {"memory": 1}
    del swelling
    made.stop()


@pytest.mark.slow
def test_a_rank_that_the_memory_monitor_ends_ends_the_group_and_another_is_formed(
    rank_group: RankGroup, notes: list[str]
) -> None:
    with pytest.raises(RankGroupError, match=r"^learner\.swell: rank [01] died: out of memory"):
        rank_group.call(Rank.swell)
    assert rank_group.restarts == {"memory": 1} and rank_group.spent == 1 and not rank_group.ranks
    (line,) = notes
    assert line in [
        f"learner-{rank} on {here()} died (out of memory: ended by Ray's memory monitor): "
        "learners begin again from the checkpoint, restart 1 of 20"
        for rank in (0, 1)  # Ray ends several at once
    ]
    rank_group.form()
    assert rank_group.call(Rank.update, 0.0) == [0, 1]
