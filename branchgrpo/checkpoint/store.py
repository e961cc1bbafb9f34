"""Checkpoints: a step's folder of tensors and state, written whole or not at all, and read only
when every byte is right.

    FOLDER/fences/000003            claimed fences, empty files (of URLs 000003.ID): each number is
    one process' only FOLDER/fence-0003-iteration-00000120-TIME-HOST-PID/
        manifest.json               version, iteration, fence, created, sha256 and bytes of each
        file, and its own digest state.json                  what is not a tensor
        NAME.safetensors            named tensors
    FOLDER/.draft-fence-0003-…      one that is being written or deleted; on URLs: a folder without
    a manifest

Newest means: of the highest fence, then of the highest iteration, then written last. A fence that
went back to an older checkpoint thereby supersedes what it went back after. Names carry time and
writer: no writer replaces another's files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from branchgrpo.checkpoint.files import (
    Named,
    Saved,
    encode_state,
    encode_tensors,
    saved_as,
    verified,
)
from branchgrpo.checkpoint.manifest import STATE, Damaged, Manifest, check_name, sealed
from branchgrpo.checkpoint.names import Name
from branchgrpo.checkpoint.readers import ALONE, Readers
from branchgrpo.checkpoint.storage import Storage, storage_at
from branchgrpo.errors import StaleFence, UserError

__all__ = ["Damaged", "Saved", "StaleFence", "Store", "open_saved"]

KEY = "checkpoint.folder"

_FENCE = re.compile(r"[0-9]{6,12}")


@dataclass
class Draft:
    """A checkpoint that is being written. Other processes may write files of it too: `Store.part`
    is the folder, and what `files` should say of theirs is added by who commits."""

    name: Name
    folder: Storage
    files: dict[str, tuple[str, int]] = field(default_factory=dict)  # name → sha256, bytes

    @property
    def text(self) -> str:
        """The folder's name."""
        return self.name.text()

    def write(self, file: str, data: bytes) -> None:
        """Raises OSError."""
        self.folder.write(file, data)
        self.files[file] = (hashlib.sha256(data).hexdigest(), len(data))


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
        if "epochs" in self.storage.names():  # or a run would quietly begin again there
            raise UserError(
                f"{KEY}: expected checkpoints of this version in {where}, found those of an older "
                "one (a folder `epochs`): go on with that version, or name another folder"
            )
        self.fences = self.storage.child("fences")

    def claim(self) -> int:
        """A new fence, 1 + the newest ever claimed, given to no one else. Who claimed earlier is a
        zombie from now on."""
        while True:
            fence = self.fence() + 1
            try:
                self.fences.claim(f"{fence:06d}")
            except FileExistsError:  # another process claims too: ask again
                continue
            return fence

    def fence(self) -> int:
        """The newest claimed fence, 0 = none. Those of checkpoints count too, in case `fences` was
        not copied with them."""
        claimed = [
            int(number)
            for number in (name.partition(".")[0] for name in self.fences.names())
            if _FENCE.fullmatch(number)
        ]
        used = [name.fence for name in map(Name.parse, self.storage.names()) if name]
        return max(claimed + used, default=0)

    def all(self) -> list[str]:
        """Names of all checkpoints, from old to new, damaged ones too."""
        return [text for _, text in self._found()]

    def iterations(self) -> list[int]:
        """Of all checkpoints, rising, damaged ones too."""
        return sorted({name.iteration for name, _ in self._found()})

    def newest(self, iteration: int | None = None, readers: Readers = ALONE) -> Saved | None:
        """The newest valid one, of this iteration if one is named, every byte of it read and
        checked by one of the readers, which all find the same; what is passed over is told in
        `damaged`."""
        while True:
            names = readers.first(self._of(iteration))
            found = None
            self.damaged = list[tuple[str, str]]()
            for text in reversed(names):
                try:
                    found = verified(self.storage.child(text), readers)
                    break
                except Damaged as damage:
                    self.damaged.append((text, str(damage)))
            # else a writer deleted what was being read
            if not self.damaged or names == readers.first(self._of(iteration)):
                return found

    def save(
        self, iteration: int, fence: int, state: Mapping[str, Any], tensors: Mapping[str, Named]
    ) -> Saved:
        """Write a checkpoint, then delete those older than the `keep` newest valid ones.

        state: None, booleans, numbers (not finite ones too), strings, lists, and dicts with string
        keys.
        tensors: file name, *.safetensors → named tensors, each name once, no two in the same
        memory. Takes memory for two copies of the largest file.

        Raises StaleFence when a newer fence has been claimed, before or while writing, and OSError
        when the storage fails; neither leaves anything behind, and older checkpoints stay.
        TypeError, ValueError: what cannot be written.
        """
        for file in tensors:
            check_name(file)
        draft = self.begin(iteration, fence)
        try:
            draft.write(STATE, encode_state(state))
            for file, named in tensors.items():
                draft.write(file, encode_tensors(file, named))
            return self.commit(draft)
        except BaseException as error:
            self.abandon(draft)
            if isinstance(error, OSError):
                self.require_newest(fence)  # a newer fence sweeps a zombie's draft away
            raise

    def begin(self, iteration: int, fence: int) -> Draft:
        """A checkpoint to be written, then to be committed or abandoned. Raises StaleFence and
        OSError as `save`."""
        self.require_newest(fence)
        self._sweep(fence)
        name = Name.new(iteration, fence)
        try:
            return Draft(name, self.storage.draft(name.text()))
        except BaseException as error:
            self.storage.discard(name.text())
            if isinstance(error, OSError):
                self.require_newest(fence)  # a newer fence sweeps a zombie's draft away
            raise

    def part(self, text: str) -> Storage:
        """The folder of a draft that another process has begun, by its name."""
        return self.storage.drafted(text)

    def commit(self, draft: Draft) -> Saved:
        """Make a draft whose files are all written a checkpoint, then delete those older than the
        `keep` newest valid ones. Raises StaleFence and OSError as `save`; then it is to be
        abandoned."""
        name, text = draft.name, draft.text
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(name.iteration, name.fence, created, draft.files)
        self.storage.commit(text, sealed(manifest), lambda: self.require_newest(name.fence))
        self._retain(text)
        return saved_as(manifest, self.storage.child(text))

    def abandon(self, draft: Draft) -> None:
        """Remove a draft."""
        self.storage.discard(draft.text)

    def _of(self, iteration: int | None) -> list[str]:
        return [text for name, text in self._found() if iteration in (None, name.iteration)]

    def _found(self) -> list[tuple[Name, str]]:
        named = [
            (name, text)
            for text in self.storage.names()
            if (name := Name.parse(text)) and self.storage.complete(text)
        ]
        return sorted(named)

    def require_newest(self, fence: int) -> None:
        """Raises StaleFence when a newer fence has been claimed."""
        newest = self.fence()
        if fence < newest:
            raise StaleFence(
                f"checkpoint of fence {fence} rejected: fence {newest} has been claimed in "
                f"{self.storage.where}"
            )

    def _sweep(self, fence: int) -> None:
        """Remove drafts of older fences, and those of this fence whose writer, on this machine, is
        dead."""
        for text in self.storage.drafts():
            name = Name.parse(text)
            if name and (name.fence < fence or (name.fence == fence and name.abandoned())):
                self.storage.discard(text)

    def _retain(self, fresh: str) -> None:
        """Delete what is older than the `keep` newest valid ones. They are read for that, apart
        from `fresh`, but only when there is anything to delete. An older copy of the same iteration
        does not count as another one."""
        found, kept = self._found(), set[tuple[int, int]]()
        if len(found) <= self.keep:
            return
        for name, text in reversed(found):
            number = (name.fence, name.iteration)
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


def open_saved(where: str | Path, key: str = "--resume", readers: Readers = ALONE) -> Saved:
    """The checkpoint in one folder, whatever its name, verified. Raises UserError, naming `key`,
    when it isn't whole."""
    storage = storage_at(key, where)
    try:
        return verified(storage, readers)
    except Damaged as damage:
        raise UserError(f"{key}: expected a checkpoint in {storage.where}: {damage}") from damage
