"""Prompts of JSON and JSON Lines files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from branchgrpo.data.files import HEAD, LineFile, Listed, no_text, unpacked
from branchgrpo.errors import UserError

FIELDS = ("prompt", "text", "caption")
"""Where a record keeps its prompt: the first of these that holds text. Capitals and a plural's s
don't matter."""

NAMED = "prompt, text or caption"


@lru_cache(maxsize=256)  # records of a file mostly have the same keys
def fields_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a record's keys that may hold the prompt, the first to be asked first."""
    return tuple(
        name
        for field in FIELDS
        for name in names
        if name.strip().casefold() in (field, f"{field}s")
    )


class JsonLineFile(LineFile):
    """Prompts of a JSON Lines file: a string, or an object with a key prompt, text or caption, a
    line; kept as they are."""

    format = "JSON Lines"
    expected = f"a JSON string, or an object with {NAMED}, a line"

    def _prompt(self, line: str) -> str:
        if not line.strip():
            return ""
        value = _parsed(line)
        if not (text := text_of(value)):
            self.hint = self.hint or without(value)
        return text


def json_file(key: str, path: Path) -> Listed:
    """Prompts of a JSON list of strings or of objects with a key prompt, text or caption; kept as
    they are.

    Raises UserError, naming the config key and the file, and the line or item that is wrong.
    """
    expected = f"{key}: expected a JSON list of strings, or of objects with {NAMED}"
    with os.fdopen(unpacked(path), "rb") as file:
        data = file.read() if file.seek(0) == 0 else b""
    if reason := no_text(data[:HEAD]):
        raise UserError(f"{expected}, got in {path}: {reason}")
    try:
        found = _parsed(data.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{expected}, cannot read {path}: {error}") from error
    if not isinstance(found, list):
        raise UserError(f"{expected}, got {_kind(found)} in {path}")
    hint = next(filter(None, map(without, found)), "")
    return Listed(
        _texts(found, f"{expected}, got at item", path),
        str(path),
        form="JSON",
        unit="item",
        hint=hint,
    )


def _texts(items: Iterable[object], expected: str, path: Path) -> Iterator[str]:
    for number, item in enumerate(items, 1):
        try:
            yield text_of(item)
        except ValueError as error:
            raise UserError(f"{expected} {number} of {path}: {error}") from error


def text_of(value: object) -> str:
    """The prompt of a JSON value: a string, or the first field of an object that holds text. Empty
    where it is null or blank or has no such field. Raises ValueError for anything else."""
    values = (
        [value[name] for name in fields_of(tuple(value))] if isinstance(value, dict) else [value]
    )
    for text in values:
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(_kind(text))
        if text.strip():
            return checked(text)
    return ""


def checked(text: str) -> str:
    """The text. Raises ValueError where it is none: with a NUL, or half a surrogate pair, which
    JSON can spell."""
    text.encode()
    if "\0" in text:
        raise ValueError("a NUL, which no text has")
    return text


def without(value: object) -> str:
    """Which keys an object has that has none for a prompt; empty for anything else."""
    if not isinstance(value, dict) or fields_of(tuple(value)):
        return ""
    return (
        f"expected {NAMED}, got an object with "
        f"{', '.join(map(repr, sorted(value)[:5])) or 'no key'}"
    )


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
    return {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }.get(type(value), "a number")
