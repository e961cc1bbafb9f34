"""What a run posts of itself, and how a terminal shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, cast

if TYPE_CHECKING:
    from rich.console import RenderableType

AT_CHECKPOINT = ("learner",)
"""Roles that change only where the whole state is written anyway."""


class WorkerState(TypedDict):
    """One actor of a role."""

    name: str
    state: str  # waiting (for room, or its process), starting, ready or draining
    version: int  # of the weights it holds; -1: holds none
    node: str
    busy: int  # tasks it has


class Snapshot(TypedDict, total=False):
    """What the driver reports. Every key may be missing while the run starts."""

    phase: str  # in words, as "training" or "loading models"
    iteration: int  # finished ones
    planned: int  # iterations; 0 = until a time limit
    reward: float  # mean of the last iteration
    held_out: dict[str, float]  # the last held-out check, by reward/score
    seconds: dict[str, float]  # of the last iteration, by phase
    trained: float  # seconds in iterations, of all parts of the run
    workers: dict[str, list[WorkerState]]  # by role
    version: int  # of the published weights
    fence: int  # of the learner rank group
    restarts: dict[str, int]  # workers that were replaced, by cause
    ready: dict[str, int]  # actors by role; of rewards, in that runtime_env which has fewest
    following: dict[str, int]  # roles whose number follows the cluster, and what it is now
    refused: dict[str, str]  # by role: why it has not the number that is wanted
    checkpoint: dict[str, Any]  # of the newest one: iteration, path, and time in seconds since 1970
    started: float  # seconds since 1970
    updated: float  # seconds since 1970, on the driver's clock


def plain(value: Any) -> Any:
    """As JSON has it, which knows no NaN: that becomes null."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(status: Mapping[str, Any]) -> RenderableType:
    """A status for a terminal; what was not reported is left out."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found, rows = cast(Snapshot, status), Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()

    def row(key: str, text: str) -> None:
        rows.add_row(key, Text(text))  # no markup: a path may hold brackets

    ending = ", ends after this iteration" if status["stopping"] else ""
    row("run", f"{status['run']}{ending}")
    if "phase" in found:
        row("phase", f"{found['phase']} (reported {status['age']:.0f} s ago)")
    else:
        row("phase", f"no report for {status['age']:.0f} s")
    if "started" in found and "updated" in found:
        row("running for", f"{(found['updated'] - found['started']) / 60:.1f} min")
    if "iteration" in found:
        row(
            "iterations",
            f"{found['iteration']}" + (f" of {found['planned']}" if found.get("planned") else ""),
        )
    if "trained" in found:
        row("trained for", f"{found['trained'] / 60:.1f} min")
    if found.get("reward") is not None:  # JSON knows no NaN
        row("reward", f"{found['reward']:.4f}")
    for key, form in (("held_out", "{:.4f}"), ("seconds", "{:.2f}"), ("restarts", "{}")):
        entries = cast(Mapping[str, Any], found.get(key) or {})
        if entries:
            row(
                key.replace("_", " "),
                ", ".join(
                    f"{name} {form.format(value)}"
                    for name, value in entries.items()
                    if value is not None
                ),
            )
    if "version" in found:
        row(
            "weights",
            f"v{found['version']}"
            + (f", learner fence {found['fence']}" if "fence" in found else ""),
        )
    if found.get("checkpoint"):
        newest = found["checkpoint"]
        row(
            "checkpoint",
            (
                f"iteration {newest['iteration']}: "
                if newest["iteration"]
                else "none yet, they will be in "
            )
            + newest["path"],
        )
    return Group(rows, _workers(status))


def _workers(status: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("role", "ready", "worker", "state", "weights", "tasks", "node"):
        table.add_column(name, justify="right" if name in ("weights", "tasks") else "left")
    for role, count in status["desired"].items():
        waits = role in status["pending"] and role in AT_CHECKPOINT
        # with none ready they are only about to begin
        later = f", {status['pending'][role]}" if waits and status["ready"][role] else ""
        share = f"{status['ready'][role]}/{count}{later}"
        for worker in status.get("workers", {}).get(role) or [None]:
            cells = []
            if worker:
                version = f"v{worker['version']}" if worker["version"] >= 0 else "–"
                cells = [
                    worker["name"],
                    worker["state"],
                    version,
                    str(worker["busy"]),
                    worker["node"],
                ]
            table.add_row(role, share, *cells)
            role = share = ""
    return table
