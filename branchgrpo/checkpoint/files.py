"""One checkpoint's files: what they hold, and how they are checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from branchgrpo.checkpoint.manifest import (
    MAX_STATE,
    STATE,
    Damaged,
    Manifest,
    read,
    reading,
    unsealed,
)
from branchgrpo.checkpoint.readers import ALONE, Readers
from branchgrpo.checkpoint.storage import Storage
from branchgrpo.errors import one_line
from branchgrpo.files.regular import parse_json
from branchgrpo.files.safetensors_header import BadHeader, read_header

if TYPE_CHECKING:
    from torch import Tensor

READERS, BLOCK = 8, 1 << 20
"""Files that are digested at the same time, and bytes of each that are in memory."""

Named = Iterable[tuple[str, "Tensor"]] | Mapping[str, "Tensor"]
"""Named tensors of one file."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was whole when it was opened. Can be pickled: another process reads and
    checks its part."""

    iteration: int
    fence: int
    path: str  # of its folder, or URL
    created: str  # ISO 8601, UTC
    files: Mapping[str, tuple[str, int]] = field(repr=False)  # name → sha256, bytes
    storage: Storage = field(repr=False, compare=False)

    def state(self) -> dict[str, Any]:
        """What was saved, tuples as lists, numpy scalars as Python's. Raises Damaged."""
        try:
            found = parse_json(self._read(STATE), once=True)
        except ValueError as error:
            raise Damaged(f"{self.path}: {STATE} is not JSON: {one_line(error)[:200]}") from error
        if not isinstance(found, dict):
            raise Damaged(f"{self.path}: {STATE} holds no object, but {type(found).__name__}")
        return found

    def tensors(self, file: str) -> dict[str, Tensor]:
        """A file's tensors, on the CPU; takes memory for two copies of the file. Raises Damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        data = self._read(file)
        try:
            read_header(BytesIO(data), len(data))
            return dict(sorted(load(data).items()))  # the library's order is another each time
        except (BadHeader, SafetensorError) as error:
            raise Damaged(f"{self.path}: {file} {one_line(error)[:300]}") from error

    def _read(self, file: str) -> bytes:
        """Its bytes, checked as they are now: this may be another machine than the one that opened
        the checkpoint."""
        if file not in self.files:
            raise ValueError(f"{self.path} holds {', '.join(self.files)}, not {file}")
        sha256, size = self.files[file]
        try:
            _check_size(self.storage, file, size)
            data = read(self.storage, file, size)
        except Damaged as damage:
            raise Damaged(f"{self.path}: {damage}") from damage
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Damaged(f"{self.path}: {file} has another sha256 than when it was saved")
        return data


def verified(folder: Storage, readers: Readers = ALONE) -> Saved:
    """The checkpoint in a folder, all its bytes read, by one of the readers each. Raises Damaged,
    for all of them, for the first thing that is not as it was written."""
    manifest, reason = None, ""
    try:
        manifest = unsealed(folder)
        _check(folder, manifest, readers)
    except Damaged as damage:
        reason = str(damage)
    reason = next(filter(None, readers.gather(reason)), "")
    if reason or manifest is None:
        raise Damaged(reason)
    return saved_as(manifest, folder)


def _check(folder: Storage, manifest: Manifest, readers: Readers) -> None:
    """Raises Damaged for what is not as it was written, of what this reader is to look at."""
    files = manifest.files
    for name, (_, size) in files.items():
        _check_size(folder, name, size)
    names = readers.share(list(files))
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(lambda name: _digest(folder, name, files[name][1]), names))
    for name, digest in zip(names, digests, strict=True):
        if digest != files[name][0]:
            raise Damaged(f"{name} has another sha256 than when it was saved")


def saved_as(manifest: Manifest, folder: Storage) -> Saved:
    """The checkpoint in a folder, by its manifest."""
    return Saved(
        iteration=manifest.iteration,
        fence=manifest.fence,
        path=folder.where,
        created=manifest.created,
        files=manifest.files,
        storage=folder,
    )


def encode_state(state: Mapping[str, Any]) -> bytes:
    """state.json; numbers that are not finite are written NaN, Infinity and -Infinity, as Python's
    json reads them.

    Raises TypeError, saying where, for what would come back as something else; numpy scalars become
    Python's. ValueError when it is more than would be read.
    """
    data = (json.dumps(_plain(state, "state"), indent=1) + "\n").encode()
    if len(data) > MAX_STATE:
        raise ValueError(f"state: expected at most {MAX_STATE:,} bytes as JSON, got {len(data):,}")
    return data


def encode_tensors(file: str, named: Named) -> bytes:
    """A safetensors file. Raises ValueError for a name that occurs twice, and safetensors'
    RuntimeError for shared memory."""
    from safetensors.torch import save

    pairs = list(named.items() if isinstance(named, Mapping) else named)
    tensors = {name: tensor.detach().contiguous() for name, tensor in pairs}
    if len(tensors) < len(pairs):
        raise ValueError(
            f"{file}: expected each name once, got {len(pairs)} tensors under {len(tensors)} names"
        )
    return save(tensors)


def _check_size(folder: Storage, file: str, size: int) -> None:
    with reading(file):
        found = folder.size(file)
    if found != size:
        raise Damaged(f"{file} has {found:,} bytes, {size:,} were saved")


def _digest(folder: Storage, file: str, size: int) -> str:
    """sha256 of the file; of not much more than `size` bytes, however many there are by now."""
    digest, left = hashlib.sha256(), size + 1
    with reading(file), folder.open(file) as source:
        while left > 0 and (block := source.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _plain(value: object, where: str) -> Any:
    """`value` in JSON's types."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one, f"{where}[{index}]") for index, one in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(one, f"{where}.{key}") for key, one in value.items()}
    got = (
        "a dict whose keys are not all strings"
        if isinstance(value, Mapping)
        else type(value).__name__
    )
    raise TypeError(
        f"{where}: expected None, bool, int, float, str, a list or a dict with string keys, "
        f"got {got}"
    )
