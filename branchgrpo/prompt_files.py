"""Files of prompts, read on access: of 10 million lines, only where they begin is kept in memory."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from branchgrpo.errors import UserError

if TYPE_CHECKING:
    import pyarrow

FIELDS = ("prompt", "text", "caption")
"""Where a record keeps its prompt: the first of these that it has."""

LONGEST = 1 << 20
"""Bytes of the longest line that is taken for a prompt; it bounds the memory of reading."""

BLOCK = 1 << 20
"""Bytes read at a time while a file is indexed."""

COPIED = 1 << 14
"""Rows of a parquet file that are in memory at a time."""

BOM = b"\xef\xbb\xbf"


class Prompts(Sequence[str]):
    """Prompts in a fixed order; a slice is a list."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    @abstractmethod
    def _at(self, place: int) -> str:
        """The prompt at a place from 0 to len − 1."""


class Listed(Prompts):
    """Prompts in memory; blank ones are left out."""

    def __init__(self, texts: Iterable[str]):
        self._texts = [text for text in texts if text.strip()]

    def __len__(self) -> int:
        return len(self._texts)

    def _at(self, place: int) -> str:
        return self._texts[place]


class LineFile(Prompts):
    """Prompts of a file, one a line, indexed once and read from the file on access. Takes 8 bytes of memory a prompt.

    Lines end with LF, CR LF or CR. Every line is checked when the file is indexed. The file stays open and must not
    change. Raises UserError, naming key, file and line, for a line that is not UTF-8, too long or holds no prompt.
    """

    expected = "UTF-8 text with one prompt a line"
    settled: NDArray[np.bool_] = np.array([byte < 128 and not chr(byte).isspace() for byte in range(256)])
    """[256] first bytes of a line that tell it to hold a prompt."""

    def __init__(self, key: str, path: Path):
        self.key, self.path = key, path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._identity = identity(os.fstat(self._file))
        self._starts = self._index()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[str]:
        self._check_same()
        for _, block in self._blocks():
            for line in block.replace(b"\r", b"\n").split(b"\n"):
                if (text := self._prompt(line)).strip():
                    yield text

    def _check_same(self) -> None:
        if identity(os.fstat(self._file)) != self._identity:
            raise UserError(f"{self.key}: expected {self.path} to stay as it was at the start, it has changed")

    def _at(self, place: int) -> str:
        self._check_same()
        start, end = self._starts[place : place + 2].tolist()  # up to the next prompt, with what was left out between them
        read = os.pread(self._file, min(end - start, LONGEST), start)
        return self._prompt(read.replace(b"\r", b"\n").partition(b"\n")[0])

    def _prompt(self, line: bytes) -> str:
        """The prompt of a line, blank where there is none. Raises ValueError for a line that is wrong."""
        return line.decode().strip()

    def _index(self) -> NDArray[np.int64]:
        """Where the lines with a prompt begin, and the length of the file."""
        starts, lines = array("q"), 0  # grows in place: joining arrays in the end would take the memory twice
        for offset, block in self._blocks():
            starts.frombytes((self._kept(block, lines) + offset).tobytes())
            lines += _line_ends(block)
        starts.append(os.fstat(self._file).st_size)
        return np.frombuffer(starts, np.int64)

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """The file in pieces of whole lines, with the offset of each; a line that is far too long may be cut."""
        offset = len(BOM) if os.pread(self._file, len(BOM), 0) == BOM else 0
        rest = b""
        while fresh := os.pread(self._file, BLOCK, offset + len(rest)):
            block = rest + fresh
            cut = block.rfind(b"\n") + 1 or block.rfind(b"\r", 0, -1) + 1  # behind the last CR there may be its LF
            if not cut and len(block) > LONGEST:
                cut = len(block)
            if cut:
                yield offset, block[:cut]
            offset, rest = offset + cut, block[cut:]
        if rest:
            yield offset, rest

    def _kept(self, block: bytes, lines: int) -> NDArray[np.int64]:
        """Where lines with a prompt begin in a block that comes behind so many other lines."""
        try:
            block.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(lines + _line_ends(block[: error.start]), f"not UTF-8, {error.reason}") from error
        data = np.frombuffer(block.replace(b"\r", b"\n"), np.uint8)  # CR LF: an empty line more
        ends = np.flatnonzero(data == ord("\n"))
        if data[-1] != ord("\n"):
            ends = np.append(ends, len(block))
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))
        longest = int(np.argmax(ends - starts))
        if ends[longest] - starts[longest] > LONGEST:
            raise self._wrong(lines + _line_ends(block[: starts[longest]]), f"longer than {LONGEST} bytes")
        kept: NDArray[np.bool_] = self.settled[data[starts]]
        for row in np.flatnonzero(~kept & (ends > starts)).tolist():
            try:
                kept[row] = bool(self._prompt(block[starts[row] : ends[row]]).strip())
            except ValueError as error:
                raise self._wrong(lines + _line_ends(block[: starts[row]]), str(error)) from error
        return starts[kept]

    def _wrong(self, before: int, reason: str) -> UserError:
        """What to raise for the line behind `before` others."""
        return UserError(f"{self.key}: expected {self.expected}, got at line {before + 1} of {self.path}: {reason}")


