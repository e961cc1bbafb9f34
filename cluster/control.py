"""Watching and scaling a run from outside: one named actor a run, and what finds, asks and shows it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, cast

import ray
from ray.actor import ActorHandle
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import DIED, PlacementError, cause
from cluster.pool import NAMESPACE

if TYPE_CHECKING:
    from rich.console import RenderableType

PREFIX = "controller:"
AT_CHECKPOINT = ("learner",)
"""Roles that change only where the whole state is written anyway."""
ANSWER_SECONDS = 30.0
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
    workers: dict[str, list[WorkerState]]  # by role
    version: int  # of the published weights
    epoch: int  # of the learner gang
    restarts: dict[str, int]  # workers that were replaced, by cause
    ready: dict[str, int]  # actors by role; of rewards, in that runtime_env which has fewest
    following: dict[str, int]  # roles whose number follows the cluster, and what it is now
    refused: dict[str, str]  # by role: why it has not the number that is wanted
    checkpoint: dict[str, Any]  # of the newest one: iteration, path, and time in seconds since 1970
    started: float  # seconds since 1970
    updated: float  # seconds since 1970, on the driver's clock


class Controller:
    """Holds what is wanted of a run and what it last said of itself. Ends with the driver that started it."""

    def __init__(self, run: str, desired: Mapping[str, int], limits: Mapping[str, tuple[int, int]]):
        """desired: workers by role. limits: fewest and most of each."""
        self.run, self.wanted, self.limits = run, dict(desired), dict(limits)
        self.snapshot: Snapshot = {}
        self.heard, self.asked = time.monotonic(), False

    def __repr__(self) -> str:
        return f"{PREFIX}{self.run}"  # its name on Ray's dashboard

    def scale(self, counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Set the wanted counts of some roles: all or, where one cannot be had, none. Twice is as good as once.

        Returns for each of these roles `from`, `to` and `when`. Raises ValueError, in one line.
        """
        for role, count in counts.items():
            if role in self.snapshot.get("following", {}):
                raise ValueError(f"scale: {role} workers follow the cluster by themselves ({role}.workers: auto), got {count}")
            if role not in self.wanted:
                raise ValueError(f"scale: expected a role of {', '.join(self.wanted)}, got {role!r}")
            fewest, most = self.limits[role]
            if not fewest <= count <= most:
                raise ValueError(f"scale: expected {fewest} … {most} {role} workers, got {count}")
        changed = {role: {"from": self.wanted[role], "to": count, "when": when(role)} for role, count in counts.items()}
        self.wanted |= counts
        return changed

    def desired(self) -> dict[str, int]:
        """Wanted workers by role."""
        return self.wanted | self.snapshot.get("following", {})

    def wishes(self) -> tuple[bool, dict[str, int]]:
        """What the driver follows: shall the run end, and wanted workers by role."""
        return self.asked, self.desired()

    def report(self, snapshot: Snapshot) -> None:
        """The driver says how the run is."""
        self.snapshot, self.heard = snapshot, time.monotonic()

    def status(self) -> dict[str, Any]:
        """The last report, and beside it run, desired, limits, ready and pending by role, stopping, and age: seconds since that report."""
        refused = self.snapshot.get("refused", {})
        ready = dict.fromkeys(self.wanted, 0) | self.snapshot.get("ready", {})
        return {
            **self.snapshot,
            "run": self.run,
            "desired": self.desired(),
            "limits": {role: list(pair) for role, pair in self.limits.items()},
            "ready": ready,
            "pending": {role: refused.get(role, when(role)) for role, count in self.desired().items() if ready[role] != count},
            "stopping": self.asked,
            "age": time.monotonic() - self.heard,
        }

    def stop(self) -> None:
        """A person wants the run to end behind the present iteration."""
        self.asked = True


def when(role: str) -> str:
    """When a changed count of this role takes effect."""
    return "at the next checkpoint" if role in AT_CHECKPOINT else "now"


