"""Files of records, one a line, that are read on access: of 10 million lines,
16 bytes each are kept in memory.

Why not Arrow: a prompt may stand once only, so all are compared. Of 2 million lines of 70 bytes
on two busy cores, added memory at its highest: this index 54 MB in 7.5 s (idle, 10 million lines in
8.6 s); `pyarrow.csv` with `unique` 736 MB in 19 s; a mapped Arrow file, a second copy on disk, 716.
"""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from branchgrpo.data.lists import Indices, Prompts
from branchgrpo.data.records import digest
from branchgrpo.errors import UserError
from branchgrpo.types import Sample

LONGEST = 1 << 20
"""Bytes of the longest line that is taken for a prompt; it bounds the memory of reading."""

BLOCK = 1 << 20
"""Bytes read at a time while a file is indexed."""

NEAR, TOGETHER = 1 << 16, 256
"""Bytes, and records, that are read at once where records stand near each other."""

BOM = b"\xef\xbb\xbf"

HEAD = 512
"""Bytes of a file's beginning that tell what it is, where it is no text."""

MAGIC = {
    b"\xff\xfe\x00\x00": "UTF-32: save as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32: save as UTF-8",
    b"\xff\xfe": "UTF-16: save as UTF-8",
    b"\xfe\xff": "UTF-16: save as UTF-8",
    b"\x1f\x8b": "gzip data: let the file's name end in .gz",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "parquet data: let the file's name end in .parquet",
}


