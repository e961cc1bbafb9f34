"""Putting together the leaves of each prompt, of whatever tasks grew them, for rewards that compare
them."""

from __future__ import annotations

from collections.abc import Sequence

from branchgrpo.service import Reference
from branchgrpo.types import Subtree

Whole = tuple[tuple[Subtree, ...], list[tuple[int, int]], list[Reference]]
"""A prompt's subtrees, by tree and node; of each, which LeafMedia holds it and which subtree there;
and those LeafMedia."""


class WholeGroups:
    """Subtrees of an iteration's prompts, as their leaves come in."""

    def __init__(self, subtrees: int):
        """subtrees: that reach the leaves, of each prompt."""
        self.subtrees = subtrees
        self._found: dict[int, list[tuple[Subtree, Reference, int]]] = {}

    def add(self, subtrees: Sequence[Subtree], media: Reference) -> list[Whole]:
        """Those prompts that are complete with these."""
        whole = []
        for row, subtree in enumerate(subtrees):
            parts = self._found.setdefault(subtree.prompt_index, [])
            parts.append((subtree, media, row))
            if len(parts) == self.subtrees:
                whole.append(_ordered(self._found.pop(subtree.prompt_index)))
        return whole


def _ordered(parts: list[tuple[Subtree, Reference, int]]) -> Whole:
    """In an order that does not depend on who was ready first."""
    parts = sorted(parts, key=lambda part: (part[0].key.tree, part[0].node))
    media: list[Reference] = []
    numbers: dict[int, int] = {}  # by identity: references need not compare
    for _, reference, _ in parts:
        if id(reference) not in numbers:
            numbers[id(reference)] = len(media)
            media.append(reference)
    places = [(numbers[id(reference)], row) for _, reference, row in parts]
    return tuple(subtree for subtree, _, _ in parts), places, media
