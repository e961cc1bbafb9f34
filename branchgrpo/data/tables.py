"""Records of tables: CSV, TSV and parquet files with a column prompt, text or caption."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import sys
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from branchgrpo.data import files as prompt_files
from branchgrpo.data.files import HEAD, no_text, pieces_at
from branchgrpo.data.lists import Indices, Prompts
from branchgrpo.data.parquet_pictures import PictureCells, as_json, column_of, holds_bytes
from branchgrpo.data.records import (
    NAMED,
    checked,
    detail_of,
    details_of,
    digest_of,
    fields_of,
    sample_of,
)
from branchgrpo.errors import UserError, one_line
from branchgrpo.types import Picture, Sample

if TYPE_CHECKING:
    import pyarrow

Quoting = Literal[0, 3]
"""csv.QUOTE_MINIMAL or csv.QUOTE_NONE."""

COPIED = 1 << 14
"""Rows of a parquet file that are in memory at a time."""


class Table(Prompts):
    """Records of a file whose rows cannot be found without reading all before them.

    They are copied once, as JSON, to a temporary file that ends with the process, and read from
    there on access; texts are kept as they are. Takes 16 bytes of memory a record. Raises
    UserError, naming key, file and row, for a row that is wrong.
    """

    cells: PictureCells | None = None  # of files that hold pictures

    def __init__(self, key: str, path: Path):
        self.key = key
        self.path = path
        self.source = str(path)
        self._copy = tempfile.TemporaryFile()
        weakref.finalize(self, self._copy.close)
        starts, digests = array("q", [0]), array("Q")
        self._numbers = array("q")  # of rows with pictures
        for number, row in self._rows():
            sample = self._sample(number, row)
            if not sample:
                self.blank += 1
                continue
            starts.append(starts[-1] + self._copy.write(json.dumps(row).encode()))
            if self.cells:
                self._numbers.append(number)
                sample = replace(sample, images=(Picture(self.cells.named(number)),))
            digests.append(digest_of(sample))
            self.has_metadata = self.has_metadata or bool(sample.metadata)
        self._copy.flush()
        self._starts = np.frombuffer(starts, np.int64)
        self._digests = np.frombuffer(digests, np.uint64)

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and cells of each row, by the names of their columns."""

    def _sample(self, number: int, row: dict[str, Any]) -> Sample | None:
        try:
            return sample_of(row, self.path.parent)
        except ValueError as error:
            raise UserError(
                f"{self.key}: expected text, got at {self.unit} {number} of {self.path}: {error}"
            ) from error

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _at(self, place: int) -> Sample:
        start, end = self._starts[place : place + 2].tolist()
        row = json.loads(os.pread(self._copy.fileno(), end - start, start))
        found = sample_of(row, self.path.parent)
        assert found is not None  # no others were copied
        return found

    @property
    def digests(self) -> NDArray[np.uint64]:
        return self._digests

    def _details(self, places: Indices) -> Iterator[int]:
        for pieces in pieces_at(self._copy.fileno(), self._starts, places, sys.maxsize):
            rows = json.loads(b"[%b]" % b",".join(pieces))
            yield from details_of(rows) or (
                detail_of(sample) for row in rows if (sample := sample_of(row, self.path.parent))
            )

    def number(self, place: int) -> int:
        if self._numbers:
            return self._numbers[place]
        there = (number for number, row in self._rows() if self._sample(number, row))
        return next(itertools.islice(there, place, None))


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

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
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
            if header and not fields_of(tuple(header)):
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
                row = dict[str, Any]()
                for name, cell in zip(header, cells, strict=False):
                    if name.strip() and cell.strip():
                        row.setdefault(name, cell)  # of columns of one name, the first
                yield line, row

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
        from pyarrow import parquet

        try:
            if column := column_of(parquet.read_schema(path)):
                self.cells = PictureCells(path, column)
            super().__init__(key, path)
        # ValueError: text that is not UTF-8
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{key}: expected a parquet file, cannot read {path}: {one_line(error)}"
            ) from error

    def _at(self, place: int) -> Sample:
        found = super()._at(place)
        return replace(found, images=self.cells.read(self._numbers[place])) if self.cells else found

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        from pyarrow import parquet

        number = itertools.count(1)
        # else whole row groups are held
        with parquet.ParquetFile(
            self.path, buffer_size=prompt_files.BLOCK, pre_buffer=False
        ) as file:
            columns = columns_of(self.key, self.path, file.schema_arrow)
            groups = range(file.num_row_groups)
            for batch in itertools.chain.from_iterable(
                file.iter_batches(COPIED, [group], columns) for group in groups
            ):
                for cells, row in zip(batch.to_pylist(), number, strict=False):
                    yield row, as_json(cells)


def columns_of(key: str, path: Path, schema: pyarrow.Schema) -> list[str]:
    """The columns of a parquet file to read: texts that may be the prompt, and all others without
    bytes. Raises UserError where nothing may be the prompt, and where what is asked first is not
    text."""
    from pyarrow import types

    named = fields_of(tuple(schema.names))
    if not named:
        raise UserError(
            f"{key}: expected a column {NAMED} in {path}, got {', '.join(schema.names)}"
        )
    found = list[str]()
    for column in named:
        kind = schema.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            found.append(column)
        elif not found and not types.is_null(kind):
            raise UserError(f"{key}: expected text in column {column} of {path}, got {kind}")
    others = (name for name in schema.names if name not in named)
    return [*found, *(name for name in others if not holds_bytes(schema.field(name).type))]
