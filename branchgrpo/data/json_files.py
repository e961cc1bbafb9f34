"""Records of JSON and JSON Lines files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from branchgrpo.data.files import HEAD, TOGETHER, LineFile, no_text, unpacked
from branchgrpo.data.lists import Indices, Listed
from branchgrpo.data.records import (
    NAMED,
    detail_of,
    details_of,
    digest_of,
    digests_of,
    kind,
    sample_of,
    without,
)
from branchgrpo.errors import UserError
from branchgrpo.types import Sample

UNSAFE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
"""An escape that may be a NUL or half of a surrogate pair."""

BREAK = re.compile(r"\]\s*,\s*\[")


class JsonLineFile(LineFile):
    """Records of a JSON Lines file: a string, or an object with a key prompt, text or caption, a
    line; texts are kept as they are."""

    format = "JSON Lines"
    expected = f"a JSON string, or an object with {NAMED}, a line"

    def _sample(self, line: str) -> Sample | None:
        if not line.strip():
            return None
        value = parsed(line)
        if not (sample := sample_of(value, self.path.parent)):
            self.hint = self.hint or without(value)
        return sample

    def _marked(self, lines: Sequence[str], found: list[int | None]) -> None:
        for first in range(0, len(lines), TOGETHER):
            part = lines[first : first + TOGETHER]
            rows = together(part)
            if rows is not None and (digests := digests_of(rows)) is not None:
                found += digests
                self.has_metadata = self.has_metadata or max(map(len, rows)) > 1
                continue
            for line in part:
                sample = self._sample(line)
                found.append(digest_of(sample) if sample else None)
                if sample and sample.metadata:
                    self.has_metadata = True

    def _details(self, places: Indices) -> Iterator[int]:
        for lines in self._lines_at(places):
            rows = together(lines)
            found = None if rows is None else details_of(rows)
            yield from found or (
                detail_of(sample) for line in lines if (sample := self._sample(line))
            )


def together(lines: Sequence[str]) -> list[dict[str, Any]] | None:
    """The object of each line, parsed at once: in a third of the time of one by one. None where
    they must be looked at so."""
    if (plain := flat(lines)) is not None:
        return plain
    text = "],[".join(lines)
    breaks = len(lines) - 1
    if "\\u" in text and UNSAFE.search(text):
        return None
    # a break between lists within a line could make up for a line that is cut
    if text.count("]") > breaks and len(BREAK.findall(text)) > breaks:
        return None
    try:
        rows = json.loads(f"[[{text}]]")
        objects = [row for (row,) in rows]
    except (ValueError, RecursionError):  # the former also for a line of several values
        return None
    if len(rows) != len(lines) or {*map(type, objects)} != {dict}:
        return None
    return objects


def flat(lines: Sequence[str]) -> list[dict[str, Any]] | None:
    """The object of each line, where none holds a list or an escape; None for others.

    No string goes over a line's end, which JSON allows in none, and no object, where a name, not
    {, comes after a comma: each line holds one value or more.
    """
    text = ",\n".join(lines)
    if "\\" in text or "[" in text or {line[:1] for line in lines} != {"{"}:
        return None
    try:
        rows: list[dict[str, Any]] = json.loads(f"[{text}]")
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) == len(lines) and {*map(type, rows)} == {dict} else None


def json_file(key: str, path: Path) -> Listed:
    """Records of a JSON list of strings or of objects with a key prompt, text or caption; texts are
    kept as they are.

    Raises UserError, naming the config key and the file, and the line or item that is wrong.
    """
    expected = f"{key}: expected a JSON list of strings, or of objects with {NAMED}"
    with os.fdopen(unpacked(path), "rb") as file:
        data = file.read() if file.seek(0) == 0 else b""
    if reason := no_text(data[:HEAD]):
        raise UserError(f"{expected}, got in {path}: {reason}")
    try:
        found = parsed(data.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{expected}, cannot read {path}: {error}") from error
    if not isinstance(found, list):
        raise UserError(f"{expected}, got {kind(found)} in {path}")
    hint = next(filter(None, map(without, found)), "")
    return Listed(
        _samples(found, f"{expected}, got at item", path),
        str(path),
        form="JSON",
        unit="item",
        hint=hint,
    )


def _samples(items: Iterable[object], expected: str, path: Path) -> Iterator[Sample | None]:
    for number, item in enumerate(items, 1):
        try:
            yield sample_of(item, path.parent)
        except ValueError as error:
            raise UserError(f"{expected} {number} of {path}: {error}") from error


def parsed(text: str) -> object:
    """The JSON value. Raises ValueError, in one line, for text that is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"not JSON, {error.msg} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
