"""The messages between a remote reward and its server: msgpack (never pickle) in HTTP bodies, see
docs/remote-rewards.md.

Both sides check all that comes from the other: what does not fit raises ProtocolError with one line
that names the place.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from branchgrpo.errors import UserError
from branchgrpo.types import F32, U8

VERSION = 1
MEDIA_TYPE = "application/vnd.msgpack"
MB = 1_000_000
MAX_PICTURES = 65_536
"""In one request: bounds the lists that a few bytes of msgpack can ask for."""
MAX_KEYS = 64
OVERHEAD = 256
"""Bytes of a request besides pixels and prompts, at most."""


class ProtocolError(ValueError):
    """A message that does not follow the protocol."""


@dataclass(frozen=True)
class Offer:
    """What a server says of itself."""

    reward: str  # name of the reward it serves
    reports: tuple[str, ...]  # scores that it reports
    trains_on: str  # the score that it takes for the reward
    max_bytes: int  # the largest request it reads

    @property
    def names(self) -> tuple[str, ...]:
        """Every score of its answers."""
        return tuple(dict.fromkeys((self.trains_on, *self.reports)))


def pack_request(pixels: U8, prompts: list[str]) -> bytes:
    """Request to score pixels u8 [L, F, H, W, 3] for L prompts. Raises ProtocolError for other
    arrays."""
    _require(pixels.dtype == np.uint8, "request.pixels", "uint8", pixels.dtype.name)
    shape = _shape(list(pixels.shape), len(prompts), pixels.nbytes)
    return _pack(
        {
            "pixels": {"shape": list(shape), "data": np.ascontiguousarray(pixels).reshape(-1).data},
            "prompts": list(prompts),
        }
    )


def row_bytes(pixels: U8, prompt: str) -> int:
    """Bytes that one picture [F, H, W, 3] and its prompt take of a request."""
    return pixels.nbytes + len(prompt.encode()) + 5


def unpack_request(body: bytes | bytearray, limit: int) -> tuple[U8, list[str]]:
    """Pixels [L, F, H, W, 3], read-only, and L prompts. Raises ProtocolError."""
    found = _unpack(body, limit, "request", ("pixels", "prompts"))
    pixels = _mapping(found["pixels"], "request.pixels", ("shape", "data"))
    prompts = _texts(found["prompts"], "request.prompts")
    data = _typed(pixels["data"], bytes, "request.pixels.data")
    shape = _shape(_typed(pixels["shape"], list, "request.pixels.shape"), len(prompts), len(data))
    return np.frombuffer(data, np.uint8).reshape(shape), prompts


def pack_scores(scores: Mapping[str, Any], offer: Offer, count: int) -> bytes:
    """Response with the scores [count] that the server offers. Raises ProtocolError for wrong
    shapes, missing or non-finite scores."""
    data = {}
    for name in offer.names:
        _require(name in scores, "scores", f"a score {name!r}", str(sorted(scores)))
        values = np.asarray(scores[name], "<f4")
        _require(values.shape == (count,), f"scores.{name}", f"shape {(count,)}", str(values.shape))
        data[name] = {"data": _finite(values, f"scores.{name}").tobytes()}
    return _pack({"trains_on": offer.trains_on, "scores": data})


def unpack_scores(body: bytes, limit: int, offer: Offer, count: int) -> dict[str, F32]:
    """Scores [count] each, exactly those that the server offered. Raises ProtocolError."""
    found = _unpack(body, limit, "response", ("trains_on", "scores"))
    trains_on = _typed(found["trains_on"], str, "response.trains_on")
    _require(
        trains_on == offer.trains_on,
        "response.trains_on",
        f"{offer.trains_on!r} as at the start",
        _seen(trains_on),
    )
    scores = {}
    for name, entry in _mapping(found["scores"], "response.scores", offer.names).items():
        where = f"response.scores.{name}"
        data = _typed(_mapping(entry, where, ("data",))["data"], bytes, f"{where}.data")
        _require(
            len(data) == 4 * count,
            f"{where}.data",
            f"{4 * count} bytes for {count} pictures",
            str(len(data)),
        )
        scores[name] = _finite(np.frombuffer(data, "<f4").astype(np.float32), where)
    return scores


def pack_offer(offer: Offer) -> bytes:
    """Answer to a health check."""
    return _pack(
        {
            "reward": offer.reward,
            "reports": list(offer.reports),
            "trains_on": offer.trains_on,
            "max_bytes": offer.max_bytes,
        }
    )


def unpack_offer(body: bytes, limit: int) -> Offer:
    """What the server offers. Raises ProtocolError."""
    found = _unpack(body, limit, "health", ("reward", "reports", "trains_on", "max_bytes"))
    names = {key: _typed(found[key], str, f"health.{key}") for key in ("reward", "trains_on")}
    size = _typed(found["max_bytes"], int, "health.max_bytes")
    _require(size > 0, "health.max_bytes", "a size above 0", _seen(size))
    return Offer(
        names["reward"], tuple(_texts(found["reports"], "health.reports")), names["trains_on"], size
    )


def pack_error(text: str) -> bytes:
    """Body of an answer that is an error."""
    return _pack({"error": one_line(text)})


def unpack_error(body: bytes, limit: int) -> str:
    """Its text, one line. Raises ProtocolError, as for a gateway's page."""
    return one_line(_typed(_unpack(body, limit, "error", ("error",))["error"], str, "error.error"))


