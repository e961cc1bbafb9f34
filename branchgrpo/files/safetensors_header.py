"""The header of a safetensors file by itself: bounded, and checked in all that it says, before
anything is loaded.

    8 bytes     length of the header, little-endian
    header      JSON: name → {dtype, shape, data_offsets: [begin, end]}, and perhaps "__metadata__":
    name → text the rest    the tensors' bytes, one after the other without gaps

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from branchgrpo.errors import one_line
from branchgrpo.files.regular import opened, parse_json

MAX_HEADER = 16 << 20
"""Bytes of a header, at most: 150,000 tensors. The library takes 100 MB, which in Python would be
gigabytes."""

SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes of one number, by dtype: those that torch can load."""

METADATA = "__metadata__"


class BadHeader(ValueError):
    """A file that is no safetensors file, or not a whole one. One line that goes on after the
    file's name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the header says of one tensor."""

    dtype: str  # a key of SIZES
    shape: tuple[int, ...]
    begin: int  # bytes from the header's end
    end: int

    @property
    def numbers(self) -> int:
        """How many there are."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def header(path: str | Path) -> Header:
    """Of a file. Raises OSError for what cannot be read or is no regular file, and BadHeader."""
    with opened(path) as file:
        return read_header(file, os.fstat(file.fileno()).st_size)


def read_header(file: BinaryIO, size: int) -> Header:
    """Of an open file of `size` bytes, at its beginning. Raises BadHeader."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length + 8 > size:
        raise BadHeader("is empty" if not size else "is truncated or something else")
    if length > MAX_HEADER:
        raise BadHeader(f"has a header of {length:,} bytes, more than {MAX_HEADER:,}")
    try:
        found = parse_json(file.read(length), once=True)
    except ValueError as error:
        raise BadHeader(f"has a header that is not JSON: {one_line(error)[:200]}") from error
    _require(isinstance(found, dict), "has a header that is no JSON object")
    metadata = found.pop(METADATA, None) or {}
    _require(
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values()),
        f"has {METADATA} that are not texts by name",
    )
    tensors = {name: _entry(name, entry) for name, entry in found.items()}
    _check_offsets(tensors, size - 8 - length)
    return Header(tensors, metadata)


def encode_header(
    tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """The beginning of a file whose tensors' bytes then follow in this order: (name, dtype as in
    SIZES, shape) of each."""
    body: dict[str, Any] = {METADATA: dict(metadata)}
    place = 0
    for name, dtype, shape in tensors:
        end = place + prod(shape) * SIZES[dtype]
        body[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    data = json.dumps(body).encode()
    data += b" " * (-len(data) % 8)  # the tensors begin at a multiple of 8, as the library has it
    return struct.pack("<Q", len(data)) + data


def _entry(name: str, entry: Any) -> Entry:
    what = repr(name[:100])
    _require(
        isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= entry.keys(),
        f"says no dtype, shape and data_offsets of tensor {what}",
    )
    dtype = entry["dtype"]
    shape = entry["shape"]
    offsets = entry["data_offsets"]
    _require(isinstance(dtype, str) and dtype in SIZES, f"has tensor {what} of an unknown dtype")
    _require(
        _lengths(shape) and _lengths(offsets) and len(offsets) == 2,
        f"has tensor {what} with a shape or data_offsets that are no lengths",
    )
    found = Entry(dtype, tuple(shape), *offsets)
    _require(
        found.numbers * SIZES[dtype] == found.end - found.begin,
        f"has tensor {what} with data_offsets that don't fit its dtype and shape",
    )
    return found


def _lengths(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(one) is int and 0 <= one < 1 << 63 for one in value)
    )


def _check_offsets(tensors: Mapping[str, Entry], room: int) -> None:
    """The tensors fill the rest of the file, one after the other."""
    place = 0
    for name, entry in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        _require(
            entry.begin == place,
            f"has tensor {name[:100]!r} with data_offsets that leave a gap or overlap others'",
        )
        place = entry.end
    _require(
        place == room,
        f"has {room:,} bytes in its tensors, {place:,} by its header: is the download complete?",
    )


def _require(fits: bool, line: str) -> None:
    if not fits:
        raise BadHeader(line)
