"""Is this cluster fit for a run? Gathers what the checks need and runs them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from cluster import ray_private
from cluster.connect import connect
from cluster.doctor import checks, storage
from cluster.doctor.finding import Finding
from cluster.doctor.machines import Machines
from cluster.errors import PlacementError, kind_and_line
from cluster.session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Needs:
    """What a run wants of a cluster, as plain values."""

    # (files, cuda) → facts of the machine it runs on: python, packages, code, shm, files, cuda
    machine: Callable[..., dict[str, Any]]
    # further checks in this process, which return a line or raise
    own: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    files: Sequence[str] = ()  # that every node must have
    # that all nodes must share, by config key
    folders: Mapping[str, str] = field(default_factory=dict)
    checkpoints: str = ""  # the folder for checkpoints
    # actors that reserve some, by role: how many, and GPUs of each
    gpus: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    object_store_mb: int = 0
    published_bytes: int = 0  # 0 = not known
    trained: int = 0  # numbers; 0 = not known


def diagnose(address: str, needs: Needs) -> dict[str, Finding]:
    """All findings, by check. Connects to Ray where one runs, else looks at this machine; starts no
    Ray and leaves nothing behind.

    address: "local" = this machine, whatever runs here.
    """
    found: dict[str, Finding] = {}
    session: Session | None = None
    try:
        session = connect(address) if address != "local" else None
        if not session:
            found["ray"] = Finding("ok", "started with the run: only this machine is looked at")
    except PlacementError as error:
        asked = address not in ("", "auto") or bool(os.environ.get("RAY_ADDRESS"))
        found["ray"] = Finding(
            "fail" if asked else "ok", f"{error}; only this machine is looked at"
        )
    try:
        with Machines() as machines:
            found |= examine(_checks(session, machines, needs))
    finally:
        if session:
            ray.shutdown()
    return found


def examine(every: Mapping[str, Callable[[], Finding | str]]) -> dict[str, Finding]:
    """Run every check. A line is ok; an exception is a failure and keeps none of the others from
    running."""
    found = {}
    for name, check in every.items():
        try:
            seen = check()
            found[name] = seen if isinstance(seen, Finding) else Finding("ok", seen)
        except Exception as error:
            found[name] = Finding("fail", kind_and_line(error))
    return found


def _checks(
    session: Session | None, machines: Machines, needs: Needs
) -> dict[str, Callable[[], Finding | str]]:
    counted = {name: int(node["Resources"].get("GPU", 0)) for name, node in machines.nodes.items()}
    stores = {
        name: int(node["Resources"].get("object_store_memory", 0))
        for name, node in machines.nodes.items()
    }
    facts = machines.call(
        needs.machine, list(needs.files), bool(needs.gpus) or any(counted.values())
    )
    wanted = needs.object_store_mb << 20
    every: dict[str, Callable[[], Finding | str]] = {}
    if session:
        every |= {
            "ray": partial(checks.nodes, session.address, machines),
            "ports": partial(checks.ports, session),
        }
    every |= {
        "authentication": partial(checks.authentication, session.address if session else ""),
        "token file": lambda: checks.token_file(machines.call(checks.token_mode)),
        "versions": partial(checks.versions, facts),
        "gpus": partial(checks.gpus, counted, facts, needs.gpus),
        "shared memory": partial(storage.shared_memory, facts, stores, wanted),
        "files on nodes": partial(storage.files, facts),
        "working dir": partial(storage.working_dir, Path.cwd(), ray_private.UPLOAD_BYTES),
        "job stop": partial(checks.job_stop, os.environ),
        "disk": partial(storage.disk, needs.checkpoints, needs.trained),
    }
    if session:
        every |= {
            "object store": partial(storage.object_store, stores, wanted, needs.published_bytes),
            "clocks": lambda: checks.clocks(machines.clocks()),
        }
    every |= {
        f"storage {key}": partial(storage.shared_folder, machines, folder)
        for key, folder in needs.folders.items()
    }
    return every | dict(needs.own)


def exit_code(found: Mapping[str, Finding]) -> int:
    """1 when something failed."""
    return int(any(finding.state == "fail" for finding in found.values()))


def listing(found: Mapping[str, Finding]) -> list[dict[str, str]]:
    """As --json prints them."""
    return [{"check": name, **asdict(finding)} for name, finding in found.items()]


def render(found: Mapping[str, Finding]) -> RenderableType:
    """A table for a terminal: advice stands below what it is about."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for name, finding in found.items():
        table.add_row(
            Text(finding.state, style=colours[finding.state]), Text(name), Text(finding.text)
        )
        if finding.advice:
            table.add_row("", "", Text(f"→ {finding.advice}", style="dim"))
    return table
