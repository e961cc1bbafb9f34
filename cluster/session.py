"""Connecting to Ray, or starting one."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from threading import current_thread, main_thread

import ray

from cluster import local
from cluster.address import authenticate, require_home, token_hint, token_path

HEAD_SECONDS = 20
"""How long a driver tries to reach a head that is gone before Ray ends it with exit code 1, if the
environment does not say. Ray's default is 60 s, for a head that comes back with its memory, which
needs a Redis; without one the driver cannot go on."""


@dataclass(frozen=True)
class Session:
    """A connection to Ray."""

    address: str
    dashboard: str  # URL, or "" when there is none
    local: bool  # started by this process, and ends with it

    def notes(self) -> list[str]:
        """What a person needs to reach it, a line each."""
        found = [f"Ray: {self.address} (--address of branchgrpo status, scale and stop)"]
        return found + (
            [f"Ray dashboard: {self.dashboard}{token_hint()}"] if self.dashboard else []
        )


def target(address: str) -> str:
    """HOST:PORT, or "local" where a new Ray is to be started: "auto" means RAY_ADDRESS if that is
    set, as in a submitted job, else a new one."""
    return os.environ.get("RAY_ADDRESS", "local") if address == "auto" else address


def start(
    address: str,
    object_store_mb: int,
    dashboard: bool,
    note: Callable[[str], None] = lambda text: None,
) -> Session:
    """Connect to the Ray at `address`, or start one, see `target`. `note` hears of starts that
    failed and are tried again.

    Raises PlacementError, in one line.
    """
    # Ray warns unless told whether actors without GPUs may see them; they may, and this is its
    # future default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(HEAD_SECONDS))
    found = target(address)
    own = found == "local"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if own:
        require_home()
        context = local.start(object_store_mb, dashboard, note)
        if (secret := token_path()).is_file() and secret.stat().st_uid == os.getuid():
            secret.chmod(0o600)  # Ray writes it readable for all
    else:
        authenticate(found)  # ray.init would retry for minutes where nobody answers
        with local.joining(found):
            context = ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
    # Ray sets its own, which exit at once: a run could not save
    if current_thread() is main_thread():  # no other one may, and there Ray sets none
        for number, handler in handlers.items():
            signal.signal(number, handler)
    url = str(context.dashboard_url or "")
    return Session(str(context.address_info["address"]), f"http://{url}" if url else "", own)


def stop() -> None:
    """Disconnect; ends a Ray that was started here."""
    ray.shutdown()
