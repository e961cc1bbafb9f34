"""Checks of what comes from the other side: what does not fit raises ProtocolError with one line
that names the place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from branchgrpo.types import F32


class ProtocolError(ValueError):
    """A message that does not follow the protocol."""


def one_line(text: str, width: int = 300) -> str:
    """Text of the other side, fit for an error message: no control characters, not long."""
    return " ".join(
        "".join(
            character if character.isprintable() else " " for character in text[: 4 * width]
        ).split()
    )[:width]


def mapping(value: Any, where: str, keys: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = typed(value, dict, where)
    require(
        set(found) == set(keys),
        where,
        f"the keys {sorted(keys)}",
        "[" + ", ".join(seen(key) for key in found) + "]",
    )
    return found


def typed(value: Any, wanted: type, where: str) -> Any:
    """The value, if it is of this very type: True is no number."""
    require(type(value) is wanted, where, wanted.__name__, seen(value))
    return value


def texts(value: Any, where: str) -> list[str]:
    return [
        typed(text, str, f"{where}[{index}]")
        for index, text in enumerate(typed(value, list, where))
    ]


def finite(values: F32, where: str) -> F32:
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ProtocolError(
            f"{where}: expected finite scores, got {values[first]} for picture {first}"
        )
    return values


def require(fits: bool, where: str, wanted: str, got: str) -> None:
    if not fits:
        raise ProtocolError(f"{where}: expected {wanted}, got {got}")


def seen(value: Any) -> str:
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
