"""Dotted keys of the command line, laid on a config. Text is read by the type that the schema gives
its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

from branchgrpo.config import kinds, references
from branchgrpo.config.tree import Node, merge, parse, same
from branchgrpo.errors import UserError


class _Bad(Exception):
    """An override that cannot be: what is wrong with it."""


class _Unknown(Exception):
    """There is no such key below a value of this type."""

    def __init__(self, node: Node | None, kind: Any):
        super().__init__(node, kind)
        self.node, self.kind = node, kind


def apply(
    tree: Node, kind: Any, texts: Mapping[str, str], prefix: str = "--"
) -> tuple[Node, list[str]]:
    """`tree`, a value of type `kind`, with these keys set; and a line for each that cannot be.

    The order of `texts` means nothing.
    """
    problems = []
    for dotted in sorted(texts, key=_turn):
        try:
            tree = _put(
                tree, kind=kind, parts=dotted.split("."), text=texts[dotted], origin=prefix + dotted
            )
        except _Bad as bad:
            problems.append(f"{prefix}{dotted}: {bad}")
        except _Unknown as unknown:
            words = kinds.unknown(
                dotted, node=unknown.node, kind=unknown.kind, tree=tree, root=kind, prefix=prefix
            )
            problems.append(f"{prefix}{dotted}: {words}")
    return tree, problems


def _turn(dotted: str) -> tuple[int, bool, list[int]]:
    """Sections go before their keys, names of components before their other keys, and a list's
    first places before its later ones."""
    parts = dotted.split(".")
    return len(parts), parts[-1] != "name", [int(part) for part in parts if part.isdecimal()]


def read(kind: Any, text: str, origin: str) -> Node:
    """An option's text as a value of this type: text where the type is text, numbers as they are
    for pydantic, else YAML.

    Lists are `a,b` or `[a, b]`. Raises UserError for YAML that is none.
    """
    scalar = Node(text, origin, text)
    if kinds.is_text(kind, text):
        return scalar
    if NoneType in kinds.options(kind) and text in ("null", "~", ""):
        return Node(None, origin, text)
    entry = kinds.entries(kind)
    if entry is not None and not text.lstrip().startswith("["):
        if kinds.is_section(entry):
            return parse(f"[{text}]", origin)
        return Node(
            [Node(part.strip(), origin, part.strip()) for part in text.split(",") if part.strip()],
            origin,
        )
    if Any in kinds.options(kind):
        try:
            return parse(text, origin)
        except UserError:
            return scalar
    if entry is not None or kinds.is_section(kind) or kinds.child(kind, None, "key") is not None:
        return parse(text, origin)
    return scalar


def _put(node: Node | None, kind: Any, parts: Sequence[str], text: str, origin: str) -> Node:
    """`node` with the text at the end of `parts`."""
    if not parts:
        try:
            found = read(kind, text, origin)
        except UserError as error:
            raise _Bad(
                f"expected {'a list, a,b or [a, b]' if kinds.entries(kind) else 'YAML'}, "
                f"got {text!r}"
            ) from error
        return merge(node, found) if kinds.is_section(kind) and same(node, found) else found
    key, *rest = parts
    if not rest:
        text = references.absolute(text, Path()) if key == "name" else text
    if kinds.entries(kind) is not None and (node is None or isinstance(node.value, list)):
        return _put_entry(node, kind=kind, key=key, rest=rest, text=text, origin=origin)
    below = kinds.child(kind, node, key)
    if below is None:
        raise _Unknown(node, kind)
    held = node.value if node is not None else {}
    if not isinstance(held, dict):
        raise _Bad(f"expected a section in {node.origin if node else origin}, got {held!r}")
    if (
        key == "name"
        and not rest
        and kinds.table(kind)
        and text != (node.get("name") if node else None)
    ):
        held = {}  # another component: nothing of the old one's keys stays
    old = held.get(key)
    if old is None and kinds.entries(below) is not None and rest:
        old = _default(kinds.chosen(kind, node), key, origin)
    return Node(
        held | {key: _put(old, kind=below, parts=rest, text=text, origin=origin)},
        node.origin if node is not None else origin,
    )


def _put_entry(
    node: Node | None, kind: Any, key: str, rest: Sequence[str], text: str, origin: str
) -> Node:
    """A list with the text at, or below, one of its places; the place after the last appends."""
    held = list(node.value) if node is not None else []
    if not key.isdecimal() or int(key) > len(held):
        raise _Bad(
            f"expected a place in the list, 0 … {len(held)} ({len(held)} appends), got {key}"
        )
    old = held[int(key)] if int(key) < len(held) else None
    held[int(key) : int(key) + 1] = [
        _put(old, kind=kinds.entries(kind), parts=rest, text=text, origin=origin)
    ]
    return replace(node, value=held) if node is not None else Node(held, origin)


def _default(model: Any, key: str, origin: str) -> Node | None:
    """A section's default list."""
    field = (
        next(
            (field for name, field in model.model_fields.items() if key in (name, field.alias)),
            None,
        )
        if model
        else None
    )
    if field is None or field.is_required():
        return None
    values = field.get_default(call_default_factory=True)
    if not all(isinstance(value, (str, int, float, bool)) for value in values):
        return None
    return Node([Node(value, origin, str(value)) for value in values], origin)
