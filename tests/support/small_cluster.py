"""A cluster as a person starts it: `ray start --head` in a process of its own. What it started is
ended by process id, nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.small_runs import ROOT

RAY = Path(sys.executable).with_name("ray")
CPUS = 2
TOKEN = "5eed" * 16
PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--ray-client-server-port",
)


@dataclass
class Head:
    """A head, and all that it started."""

    address: str
    dashboard: str  # its URL, where there is one
    process: subprocess.Popen[bytes]  # leads a session, to which all belong
    told: Path

    def up(self) -> bool:
        """Wait until all of it runs, or has given up."""
        while self.process.poll() is None:
            if b"--block" in self.told.read_bytes():  # printed at the end of the start
                return True
            time.sleep(0.05)
        return False

    def processes(self, name: str = "") -> list[int]:
        """Those that live; those of one program."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                program, _, rest = entry.read_text().partition("(")[2].rpartition(")")
                state, _, _, session = rest.split()[:4]
                if int(session) == self.process.pid and state != "Z" and program.startswith(name):
                    found.append(int(entry.parent.name))
        return found

    def end(self) -> None:
        """End what is left."""
        while self.process.poll() is None or self.processes():
            for process in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)


def environment(token: str = TOKEN) -> dict[str, str]:
    """Of a person's shell; token: empty for somebody who has none."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    has = (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        if token
        else {"RAY_AUTH_TOKEN_PATH": "/no/such/file"}
    )
    niceness = {"RAY_worker_niceness": "0"}  # as tests/conftest.py says
    return kept | has | niceness | {"HF_HUB_OFFLINE": "1"}


@contextmanager
def head(dashboard: bool = False) -> Iterator[Head]:
    """A cluster of one node that asks for the token, until the end of the block; it takes jobs
    where it has a dashboard."""
    told = ""
    # Ray gives its own agents 15 s to start, which is too little where the machine is busy
    for _ in range(2):
        with _started(dashboard) as found:
            if found.up():
                yield found
                return
            told = found.told.read_text()
    raise RuntimeError(f"no head came up: {told}")


@contextmanager
def _started(dashboard: bool) -> Iterator[Head]:
    # sockets lie in it, and their paths must be short
    folder = tempfile.mkdtemp(prefix="bg-", dir="/tmp")
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = [str(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    command = [
        str(RAY),
        "start",
        "--head",
        "--block",
        "--node-ip-address",
        "127.0.0.1",
        "--temp-dir",
        folder,
    ]
    command += [
        "--include-dashboard",
        str(dashboard),
        "--disable-usage-stats",
        "--num-cpus",
        str(CPUS),
        "--object-store-memory",
        str(128 << 20),
        "--no-monitor",
        "--include-log-monitor",
        "false",
    ]
    command += [part for pair in zip(PORTS, ports, strict=True) for part in pair]
    told = Path(folder, "told")
    with told.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=file, stderr=file, start_new_session=True
        )
    found = Head(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", process, told)
    try:
        yield found
    finally:
        found.end()
        shutil.rmtree(folder, ignore_errors=True)
