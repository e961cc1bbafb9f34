"""Who drives a run: live and dead drivers, here and elsewhere, and claims that only one process
gets."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from support.small_drivers import holder

from branchgrpo.errors import StaleFence
from branchgrpo.runs import lease as leases
from branchgrpo.runs.lease import Lease, lives, newest


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of fractions of a second."""
    for name, seconds in (("RENEW_SECONDS", 0.05), ("LAPSE_SECONDS", 1.0), ("LOOK_SECONDS", 0.02)):
        monkeypatch.setattr(leases, name, seconds)


def elsewhere(folder: Path, number: int = 1) -> Path:
    """Make a claim look as if another machine had made it."""
    file = folder / "drivers" / f"{number:06d}.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"machine": "another", "host": "far"})
    )
    return file


def test_a_process_of_this_machine_is_live_until_it_is_dead(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        began = time.monotonic()
        assert newest(tmp_path) == 1 and lives(tmp_path, 1)
        process.send_signal(signal.SIGSTOP)  # it hangs, but it is there
        assert lives(tmp_path, 1)
        process.kill()  # not waited for yet: a zombie is dead too
        while lives(tmp_path, 1):
            assert time.monotonic() - began < 10
            time.sleep(0.01)
        process.wait()
        # nobody waited for a lease to lapse
        assert not lives(tmp_path, 1) and time.monotonic() - began < 10


def test_another_process_of_the_same_number_is_not_the_driver(tmp_path: Path) -> None:
    lease = Lease(tmp_path, 1)
    file = tmp_path / "drivers" / "000001.json"
    assert lives(tmp_path, 1)
    # the number went to us since
    file.write_text(json.dumps(json.loads(file.read_text()) | {"began": 1}))
    assert not lives(tmp_path, 1)
    lease.close("failed")


@pytest.mark.waits
@pytest.mark.usefixtures("quick")
def test_elsewhere_a_lease_that_is_renewed_is_live_and_one_that_lapses_is_not(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    lease = Lease(tmp_path, 1)
    file = elsewhere(tmp_path)
    assert lives(tmp_path, 1, said.append) and len(said) == 1 and "far" in said[0]
    lease._closing.set()  # as if it was killed: it neither renews nor tells
    lease._thread.join()
    began = time.monotonic()
    assert not lives(tmp_path, 1, said.append)  # waits until it can be told
    assert time.monotonic() - began < 2
    os.utime(file, (time.time() - 100, time.time() - 100))
    began = time.monotonic()
    assert not lives(tmp_path, 1, said.append) and time.monotonic() - began < 0.5 and len(said) == 2


@pytest.mark.waits
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("ahead", [-500.0, 500.0])
def test_a_clock_that_is_wrong_neither_kills_nor_keeps(
    tmp_path: Path, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's host is ahead or after by minutes: its clock plays no part; one that is ahead
    in the file system is watched."""
    lease = Lease(tmp_path, 1)
    file = elsewhere(tmp_path)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    assert lives(tmp_path, 1, lambda line: None)
    lease._closing.set()
    lease._thread.join()
    os.utime(file, (real() + 500, real() + 500))
    assert not lives(tmp_path, 1, lambda line: None)


@pytest.mark.usefixtures("quick")
def test_a_claim_that_is_being_written_or_damaged_is_judged_by_its_lease(tmp_path: Path) -> None:
    lease = Lease(tmp_path, 1)
    (tmp_path / "drivers" / "000001.json").write_text("")
    assert lives(tmp_path, 1, lambda line: None)
    lease.close("interrupted")
    assert not lives(tmp_path, 1)


def test_a_number_goes_to_one_process_only(tmp_path: Path) -> None:
    together = Barrier(8)

    def claim(_: int) -> Lease | None:
        together.wait()
        try:
            return Lease(tmp_path, 1)
        except FileExistsError:
            return None

    with ThreadPoolExecutor(8) as pool:
        (won,) = [one for one in pool.map(claim, range(8)) if one]
    won.close("interrupted")


def test_a_driver_that_was_superseded_ends(tmp_path: Path) -> None:
    first = Lease(tmp_path, 1)
    first.put(recoveries=1)
    second = Lease(tmp_path, 2)
    with pytest.raises(
        StaleFence,
        match=r"another driver has taken this run over \(number 2, "
        r"this one is 1\)",
    ):
        first.put(recoveries=1)
    second.put(recoveries=1)
    first.close("failed")
    second.close("failed")


@pytest.mark.usefixtures("quick")
def test_what_earlier_drivers_spent_is_handed_on_also_of_one_that_was_killed(
    tmp_path: Path,
) -> None:
    def part(number: int, ended: str, **values: Any) -> dict[str, Any]:
        lease = Lease(tmp_path, number)
        lease.seconds = lambda: {"training": 10.0 * number}
        lease.put(**values)
        if ended:
            lease.close(ended)
        else:  # killed after a renewal
            deadline = time.monotonic() + 10
            while "recoveries" not in leases.progress(tmp_path, number):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            lease._closing.set()
            lease._thread.join()
        return lease.earlier

    assert part(1, "interrupted", restarts={"died": 2}, reissued=1, recoveries=0)["seconds"] == {}
    part(2, "", restarts={"died": 1, "node": 1}, reissued=0, recoveries=3)
    (tmp_path / "drivers" / "000003.json").write_text("")  # one that came to nothing
    (tmp_path / "drivers" / "000003.progress.json").write_text("{")
    assert part(4, "failed") == {
        "seconds": {"training": 30.0},
        "restarts": {"died": 3, "node": 1},
        "reissued": 1,
        "recoveries": 3,
    }
