"""Files that others may have made: only regular ones are opened, and never more is read than was
bargained for.

A FIFO would keep its reader waiting for ever, /dev/zero would never end, and a sparse file of a
terabyte takes no room on a disk.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON = 16 << 20
"""Bytes of a JSON file, at most: as Python's objects they take up to twenty times as much."""


def opened(path: str | Path, follow: bool = True) -> BinaryIO:
    """A regular file, open for reading in binary. Never waits.

    follow: a symbolic link to one will do. Raises OSError for anything else, FIFOs and devices too.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
    try:
        kind = os.stat(path, follow_symlinks=follow).st_mode
        # asked before it is opened as well: opening a device can do something
        if stat.S_ISREG(kind):
            file = os.fdopen(os.open(path, flags | (0 if follow else os.O_NOFOLLOW)), "rb")
            kind = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(kind):
                return file
            file.close()
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error)) from error
    raise OSError(
        errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(kind), 'a device')}, not a regular file"
    )


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def read(path: str | Path, most: int) -> bytes:
    """All of a regular file. Raises OSError for what is none, and for one of more than `most`
    bytes."""
    with opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
    return data


def read_json(path: str | Path, most: int = MAX_JSON) -> Any:
    """What a JSON file says. Raises OSError as `read`, and ValueError as `parse_json`."""
    return parse_json(read(path, most))


def parse_json(data: bytes, once: bool = False) -> Any:
    """What JSON text says; with `once`, no object may name anything twice. Raises ValueError for
    anything else, also for UTF-16 and for brackets that are nested too deep."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_once if once else None)
    except RecursionError as error:
        raise ValueError("brackets are nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:60]!r} occurs twice")
        found[name] = value
    return found
