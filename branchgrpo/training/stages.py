"""Where a run's seconds went, by stage; also of drivers before this one, and of a stage that goes
on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter


class Stages:
    """Seconds by stage. earlier: those of drivers before this one. Another thread may ask at any
    time."""

    def __init__(self, earlier: Mapping[str, float] | None = None):
        self.earlier = dict(earlier or {})
        self.done: dict[str, float] = {}
        self.running: tuple[str, float] | None = None  # the present stage, and when it began

    def add(self, stage: str, seconds: float) -> None:
        """So many seconds more in a stage."""
        self.done = self.done | {stage: self.done.get(stage, 0.0) + seconds}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """The block is of that stage, whatever ends it."""
        begun = perf_counter()
        self.running = stage, begun
        try:
            yield
        finally:
            self.running = None
            self.add(stage, perf_counter() - begun)

    def own(self) -> dict[str, float]:
        """Of this driver."""
        found, running = dict(self.done), self.running
        if running:
            found[running[0]] = found.get(running[0], 0.0) + perf_counter() - running[1]
        return found

    def now(self) -> dict[str, float]:
        """Of all drivers."""
        own = self.own()
        return {
            stage: self.earlier.get(stage, 0.0) + own.get(stage, 0.0)
            for stage in [*self.earlier, *(stage for stage in own if stage not in self.earlier)]
        }
