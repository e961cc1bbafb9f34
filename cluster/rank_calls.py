"""Calls of all ranks of a group, and how long they may take."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef

KEPT = 64
"""Times that a median is taken of."""
OTHERS_SECONDS = 10.0
"""In which the other ranks' errors are waited for, once one has failed: the first is rarely the
cause."""


@dataclass(kw_only=True)
class Call:
    """A method that runs on all ranks."""

    method: str
    references: list[ObjectRef[Any]]  # by rank
    deadline: float  # on the clock time.monotonic
    seconds: float = 0.0  # the deadline's, from when the ranks were free
    began: float = 0.0
    size: float = 1.0  # of its work, beside other calls of the method
    first: bool = True  # of the method on these ranks, which may warm up
    alone: bool = False  # nothing else was to be finished first
    starting: bool = False  # the ranks come up

    def finished(self) -> Iterator[ObjectRef[Any]]:
        """Results as they come, without reading them; ends when all are there, or at the
        deadline."""
        pending = self.references
        while pending:
            seconds = max(0.0, self.deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=seconds, fetch_local=False)
            if not done:
                return
            yield from done

    def errors_of_others(self, known: set[ObjectRef[Any]]) -> Iterator[tuple[int, Exception]]:
        """Ranks whose results are not among those known, and what they fail of soon: a death may be
        seen later than what it did to the others."""
        deadline = time.monotonic() + OTHERS_SECONDS
        pending = [reference for reference in self.references if reference not in known]
        while pending:
            seconds = max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=seconds, fetch_local=False)
            if not done:
                return
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                yield self.references.index(done[0]), error


class CallDeadlines:
    """A call must be finished in `factor` times the median of its like, never in less than `least`
    seconds, and in `timeout` seconds where none was measured yet. First calls on new ranks are of
    their own kind."""

    def __init__(self, timeout: float, factor: float, least: float):
        self.timeout = timeout
        self.factor = factor
        self.least = least
        # that calls took for their size on one rank, by method and first
        self.seconds: dict[tuple[str, bool], deque[float]] = {}

    def limit(self, method: str, *, first: bool, size: float, ranks: int) -> float:
        """Seconds that a call may take. first: on new ranks."""
        known = self.seconds.get((method, first))
        if not known:
            return self.timeout
        usual = statistics.median(known) * size / max(1, ranks)
        return min(self.timeout, max(self.least, self.factor * usual))

    def finished(self, call: Call) -> None:
        """All ranks have its result now. What waited for another call is no measure."""
        if call.alone:
            took = (time.monotonic() - call.began) * max(1, len(call.references)) / call.size
            self.seconds.setdefault((call.method, call.first), deque(maxlen=KEPT)).append(took)
