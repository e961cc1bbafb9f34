"""A Ray of this process's own: on loopback alone, and with the time that a busy machine needs."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray

from cluster import ray_private
from cluster.address import reachable
from cluster.errors import PlacementError, kind_and_line

INLINE_BYTES = 1024
"""Task results up to this size travel inside Ray's messages, through the driver; larger ones stay
in the object store. Ray's default of 100 KB would carry small latents through the driver."""

TRIES = 3
"""A raylet gives its dashboard agent 15 s to start, which no setting of Ray 2.60 changes, and dies;
the next try finds the files in memory."""

WAITS = {
    "RAY_gcs_server_port_wait_time_s": "120",  # the head's own server; Ray's default: 30
    "RAY_agent_register_timeout_ms": "120000",  # an agent; 30000
    "RAY_worker_register_timeout_seconds": "180",  # an actor's process; 60
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",  # 60
}
"""What Ray waits for while it starts, where the environment does not say."""


def start(object_store_mb: int, dashboard: bool, note: Callable[[str], None]) -> Any:
    """Ray's context. `note` hears of tries that failed. Raises PlacementError, in one line that
    names the logs."""
    begun, here = time.monotonic(), _children()
    for tries in range(1, TRIES + 1):
        try:
            with _settings():
                return ray_private.start(
                    INLINE_BYTES,
                    address="local",
                    include_dashboard=dashboard,
                    object_store_memory=object_store_mb << 20,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                )
        # Ray raises plain Exception where a process of it did not come up
        except Exception as error:
            took = f"{time.monotonic() - begun:.0f} s"
            ray.shutdown()
            _end(_children() - here)
            why = kind_and_line(error)
            if isinstance(error, (ValueError, TypeError, OSError)) and not isinstance(
                error, (ConnectionError, TimeoutError)
            ):
                raise PlacementError(f"Ray cannot start on this machine: {why}") from error
            if tries == TRIES:
                raise PlacementError(
                    f"Ray did not start in {took} and {tries} tries; its logs are in "
                    f"{logs()}: {why}"
                ) from error
            note(f"Ray did not start in {took}, as happens on a busy machine: trying again ({why})")
    raise AssertionError("unreachable")


def logs() -> Path:
    """Of the Ray that this process started last."""
    found = ray_private.session_folders(os.getpid())
    newest = max(
        found, default=ray_private.temporary_folder(), key=lambda path: path.stat().st_mtime
    )
    return newest / "logs"


@contextmanager
def _settings() -> Iterator[None]:
    """The environment and constants that Ray's processes take over, while they start."""
    kept = dict(os.environ)
    for name, value in WAITS.items():
        os.environ.setdefault(name, value)
    seconds = int(os.environ["RAY_DASHBOARD_STARTUP_TIMEOUT_S"])
    try:
        with ray_private.dashboard_seconds(seconds), ray_private.loopback():
            yield
    finally:
        for name in WAITS:
            os.environ.pop(name, None)
            if name in kept:
                os.environ[name] = kept[name]


def joining(address: str) -> AbstractContextManager[None]:
    """For ray.init at the address of a Ray that runs: it takes 127.0.0.1 for this host's address
    outside, where a Ray that was started here does not listen."""
    host, _, port = address.rpartition(":")
    if host in ("127.0.0.1", "localhost") and not reachable(
        f"{ray_private.node_ip_address()}:{port}"
    ):
        return ray_private.loopback()
    return nullcontext()


def _children() -> set[int]:
    """Ray's processes that this one has started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            _, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and b"/ray/" in (entry.parent / "cmdline").read_bytes():
                found.add(int(entry.parent.name))
    return found


def _end(processes: set[int]) -> None:
    """What a start that failed has left."""
    for process in processes:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
