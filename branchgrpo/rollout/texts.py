"""Encoded records, as the driver knows them: one reference each. They are made in bounded batches
by whichever workers are free, and need not be waited for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter

from branchgrpo.service import Reference, RolloutPool
from branchgrpo.types import EncodedPrompts, Sample


class EncodedTexts:
    """Encodings of some records: asked for, and there once they were waited for.

    Batches are of `batch` records whatever workers there are, since an encoding may differ in its
    last bits with the batch that it was made in.
    """

    def __init__(
        self,
        rollouts: RolloutPool,
        samples: Sequence[Sample],
        batch: int,
        evaluated: bool = False,
    ):
        """evaluated: for held-out pictures, which may be of another size."""
        self.samples = tuple(samples)
        self.truncated = 0  # prompts that the text encoders cut short
        self.bytes = 0
        self._references: list[Reference] = [None] * len(samples)
        self._tasks = rollouts.tasks()
        for first in range(0, len(samples), batch):
            rows, then = list(self.samples[first : first + batch]), partial(self._encoded, first)
            rollouts.encode(self._tasks, rows, then, evaluated=evaluated)

    def _encoded(self, first: int, found: EncodedPrompts) -> None:
        self.truncated += found.truncated
        self.bytes += found.bytes
        self._references[first : first + len(found.conditioning)] = found.conditioning

    def wait(self) -> float:
        """Until all are there; seconds that this took. Raises the first failure."""
        began = perf_counter()
        self._tasks.run()
        return perf_counter() - began

    def references(self, count: int) -> list[Reference]:
        """→ Conditioning of one prompt each, of the first prompts; they must be there."""
        return self._references[:count]
