"""Who drives a run: numbered claims that only one process gets each, and a lease that is renewed
while the run goes on.

    FOLDER/drivers/000002.json              which process claimed the run's second part; its time of
    change is the lease FOLDER/drivers/000002.progress.json     what that driver has spent so far,
    and how it ended

Whether a driver lives is asked of the system on the same machine, and elsewhere of the lease:
clocks of hosts differ, so its age is taken from the file system's clock, and where that is not
enough, it is watched.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from uuid import uuid4

from branchgrpo.errors import StaleFence
from branchgrpo.files.whole import write_whole

DRIVERS = "drivers"
RENEW_SECONDS = 10.0
"""How often a driver renews its lease."""
LAPSE_SECONDS = 45.0
"""A driver on another machine that has not renewed its lease for so long is gone."""
LOOK_SECONDS = 1.0
"""How often a lease is looked at while it is watched."""

Progress = dict[str, Any]
"""What a driver tells of itself: `seconds` by stage, `restarts` by cause, `reissued`, `recoveries`;
`ended`, once it has."""


class Lease:
    """A claimed part of a run, renewed by a thread until `close`. Raises FileExistsError where
    another process has the number."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        self.earlier = earlier(folder, number)
        self.progress: Progress = {}
        # by stage, asked whenever the progress is written
        self.seconds: Callable[[], Mapping[str, float]] = dict
        self._lock, self._closing = Lock(), Event()
        (folder / DRIVERS).mkdir(exist_ok=True)
        self._file = _claim_file(folder, number)
        with self._file.open("x", encoding="utf-8") as file:
            file.write(json.dumps(_process()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._thread = Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def put(self, **values: Any) -> None:
        """What is told with the next renewal. Raises StaleFence when another driver has taken the
        run over."""
        with self._lock:
            self.progress |= values
        if newest(self.folder) > self.number:
            raise StaleFence(
                f"{self.folder}: another driver has taken this run over (number "
                f"{newest(self.folder)}, this one is {self.number})"
            )

    def close(self, ended: str) -> None:
        """The run does not go on here. ended: iterations, max_minutes, interrupted or failed."""
        self._closing.set()
        self._thread.join()
        with self._lock:
            self.progress["ended"] = ended
        # nothing to tell it to: the process ends soon, and its lease with it
        with suppress(OSError):
            self._tell()

    def _renew(self) -> None:
        while not self._closing.wait(RENEW_SECONDS):
            # storage that fails for a while: a lease that lapses meanwhile is told by `put`
            with suppress(OSError):
                os.utime(self._file)
                self._tell()

    def _tell(self) -> None:
        with self._lock:
            seconds, text = dict(self.seconds()), dict(self.progress)
        write_whole(
            _progress_file(self.folder, self.number),
            json.dumps(text | ({"seconds": seconds} if seconds else {})) + "\n",
        )


def newest(folder: Path) -> int:
    """The highest number that was claimed; 0 = none."""
    place = folder / DRIVERS
    names = os.listdir(place) if place.is_dir() else []
    return max(
        (
            int(name.removesuffix(".json"))
            for name in names
            if name.removesuffix(".json").isdecimal()
        ),
        default=0,
    )


def earlier(folder: Path, number: int) -> Progress:
    """What drivers before this one have spent, summed up."""
    total: Progress = {"seconds": {}, "restarts": {}, "reissued": 0, "recoveries": 0}
    for before in range(1, number):
        told = progress(folder, before)
        for key, value in total.items():
            found = told.get(key)
            if isinstance(value, dict) and isinstance(found, dict):
                for name, amount in found.items():
                    value[name] = value.get(name, 0) + amount
            elif isinstance(found, int):
                total[key] += found
    return total


def progress(folder: Path, number: int) -> Progress:
    """What a driver told last; nothing where it had not come to that, or it cannot be read."""
    return read_object(_progress_file(folder, number)) or {}


def lives(folder: Path, number: int, say: Callable[[str], None] = print) -> bool:
    """Does the driver that claimed this number go on? Waits, for LAPSE_SECONDS at most, where only
    time can tell."""
    own = _process()
    file = _claim_file(folder, number)
    begun = time.monotonic()
    seen = 0.0
    while "ended" not in progress(folder, number):
        try:
            # opening it asks a network file system for what is there now
            with file.open(encoding="utf-8") as opened:
                text, renewed = opened.read(), os.fstat(opened.fileno()).st_mtime
        except FileNotFoundError:
            return False
        holder = _object(text) or {}
        if own["machine"] and (own["machine"], own["host"]) == (
            holder.get("machine"),
            holder.get("host"),
        ):
            return _began(holder.get("pid", 0)) == holder.get("began")
        if seen and renewed != seen:
            return True
        if not seen and _now(folder) - renewed <= LAPSE_SECONDS:
            say(
                f"{folder}: is its driver on {holder.get('host', 'another machine')} gone? "
                f"Waiting for {LAPSE_SECONDS:.0f} s at most"
            )
        seen = renewed
        if _now(folder) - renewed > LAPSE_SECONDS or time.monotonic() - begun > LAPSE_SECONDS:
            return False
        time.sleep(LOOK_SECONDS)
    return False


def seems_to_live(folder: Path, number: int) -> bool:
    """As `lives`, at once and without writing: of a driver on another machine by the age of its
    lease and this machine's clock."""
    holder, own = read_object(_claim_file(folder, number)), _process()
    if holder is None or "ended" in progress(folder, number):
        return False
    if own["machine"] and (own["machine"], own["host"]) == (
        holder.get("machine"),
        holder.get("host"),
    ):
        return _began(holder.get("pid", 0)) == holder.get("began")
    with suppress(OSError):
        return time.time() - _claim_file(folder, number).stat().st_mtime <= LAPSE_SECONDS
    return False


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file is missing, empty or damaged."""
    try:
        return _object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _claim_file(folder: Path, number: int) -> Path:
    return folder / DRIVERS / f"{number:06d}.json"


def _progress_file(folder: Path, number: int) -> Path:
    return folder / DRIVERS / f"{number:06d}.progress.json"


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system."""
    trial = folder / DRIVERS / f".now-{uuid4().hex}"
    try:
        trial.touch()
        return trial.stat().st_mtime
    finally:
        trial.unlink(missing_ok=True)


def _process() -> dict[str, Any]:
    """This process, so that it is known again."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
    }


def _machine() -> str:
    """The boot and the process namespace in which a process id means something; empty where the
    system does not tell."""
    try:
        return (
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
            + " "
            + os.readlink("/proc/self/ns/pid")
        )
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None when there is none, or only its exit
    code is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
