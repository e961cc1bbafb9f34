"""What a check of the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What a check saw."""

    state: State
    text: str  # one line
    advice: str = ""  # what to do


def node_count(count: int) -> str:
    """For people."""
    return f"{count} node{'s' if count != 1 else ''}"


def size_text(count: float) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