class LineFile(Prompts):
    """Records of a file, one a line, indexed once and read from the file on access. Takes 16 bytes
    of memory a record.

    Lines end with LF, CR LF or CR. Every line is checked when the file is indexed. The file stays
    open and must not change; of a .gz, a temporary copy that ends with the process is read. Raises
    UserError, naming key, file and line, for a line that is not UTF-8, too long or holds no text.
    """

    format, unit = "text", "line"
    expected = "UTF-8 text with one prompt a line"

    def __init__(self, key: str, path: Path):
        self.key = key
        self.path = path
        self.source = str(path)
        self._file = unpacked(path)
        weakref.finalize(self, os.close, self._file)
        self._identity = identity(os.fstat(self._file))
        if reason := no_text(os.pread(self._file, HEAD, 0)):
            raise UserError(f"{key}: expected {self.expected}, got in {path}: {reason}")
        self._starts, self._digests = self._index()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[Sample]:
        self._check_same()
        for _, block in self._blocks():
            for line in block.decode().replace("\r", "\n").split("\n"):
                if sample := self._sample(line):
                    yield sample

    @property
    def digests(self) -> NDArray[np.uint64]:
        return self._digests

    def number(self, place: int) -> int:
        start = int(self._starts[place])
        offset = 0
        lines = 1
        last = b""
        while offset < start:
            block = os.pread(self._file, min(BLOCK, start - offset), offset)
            lines += _line_ends(block) - (last == b"\r" and block[:1] == b"\n")
            offset, last = offset + len(block), block[-1:]
        return lines

    def _check_same(self) -> None:
        if identity(os.fstat(self._file)) != self._identity:
            raise UserError(
                f"{self.key}: expected {self.path} to stay as it was at the start, it has changed"
            )

    def _at(self, place: int) -> Sample:
        self._check_same()
        # up to the next prompt, with what was left out between them
        start, end = self._starts[place : place + 2].tolist()
        found = self._sample(_first(os.pread(self._file, min(end - start, LONGEST), start)))
        assert found is not None  # the index has only lines with one
        return found

    def _lines_at(self, places: Indices) -> Iterator[list[str]]:
        """The lines of the records at rising places, of some at a time."""
        self._check_same()
        for pieces in pieces_at(self._file, self._starts, places, LONGEST):
            yield list(map(_first, pieces))

    def _sample(self, line: str) -> Sample | None:
        """The record of a line, None where it holds none. Raises ValueError for a line that is
        wrong."""
        text = line.strip()
        return Sample(prompt=text) if text else None

    def _marked(self, lines: Sequence[str], found: list[int | None]) -> None:
        """Add to `found` the digest of each line's record, None where there is none. Raises
        ValueError for the first line that is wrong."""
        for line in lines:
            text = line.strip()  # making a record of each line would take as long again
            found.append(digest(text) if text else None)

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Where the lines with a record begin, with the length of the file after, and the digests
        of the records."""
        # they grow in place: joining in the end would take the memory twice
        starts, digests = array("q"), array("Q")
        lines = 0
        last = b"\n"
        for offset, block in self._blocks():
            kept, found = self._kept(block, lines)
            starts.frombytes((kept + offset).tobytes())
            digests.extend(found)
            lines, last = lines + _line_ends(block), block[-1:]
        self.blank = lines + (last not in b"\r\n") - len(starts)
        starts.append(os.fstat(self._file).st_size)
        return np.frombuffer(starts, np.int64), np.frombuffer(digests, np.uint64)

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """The file in pieces of whole lines, with the offset of each; a line that is far too long
        may be cut."""
        offset = len(BOM) if os.pread(self._file, len(BOM), 0) == BOM else 0
        rest = b""
        while fresh := os.pread(self._file, BLOCK, offset + len(rest)):
            block = rest + fresh
            # after the last CR there may be its LF
            cut = block.rfind(b"\n") + 1 or block.rfind(b"\r", 0, -1) + 1
            if not cut and len(block) > LONGEST:
                cut = len(block)
            if cut:
                yield offset, block[:cut]
            offset, rest = offset + cut, block[cut:]
        if rest:
            yield offset, rest

    def _kept(self, block: bytes, lines: int) -> tuple[NDArray[np.int64], list[int]]:
        """Where the lines begin that hold a record, in a block that comes after so many other
        lines, and the digests of these."""
        try:
            text = block.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(
                lines + _line_ends(block[: error.start]), f"not UTF-8, {error.reason}"
            ) from error
        if (nul := block.find(b"\0")) >= 0:
            raise self._wrong(lines + _line_ends(block[:nul]), "a NUL, which no text has")
        data = np.frombuffer(block.replace(b"\r", b"\n"), np.uint8)  # CR LF: an empty line more
        ends = np.flatnonzero(data == ord("\n"))
        if data[-1] != ord("\n"):
            ends = np.append(ends, len(block))
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))
        longest = int(np.argmax(ends - starts))
        if ends[longest] - starts[longest] > LONGEST:
            raise self._wrong(
                lines + _line_ends(block[: starts[longest]]), f"longer than {LONGEST} bytes"
            )
        found: list[int | None] = []
        try:
            self._marked(text.replace("\r", "\n").split("\n")[: len(starts)], found)
        except ValueError as error:  # of the line after those that are found
            raise self._wrong(
                lines + _line_ends(block[: starts[len(found)]]), str(error)
            ) from error
        digests = [one for one in found if one is not None]
        if len(digests) == len(found):
            return starts, digests
        return starts[np.array([one is not None for one in found])], digests

    def _wrong(self, before: int, reason: str) -> UserError:
        """What to raise for the line behind `before` others."""
        return UserError(
            f"{self.key}: expected {self.expected}, got at line {before + 1} of "
            f"{self.path}: {reason}"
        )


def unpacked(path: Path) -> int:
    """A descriptor of the file, or, where it is a .gz, of a temporary file with what it holds."""
    if path.suffix.lower() != ".gz":
        return os.open(path, os.O_RDONLY)
    with gzip.open(path) as packed, tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(packed, copy, BLOCK)
        copy.flush()
        return os.dup(copy.fileno())


def pieces_at(
    file: int, starts: NDArray[np.int64], places: Indices, longest: int
) -> Iterator[list[bytes]]:
    """What a file holds from `starts[place]` up to the next start, or that many bytes, for rising
    places: those that are near each other are read at once."""
    done = 0
    while done < len(places):
        near = places[done : done + TOGETHER]
        begins, ends = starts[near], starts[near + 1]
        first = int(begins[0])
        count = int(np.searchsorted(ends, first + NEAR, side="right")) or 1
        data = os.pread(file, min(int(ends[count - 1]) - first, max(NEAR, longest)), first)
        edges = zip((begins - first).tolist(), (ends - first).tolist(), strict=True)
        yield [data[begin:end] for begin, end in itertools.islice(edges, count)]
        done += count


def no_text(head: bytes) -> str:
    """What data is that is not text in UTF-8, by its first bytes; empty where they look like
    text."""
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if b"\0" not in head:
        return ""
    zeros = sorted((head[::2].count(0), head[1::2].count(0)))
    # every other byte: Latin letters in two bytes each
    if zeros[0] <= len(head) // 20 and zeros[1] >= len(head) // 4:
        return "UTF-16: save as UTF-8"
    return f"binary data, with a NUL at byte {head.index(0) + 1}"


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """Tells a file and its content from others, as long as nobody forges times."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _first(data: bytes) -> str:
    """The first line."""
    return data.replace(b"\r", b"\n").partition(b"\n")[0].decode()


def _line_ends(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
