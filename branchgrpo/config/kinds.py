"""The schema by dotted path: what type a key has, given the components that a config names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import is_typeddict

from branchgrpo.config import references, registry
from branchgrpo.config.tree import Node
from branchgrpo.types import Component


def options(kind: Any) -> list[Any]:
    """The types that a type allows, one by one."""
    if get_origin(kind) is Annotated:
        return options(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) for one in options(part)]
    return [kind]


def literals(kind: Any) -> list[Any]:
    """Values that a type lists one by one."""
    return [value for one in options(kind) if get_origin(one) is Literal for value in get_args(one)]


def is_text(kind: Any, text: str) -> bool:
    """Is this text, as it stands, a value of the type?"""
    return str in options(kind) or text in literals(kind)


def table(kind: Any) -> registry.Table | None:
    """The table whose components a type allows, of which `name` picks one."""
    return next((found for one in options(kind) if (found := registry.table_of(one))), None)


def is_section(kind: Any) -> bool:
    """Does a type allow a section of the schema's keys?"""
    return any(isinstance(one, type) and issubclass(one, BaseModel) for one in options(kind))


def names(kind: Any) -> list[str]:
    """Names of the components that a type allows."""
    found = table(kind)
    return found.names() if found else []


def chosen(kind: Any, node: Node | None) -> type[BaseModel] | None:
    """The section that a value of this type is; None where it names no component that there is."""
    if found := table(kind):
        name = node.get("name") if node is not None else None
        model: type[BaseModel] | None = found.known(name) if isinstance(name, str) else None
        return model
    return next(
        (one for one in options(kind) if isinstance(one, type) and issubclass(one, BaseModel)), None
    )


def having(kind: Any, key: str) -> list[str]:
    """Names of the components with this key."""
    found = table(kind)
    known = [(name, found.known(name)) for name in found.names()] if found else []
    return [name for name, model in known if model is not None and key in fields(model)]


def unusable(node: Node | None) -> bool:
    """Does a section refer to a component of the user's own, as a file or a package has it?"""
    return node is not None and references.is_reference(str(node.get("name")))


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """Types of a section's keys."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def entries(kind: Any) -> Any:
    """Type of a list's entries; None for what is no list. Lists of fixed length have entries of one
    type here."""
    return next(
        (get_args(one)[0] for one in options(kind) if get_origin(one) in (tuple, list)), None
    )


def child(kind: Any, node: Node | None, key: str) -> Any:
    """Type of what is below a key, or at a place of a list; None where there is no such key."""
    if is_section(kind):
        model = chosen(kind, node)
        if model is not None:
            return fields(model).get(key)
        # of a component that there is not any key may be meant
        return Any if unusable(node) or having(kind, key) else None
    for one in options(kind):
        if is_typeddict(one):
            return get_type_hints(one, include_extras=True).get(key, Any)
        if get_origin(one) is dict or one in (Any, dict):
            return get_args(one)[1] if get_args(one) else Any
    return entries(kind) if key.isdecimal() else None


def plain(node: Node, kind: Any) -> Any:
    """The value for pydantic: a scalar is its text where the type is text, else what YAML makes of
    it."""
    if isinstance(node.value, dict):
        return {
            key: plain(value, child(kind, node, key) or Any) for key, value in node.value.items()
        }
    if isinstance(node.value, list):
        return [plain(value, entries(kind) or Any) for value in node.value]
    if node.text is not None and node.value is not None and is_text(kind, node.text):
        return node.text
    return node.value


def keys(kind: Any, node: Node | None, above: str = "") -> Iterator[str]:
    """All dotted keys of a config that names these components."""
    model = chosen(kind, node)
    held = node.value if node is not None else None
    for key, below in fields(model).items() if model is not None else ():
        yield above + key
        inner = held.get(key) if isinstance(held, dict) else None
        yield from keys(below, inner, f"{above}{key}.")
        if inner is not None and isinstance(inner.value, list):
            for index, entry in enumerate(inner.value):
                yield from keys(entries(below), entry, f"{above}{key}.{index}.")


def unknown(
    dotted: str, node: Node | None, kind: Any, tree: Node, root: Any, prefix: str = ""
) -> str:
    """Words for a key that there is not, with what may be meant. node, kind: the section it is in;
    tree, root: the whole."""
    name, last = node.get("name") if node is not None else None, dotted.rpartition(".")[2]
    if table(kind) and name and (others := having(kind, last)):
        return f"unknown key of {name}, a key of {' and '.join(others)}"
    model = chosen(kind, node)
    component = model is not None and issubclass(model, Component)
    return (
        "unknown key"
        + (f" of {name}" if component else "")
        + suggestion(dotted, tree, root, prefix)
    )


def suggestion(dotted: str, tree: Node, root: Any, prefix: str = "") -> str:
    """Words that name the key, or two, of a config that may be meant by one that there is not;
    nothing where none is close."""
    known = list(dict.fromkeys(keys(root, tree)))
    above, _, last = dotted.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == above}
    found = [siblings[name] for name in get_close_matches(last, siblings, n=1, cutoff=0.7)]
    found = found or get_close_matches(dotted, known, n=1, cutoff=0.85)
    found = found or [key for key in known if key.rpartition(".")[2] == last]
    if not found:
        by_name = {key.rpartition(".")[2]: key for key in reversed(known)}
        found = [by_name[name] for name in get_close_matches(last, by_name, n=1, cutoff=0.8)]
    found.sort(key=lambda key: -SequenceMatcher(None, dotted, key).ratio())
    return f"; did you mean {' or '.join(prefix + key for key in found[:2])}?" if found else ""


def closest(text: Any, known: Sequence[Any]) -> str:
    """Words that name the one of `known` that may be meant; nothing where none is close."""
    found = get_close_matches(str(text), [str(one) for one in known], n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""
