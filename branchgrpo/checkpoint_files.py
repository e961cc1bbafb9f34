"""One checkpoint's files: what they hold, how they are sealed, and how they are checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from branchgrpo.checkpoint_storage import MANIFEST, Storage

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Of the format; other versions are not read."""

STATE = "state.json"
READERS = 8
"""Files that are digested at the same time."""

_FILE = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")

Named = Iterable[tuple[str, "Tensor"]] | Mapping[str, "Tensor"]
"""Named tensors of one file."""


class Damaged(RuntimeError):
    """A checkpoint, or a file of one, that is not what was written. One line."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was whole when it was opened. Can be pickled: another process reads and checks its part."""

    iteration: int
    epoch: int
    path: str  # of its folder, or URL
    created: str  # ISO 8601, UTC
    files: Mapping[str, tuple[str, int]] = field(repr=False)  # name → sha256, bytes
    storage: Storage = field(repr=False, compare=False)

    def state(self) -> dict[str, Any]:
        """What was saved, tuples as lists, numpy scalars as Python's. Raises Damaged."""
        found: dict[str, Any] = json.loads(self._read(STATE))
        return found

    def tensors(self, file: str) -> dict[str, Tensor]:
        """A file's tensors, on the CPU; takes memory for two copies of the file. Raises Damaged."""
        from safetensors.torch import load

        return load(self._read(file))

    def _read(self, file: str) -> bytes:
        """Its bytes, checked as they are now: this may be another machine than the one that opened the checkpoint."""
        if file not in self.files:
            raise ValueError(f"{self.path} holds {', '.join(self.files)}, not {file}")
        with _reading(f"{self.path}: {file}"), self.storage.open(file) as source:
            data = source.read()
        if hashlib.sha256(data).hexdigest() != self.files[file][0]:
            raise Damaged(f"{self.path}: {file} has another sha256 than when it was saved")
        return data


def verified(folder: Storage) -> Saved:
    """The checkpoint in a folder, all its bytes read. Raises Damaged for the first thing that is not as it was written."""
    body = _unsealed(folder)
    files = {name: (sha256, size) for name, (sha256, size) in body["files"].items()}
    for name, (_, size) in files.items():
        with _reading(name):
            found = folder.size(name)
        if found != size:
            raise Damaged(f"{name} has {found:,} bytes, {size:,} were saved")
    with ThreadPoolExecutor(READERS) as readers:
        digests = list(readers.map(lambda name: _digest(folder, name), files))
    for name, digest in zip(files, digests, strict=True):
        if digest != files[name][0]:
            raise Damaged(f"{name} has another sha256 than when it was saved")
    return Saved(body["iteration"], body["epoch"], folder.where, body["created"], files, folder)


def sealed(iteration: int, epoch: int, created: str, files: Mapping[str, tuple[str, int]]) -> bytes:
    """manifest.json."""
    return _seal({"version": VERSION, "iteration": iteration, "epoch": epoch, "created": created, "files": files})


def encode_state(state: Mapping[str, Any]) -> bytes:
    """state.json; numbers that are not finite are written NaN, Infinity and -Infinity, as Python's json reads them.

    Raises TypeError, saying where, for what would come back as something else; numpy scalars become Python's.
    """
    return (json.dumps(_plain(state, "state"), indent=1) + "\n").encode()


def encode_tensors(file: str, named: Named) -> bytes:
    """A safetensors file. Raises ValueError for a name that occurs twice, and safetensors' RuntimeError for shared memory."""
    from safetensors.torch import save

    pairs = list(named.items() if isinstance(named, Mapping) else named)
    tensors = {name: tensor.detach().contiguous() for name, tensor in pairs}
    if len(tensors) < len(pairs):
        raise ValueError(f"{file}: expected each name once, got {len(pairs)} tensors under {len(tensors)} names")
    return save(tensors)


def check_name(file: str) -> None:
    """Raises ValueError for a name that a checkpoint's file cannot have."""
    if not _FILE.fullmatch(file):
        raise ValueError(f"expected a file name of letters, digits, '_', '-' and '.' that ends in .safetensors, got {file!r}")


def _digest(folder: Storage, file: str) -> str:
    with _reading(file), folder.open(file) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _seal(body: dict[str, Any]) -> bytes:
    """`body` and its digest."""
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps(body | {"digest": digest}, indent=1) + "\n").encode()


def _unsealed(folder: Storage) -> dict[str, Any]:
    """A manifest's body. Valid are exactly the bytes that `_seal` makes: a flipped bit anywhere is found."""
    with _reading(MANIFEST), folder.open(MANIFEST) as source:
        raw = source.read()
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise Damaged(f"{MANIFEST} is not JSON: {error}") from error
    version = body.get("version") if isinstance(body, dict) else None
    if version != VERSION:
        raise Damaged(f"{MANIFEST} has format version {version!r}, this program reads {VERSION}")
    body.pop("digest", None)
    if _seal(body) != raw:
        raise Damaged(f"{MANIFEST} is not as it was saved: its digest is another one")
    return dict(body)


@contextmanager
def _reading(file: str) -> Iterator[None]:
    """Errors of the storage become a reason."""
    try:
        yield
    except FileNotFoundError as error:
        raise Damaged(f"{file} is missing") from error
    except OSError as error:
        raise Damaged(f"{file} cannot be read: {' '.join(str(error).split())}") from error


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
    got = "a dict whose keys are not all strings" if isinstance(value, Mapping) else type(value).__name__
    raise TypeError(f"{where}: expected None, bool, int, float, str, a list or a dict with string keys, got {got}")
