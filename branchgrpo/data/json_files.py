"""Records of JSON and JSON Lines files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from branchgrpo.data.files import HEAD, LineFile, no_text, unpacked
from branchgrpo.data.lists import Listed
from branchgrpo.data.records import (
    NAMED,
    detail_of,
    digest_of,
    kind,
    marks_of,
    sample_of,
    without,
)
from branchgrpo.errors import UserError
from branchgrpo.types import Sample

TOGETHER = 256
"""Lines that are parsed at once: that takes a third of the time of one by one."""

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

    def _marked(self, lines: Sequence[str], found: list[tuple[int, int] | None]) -> None:
        for first in range(0, len(lines), TOGETHER):
            part = lines[first : first + TOGETHER]
            if (marks := together(part)) is not None:
                found += marks
                continue
            for line in part:
                sample = self._sample(line)
                found.append((digest_of(sample), detail_of(sample)) if sample else None)


def together(lines: Sequence[str]) -> list[tuple[int, int]] | None:
    """`digest_of` and `detail_of` each line's record, see records.marks_of. None where they must be
    looked at one by one."""
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
    return marks_of(objects)


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
