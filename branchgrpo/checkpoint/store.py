"""Checkpoints: a step's folder of tensors and state, written whole or not at all, and read only
when every byte is right.

    FOLDER/epochs/000003            claimed epochs, empty files (of URLs 000003.ID): each number is
    one process' only FOLDER/epoch-0003-iteration-00000120-TIME-HOST-PID/
        manifest.json               version, iteration, epoch, created, sha256 and bytes of each
        file, and its own digest state.json                  what is not a tensor
        NAME.safetensors            named tensors
    FOLDER/.draft-epoch-0003-…      one that is being written or deleted; on URLs: a folder without
    a manifest

Newest means: of the highest epoch, then of the highest iteration, then written last. An epoch that
went back to an older checkpoint thereby supersedes what it went back behind. Names carry time and
writer: no writer replaces another's files.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from branchgrpo.checkpoint.files import Named, Saved, encode_state, encode_tensors, verified
from branchgrpo.checkpoint.manifest import STATE, Damaged, Manifest, check_name, sealed
from branchgrpo.checkpoint.storage import storage_at
from branchgrpo.errors import StaleEpoch, UserError

__all__ = ["Damaged", "Saved", "StaleEpoch", "Store", "open_saved"]

KEY = "checkpoint.folder"

_NAME = re.compile(
    r"epoch-([0-9]{4,12})-iteration-([0-9]{8,15})-([0-9a-f]{1,16})-([0-9a-f]{8})-([0-9]{1,9})"
)
_EPOCH = re.compile(r"[0-9]{6,12}")


class _Name(NamedTuple):
    """What a folder's name says; sorts from old to new."""

    epoch: int
    iteration: int
    time: int  # ns since 1970
    host: str
    pid: int

    @classmethod
    def new(cls, iteration: int, epoch: int) -> _Name:
        return cls(
            epoch=epoch,
            iteration=iteration,
            time=time.time_ns(),
            host=f"{zlib.crc32(socket.gethostname().encode()):08x}",
            pid=os.getpid(),
        )

    @classmethod
    def parse(cls, text: str) -> _Name | None:
        found = _NAME.fullmatch(text)
        if not found:
            return None
        epoch, iteration, time, host, pid = found.groups()
        return cls(
            epoch=int(epoch), iteration=int(iteration), time=int(time, 16), host=host, pid=int(pid)
        )

    def text(self) -> str:
        writer = f"{self.time:x}-{self.host}-{self.pid}"
        return f"epoch-{self.epoch:04d}-iteration-{self.iteration:08d}-{writer}"


