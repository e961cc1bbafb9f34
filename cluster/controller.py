"""Watching, scaling and stopping a run from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.board import STOP, Board
from cluster.errors import PlacementError
from cluster.status import AT_CHECKPOINT

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RunController:
    """A run that goes on, as people see it."""

    board: Board
    run: str

    def status(self) -> dict[str, Any]:
        """The last report, and beside it run, desired, limits, ready and pending by role, stopping,
        and age: seconds since that report, by the clocks of its machine and this one. Raises
        PlacementError, in one line, when the run has ended."""
        report = self.board.read(self.run)
        requests = self.board.requests(self.run, (*report["wanted"], STOP))
        desired = (
            report["wanted"]
            | {role: count for role, count in requests.items() if role != STOP}
            | report.get("following", {})
        )
        refused = report.get("refused", {})
        ready = dict.fromkeys(report["wanted"], 0) | report.get("ready", {})
        return {
            **{key: value for key, value in report.items() if key not in ("job", "wanted")},
            "desired": desired,
            "ready": ready,
            "pending": {
                role: refused.get(role, when(role))
                for role, count in desired.items()
                if ready[role] != count
            },
            "stopping": STOP in requests or report.get("stopping", False),
            "age": max(0.0, time.time() - report["updated"]),
        }

    def scale(self, counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Request other numbers of some roles: all or, where one cannot be had, none.

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
        self.board.request(self.run, counts)
        return {
            role: {"from": status["desired"][role], "to": count, "when": when(role)}
            for role, count in counts.items()
        }

    def stop(self) -> None:
        """Request that the run ends after the present iteration."""
        self.board.read(self.run)
        self.board.request(self.run, {STOP: 1})


def when(role: str) -> str:
    """When a changed count of this role takes effect."""
    return "at the next checkpoint" if role in AT_CHECKPOINT else "now"


def find(boards: Sequence[Board], run: str) -> RunController:
    """The run of this name or run folder, or the only one whose name begins so; "": the only run.

    boards: of the Rays that may have it. Raises PlacementError, in one line that names all runs.
    """
    known = [RunController(board, name) for board in boards for name in board.runs()]
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
    controller: RunController,
    counts: Mapping[str, int],
    timeout: float,
    note: Callable[[str], None],
) -> None:
    """Until the run reports exactly as many ready workers; `note` hears each step of the way.

    Raises PlacementError, in one line, after `timeout` seconds, or when somebody wants other counts
    meanwhile.
    """
    deadline, before = time.monotonic() + timeout, ""
    while True:
        status = controller.status()
        text = ", ".join(_progress(status, role, count) for role, count in counts.items())
        if text != before:
            note(text)
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
