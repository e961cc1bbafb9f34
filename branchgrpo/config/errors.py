"""What is wrong with a config: one line for each mistake, with where it was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from branchgrpo.config import kinds, secrets
from branchgrpo.config.tree import Node

WIDEST = 200
"""Characters of a value that a line quotes."""

_OWN = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*): (.*)", re.DOTALL)
"""How our own validators begin: with the key, as seen from where they are."""

_NUMBER = re.compile(r"[+-]?[\d.]+([eE][+-]?\d+)?")


class _Place:
    """Where an error is: the key, the value that was given, or the closest above it."""

    def __init__(self, tree: Node, kind: Any):
        self.node = tree
        self.kind = kind
        self.keys = list[str]()
        self.above = (tree, kind)  # the section that holds the last key
        self.given = True  # is `node` the value itself?

    def walk(self, location: Sequence[str | int]) -> _Place:
        """Follow pydantic's location: keys and places, and ends that say which of several types it
        was."""
        for part in location:
            if not self.step(str(part)):
                break
        return self

    def step(self, part: str) -> bool:
        """One key down; False where there is none of that name."""
        held = self.node.value if self.given else None
        below = kinds.child(self.kind, self.node if self.given else None, part)
        inner = held.get(part) if isinstance(held, dict) else None
        if isinstance(held, list) and part.isdecimal() and int(part) < len(held):
            inner = held[int(part)]
        if inner is None and below is None:
            return False
        self.above = (self.node, self.kind)
        self.kind, self.keys = below if below is not None else Any, [*self.keys, part]
        self.node, self.given = (inner, True) if inner is not None else (self.node, False)
        return True

    def follow(self, dotted: str) -> bool:
        """Several keys down, as far as they were written; False, and nowhere, where the first is
        none of the schema's."""
        first, *rest = dotted.split(".")
        if not self.step(first):
            return False
        for part in rest:
            if not self.step(part):
                self.keys.append(part)
        return True

    @property
    def dotted(self) -> str:
        return ".".join(self.keys)


def lines(error: ValidationError, tree: Node, kind: Any, prefix: str = "") -> list[str]:
    """All mistakes in `tree`, which is of type `kind`. prefix: before its keys, where they are some
    of a larger whole."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in error.errors():
        # an entry was wrong, and has its own line
        if one["type"] == "too_short" and len(one["input"]) >= one["ctx"]["min_length"]:
            continue
        if one["type"] == "value_error":
            messages = str(one["ctx"]["error"]).splitlines() if "ctx" in one else [one["msg"]]
        else:
            messages = [one["msg"]]
        for message in messages:
            place = _Place(tree, kind).walk(one["loc"])
            text, got = _words(
                one["type"], message=message, given=one["input"], place=place, tree=tree, kind=kind
            )
            found.setdefault((_where(place, prefix), got), []).append(text)
    return [f"{where}{_joined(texts)}{got}" for (where, got), texts in found.items()]


def _joined(texts: list[str]) -> str:
    """A value that fits none of its several types has an error for each: one line says what they
    expected."""
    different = list(dict.fromkeys(texts))
    if len(different) > 1 and all(text.startswith("expected ") for text in different):
        return "expected " + " or ".join(text.removeprefix("expected ") for text in different)
    return "; ".join(different)


def _where(place: _Place, prefix: str) -> str:
    origin, dotted = place.node.origin, place.dotted
    if not dotted or origin == f"--{prefix}{dotted}":
        return f"{origin}: "
    return f"{origin}: {prefix}{dotted}: "


def _words(
    sort: str, message: str, given: Any, place: _Place, tree: Node, kind: Any
) -> tuple[str, str]:
    """What was expected, and what came; moves the place to the key that the message names."""
    bare = (
        isinstance(given, str) and not kinds.is_text(place.kind, given) and _NUMBER.fullmatch(given)
    )
    got = f", got {given if bare else quoted(given, place.keys)}"
    if sort == "value_error":
        own = _OWN.fullmatch(message)
        return (own[2] if own and place.follow(own[1]) else message), ""
    if sort == "missing":
        return "missing" + _meaning(place), ""
    if sort == "extra_forbidden":
        return kinds.unknown(place.dotted, *place.above, tree, kind), ""
    if sort in ("union_tag_invalid", "union_tag_not_found"):
        names = kinds.names(place.kind)
        name = place.node.get("name")
        place.step("name")
        if sort == "union_tag_not_found":
            return f"missing: expected one of {', '.join(names)}", ""
        return (
            f"expected one of {', '.join(names)}",
            f", got {quoted(name)}{kinds.closest(name, names)}",
        )
    if sort in ("model_type", "model_attributes_type", "dict_type"):
        return "expected a section of keys", got
    # "Tuple should have at least 1 item after validation, not 0"
    if sort in ("too_short", "too_long"):
        return f"expected {message.partition(' should have ')[2].partition(' after ')[0]}", got
    if sort == "tuple_type":
        return "expected a list", got
    if sort == "string_pattern_mismatch":
        return f"expected text that matches {message.partition(' pattern ')[2]}", got
    if sort == "literal_error":
        return message.replace("Input should be ", "expected "), got + kinds.closest(
            given, kinds.literals(place.kind)
        )
    words = message.partition(", unable to ")[0]
    for begin in ("Input should be ", "String should be "):
        words = words.replace(begin, "expected ")
    return words, got


def _meaning(place: _Place) -> str:
    """A missing key's description."""
    node, kind = place.above
    model = kinds.chosen(kind, node)
    described = (
        field.description
        for name, field in (model.model_fields if model else {}).items()
        if place.keys and place.keys[-1] in (name, field.alias)
    )
    return next((f": expected {text}" for text in described if text), "")


def quoted(value: Any, keys: Sequence[str] = ()) -> str:
    """A value for an error's line: on one line, not too long, without its secrets."""
    text = repr(secrets.masked(value, keys))
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
