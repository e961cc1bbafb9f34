"""Who reads and checks a checkpoint: one process, or several that share the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Readers:
    """Processes that read the same checkpoint at the same time; by itself, one that reads all.

    Each checks its share of the bytes, and all hear of what any has found: where there are several,
    every one must make the same calls.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = _alone  # what each has, in their order

    def first(self, value: Any) -> Any:
        """What the first of them has: storage may look different to each, as it changes."""
        return self.gather(value)[0]

    def share(self, files: list[str]) -> list[str]:
        """Those that this one checks."""
        return files[self.rank :: self.count]


ALONE = Readers()
"""One process, which reads all."""