def one_line(text: str, width: int = 300) -> str:
    """Text of the other side, fit for an error message: no control characters, not long."""
    return " ".join(
        "".join(
            character if character.isprintable() else " " for character in text[: 4 * width]
        ).split()
    )[:width]


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
    _require(len(body) <= limit, where, f"at most {limit} bytes", str(len(body)))
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
    version = _typed(found, dict, where).get("version")
    _require(
        type(version) is int and version == VERSION,
        f"{where}.version",
        str(VERSION),
        _seen(version),
    )
    return _mapping(found, where, ("version", *keys))


def _mapping(value: Any, where: str, keys: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = _typed(value, dict, where)
    _require(
        set(found) == set(keys),
        where,
        f"the keys {sorted(keys)}",
        "[" + ", ".join(_seen(key) for key in found) + "]",
    )
    return found


def _typed(value: Any, wanted: type, where: str) -> Any:
    """The value, if it is of this very type: True is no number."""
    _require(type(value) is wanted, where, wanted.__name__, _seen(value))
    return value


def _texts(value: Any, where: str) -> list[str]:
    return [
        _typed(text, str, f"{where}[{index}]")
        for index, text in enumerate(_typed(value, list, where))
    ]


def _shape(value: list[Any], prompts: int, size: int) -> tuple[int, ...]:
    """[L, F, H, W, 3] for this many prompts and bytes. Python's integers don't overflow."""
    where = "request.pixels.shape"
    fits = (
        len(value) == 5
        and all(type(length) is int and length > 0 for length in value)
        and value[4] == 3
    )
    _require(
        fits,
        where,
        "[L, F, H, W, 3], all above 0",
        "[" + ", ".join(_seen(length) for length in value[:8]) + "]",
    )
    _require(value[0] <= MAX_PICTURES, where, f"at most {MAX_PICTURES} pictures", str(value[0]))
    _require(
        value[0] == prompts, "request.prompts", f"one for each of {value[0]} pictures", str(prompts)
    )
    _require(
        math.prod(value) == size,
        "request.pixels.data",
        f"{math.prod(value)} bytes for shape {value}",
        str(size),
    )
    return tuple(value)


def _finite(values: F32, where: str) -> F32:
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ProtocolError(
            f"{where}: expected finite scores, got {values[first]} for picture {first}"
        )
    return values


def _require(fits: bool, where: str, wanted: str, got: str) -> None:
    if not fits:
        raise ProtocolError(f"{where}: expected {wanted}, got {got}")


def _seen(value: Any) -> str:
    """A value from outside, as an error message shows it: never long."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(one_line(value, 40))
    return (
        f"{type(value).__name__} of {len(value)}"
        if isinstance(value, (bytes, list, dict))
        else type(value).__name__
    )
