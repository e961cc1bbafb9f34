"""Records of JSON and JSON Lines files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from branchgrpo.data.files import HEAD, LineFile, no_text, unpacked
from branchgrpo.data.lists import Listed
from branchgrpo.data.records import NAMED, detail_of, digest_of, kind, sample_of, without
from branchgrpo.errors import UserError
from branchgrpo.types import Sample


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

    def _marked(self, lines: Iterable[str], found: list[tuple[int, int] | None]) -> None:
        for line in lines:
            sample = self._sample(line)
            found.append((digest_of(sample), detail_of(sample)) if sample else None)


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
