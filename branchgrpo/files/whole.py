"""Files that are there whole or not at all: written aside, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file under. When the block ends, the file takes the place of
    `path` at once and for good; when it raises, nothing is left of it.

    The name has the process's id: several may write the same file, and the last one's stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, for good when this returns."""
    with written_aside(path) as partial:
        partial.write_text(text, encoding="utf-8")
