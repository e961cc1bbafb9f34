"""Where runs are kept: their folders, those of their checkpoints, and names that are free."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from uuid import uuid4

from branchgrpo.checkpoint.storage import storage_at
from branchgrpo.checkpoint.store import KEY
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError

TAKEN = "taken"
"""Claimed in a run's place under checkpoint.folder: runs of other run folders may have the same
name."""


def root(config: Config) -> Path:
    """Where run folders are made."""
    return Path(config.run.folder).expanduser()


def checkpoints(config: Config, folder: Path) -> str:
    """Where the checkpoints of a run folder are: an absolute path, since actors may work elsewhere,
    or a URL."""
    place = config.checkpoint.folder.rstrip("/")
    if not place:
        return str((folder / "checkpoints").resolve())
    return (
        f"{place}/{folder.name}"
        if "://" in place or "::" in place
        else str(Path(place).expanduser().resolve() / folder.name)
    )


def check_folders(config: Config, folder: Path | None = None) -> None:
    """Raise UserError, naming the key, where a run could not write; leaves nothing behind. folder:
    instead of run.folder."""
    if folder:
        _check_writable("--folder", folder)
    elif "://" in config.run.folder:
        raise UserError(
            f"run.folder: expected a folder, got the URL {config.run.folder}; "
            "checkpoint.folder takes URLs"
        )
    else:
        _check_writable("run.folder", root(config))
    if config.checkpoint.kept and config.checkpoint.folder:
        storage_at(KEY, config.checkpoint.folder).prepare(KEY)


def _check_writable(key: str, folder: Path) -> None:
    """Raise UserError where the folder cannot be written, or made. Asks by writing: no bits of a
    mode tell of a read-only disk."""
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    trial = there / f".trial-{uuid4().hex}"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        what = f"got {folder}" + ("" if there == folder else f", where {there} cannot be")
        raise UserError(
            f"{key}: expected a folder that can be written, {what}: {error.strerror}"
        ) from error


def named(parent: Path, stem: str, free: Callable[[str], bool] = lambda name: True) -> Path:
    """A new folder STEM, STEM-2, … that no other process has made, of a name that is `free`
    elsewhere too."""
    for number in count(1):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        if free(folder.name):
            return folder
        folder.rmdir()
    raise AssertionError


def elsewhere(config: Config, name: str) -> str:
    """The local folder of a run's checkpoints outside of its own; empty where there is none."""
    place = checkpoints(config, Path(name))
    return (
        place
        if config.checkpoint.kept
        and config.checkpoint.folder
        and "://" not in place
        and "::" not in place
        else ""
    )


def claimed_elsewhere(config: Config, name: str) -> bool:
    """A name that is free in run.folder may be taken in checkpoint.folder, by a run of another
    run.folder."""
    if not (config.checkpoint.kept and config.checkpoint.folder):
        return True
    storage = storage_at(KEY, checkpoints(config, Path(name)))
    storage.prepare(KEY)
    if "fences" in storage.names():
        return False
    try:
        storage.claim(TAKEN)
    except FileExistsError:
        return False
    return True