def start(run: str, desired: Mapping[str, int], limits: Mapping[str, tuple[int, int]]) -> ActorHandle[Any]:
    """The controller of a new run, on the driver's node. Raises PlacementError when a run of this name is there already."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(Controller).options(name=PREFIX + run, namespace=NAMESPACE, num_cpus=0, max_restarts=0, scheduling_strategy=here)
    try:
        handle = actor.remote(run, dict(desired), dict(limits))
    except ValueError as error:
        raise PlacementError(f"run.name: expected one that no run of this cluster has, got {run}") from error
    ask(handle, "desired")
    return handle


def runs() -> list[str]:
    """Names of all runs on this cluster."""
    names = [found["name"] for found in list_named_actors(all_namespaces=True) if found["namespace"] == NAMESPACE]
    return sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))


def find(run: str) -> ActorHandle[Any]:
    """The controller of a run: by its name, or by a beginning that only one has; "": the only run. Raises PlacementError, in one line."""
    known = runs()
    if not known:
        raise PlacementError(f"--run: expected a run on the Ray at {ray.get_runtime_context().gcs_address}, there is none")
    found = [run] if run in known else [name for name in known if name.startswith(run)]
    if len(found) != 1:
        raise PlacementError(
            f"--run: expected one of {', '.join(known)}, got {repr(run) if run else 'none'}{', which begins several' if run and found else ''}"
        )
    try:
        return ray.get_actor(PREFIX + found[0], namespace=NAMESPACE)
    except ValueError as error:
        raise PlacementError(f"--run: expected a run that goes on, {found[0]} has just ended") from error


def ask(handle: ActorHandle[Any], method: str, *arguments: Any) -> Any:
    """What the controller answers. Raises PlacementError, in one line, when it refuses or is gone."""
    try:
        return ray.get(getattr(handle, method).remote(*arguments), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayTaskError as error:
        if isinstance(refused := cause(error), ValueError):
            raise PlacementError(str(refused)) from error
        raise
    except DIED as error:
        raise PlacementError("the run has ended: its controller is gone") from error
    except ray.exceptions.GetTimeoutError as error:
        raise PlacementError(f"the run's controller gave no answer in {ANSWER_SECONDS:g} s") from error


def wait(handle: ActorHandle[Any], counts: Mapping[str, int], timeout: float, told: Callable[[str], None]) -> None:
    """Until the run reports exactly as many ready workers; `told` hears each step of the way.

    Raises PlacementError, in one line, after `timeout` seconds, or when somebody wants other counts meanwhile.
    """
    deadline, before = time.monotonic() + timeout, ""
    while True:
        status = ask(handle, "status")
        text = ", ".join(_progress(status, role, count) for role, count in counts.items())
        if text != before:
            told(text)
            before = text
        if all(status["ready"][role] == count for role, count in counts.items()):
            return
        other = {role: status["desired"][role] for role, count in counts.items() if status["desired"][role] != count}
        if other:
            raise PlacementError(f"scale: expected {_text(counts)}, but somebody has asked for {_text(other)} meanwhile")
        if time.monotonic() > deadline:
            raise PlacementError(f"scale: expected {_text(counts)} within {timeout:g} s, got {text} (reported {status['age']:.0f} s ago)")
        time.sleep(POLL_SECONDS)


def _text(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {role}" for role, count in counts.items())


def _progress(status: Mapping[str, Any], role: str, count: int) -> str:
    others = [worker["state"] for worker in status.get("workers", {}).get(role, []) if worker["state"] != "ready"]
    more = [f"{others.count(state)} {state}" for state in sorted(set(others))]
    later = [when(role)] if role in AT_CHECKPOINT and status["ready"][role] != count else []
    return f"{role} {status['ready'][role]}/{count} ready" + (f" ({', '.join(more + later)})" if more or later else "")


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

    ending = ", ends behind this iteration" if status["stopping"] else ""
    row("run", f"{status['run']}{ending}")
    if "phase" in found:
        row("phase", f"{found['phase']} (reported {status['age']:.0f} s ago)")
    else:
        row("phase", f"no report for {status['age']:.0f} s")
    if "started" in found and "updated" in found:
        row("running for", f"{(found['updated'] - found['started']) / 60:.1f} min")
    if "iteration" in found:
        row("iterations", f"{found['iteration']}" + (f" of {found['planned']}" if found.get("planned") else ""))
    if "reward" in found:
        row("reward", f"{found['reward']:.4f}")
    for key, form in (("held_out", "{:.4f}"), ("seconds", "{:.2f}"), ("restarts", "{}")):
        entries = cast(Mapping[str, Any], found.get(key) or {})
        if entries:
            row(key.replace("_", " "), ", ".join(f"{name} {form.format(value)}" for name, value in entries.items()))
    if "version" in found:
        row("weights", f"v{found['version']}" + (f", learner epoch {found['epoch']}" if "epoch" in found else ""))
    if found.get("checkpoint"):
        newest = found["checkpoint"]
        row("checkpoint", (f"iteration {newest['iteration']}: " if newest["iteration"] else "none yet, they will be in ") + newest["path"])
    return Group(rows, _workers(status))


def _workers(status: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("role", "ready", "worker", "state", "weights", "tasks", "node"):
        table.add_column(name, justify="right" if name in ("weights", "tasks") else "left")
    for role, count in status["desired"].items():
        later = f", {status['pending'][role]}" if role in status["pending"] and role in AT_CHECKPOINT else ""
        share = f"{status['ready'][role]}/{count}{later}"
        for worker in status.get("workers", {}).get(role) or [None]:
            cells = []
            if worker:
                version = f"v{worker['version']}" if worker["version"] >= 0 else "–"
                cells = [worker["name"], worker["state"], version, str(worker["busy"]), worker["node"]]
            table.add_row(role, share, *cells)
            role = share = ""
    return table
