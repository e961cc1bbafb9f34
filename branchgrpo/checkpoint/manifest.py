"""manifest.json of a checkpoint: what it must say, and how it is sealed. It may come from a
stranger: all of it is checked.

{version, iteration, fence, created, files: {name: [sha256, bytes]}, digest}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from branchgrpo.checkpoint.storage import MANIFEST, Storage
from branchgrpo.errors import one_line
from branchgrpo.files.regular import parse_json

VERSION = 1
"""Of the format; other versions are not read."""

STATE = "state.json"

MAX_MANIFEST = 1 << 20
MAX_STATE = 16 << 20
MAX_FILES = 1000
"""Bytes of manifest.json and of state.json, and files, at most."""

KEYS = ("version", "iteration", "fence", "created", "files", "digest")

_FILE = re.compile(r"[A-Za-z0-9_.-]{1,100}\.safetensors")
_CREATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+00:00")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Damaged(RuntimeError):
    """A checkpoint, or a file of one, that is not what was written. One line."""


@dataclass(frozen=True)
class Manifest:
    """What is needed of one."""

    iteration: int
    fence: int
    created: str  # ISO 8601, UTC
    files: Mapping[str, tuple[str, int]]  # name → sha256, bytes


def sealed(manifest: Manifest) -> bytes:
    """manifest.json."""
    files = {name: list(entry) for name, entry in manifest.files.items()}
    return _seal(
        {
            "version": VERSION,
            "iteration": manifest.iteration,
            "fence": manifest.fence,
            "created": manifest.created,
            "files": files,
        }
    )


def unsealed(folder: Storage) -> Manifest:
    """A folder's manifest. Valid are exactly the bytes that `sealed` makes: a flipped bit anywhere
    is found. Raises Damaged."""
    raw = read(folder, MANIFEST, MAX_MANIFEST)
    try:
        body = parse_json(raw, once=True)
    except ValueError as error:
        raise Damaged(f"{MANIFEST} is not JSON: {one_line(error)[:200]}") from error
    version = body.get("version") if isinstance(body, dict) else None
    if type(version) is not int or version != VERSION:
        raise Damaged(
            f"{MANIFEST} has format version {shown(version)}, this program reads {VERSION}"
        )
    if body.keys() != set(KEYS):
        raise Damaged(f"{MANIFEST} has other keys than {', '.join(KEYS)}")
    for key in ("iteration", "fence"):
        _require(type(body[key]) is int and 0 <= body[key] < 1 << 53, key, body[key])
    _require(
        isinstance(body["created"], str) and bool(_CREATED.fullmatch(body["created"])),
        "created",
        body["created"],
    )
    found = Manifest(body["iteration"], body["fence"], body["created"], _files(body["files"]))
    if sealed(found) != raw:
        raise Damaged(f"{MANIFEST} is not as it was saved: its digest is another one")
    return found


def _files(found: Any) -> dict[str, tuple[str, int]]:
    _require(isinstance(found, dict) and len(found) <= MAX_FILES and STATE in found, "files", found)
    files = {}
    for name, entry in found.items():
        # nothing outside the folder
        _require(name == STATE or bool(_FILE.fullmatch(name)), "file named", name)
        _require(isinstance(entry, list) and len(entry) == 2, f"sha256 and bytes of {name}", entry)
        sha256, size = entry
        _require(
            isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256)), f"sha256 of {name}", sha256
        )
        _require(type(size) is int and 0 <= size < 1 << 53, f"bytes of {name}", size)
        files[name] = (sha256, size)
    _require(files[STATE][1] <= MAX_STATE, f"bytes of {STATE}", files[STATE][1])
    return files


def check_name(file: str) -> None:
    """Raises ValueError for a name that a checkpoint's file cannot have."""
    if not _FILE.fullmatch(file):
        raise ValueError(
            "expected a file name of letters, digits, '_', '-' and '.' that ends in "
            f".safetensors, got {file!r}"
        )


def read(folder: Storage, file: str, most: int) -> bytes:
    """All bytes of a file. Raises Damaged for one that cannot be read, and one of more than
    `most`."""
    with reading(file), folder.open(file) as source:
        data = source.read(most + 1)
    if len(data) > most:
        raise Damaged(f"{file} has more than {most:,} bytes")
    return data


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Errors of the storage become a reason."""
    try:
        yield
    except FileNotFoundError as error:
        raise Damaged(f"{file} is missing") from error
    except OSError as error:
        raise Damaged(f"{file} cannot be read: {one_line(error.strerror or error)}") from error


def _seal(body: dict[str, Any]) -> bytes:
    """`body` and its digest."""
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps(body | {"digest": digest}, indent=1) + "\n").encode()


def _require(fits: bool, what: str, got: Any) -> None:
    if not fits:
        raise Damaged(f"{MANIFEST} has a wrong {what}: {shown(got)}")


def shown(value: Any) -> str:
    """A stranger's value in one short line."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value[:60] if isinstance(value, str) else value)[:100]
