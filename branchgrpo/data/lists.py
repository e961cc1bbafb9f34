"""Lists of records."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from branchgrpo.data.records import detail_of, digest_of
from branchgrpo.types import Sample

Indices = NDArray[np.integer[Any]]


class Prompts(Sequence[Sample]):
    """Records in a fixed order; a slice is a list."""

    format = "list"  # what its file was read as
    unit = "prompt"  # what `number` counts
    source = ""  # the file
    blank = 0  # rows left out: no text, null, or no field with text
    repeated = 0  # rows left out: their text came before
    hint = ""  # why there may be no prompt at all
    has_metadata = False  # whether a record may have some

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        places = range(len(self))[index]
        return (
            self._at(places) if isinstance(places, int) else [self._at(place) for place in places]
        )

    @abstractmethod
    def _at(self, place: int) -> Sample:
        """The record at a place from 0 to len − 1."""

    @property
    @abstractmethod
    def digests(self) -> NDArray[np.uint64]:
        """[len] records.digest_of each."""

    def details(self, places: Indices) -> NDArray[np.uint32]:
        """[places] records.detail_of the records at rising places. Files read them again: they
        are wanted of the few that models see the same of."""
        return np.fromiter(self._details(places), np.uint32, len(places))

    def _details(self, places: Indices) -> Iterator[int]:
        return (detail_of(self._at(int(place))) for place in places)

    def number(self, place: int) -> int:
        """Which line, item or row of the file holds the prompt at a place, counted from 1."""
        return place + 1


class Listed(Prompts):
    """Records in memory; blank ones (None) are left out and counted."""

    def __init__(
        self,
        samples: Iterable[Sample | None],
        source: str = "",
        *,
        form: str = "list",
        unit: str = "prompt",
        hint: str = "",
    ):
        self._samples: list[Sample] = []
        self._numbers = array("q")
        self.source = source
        self.format = form
        self.unit = unit
        self.hint = hint
        for number, sample in enumerate(samples, 1):
            if sample and sample.prompt.strip():
                self._samples.append(sample)
                self._numbers.append(number)
                self.has_metadata = self.has_metadata or bool(sample.metadata)
            else:
                self.blank += 1

    @classmethod
    def of(cls, texts: Iterable[str], source: str = "") -> Listed:
        """Prompts that stand alone."""
        return cls((Sample(prompt=text) for text in texts), source)

    def __len__(self) -> int:
        return len(self._samples)

    def _at(self, place: int) -> Sample:
        return self._samples[place]

    def number(self, place: int) -> int:
        return self._numbers[place]

    @property
    def digests(self) -> NDArray[np.uint64]:
        return np.array([digest_of(sample) for sample in self._samples], np.uint64)
