"""The messages between a remote reward and its server: msgpack (never pickle) in HTTP bodies, see
docs/remote-rewards.md.

Both sides check all that comes from the other: what does not fit raises ProtocolError with one line
that names the place.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from branchgrpo.errors import UserError
from branchgrpo.rewards.http.records import packed, sample_of
from branchgrpo.rewards.http.values import (
    ProtocolError,
    finite,
    mapping,
    one_line,
    require,
    seen,
    texts,
    typed,
)
from branchgrpo.types import F32, U8, Sample

VERSION = 2
"""1 had prompts, in place of records."""
MEDIA_TYPE = "application/vnd.msgpack"
MB = 1_000_000
MAX_PICTURES = 65_536
"""In one request: bounds the lists that a few bytes of msgpack can ask for."""
MAX_KEYS = 64
OVERHEAD = 256
"""Bytes of a request besides pixels and records, at most."""


@dataclass(frozen=True)
class Offer:
    """What a server says of itself."""

    reward: str  # name of the reward it serves
    reports: tuple[str, ...]  # scores that it reports
    trains_on: str  # the score that it takes for the reward
    max_bytes: int  # the largest request it reads
    grouped: bool = False  # each request must hold all pictures of a record

    @property
    def names(self) -> tuple[str, ...]:
        """Every score of its answers."""
        return tuple(dict.fromkeys((self.trains_on, *self.reports)))


def pack_request(pixels: U8, samples: Sequence[Sample]) -> bytes:
    """Request to score pixels u8 [L, F, H, W, 3] for L records; each object is sent once. Raises
    ProtocolError for other arrays, OSError for pictures that cannot be read."""
    require(pixels.dtype == np.uint8, "request.pixels", "uint8", pixels.dtype.name)
    shape = _shape(list(pixels.shape), len(samples), pixels.nbytes)
    different = {id(sample): sample for sample in samples}
    order = {key: index for index, key in enumerate(different)}
    return _pack(
        {
            "pixels": {"shape": list(shape), "data": np.ascontiguousarray(pixels).reshape(-1).data},
            "samples": [packed(sample) for sample in different.values()],
            "rows": [order[id(sample)] for sample in samples],
        }
    )


def row_bytes(pixels: U8) -> int:
    """Bytes that one picture [F, H, W, 3] takes of a request, its record apart."""
    return pixels.nbytes + 5


def unpack_request(body: bytes | bytearray, limit: int) -> tuple[U8, list[Sample]]:
    """Pixels [L, F, H, W, 3], read-only, and L records, one object each. Raises ProtocolError."""
    found = _unpack(body, limit, "request", ("pixels", "samples", "rows"))
    pixels = mapping(found["pixels"], "request.pixels", ("shape", "data"))
    different = [
        sample_of(entry, f"request.samples[{index}]")
        for index, entry in enumerate(typed(found["samples"], list, "request.samples"))
    ]
    rows = typed(found["rows"], list, "request.rows")
    for index, row in enumerate(rows):
        where, wanted = f"request.rows[{index}]", f"one of {len(different)} samples, from 0"
        require(type(row) is int and 0 <= row < len(different), where, wanted, seen(row))
    data = typed(pixels["data"], bytes, "request.pixels.data")
    shape = _shape(typed(pixels["shape"], list, "request.pixels.shape"), len(rows), len(data))
    return np.frombuffer(data, np.uint8).reshape(shape), [different[row] for row in rows]


def pack_scores(scores: Mapping[str, Any], offer: Offer, count: int) -> bytes:
    """Response with the scores [count] that the server offers. Raises ProtocolError for wrong
    shapes, missing or non-finite scores."""
    data = {}
    for name in offer.names:
        require(name in scores, "scores", f"a score {name!r}", str(sorted(scores)))
        values = np.asarray(scores[name], "<f4")
        require(values.shape == (count,), f"scores.{name}", f"shape {(count,)}", str(values.shape))
        data[name] = {"data": finite(values, f"scores.{name}").tobytes()}
    return _pack({"trains_on": offer.trains_on, "scores": data})


def unpack_scores(body: bytes, limit: int, offer: Offer, count: int) -> dict[str, F32]:
    """Scores [count] each, exactly those that the server offered. Raises ProtocolError."""
    found = _unpack(body, limit, "response", ("trains_on", "scores"))
    trains_on = typed(found["trains_on"], str, "response.trains_on")
    require(
        trains_on == offer.trains_on,
        "response.trains_on",
        f"{offer.trains_on!r} as at the start",
        seen(trains_on),
    )
    scores = {}
    for name, entry in mapping(found["scores"], "response.scores", offer.names).items():
        where = f"response.scores.{name}"
        data = typed(mapping(entry, where, ("data",))["data"], bytes, f"{where}.data")
        require(
            len(data) == 4 * count,
            f"{where}.data",
            f"{4 * count} bytes for {count} pictures",
            str(len(data)),
        )
        scores[name] = finite(np.frombuffer(data, "<f4").astype(np.float32), where)
    return scores


def pack_offer(offer: Offer) -> bytes:
    """Answer to a health check."""
    return _pack(
        {
            "reward": offer.reward,
            "reports": list(offer.reports),
            "trains_on": offer.trains_on,
            "max_bytes": offer.max_bytes,
            "grouped": offer.grouped,
        }
    )


def unpack_offer(body: bytes, limit: int) -> Offer:
    """What the server offers. Raises ProtocolError."""
    keys = ("reward", "reports", "trains_on", "max_bytes", "grouped")
    found = _unpack(body, limit, "health", keys)
    names = {key: typed(found[key], str, f"health.{key}") for key in ("reward", "trains_on")}
    size = typed(found["max_bytes"], int, "health.max_bytes")
    require(size > 0, "health.max_bytes", "a size above 0", seen(size))
    reports = tuple(texts(found["reports"], "health.reports"))
    grouped = typed(found["grouped"], bool, "health.grouped")
    return Offer(names["reward"], reports, names["trains_on"], size, grouped)


def pack_error(text: str) -> bytes:
    """Body of an answer that is an error."""
    return _pack({"error": one_line(text)})


def unpack_error(body: bytes, limit: int) -> str:
    """Its text, one line. Raises ProtocolError, as for a gateway's page."""
    return one_line(typed(_unpack(body, limit, "error", ("error",))["error"], str, "error.error"))


