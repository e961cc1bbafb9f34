"""Pictures in the cells of a parquet file: bytes, or as the package datasets writes them, {bytes,
path}, or lists of either. They are read with the row group around them when their record is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from branchgrpo.data.records import IMAGE, field_of
from branchgrpo.types import Picture

if TYPE_CHECKING:
    import pyarrow


def holds_bytes(kind: pyarrow.DataType) -> bool:
    """Are there bytes in cells of this type?"""
    from pyarrow import types

    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def column_of(schema: pyarrow.Schema) -> str:
    """The column of a record's pictures, where they are in the file; empty where there is none."""
    name = field_of(tuple(schema.names), IMAGE)
    return name if name is not None and holds_bytes(schema.field(name).type) else ""


def as_json(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row with values that JSON has: dates and the like as ISO text, numbers of a fixed point as
    such."""
    return {name: _plain(value) for name, value in cells.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value)
    return str(value) if isinstance(value, UUID) else value


class PictureCells:
    """One such column of a file."""

    def __init__(self, path: Path, column: str):
        from pyarrow import parquet

        self.path, self.column = path, column
        with parquet.ParquetFile(path) as file:
            counts = [
                file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)
            ]
        self._ends = np.cumsum(counts)

    def named(self, row: int, index: int = 0) -> str:
        """What a picture is called; rows are counted from 1."""
        return f"{self.path}: {self.column}[{index}] of row {row}"

    def read(self, row: int) -> tuple[Picture, ...]:
        """The pictures of a row, counted from 1."""
        from pyarrow import parquet

        group = int(np.searchsorted(self._ends, row - 1, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        with parquet.ParquetFile(self.path, pre_buffer=False) as file:
            cells = file.read_row_group(group, columns=[self.column])
        cell = cells.column(0)[row - 1 - first].as_py()
        entries = cell if isinstance(cell, list) else [cell]
        return tuple(
            picture
            for index, entry in enumerate(entries)
            if (picture := self._picture(entry, self.named(row, index)))
        )

    def _picture(self, entry: Any, name: str) -> Picture | None:
        if isinstance(entry, Mapping):
            if data := entry.get("bytes"):
                return Picture(name, data)
            path = entry.get("path")
            return Picture(str(self.path.parent / path)) if path else None
        return Picture(name, entry) if entry else None
