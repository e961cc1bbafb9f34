"""Lists of records."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from branchgrpo.data.records import detail_of, digest_of
from branchgrpo.types import Sample


class Prompts(Sequence[Sample]):
    """Records in a fixed order; a slice is a list."""

    format = "list"  # what its file was read as
    unit = "prompt"  # what `number` counts
    source = ""  # the file
    blank = 0  # rows left out: no text, null, or no field with text
    repeated = 0  # rows left out: their text came before
    hint = ""  # why there may be no prompt at all

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

    @property
    def details(self) -> NDArray[np.uint32] | None:
        """[len] records.detail_of each; None where none has metadata."""
        return None

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

    @property
    def details(self) -> NDArray[np.uint32] | None:
        found = np.array([detail_of(sample) for sample in self._samples], np.uint32)
        return found if found.any() else None


class Marks:
    """Digests and details, as a file's records are read one after another."""

    def __init__(self) -> None:
        self._digests, self._details = array("Q"), array("I")

    def add(self, digests: Iterable[int], details: Iterable[int] = ()) -> None:
        """Of the next records; details: none where they have no metadata."""
        self._digests.extend(digests)
        if found := list(details):
            # those before had none
            before = len(self._digests) - len(found) - len(self._details)
            self._details.frombytes(bytes(self._details.itemsize * before))
            self._details.extend(found)

    @property
    def digests(self) -> NDArray[np.uint64]:
        """[records]"""
        return np.frombuffer(self._digests, np.uint64)

    @property
    def details(self) -> NDArray[np.uint32] | None:
        """[records], None where no record had any."""
        if not self._details:
            return None
        missing = len(self._digests) - len(self._details)
        self._details.frombytes(bytes(self._details.itemsize * missing))
        return np.frombuffer(self._details, np.uint32)