class Store:
    """Checkpoints under a folder or any fsspec URL. `damaged` tells what the last `newest` passed
    over: (name, reason).

    Raises UserError for a folder that cannot be used, and for `keep` below 2.
    """

    def __init__(self, where: str | Path, keep: int = 2):
        if keep < 2:
            raise UserError(
                f"checkpoint.keep: expected at least 2, got {keep}: the newest one may turn "
                "out to be damaged"
            )
        self.keep = keep
        self.damaged: list[tuple[str, str]] = []
        self.storage = storage_at(KEY, where)
        self.storage.prepare(KEY)
        self.epochs = self.storage.child("epochs")

    def claim(self) -> int:
        """A new epoch, 1 + the newest ever claimed, given to no one else. Who claimed earlier is a
        zombie from now on."""
        while True:
            epoch = self.epoch() + 1
            try:
                self.epochs.claim(f"{epoch:06d}")
            except FileExistsError:  # another process claims too: ask again
                continue
            return epoch

    def epoch(self) -> int:
        """The newest claimed epoch, 0 = none. Those of checkpoints count too, in case `epochs` was
        not copied with them."""
        claimed = [
            int(number)
            for number in (name.partition(".")[0] for name in self.epochs.names())
            if _EPOCH.fullmatch(number)
        ]
        used = [name.epoch for name in map(_Name.parse, self.storage.names()) if name]
        return max(claimed + used, default=0)

    def all(self) -> list[str]:
        """Names of all checkpoints, from old to new, damaged ones too."""
        return [text for _, text in self._found()]

    def iterations(self) -> list[int]:
        """Of all checkpoints, rising, damaged ones too."""
        return sorted({name.iteration for name, _ in self._found()})

    def newest(self, iteration: int | None = None) -> Saved | None:
        """The newest valid one, of this iteration if one is named, every byte of it read and
        checked; what is passed over is told in `damaged`."""
        while True:
            names = self._of(iteration)
            found = None
            self.damaged = list[tuple[str, str]]()
            for text in reversed(names):
                try:
                    found = verified(self.storage.child(text))
                    break
                except Damaged as damage:
                    self.damaged.append((text, str(damage)))
            # else a writer deleted what was being read
            if not self.damaged or names == self._of(iteration):
                return found

    def save(
        self, iteration: int, epoch: int, state: Mapping[str, Any], tensors: Mapping[str, Named]
    ) -> Saved:
        """Write a checkpoint, then delete those older than the `keep` newest valid ones.

        state: None, booleans, numbers (not finite ones too), strings, lists, and dicts with string
        keys.
        tensors: file name, *.safetensors → named tensors, each name once, no two in the same
        memory. Takes memory for two copies of the largest file.

        Raises StaleEpoch when a newer epoch has been claimed, before or while writing, and OSError
        when the storage fails; neither leaves anything behind, and older checkpoints stay.
        TypeError, ValueError: what cannot be written.
        """
        self._fence(epoch)
        for file in tensors:
            check_name(file)
        contents = chain(
            [(STATE, encode_state(state))],
            ((file, encode_tensors(file, named)) for file, named in tensors.items()),
        )
        self._sweep(epoch)
        text = _Name.new(iteration, epoch).text()
        created = datetime.now(UTC).isoformat(timespec="seconds")
        files: dict[str, tuple[str, int]] = {}
        try:
            draft = self.storage.draft(text)
            for file, data in contents:
                draft.write(file, data)
                files[file] = (hashlib.sha256(data).hexdigest(), len(data))
            self.storage.commit(
                text, sealed(Manifest(iteration, epoch, created, files)), lambda: self._fence(epoch)
            )
        except BaseException as error:
            self.storage.discard(text)
            if isinstance(error, OSError):
                self._fence(epoch)  # a newer epoch sweeps a zombie's draft away
            raise
        self._retain(text)
        folder = self.storage.child(text)
        return Saved(
            iteration=iteration,
            epoch=epoch,
            path=folder.where,
            created=created,
            files=files,
            storage=folder,
        )

    def _of(self, iteration: int | None) -> list[str]:
        return [text for name, text in self._found() if iteration in (None, name.iteration)]

    def _found(self) -> list[tuple[_Name, str]]:
        named = [
            (name, text)
            for text in self.storage.names()
            if (name := _Name.parse(text)) and self.storage.complete(text)
        ]
        return sorted(named)

    def _fence(self, epoch: int) -> None:
        newest = self.epoch()
        if epoch < newest:
            raise StaleEpoch(
                f"checkpoint of epoch {epoch} rejected: epoch {newest} has been claimed in "
                f"{self.storage.where}"
            )

    def _sweep(self, epoch: int) -> None:
        """Remove drafts of older epochs, and those of this epoch whose writer, on this machine, is
        dead."""
        own = _Name.new(0, epoch)
        for text in self.storage.drafts():
            name = _Name.parse(text)
            if name and (
                name.epoch < epoch
                or (name.epoch == epoch and name.host == own.host and not _alive(name.pid))
            ):
                self.storage.discard(text)

    def _retain(self, fresh: str) -> None:
        """Delete what is older than the `keep` newest valid ones. They are read for that, apart
        from `fresh`, but only when there is anything to delete. An older copy of the same iteration
        does not count as another one."""
        found, kept = self._found(), set[tuple[int, int]]()
        if len(found) <= self.keep:
            return
        for name, text in reversed(found):
            number = (name.epoch, name.iteration)
            if len(kept) == self.keep or number in kept:
                self.storage.remove(text)
            elif text == fresh or self._valid(text):
                kept.add(number)

    def _valid(self, text: str) -> bool:
        try:
            verified(self.storage.child(text))
        except Damaged:
            return False
        return True


def open_saved(where: str | Path, key: str = "--resume") -> Saved:
    """The checkpoint in one folder, whatever its name, verified. Raises UserError, naming `key`,
    when it isn't whole."""
    storage = storage_at(key, where)
    try:
        return verified(storage)
    except Damaged as damage:
        raise UserError(f"{key}: expected a checkpoint in {storage.where}: {damage}") from damage


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return True
