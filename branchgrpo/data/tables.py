"""Prompts of tables: CSV, TSV and parquet files with a column prompt, text or caption."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from branchgrpo.data import files as prompt_files
from branchgrpo.data.files import HEAD, Prompts, digest, no_text
from branchgrpo.data.json_files import NAMED, checked, fields_of
from branchgrpo.errors import UserError, one_line

if TYPE_CHECKING:
    import pyarrow

Quoting = Literal[0, 3]
"""csv.QUOTE_MINIMAL or csv.QUOTE_NONE."""

COPIED = 1 << 14
"""Rows of a parquet file that are in memory at a time."""


class Table(Prompts):
    """Prompts of a file whose rows cannot be found without reading all before them.

    They are copied once to a temporary file that ends with the process, and read from there on
    access; kept as they are. Takes 16 bytes of memory a prompt. Raises UserError, naming key, file
    and row, for a row that is wrong.
    """

    def __init__(self, key: str, path: Path):
        self.key = key
        self.path = path
        self.source = str(path)
        self._copy = tempfile.TemporaryFile()
        weakref.finalize(self, self._copy.close)
        starts, digests = array("q", [0]), array("Q")
        for _, text in self._rows():
            if text:
                starts.append(starts[-1] + self._copy.write(text.encode()))
                digests.append(digest(text))
            else:
                self.blank += 1
        self._copy.flush()
        self._starts = np.frombuffer(starts, np.int64)
        self._digests = np.frombuffer(digests, np.uint64)

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, str]]:
        """Number and prompt of each row, empty where there is none."""

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _at(self, place: int) -> str:
        start, end = self._starts[place : place + 2].tolist()
        return os.pread(self._copy.fileno(), end - start, start).decode()

    @property
    def digests(self) -> NDArray[np.uint64]:
        return self._digests

    def number(self, place: int) -> int:
        return next(
            itertools.islice((number for number, text in self._rows() if text), place, None)
        )


class CsvFile(Table):
    """A header, then a row for each prompt; fields are quoted as Python's csv module reads them,
    and may hold line ends."""

    format, unit = "CSV", "line"
    delimiter, between = ",", "commas"
    quotings: ClassVar[tuple[Quoting, ...]] = (csv.QUOTE_MINIMAL,)
    """Ways to read quotes: the first that suits the whole file."""

    def __init__(self, key: str, path: Path):
        reason = ""
        for quoting in self.quotings:
            self.quoting = quoting
            try:
                return super().__init__(key, path)
            except csv.Error as error:
                reason = reason or str(error)
        raise UserError(f"{key}: expected cells separated by {self.between}, got {reason}")

    def _rows(self) -> Iterator[tuple[int, str]]:
        with (
            gzip.open(self.path)
            if self.path.suffix.lower() == ".gz"
            else self.path.open("rb") as file
        ):
            if reason := no_text(file.read(HEAD)):
                raise UserError(
                    f"{self.key}: expected UTF-8 text with a header, got in {self.path}: {reason}"
                )
            file.seek(0)
            rows = self._cells(file)
            header = next((cells for _, cells in rows if cells), [])
            columns = [header.index(name) for name in fields_of(tuple(header))]
            if header and not columns:
                got = ", ".join(map(repr, header[:5]))
                raise UserError(
                    f"{self.key}: expected a column {NAMED} in the first line of "
                    f"{self.path}, separated by {self.between}, got {got}"
                )
            for line, cells in rows:
                if any(cell.strip() for cell in cells[len(header) :]):
                    reason = (
                        f"{len(cells)} cells, where the header has {len(header)}: "
                        f"{self.between} within a cell need quotes around it"
                    )
                    raise self._wrong(line, reason)
                yield (
                    line,
                    next(
                        (
                            cells[column]
                            for column in columns
                            if column < len(cells) and cells[column].strip()
                        ),
                        "",
                    ),
                )

    def _cells(self, file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[int, list[str]]]:
        """The line at which each row begins, and its cells. Raises csv.Error for quotes that don't
        pair."""
        reader = csv.reader(
            self._lines(file), delimiter=self.delimiter, quoting=self.quoting, strict=True
        )
        began = 1
        try:
            for cells in reader:
                yield began, cells
                began = reader.line_num + 1
        except csv.Error as error:
            raise csv.Error(f"at line {began} of {self.path}: {error}") from error

    def _lines(self, file: BinaryIO | gzip.GzipFile) -> Iterator[str]:
        """Lines with their ends. Raises UserError for one that is not UTF-8, has a NUL or is too
        long."""
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        for number, line in enumerate(
            iter(partial(text.readline, prompt_files.LONGEST + 1), ""), 1
        ):
            if len(line) > prompt_files.LONGEST:
                raise self._wrong(number, f"longer than {prompt_files.LONGEST} characters")
            try:
                yield checked(line)
            except UnicodeEncodeError as error:  # what could not be decoded
                raise self._wrong(number, "not UTF-8") from error
            except ValueError as error:
                raise self._wrong(number, str(error)) from error

    def _wrong(self, line: int, reason: str) -> UserError:
        return UserError(
            f"{self.key}: expected rows of cells in UTF-8, got at line {line} of "
            f"{self.path}: {reason}"
        )


class TsvFile(CsvFile):
    """Cells between tabs. Where quotes don't pair as in CSV, they are characters as any other."""

    format = "TSV"
    delimiter, between = "\t", "tabs"
    quotings: ClassVar[tuple[Quoting, ...]] = (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)


class ParquetFile(Table):
    """Parquet itself gives no row without the row group around it, often a million rows."""

    format, unit = "parquet", "row"

    def __init__(self, key: str, path: Path):
        try:
            import pyarrow
        except ImportError as error:
            raise UserError(
                f"{key}: expected the package pyarrow to read {path}, it is not installed: "
                "pip install 'branchgrpo[parquet]'"
            ) from error
        try:
            super().__init__(key, path)
        # ValueError: text that is not UTF-8
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{key}: expected a parquet file, cannot read {path}: {one_line(error)}"
            ) from error

    def _rows(self) -> Iterator[tuple[int, str]]:
        from pyarrow import parquet

        number = itertools.count(1)
        # else whole row groups are held
        with parquet.ParquetFile(
            self.path, buffer_size=prompt_files.BLOCK, pre_buffer=False
        ) as file:
            columns = text_columns(self.key, self.path, file.schema_arrow)
            groups = range(file.num_row_groups)
            for batch in itertools.chain.from_iterable(
                file.iter_batches(COPIED, [group], columns) for group in groups
            ):
                for values in zip(
                    *(batch.column(name).to_pylist() for name in columns), strict=True
                ):
                    row = next(number)
                    try:
                        yield (
                            row,
                            checked(next((text for text in values if text and text.strip()), "")),
                        )
                    except ValueError as error:
                        raise UserError(
                            f"{self.key}: expected text, got at row {row} of {self.path}: {error}"
                        ) from error


def text_columns(key: str, path: Path, schema: pyarrow.Schema) -> list[str]:
    """The columns of a parquet file that may hold the prompt, the first to be asked first. Raises
    UserError where there is none, and where the first is not text."""
    from pyarrow import types

    columns = fields_of(tuple(schema.names))
    if not columns:
        raise UserError(
            f"{key}: expected a column {NAMED} in {path}, got {', '.join(schema.names)}"
        )
    found = []
    for column in columns:
        kind = schema.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            found.append(column)
        elif not found and not types.is_null(kind):
            raise UserError(f"{key}: expected text in column {column} of {path}, got {kind}")
    return found
