"""A checkpoint in shards: each learner rank writes a file of what it holds, and reads what it
needs, whatever number of ranks wrote.

    rank-0003-of-0008.safetensors   FILE/NAME: rows of a tensor that would be in FILE.safetensors of
    a checkpoint in whole files, and as metadata `rows`: name → [the first of them, the whole shape]

So a tensor is cut along its first dimension alone, as FSDP cuts it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

from branchgrpo.checkpoint.files import Saved
from branchgrpo.checkpoint.manifest import Damaged, reading
from branchgrpo.checkpoint.storage import Storage
from branchgrpo.errors import one_line
from branchgrpo.files.regular import parse_json
from branchgrpo.files.safetensors_header import BadHeader, Entry, encode_header, read_header

if TYPE_CHECKING:
    from torch import Tensor, dtype

ROWS = "rows"
_FILE = re.compile(r"rank-[0-9]{4}-of-[0-9]{4}\.safetensors")

BLOCK = 1 << 20
"""Bytes that are read and written at a time."""

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
"""Of dtypes, torch's and safetensors'."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor that lie together in a rank's file. A tensor without dimensions is a row."""

    file: str
    first: int
    shape: tuple[int, ...]  # of these rows
    kind: str  # dtype, as in NAMES' values
    begin: int  # bytes from the file's beginning

    @property
    def count(self) -> int:
        """How many rows."""
        return self.shape[0] if self.shape else 1

    @property
    def dtype(self) -> dtype:
        """As torch has it."""
        import torch

        names = {theirs: ours for ours, theirs in NAMES.items()}
        found: dtype = getattr(torch, names[self.kind])
        return found


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor in shards."""

    shape: tuple[int, ...]  # whole
    parts: tuple[Rows, ...]  # by row, all of them, each once

    @property
    def dtype(self) -> dtype:
        """Of all rows."""
        return self.parts[0].dtype


class Shards:
    """What the ranks' files of a checkpoint hold, by their headers. Raises Damaged for what is no
    whole of tensors."""

    def __init__(self, saved: Saved):
        self.saved = saved
        self.files = sorted(name for name in saved.files if _FILE.fullmatch(name))

    @cached_property
    def tensors(self) -> Mapping[str, Cut]:
        """By FILE/NAME."""
        found = dict[str, list[tuple[Rows, tuple[int, ...]]]]()
        for file in self.files:
            for name, rows, shape in self._rows(file):
                found.setdefault(name, []).append((rows, shape))
        return {name: _joined(name, pieces) for name, pieces in found.items()}

    def named(self, file: str) -> dict[str, Cut]:
        """The tensors of one FILE, by NAME."""
        start = f"{file}/"
        return {
            name.removeprefix(start): cut
            for name, cut in self.tensors.items()
            if name.startswith(start)
        }

    def whole(self, file: str) -> dict[str, Tensor]:
        """The tensors of one FILE, put together in main memory. Raises Damaged."""
        import torch

        made = {
            name: torch.empty(cut.shape, dtype=cut.dtype) for name, cut in self.named(file).items()
        }
        for source in self.files:
            with self.opened(source) as opened:
                for name, rows in self._of(source, file):
                    into = made[name]
                    read_rows(
                        opened, rows, into[rows.first :][: rows.count] if rows.shape else into
                    )
        return made

    def _of(self, source: str, file: str) -> Iterator[tuple[str, Rows]]:
        """What a rank's file has of one FILE: (NAME, rows)."""
        for name, cut in self.named(file).items():
            yield from ((name, rows) for rows in cut.parts if rows.file == source)

    @contextmanager
    def opened(self, file: str) -> Iterator[BinaryIO]:
        """One of the files, for `read_rows`. Raises Damaged."""
        with reading(file), self.saved.storage.open(file) as source:
            yield source

    def _rows(self, file: str) -> Iterator[tuple[str, Rows, tuple[int, ...]]]:
        """(FILE/NAME, rows, whole shape) of each tensor in a rank's file."""
        size = self.saved.files[file][1]
        try:
            with self.opened(file) as source:
                header = read_header(source, size)
                start = source.tell()
            places = parse_json(header.metadata.get(ROWS, "").encode(), once=True)
        except (BadHeader, ValueError) as error:
            raise Damaged(f"{file} {one_line(error)[:300]}") from error
        for name, entry in header.tensors.items():
            place = places.get(name) if isinstance(places, dict) else None
            first, shape = _place(f"{file}: {name[:100]}", place, entry)
            yield name, Rows(file, first, entry.shape, entry.dtype, start + entry.begin), shape


