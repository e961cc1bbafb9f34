"""Which runs there are, by their folders alone: what they are, how far they are, what they came
to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from branchgrpo.report.sinks import read
from branchgrpo.runs import lease as leases
from branchgrpo.runs.folder import RECORD, is_run
from branchgrpo.runs.identity import saved_config
from branchgrpo.runs.lease import read_object

LIVE, CUT_OFF = "live", "cut off"


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run, as `branchgrpo runs` lists it."""

    folder: str
    name: str  # of the folder
    method: str  # with its loss
    seed: int | None
    started: str  # UTC, ISO 8601; empty: not known
    iterations: int
    planned: int  # 0: until max_minutes
    metric: str  # the reported score that decides, as reward/score; empty: not known
    before: float | None  # of the held-out prompts: all, or while it trains those of its checks
    after: float | None  # when it was measured last
    state: str  # live; ended by …; cut off

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def runs_in(folder: Path) -> Iterator[Path]:
    """Run folders in a folder, and in those below it, such as a comparison's; or the folder itself.
    None within a run."""
    if is_run(folder):
        yield folder
        return
    for below in sorted(folder.iterdir()) if folder.is_dir() else ():
        if below.is_dir() and not below.name.startswith("."):
            yield from runs_in(below)


def listed(folder: Path) -> list[RunRow]:
    """The runs in a folder, the newest first."""
    rows = [row_of(one) for one in runs_in(folder)]
    return sorted(rows, key=lambda row: (row.started, row.name), reverse=True)


def row_of(folder: Path) -> RunRow:
    """What the files of a run folder say; of those that are missing or damaged, nothing."""
    config, record = saved_config(folder) or {}, read_object(folder / RECORD) or {}
    summary = read_object(folder / "summary.json") or {}
    run = _section(config, "run")
    metric = str(summary.get("metric") or metric_of(config))
    records = records_of(folder)
    before, after = scores(metric, records, summary)
    method, loss = (str(_section(config, key).get("name", "")) for key in ("method", "loss"))
    return RunRow(
        folder=str(folder),
        name=folder.name,
        method=", ".join(name.rpartition(":")[2] for name in (method, loss) if name),
        seed=record.get("seed", run.get("seed")),
        started=began(folder, record),
        iterations=max((int(one.get("iteration", 0)) for one in records), default=0),
        planned=int(run.get("iterations") or 0),
        metric=metric,
        before=before,
        after=after,
        state=state_of(folder, summary),
    )


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl; none where it cannot be read."""
    try:
        return read(folder / "metrics.jsonl")
    except (OSError, ValueError):
        return []


def metric_of(config: Mapping[str, Any]) -> str:
    """The score that decides, of a resolved config; empty where that does not say."""
    named = _section(config, "evaluation").get("metric")
    rewards = config.get("rewards") or [{}]
    first = rewards[0] if isinstance(rewards, list) and isinstance(rewards[0], dict) else {}
    reported = first.get("report") or []
    title = first.get("label") or str(first.get("name", "")).rpartition(":")[2]
    return str(named or (f"{title}/{reported[0]}" if reported else ""))


def scores(
    metric: str, records: list[dict[str, Any]], summary: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Before training and when it was measured last. Of a run that has ended over all prompts, else
    over those of the checks."""
    row = _section(_section(summary, "held_out"), metric)
    if row:
        return row.get("before"), row.get("after")
    known = [one[key] for one in records if one.get(key := f"held_out/{metric}") is not None]
    return (known[0] if known else None), (known[-1] if len(known) > 1 else None)


def state_of(folder: Path, summary: Mapping[str, Any]) -> str:
    """Live, how it ended, or cut off."""
    number = leases.newest(folder)
    if number and leases.seems_to_live(folder, number):
        return LIVE
    ended = leases.progress(folder, number).get("ended") if number else None
    ended = ended if isinstance(ended, str) and ended != "left" else summary.get("stopped_by")
    return str(ended) if isinstance(ended, str) else CUT_OFF


def began(folder: Path, record: Mapping[str, Any]) -> str:
    """When a run began, UTC; without a record, when its folder's config was written."""
    if isinstance(started := record.get("started"), str):
        return started
    try:
        seconds = (folder / "config.yaml").stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, Mapping) else {}
