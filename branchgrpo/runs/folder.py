"""A run's folder: taken exclusively when its name is made, found again by what run.json says, and
driven by one process at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from branchgrpo.checkpoint.storage import storage_at
from branchgrpo.checkpoint.store import KEY, open_saved
from branchgrpo.config.schema import Config
from branchgrpo.config.secrets import masked_text
from branchgrpo.errors import UserError
from branchgrpo.files.whole import write_whole
from branchgrpo.runs import lease as leases
from branchgrpo.runs.identity import changes, identity, identity_of, require_same, saved_config
from branchgrpo.runs.lease import Lease, read_object
from branchgrpo.runs.places import checkpoints, claimed_elsewhere, elsewhere, named, root

RECORD = "run.json"
VERSION = 1

Say = Callable[[str], None]


@dataclass
class Driver:
    """This process' part of a run."""

    folder: Path
    lease: Lease
    resumed: bool = False  # the folder's run goes on; else it begins
    origin: str = ""  # the checkpoint that a new run begins at
    ended: str = "failed"


@contextmanager
def driving(config: Config, resume: str, say: Say = print) -> Iterator[Driver]:
    """The folder in which this process drives a run, alone, until the block ends. A new folder that
    nothing was written to goes with the block.

    resume: see `branchgrpo train --resume`. say: lines for a person: runs that are left alone, what
    changed. Raises UserError for a run that is live, or was something else.
    """
    driver, made = _chosen(config, resume, say)
    try:
        yield driver
    finally:
        driver.lease.close(driver.ended)
        if not driver.resumed and not (driver.folder / "config.yaml").exists():
            shutil.rmtree(driver.folder, ignore_errors=True)
            if place := elsewhere(config, driver.folder.name):
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # another run is in them by now
                for folder in made:
                    folder.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process may work in this folder until the block ends. Raises UserError where one
    does."""
    while True:
        number = leases.newest(folder)
        if number and leases.lives(folder, number):
            raise UserError(f"{folder}: expected that nobody else works in it, a live process does")
        try:
            lease = Lease(folder, number + 1)
            break
        except FileExistsError:
            continue
    try:
        yield
    finally:
        lease.close("left")


def _chosen(config: Config, resume: str, say: Say) -> tuple[Driver, list[Path]]:
    """The run to drive; with it, folders that were made for it, the innermost first."""
    if resume == "auto":
        for folder in unfinished(config, say):
            if driver := _taken_over(config, folder, say):
                return driver, []
            say(f"{folder}: this run is live, it is left alone")
    elif resume and is_run(Path(resume)):
        folder = Path(resume)
        if driver := _taken_over(config, folder, say):
            return driver, []
        raise UserError(
            f"--resume: expected a run that is not live, got {folder}, whose driver goes on"
        )
    origin = _origin(config, resume, say) if resume not in ("", "auto") else ""
    return _begun(config, origin)


# a new run


def stem(config: Config) -> str:
    """How the names of the folders of such runs begin: a run's own name, its label where the name
    does not end with it, its seed."""
    run = config.run
    label = "" if run.name.endswith(run.label) else run.label
    return "-".join(filter(None, (run.name, label, f"seed{run.seed}")))


def _begun(config: Config, origin: str) -> tuple[Driver, list[Path]]:
    what = identity(config)
    place = root(config)
    started = datetime.now(UTC)
    made = [one for one in (place, *place.parents) if not one.exists()]
    folder = named(
        place,
        f"{stem(config)}-{started.astimezone():%Y%m%d-%H%M%S}",
        lambda name: claimed_elsewhere(config, name),
    )
    driver = Driver(folder, Lease(folder, 1), origin=origin)
    _record(config, folder, started.isoformat(timespec="microseconds"), what)
    return driver, made


def _record(config: Config, folder: Path, started: str, what: dict[str, Any]) -> None:
    record: dict[str, Any] = {
        "version": VERSION,
        "name": config.run.name,
        "seed": config.run.seed,
        "started": started,
    }
    record["checkpoints"] = masked_text(checkpoints(config, folder))  # an URL may hold a password
    write_whole(folder / RECORD, json.dumps(record | {"is": what}, indent=1) + "\n")


def _origin(config: Config, where: str, say: Say) -> str:
    """A checkpoint that a new run begins at, whole and of tensors that mean the same."""
    saved = open_saved(where)
    driver = saved.state().get("driver")
    known = driver.get("is") if isinstance(driver, dict) else None
    for line in require_same(
        known if isinstance(known, dict) else {},
        identity(config),
        "the checkpoint",
        meaning_alone=True,
    ):
        say(line)
    return str(saved.path)


# a run that goes on


def is_run(folder: Path) -> bool:
    """Is this the folder of a run?"""
    return (folder / RECORD).is_file() or (folder / "config.yaml").is_file()


def unfinished(config: Config, say: Say = print) -> Iterator[Path]:
    """Folders of runs of exactly this name and seed that were cut off, interrupted, or are live:
    the newest first."""
    found, parent = list[tuple[str, str, Path]](), root(config)
    for folder in parent.glob(f"{config.run.name}-*") if parent.is_dir() else ():
        started = _started(config, folder, say)
        if started and not _finished(folder, say):
            found.append((started, folder.name, folder))
    for _, _, folder in sorted(found, reverse=True):
        yield folder


def _started(config: Config, folder: Path, say: Say) -> str:
    """When the run began, UTC, if it is of this name and seed; else nothing."""
    if (folder / RECORD).is_file() and (record := read_object(folder / RECORD)):
        same = record.get("name") == config.run.name and record.get("seed") == config.run.seed
        return str(record.get("started", "")) if same else ""
    name, seed = re.escape(config.run.name), config.run.seed
    stamp = re.fullmatch(rf"{name}(?:-(?:.+-)?seed{seed})?-(\d{{8}}-\d{{6}})(-\d+)?", folder.name)
    if not stamp or not is_run(folder):
        return ""  # the record of this one is damaged, or it is older than records
    saved = saved_config(folder)
    run = saved.get("run") if saved else None
    if not isinstance(run, dict):
        say(f"{folder}: neither {RECORD} nor config.yaml can be read, it is passed over")
        return ""
    try:
        began = datetime.strptime(stamp[1], "%Y%m%d-%H%M%S").astimezone(UTC)
    except ValueError:
        return ""
    return (
        began.isoformat(timespec="microseconds")
        if (run.get("name"), run.get("seed")) == (config.run.name, config.run.seed)
        else ""
    )


def _finished(folder: Path, say: Say) -> bool:
    """Has the run come to its end? Where its summary cannot be read, its last driver's progress
    tells."""
    path = folder / "summary.json"
    if not path.exists():
        return False
    summary = read_object(path)
    ended = summary.get("stopped_by") if summary else None
    if not isinstance(ended, str):
        ended = leases.progress(folder, leases.newest(folder)).get("ended")
    if not isinstance(ended, str):
        say(
            f"{folder}: its summary.json cannot be read, it is passed over; --resume {folder} "
            "goes on with it"
        )
        return True
    return ended not in ("interrupted", "failed")


def _taken_over(config: Config, folder: Path, say: Say) -> Driver | None:
    """Drive this run from now on, unless it is live. Raises UserError where it was something else;
    that changes nothing in it."""
    while True:
        number = leases.newest(folder)
        if number and leases.lives(folder, number, say):
            return None
        storage_at("--resume", folder).prepare("--resume")
        saved = saved_config(folder) or {}
        lines = _compared(config, folder, saved)
        try:
            lease = Lease(folder, number + 1)
        except FileExistsError:  # another one was faster: is it live?
            continue
        for line in (f"going on in {folder}", *lines):
            say(line)
        record = read_object(folder / RECORD) or {}
        started = record.get("started") or datetime.fromtimestamp(
            folder.stat().st_mtime, UTC
        ).isoformat(timespec="microseconds")
        _record(config, folder, str(started), identity(config))
        return Driver(folder, lease, resumed=True)


def _compared(config: Config, folder: Path, saved: dict[str, Any]) -> list[str]:
    """Lines of what changed and is followed. Raises UserError for what must not."""
    record = read_object(folder / RECORD) or {}
    known = record.get("is")
    old = known if isinstance(known, dict) else identity_of(saved, config)
    lines = require_same(old, identity(config), str(folder))
    if saved:
        lines += changes(saved, config)
    before, now = str(record.get("checkpoints", "")), checkpoints(config, folder)
    if not before and saved:
        elsewhere = saved.get("checkpoint", {}).get("folder", "")
        before = checkpoints(
            config.model_copy(
                update={"checkpoint": config.checkpoint.model_copy(update={"folder": elsewhere})}
            ),
            folder,
        )
    if (
        before
        and before != masked_text(now)
        and config.checkpoint.kept
        and _holds_some(before)
        and not _holds_some(now)
    ):
        raise UserError(
            f"--resume: {folder}: checkpoint.folder: expected the place of its "
            f"checkpoints, {before}, got {masked_text(now)}, which has none"
        )
    return lines


def _holds_some(where: str) -> bool:
    try:
        return any(name.startswith("fence-") for name in storage_at(KEY, where).names())
    except (OSError, UserError):
        return False
