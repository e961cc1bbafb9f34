"""A row of a prompt file as a record, and what tells records apart."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

import xxhash

from branchgrpo.types import Picture, Sample

FIELDS = ("prompt", "text", "caption")
"""Where a record keeps its prompt: the first of these that holds text. Capitals and a plural's s
don't matter."""

NAMED = "prompt, text or caption"

ID, NEGATIVE, IMAGE = ("id",), ("negative_prompt",), ("image", "images")
"""Where it keeps what it calls itself, what guidance leads away from, and its pictures: a path, or
a list of paths. Values of other kinds are metadata."""

PLAIN = {str, int}
"""Types of an id."""


@lru_cache(maxsize=256)  # records of a file mostly have the same keys
def fields_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a record's keys that may hold the prompt, the first to be asked first."""
    return tuple(
        name
        for field in FIELDS
        for name in names
        if name.strip().casefold() in (field, f"{field}s")
    )


@lru_cache(maxsize=256)
def field_of(names: tuple[str, ...], fields: tuple[str, ...]) -> str | None:
    """The first of a record's keys that is called so."""
    return next((name for name in names if name.strip().casefold() in fields), None)


def sample_of(value: object, folder: Path) -> Sample | None:
    """The record of a string, or of an object with a prompt; None where that is null, blank or
    missing. Raises ValueError for anything else, and for text that is none.

    folder: that of the file, from which paths of pictures lead.
    """
    if not isinstance(value, dict):
        text = _text(value)
        return Sample(prompt=text) if text else None
    prompt, used = "", ""
    for name in fields_of(tuple(value)):
        if prompt := _text(value[name]):
            used = name
            break
    if not prompt:
        return None
    if len(value) == 1:
        return Sample(prompt=prompt)
    rest = {str(name): entry for name, entry in value.items() if name != used}
    found = Sample(
        prompt=prompt,
        id=_taken(rest, ID),
        negative_prompt=_taken(rest, NEGATIVE),
        images=_pictures(rest, folder),
        metadata={name: entry for name, entry in rest.items() if entry is not None},
    )
    if found.metadata:
        json.dumps(found.metadata, ensure_ascii=False).encode()  # it must travel, and be written
    return found


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(kind(value))
    return checked(value) if value.strip() else ""


def _taken(rest: dict[str, Any], fields: tuple[str, ...]) -> str:
    """The text or whole number of such a field, which is metadata no more."""
    name = field_of(tuple(rest), fields)
    if name is None or type(rest[name]) not in (str, int):
        return ""
    return checked(str(rest.pop(name)))


def _pictures(rest: dict[str, Any], folder: Path) -> tuple[Picture, ...]:
    """The pictures of a record, which are metadata no more."""
    name = field_of(tuple(rest), IMAGE)
    if name is None:
        return ()
    value = rest[name]
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) and path.strip() for path in paths):
        return ()
    del rest[name]
    # as os does it: a user who is not there is a folder's name
    return tuple(Picture(str(folder / os.path.expanduser(checked(path)))) for path in paths)


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


def kind(value: object) -> str:
    """What JSON calls a value's type."""
    return {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }.get(type(value), "a number")


def digest(text: str) -> int:
    """64 bits that tell texts apart; blanks around a text don't count. Of 10 million texts, two
    collide once in 370,000 lists."""
    return xxhash.xxh3_64_intdigest(text.strip().encode())


def digest_of(sample: Sample) -> int:
    """64 bits that tell apart what models see of records: all but id and metadata. Of a prompt that
    stands alone, its `digest`."""
    if not (sample.negative_prompt or sample.images):
        return digest(sample.prompt)
    seen = [
        sample.prompt.strip(),
        sample.negative_prompt.strip(),
        *(picture.path for picture in sample.images),
    ]
    return digest("\0".join(seen))


def detail_of(sample: Sample) -> int:
    """32 bits that tell metadata apart within a process, 0 for none."""
    names = tuple(sorted(sample.metadata))
    return _detail((hash(names), *map(sample.metadata.__getitem__, names))) if names else 0


def _detail(entries: tuple[Any, ...]) -> int:
    """Of the hash of the sorted names of metadata, and their values in that order."""
    return hash((entries[0], *map(_told, entries[1:]))) & 0xFFFFFFFF or 1


def _told(value: object) -> object:
    """Something whose hash tells a value from all others: those of 1, 1.0 and true are equal, those
    of −1 and −2 too, and lists and objects have none."""
    if type(value) is str or (type(value) is int and value != -1):
        return value
    return f"\0{json.dumps(value, sort_keys=True)}"


def digests_of(rows: Sequence[dict[str, Any]]) -> list[int] | None:
    """`digest_of` the records of rows, in a fifth of the time. None for rows that need a closer
    look: all must have their prompt under the same key, and none a second one, a negative prompt or
    a picture. Texts must be ones that `checked` lets pass."""
    names = tuple(set().union(*rows))
    prompts = fields_of(names)
    if len(prompts) != 1 or field_of(names, (*NEGATIVE, *IMAGE)) is not None:
        return None
    try:
        texts = list(map(str.strip, map(itemgetter(prompts[0]), rows)))
    except (KeyError, TypeError):  # a row without, or with something else than text
        return None
    return None if "" in texts else list(map(xxhash.xxh3_64_intdigest, map(str.encode, texts)))


def details_of(rows: Sequence[dict[str, Any]]) -> list[int] | None:
    """`detail_of` the records of rows that all have the same keys, column by column: in a third of
    the time. None for rows that need a closer look. All must have a prompt."""
    names = tuple(rows[0])
    prompts, own = fields_of(names), field_of(names, ID)
    if len(prompts) != 1 or field_of(names, (*NEGATIVE, *IMAGE)) is not None:
        return None
    rest = tuple(sorted(set(names) - {prompts[0], own}))
    try:
        columns = [list(map(itemgetter(name), rows)) for name in rest]
        ids = list(map(itemgetter(own), rows)) if own else []
    except KeyError:
        return None
    kinds = [set(map(type, column)) for column in columns]
    if set(map(len, rows)) != {len(names)} or not {*map(type, ids)} <= PLAIN:
        return None
    if any(type(None) in kind for kind in kinds):
        return None
    if not rest:
        return [0] * len(rows)
    entries = zip(repeat(hash(rest)), *columns, strict=False)
    as_they_are = all(
        kind == {str} or (kind == {int} and -1 not in column)
        for kind, column in zip(kinds, columns, strict=True)
    )
    if as_they_are:  # see _told
        return [found & 0xFFFFFFFF or 1 for found in map(hash, entries)]
    return list(map(_detail, entries))


def row_of(sample: Sample) -> dict[str, Any]:
    """The record as a row of a JSON file; of a picture with bytes, what it is called. Metadata that
    have the name of one of its fields are left out."""
    found = {
        "prompt": sample.prompt,
        "id": sample.id,
        "negative_prompt": sample.negative_prompt,
        "images": [picture.path for picture in sample.images],
    }
    return dict(sample.metadata) | {name: value for name, value in found.items() if value}


def prompts_of(samples: Sequence[Sample]) -> list[str]:
    """Their texts."""
    return [sample.prompt for sample in samples]
