"""Watching and scaling a run from outside: what finds, asks and shows it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from cluster.board import STOP, Board
from cluster.errors import PlacementError

if TYPE_CHECKING:
    from rich.console import RenderableType

AT_CHECKPOINT = ("learner",)
"""Roles that change only where the whole state is written anyway."""
POLL_SECONDS = 0.5


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


@dataclass(frozen=True)
class Watched:
    """A run that goes on, as people see it."""

    board: Board
    run: str

    def status(self) -> dict[str, Any]:
        """The last report, and beside it run, desired, limits, ready and pending by role, stopping,
        and age: seconds since that report, by the clocks of its machine and this one. Raises
        PlacementError, in one line, when the run has ended."""
        told = self.board.read(self.run)
        wishes = self.board.wishes(self.run, (*told["wanted"], STOP))
        desired = (
            told["wanted"]
            | {role: count for role, count in wishes.items() if role != STOP}
            | told.get("following", {})
        )
        refused = told.get("refused", {})
        ready = dict.fromkeys(told["wanted"], 0) | told.get("ready", {})
        return {
            **{key: value for key, value in told.items() if key not in ("job", "wanted")},
            "desired": desired,
            "ready": ready,
            "pending": {
                role: refused.get(role, when(role))
                for role, count in desired.items()
                if ready[role] != count
            },
            "stopping": STOP in wishes or told.get("stopping", False),
            "age": max(0.0, time.time() - told["updated"]),
        }

    def scale(self, counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Wish for other numbers of some roles: all or, where one cannot be had, none.

        Returns for each of these roles `from`, `to` and `when`. Raises PlacementError, in one line.
        """
        status = self.status()
        for role, count in counts.items():
            if role in status.get("following", {}):
                raise PlacementError(
                    f"scale: {role} workers follow the cluster by themselves "
                    f"({role}.workers: auto), got {count}"
                )
            if role not in status["limits"]:
                raise PlacementError(
                    f"scale: expected a role of {', '.join(status['limits'])}, got {role!r}"
                )
            fewest, most = status["limits"][role]
            if not fewest <= count <= most:
                raise PlacementError(
                    f"scale: expected {fewest} … {most} {role} workers, got {count}"
                )
        self.board.wish(self.run, counts)
        return {
            role: {"from": status["desired"][role], "to": count, "when": when(role)}
            for role, count in counts.items()
        }

    def stop(self) -> None:
        """Wish that the run ends after the present iteration."""
        self.board.read(self.run)
        self.board.wish(self.run, {STOP: 1})


def when(role: str) -> str:
    """When a changed count of this role takes effect."""
    return "at the next checkpoint" if role in AT_CHECKPOINT else "now"


def find(boards: Sequence[Board], run: str) -> Watched:
    """The run of this name or run folder, or the only one whose name begins so; "": the only run.

    boards: of the Rays that may have it. Raises PlacementError, in one line that names all runs.
    """
    known = [Watched(board, name) for board in boards for name in board.runs()]
    if not known:
        raise PlacementError(
            "--run: expected a run on the Ray at "
            f"{' or '.join(board.address for board in boards)}, there is none"
        )
    wanted = Path(run).name if run else ""
    found = [one for one in known if one.run == wanted] or [
        one for one in known if one.run.startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(
        f"{one.run} (--address {one.board.address})" if len(boards) > 1 else one.run
        for one in known
    )
    raise PlacementError(
        f"--run: expected one of {names}, got "
        f"{repr(run) if run else 'none'}{', which begins several' if run and found else ''}"
    )


def wait(
    watched: Watched, counts: Mapping[str, int], timeout: float, told: Callable[[str], None]
) -> None:
    """Until the run reports exactly as many ready workers; `told` hears each step of the way.

    Raises PlacementError, in one line, after `timeout` seconds, or when somebody wants other counts
    meanwhile.
    """
    deadline, before = time.monotonic() + timeout, ""
    while True:
        status = watched.status()
        text = ", ".join(_progress(status, role, count) for role, count in counts.items())
        if text != before:
            told(text)
            before = text
        if all(status["ready"][role] == count for role, count in counts.items()):
            return
        other = {
            role: status["desired"][role]
            for role, count in counts.items()
            if status["desired"][role] != count
        }
        if other:
            raise PlacementError(
                f"scale: expected {_text(counts)}, but somebody has asked for "
                f"{_text(other)} meanwhile"
            )
        if time.monotonic() > deadline:
            raise PlacementError(
                f"scale: expected {_text(counts)} within {timeout:g} s, got {text} "
                f"(reported {status['age']:.0f} s ago)"
            )
        time.sleep(POLL_SECONDS)


def _text(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {role}" for role, count in counts.items())


def _progress(status: Mapping[str, Any], role: str, count: int) -> str:
    others = [
        worker["state"]
        for worker in status.get("workers", {}).get(role, [])
        if worker["state"] != "ready"
    ]
    more = [f"{others.count(state)} {state}" for state in sorted(set(others))]
    later = [when(role)] if role in AT_CHECKPOINT and status["ready"][role] != count else []
    return f"{role} {status['ready'][role]}/{count} ready" + (
        f" ({', '.join(more + later)})" if more or later else ""
    )


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
        later = (
            f", {status['pending'][role]}"
            if role in status["pending"] and role in AT_CHECKPOINT
            else ""
        )
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