def read_rows(source: BinaryIO, rows: Rows, into: Tensor, skip: int = 0) -> None:
    """Fill a tensor with as many of the rows as it has, after the first `skip`. Raises Damaged."""
    import torch

    direct = into.device.type == "cpu" and into.is_contiguous() and into.dtype == rows.dtype
    target = into if direct else torch.empty(into.shape, dtype=rows.dtype)
    one = prod(rows.shape[1:]) * target.element_size()
    left = target.detach().reshape(-1).view(torch.uint8).numpy().data
    with reading(rows.file):
        source.seek(rows.begin + skip * one)
        while left.nbytes:
            got = source.read(min(left.nbytes, BLOCK))
            if not got:
                raise Damaged(f"{rows.file} ended while it was read")
            left[: len(got)] = got
            left = left[len(got) :]
    if not direct:
        into.copy_(target)


@dataclass(frozen=True)
class Written:
    """A rank's file, as the manifest is to say."""

    file: str
    sha256: str
    bytes: int


def write_rank(
    folder: Storage,
    file: str,
    pieces: Iterable[tuple[str, Tensor, int, tuple[int, ...]]],
) -> Written:
    """Write a rank's file, without a copy of what it holds in memory: (FILE/NAME, rows in main
    memory, the first of them, whole shape) of each tensor. Raises OSError."""
    import torch

    # the widest numbers first: each begins at a multiple of its width
    ordered = sorted(pieces, key=lambda piece: (-piece[1].element_size(), piece[0]))
    kinds = [NAMES[str(rows.dtype).removeprefix("torch.")] for _, rows, _, _ in ordered]
    places = {name: [first, list(shape)] for name, _, first, shape in ordered}
    header = encode_header(
        (
            (name, kind, tuple(rows.shape))
            for (name, rows, _, _), kind in zip(ordered, kinds, strict=True)
        ),
        {ROWS: json.dumps(places)},
    )
    digest, size = hashlib.sha256(header), len(header)
    with folder.stream(file) as target:
        target.write(header)
        for _, rows, _, _ in ordered:
            flat = rows.detach().contiguous().reshape(-1).view(torch.uint8)
            data = flat.numpy().data
            for place in range(0, len(data), BLOCK):
                block = data[place : place + BLOCK]
                target.write(block)
                digest.update(block)
            size += len(data)
    return Written(file, digest.hexdigest(), size)


def file_of(rank: int, ranks: int) -> str:
    """What a rank's file is named."""
    return f"rank-{rank:04d}-of-{ranks:04d}.safetensors"


def in_shards(saved: Saved) -> bool:
    """Is it in shards, not in whole files?"""
    return any(_FILE.fullmatch(name) for name in saved.files)


def _place(where: str, place: Any, entry: Entry) -> tuple[int, tuple[int, ...]]:
    """(first row, whole shape) that a file says of one of its tensors."""
    fits = (
        isinstance(place, list)
        and len(place) == 2
        and type(place[0]) is int
        and isinstance(place[1], list)
        and all(type(one) is int and 0 <= one < 1 << 53 for one in place[1])
    )
    if not fits:
        raise Damaged(f"{where}: expected its first row and the whole shape in {ROWS}")
    first, shape = place[0], tuple(place[1])
    last = first + (entry.shape[0] if entry.shape else 1)
    most = shape[0] if shape else 1
    if (
        entry.shape[1:] != shape[1:]
        or len(entry.shape) != len(shape)
        or not 0 <= first <= last <= most
    ):
        raise Damaged(f"{where}: rows {first} to {last} of shape {entry.shape} are none of {shape}")
    if entry.dtype not in NAMES.values():
        raise Damaged(f"{where}: expected float32 or alike, got {entry.dtype}")
    return first, shape


def _joined(name: str, pieces: list[tuple[Rows, tuple[int, ...]]]) -> Cut:
    """The pieces of one tensor, which must be all of it, each row once."""
    shapes = {shape for _, shape in pieces}
    if len(shapes) > 1 or len({rows.kind for rows, _ in pieces}) > 1:
        raise Damaged(f"{name[:100]}: expected one dtype and shape in all files, got several")
    (shape,) = shapes
    parts = sorted((rows for rows, _ in pieces), key=lambda rows: (rows.first, rows.count))
    place = 0
    for rows in parts:
        if rows.first != place:
            raise Damaged(f"{name[:100]}: row {min(place, rows.first)} is missing, or there twice")
        place += rows.count
    if place != (shape[0] if shape else 1):
        raise Damaged(f"{name[:100]}: rows from {place} on are missing")
    return Cut(shape, tuple(parts))


def whole_tensors(saved: Saved, file: str) -> dict[str, Tensor]:
    """The tensors of FILE by NAME in main memory, whichever form the checkpoint has. Raises
    Damaged."""
    return Shards(saved).whole(file) if in_shards(saved) else saved.tensors(f"{file}.safetensors")
