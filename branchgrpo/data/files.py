"""Lists of prompts, and text files of them that are read on access: of 10 million lines, 16 bytes
each are kept in memory.

Why not Arrow: a prompt may stand once only, so all are compared. Of 2 million lines of 70 bytes
on two busy cores, added memory at its highest: this index 54 MB in 7.5 s (idle, 10 million lines in
8.6 s); `pyarrow.csv` with `unique` 736 MB in 19 s; a mapped Arrow file, a second copy on disk, 716.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import xxhash
from numpy.typing import NDArray

from branchgrpo.errors import UserError

LONGEST = 1 << 20
"""Bytes of the longest line that is taken for a prompt; it bounds the memory of reading."""

BLOCK = 1 << 20
"""Bytes read at a time while a file is indexed."""

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


def digest(text: str) -> int:
    """64 bits that tell texts apart; blanks around a text don't count. Of 10 million texts, two
    collide once in 370,000 lists."""
    return xxhash.xxh3_64_intdigest(text.strip().encode())


class Prompts(Sequence[str]):
    """Prompts in a fixed order; a slice is a list."""

    format = "list"  # what its file was read as
    unit = "prompt"  # what `number` counts
    source = ""  # the file
    blank = 0  # rows left out: no text, null, or no field with text
    repeated = 0  # rows left out: their text came before
    hint = ""  # why there may be no prompt at all

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        return (
            self._at(places) if isinstance(places, int) else [self._at(place) for place in places]
        )

    @abstractmethod
    def _at(self, place: int) -> str:
        """The prompt at a place from 0 to len − 1."""

    @property
    @abstractmethod
    def digests(self) -> NDArray[np.uint64]:
        """[len] `digest` of each prompt."""

    def number(self, place: int) -> int:
        """Which line, item or row of the file holds the prompt at a place, counted from 1."""
        return place + 1


class Listed(Prompts):
    """Prompts in memory; blank ones are left out and counted."""

    def __init__(
        self,
        texts: Iterable[str],
        source: str = "",
        *,
        form: str = "list",
        unit: str = "prompt",
        hint: str = "",
    ):
        self._texts: list[str] = []
        self._numbers = array("q")
        self.source = source
        self.format = form
        self.unit = unit
        self.hint = hint
        for number, text in enumerate(texts, 1):
            if text.strip():
                self._texts.append(text)
                self._numbers.append(number)
            else:
                self.blank += 1

    def __len__(self) -> int:
        return len(self._texts)

    def _at(self, place: int) -> str:
        return self._texts[place]

    def number(self, place: int) -> int:
        return self._numbers[place]

    @property
    def digests(self) -> NDArray[np.uint64]:
        return np.array([digest(text) for text in self._texts], np.uint64)


class LineFile(Prompts):
    """Prompts of a file, one a line, indexed once and read from the file on access. Takes 16 bytes
    of memory a prompt.

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

    def __iter__(self) -> Iterator[str]:
        self._check_same()
        for _, block in self._blocks():
            for line in block.decode().replace("\r", "\n").split("\n"):
                if text := self._prompt(line):
                    yield text

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

    def _at(self, place: int) -> str:
        self._check_same()
        # up to the next prompt, with what was left out between them
        start, end = self._starts[place : place + 2].tolist()
        read = os.pread(self._file, min(end - start, LONGEST), start)
        return self._prompt(read.replace(b"\r", b"\n").partition(b"\n")[0].decode())

    def _prompt(self, line: str) -> str:
        """The prompt of a line, empty where it holds none. Raises ValueError for a line that is
        wrong."""
        return line.strip()

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Where the lines with a prompt begin, with the length of the file after, and digests of
        the prompts."""
        # they grow in place: joining in the end would take the memory twice
        starts = array("q")
        digests = array("Q")
        lines = 0
        last = b"\n"
        for offset, block in self._blocks():
            kept, texts = self._kept(block, lines)
            starts.frombytes((kept + offset).tobytes())
            digests.extend(map(digest, texts))
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

    def _kept(self, block: bytes, lines: int) -> tuple[NDArray[np.int64], list[str]]:
        """The prompts in a block that comes after so many other lines, and where their lines
        begin."""
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
        found: list[str] = []
        try:
            found.extend(map(self._prompt, text.replace("\r", "\n").split("\n")[: len(starts)]))
        except ValueError as error:  # of the line after those that are found
            raise self._wrong(
                lines + _line_ends(block[: starts[len(found)]]), str(error)
            ) from error
        return starts[np.array(list(map(bool, found)))], list(filter(None, found))

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


def _line_ends(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