def token_of(key: str, variable: str) -> str:
    """The token in an environment variable; "" when none is named. Raises UserError, which never
    shows the token."""
    if not variable:
        return ""
    if not (token := os.environ.get(variable, "")):
        raise UserError(
            f"{key}: expected the token in the environment variable {variable}, which is not set"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UserError(
            f"{key}: expected a token of printable ASCII without spaces or line breaks in "
            f"the environment variable {variable}"
        )
    return token


def _pack(message: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb({"version": VERSION, **message})
    return packed


def _unpack(
    body: bytes | bytearray, limit: int, where: str, keys: tuple[str, ...]
) -> dict[str, Any]:
    """The message: a map of exactly these keys and the version."""
    require(len(body) <= limit, where, f"at most {limit} bytes", str(len(body)))
    size = len(body)  # no part is longer than the whole: a forged length asks for no memory
    limits = {
        "max_bin_len": size,
        "max_str_len": size,
        "max_array_len": min(size, MAX_PICTURES),
        "max_map_len": MAX_KEYS,
        "max_ext_len": 0,
    }
    try:
        found = msgpack.unpackb(body, raw=False, strict_map_key=True, **limits)
    except ValueError as error:  # all of msgpack's errors, and text that is not UTF-8
        raise ProtocolError(
            f"{where}: expected msgpack, got {size} bytes that are not: "
            f"{one_line(str(error)) or type(error).__name__}"
        ) from error
    version = typed(found, dict, where).get("version")
    require(
        type(version) is int and version == VERSION,
        f"{where}.version",
        str(VERSION),
        seen(version),
    )
    return mapping(found, where, ("version", *keys))


def _shape(value: list[Any], rows: int, size: int) -> tuple[int, ...]:
    """[L, F, H, W, 3] for this many rows and bytes. Python's integers don't overflow."""
    where = "request.pixels.shape"
    fits = (
        len(value) == 5
        and all(type(length) is int and length > 0 for length in value)
        and value[4] == 3
    )
    require(
        fits,
        where,
        "[L, F, H, W, 3], all above 0",
        "[" + ", ".join(seen(length) for length in value[:8]) + "]",
    )
    require(value[0] <= MAX_PICTURES, where, f"at most {MAX_PICTURES} pictures", str(value[0]))
    require(value[0] == rows, "request.rows", f"one for each of {value[0]} pictures", str(rows))
    require(
        math.prod(value) == size,
        "request.pixels.data",
        f"{math.prod(value)} bytes for shape {value}",
        str(size),
    )
    return tuple(value)