class JsonLineFile(LineFile):
    """Prompts of a JSON Lines file: a string, or an object with a key prompt, text or caption, a line; kept as they are."""

    expected = f"a JSON string, or an object with {', '.join(FIELDS[:-1])} or {FIELDS[-1]}, a line"
    settled = np.zeros(256, bool)

    def _prompt(self, line: bytes) -> str:
        return text_of(_parsed(line.decode())) if line.strip() else ""


class ParquetFile(Prompts):
    """Prompts of a parquet file's column prompt, text or caption, kept as they are; null and blank ones are left out.

    They are copied once, batch by batch, to a temporary file that ends with the process, and read from there on access:
    parquet itself gives no row without the row group around it, often a million rows. Takes 8 bytes of memory a prompt.
    Raises UserError, naming the config key, for a file without such a column of text, and when pyarrow is not installed.
    """

    def __init__(self, key: str, path: Path):
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise UserError(f"{key}: expected the package pyarrow to read {path}, it is not installed: pip install 'branchgrpo[parquet]'") from error
        self._copy = tempfile.TemporaryFile()
        weakref.finalize(self, self._copy.close)
        starts = array("q", [0])
        try:
            with parquet.ParquetFile(path, buffer_size=BLOCK, pre_buffer=False) as file:  # else whole row groups are held
                column, groups = text_column(key, path, file.schema_arrow), range(file.num_row_groups)
                for batch in itertools.chain.from_iterable(file.iter_batches(COPIED, [group], [column]) for group in groups):
                    texts = [text.encode() for text in batch.column(0).to_pylist() if text and text.strip()]
                    self._copy.write(b"".join(texts))
                    starts.extend(list(itertools.accumulate(map(len, texts), initial=starts[-1]))[1:])
            self._copy.flush()
        except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: text that is not UTF-8
            raise UserError(f"{key}: expected a parquet file, cannot read {path}: {one_line(error)}") from error
        self._starts = np.frombuffer(starts, np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _at(self, place: int) -> str:
        start, end = self._starts[place : place + 2].tolist()
        return os.pread(self._copy.fileno(), end - start, start).decode()


def text_column(key: str, path: Path, schema: pyarrow.Schema) -> str:
    """The column of a parquet file that holds the prompts. Raises UserError for none, and for one that is not text."""
    from pyarrow import types

    column = next((name for name in FIELDS if name in schema.names), None)
    if column is None:
        raise UserError(f"{key}: expected a column {', '.join(FIELDS[:-1])} or {FIELDS[-1]} in {path}, got {', '.join(schema.names)}")
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UserError(f"{key}: expected text in column {column} of {path}, got {kind}")
    return column


def json_file(key: str, path: Path) -> Listed:
    """Prompts of a JSON list of strings or of objects with a key prompt, text or caption; kept as they are.

    Raises UserError, naming the config key and the file, and the line or item that is wrong.
    """
    expected = f"{key}: expected a JSON list of strings, or of objects with {', '.join(FIELDS[:-1])} or {FIELDS[-1]}"
    try:
        found = _parsed(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{expected}, cannot read {path}: {error}") from error
    if not isinstance(found, list):
        raise UserError(f"{expected}, got {_kind(found)} in {path}")
    texts: list[str] = []
    for number, item in enumerate(found, 1):
        try:
            texts.append(text_of(item))
        except ValueError as error:
            raise UserError(f"{expected}, got at item {number} of {path}: {error}") from error
    return Listed(texts)


def text_of(value: object) -> str:
    """The prompt of a JSON value. Raises ValueError for one without."""
    if isinstance(value, dict):
        name = next((name for name in FIELDS if name in value), None)
        if name is None:
            raise ValueError(f"an object with {', '.join(map(repr, sorted(value)[:5])) or 'no key'}")
        value = value[name]
    if not isinstance(value, str):
        raise ValueError(_kind(value))
    value.encode()  # JSON can spell half a surrogate pair, which is no text
    return value


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """Tells a file and its content from others, as long as nobody forges times."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def one_line(error: Exception) -> str:
    """The text of an error without line ends."""
    return " ".join(str(error).split())


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"not JSON, {error.msg} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def _kind(value: object) -> str:
    """What JSON calls a value's type."""
    return {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _line_ends(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
