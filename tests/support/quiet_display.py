"""A display for runs in tests."""

from __future__ import annotations

from typing import Any


class Quiet:
    """Shows nothing and keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def phase(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, iteration: int, values: Any) -> None: ...
