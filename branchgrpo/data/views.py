"""Some prompts of others, without a copy of their texts."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from branchgrpo.data.lists import Indices, Prompts
from branchgrpo.types import Sample


class View(Prompts):
    """Some prompts of others."""

    def __init__(self, source: Prompts):
        self._whole = source
        self.format = source.format
        self.unit = source.unit
        self.source = source.source
        self.blank = source.blank
        self.repeated = source.repeated
        self.has_metadata = source.has_metadata

    @abstractmethod
    def _place(self, place: int) -> int:
        """Where the others have the prompt at a place."""

    def _at(self, place: int) -> Sample:
        return self._whole[self._place(place)]

    def number(self, place: int) -> int:
        return self._whole.number(self._place(place))


class Taken(View):
    """The prompts at some places of others."""

    def __init__(self, source: Prompts, places: Indices):
        super().__init__(source)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def _place(self, place: int) -> int:
        return int(self._places[place])

    @property
    def digests(self) -> NDArray[np.uint64]:
        return self._whole.digests[self._places]

    def details(self, places: Indices) -> NDArray[np.uint32]:
        there = self._places[places]
        order = np.argsort(there)
        found = np.empty(len(there), np.uint32)
        found[order] = self._whole.details(there[order])
        return found


class Rest(View):
    """The prompts at all other places, in their order."""

    def __init__(self, source: Prompts, without: Indices):
        super().__init__(source)
        # how many stay before each that is left out
        self._before: Indices = np.sort(without) - np.arange(len(without))

    def __len__(self) -> int:
        return len(self._whole) - len(self._before)

    def _place(self, place: int) -> int:
        return place + int(np.searchsorted(self._before, place, side="right"))

    @property
    def digests(self) -> NDArray[np.uint64]:
        return np.delete(self._whole.digests, self._left_out)

    def details(self, places: Indices) -> NDArray[np.uint32]:
        return self._whole.details(places + np.searchsorted(self._before, places, side="right"))

    @property
    def _left_out(self) -> Indices:
        return self._before + np.arange(len(self._before))
