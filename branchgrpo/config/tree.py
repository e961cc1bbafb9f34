"""A config as it was written: values that remember where they came from, read from YAML, and laid
on top of each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from branchgrpo.config import references
from branchgrpo.errors import UserError, one_line

COMPONENTS = ("model", "method", "advantage", "loss")
"""Sections whose `name` picks one of several."""

_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq")
}
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Node:
    """One value. Nodes are shared and never changed."""

    value: Any
    """{key: Node}, [Node, …], or a scalar as YAML reads it."""
    origin: str
    """Where it was written: FILE:LINE, or an option as --learner.ranks."""
    text: str | None = None
    """A scalar as it was written."""

    def get(self, key: str) -> Any:
        """Value of a mapping's key; None where there is none."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return found.value if found is not None else None


def read(path: Path) -> Node:
    """The mapping in a YAML file. Raises UserError with one line that says where."""
    try:
        data = path.read_bytes()
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:2]:
            raise UserError(f"config: {path} is UTF-16: save as UTF-8")
        found = parse(data.decode("utf-8-sig"), str(path), lines=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"config: expected a YAML file, cannot read {path}: {one_line(error)}"
        ) from error
    if not isinstance(found.value, dict):
        raise UserError(
            f"config: expected a mapping of sections in {path}, got {type(found.value).__name__}"
        )
    return replace(found, origin=str(path))


def parse(text: str, source: str, lines: bool = False) -> Node:
    """YAML as a Node. source: what the origins say; lines: with each value's line after it. Raises
    UserError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return _Reader(source, lines).node(root) if root is not None else Node(None, source, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if lines and mark else source
        context = f"{error.context}, " if error.context else ""
        raise UserError(
            f"{place}: expected YAML, but {context}{one_line(error.problem)}"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise UserError(f"config: expected a YAML file, cannot read {source}: {why}") from error


class _Reader:
    """Turns what PyYAML composed into Nodes."""

    def __init__(self, source: str, lines: bool):
        self.source, self.lines = source, lines
        self.folder = Path(source).parent if lines else Path()
        self.loader = yaml.SafeLoader("")
        self.open: set[int] = set()  # nodes that are being read, to find one that holds itself

    def node(self, node: yaml.Node, line: int | None = None) -> Node:
        line = node.start_mark.line if line is None else line
        if id(node) in self.open:
            raise UserError(
                f"{self.place(line)}: expected YAML that does not hold itself, got an alias "
                "of what it is in"
            )
        if node.tag not in _TAGS:
            raise UserError(
                f"{self.place(line)}: expected plain YAML, got the tag "
                f"{node.tag.replace('tag:yaml.org,2002:', '!!')}"
            )
        self.open.add(id(node))
        try:
            return self.content(node, line)
        finally:
            self.open.discard(id(node))

    def content(self, node: yaml.Node, line: int) -> Node:
        if isinstance(node, yaml.MappingNode):
            return Node(self.mapping(node), self.place(line))
        if isinstance(node, yaml.SequenceNode):
            return Node([self.node(entry) for entry in node.value], self.place(line))
        try:
            value = self.loader.construct_object(node)
        except (ValueError, yaml.YAMLError):  # such as 2024-13-45, a date that is none
            value = node.value
        return Node(
            value if isinstance(value, _PLAIN) else node.value, self.place(line), node.value
        )

    def mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(
                    f"{self.place(key.start_mark.line)}: expected a name before the colon, "
                    "got a list or a mapping"
                )
            if key.tag != _MERGE and key.value in lines:
                first, second = lines[key.value] + 1, key.start_mark.line + 1
                places = f", in lines {first} and {second}" if self.lines else ""
                raise UserError(
                    f"{self.place(key.start_mark.line)}: {key.value}: expected each key "
                    f"once, got it twice{places}"
                )
            if key.tag != _MERGE:
                lines[key.value] = key.start_mark.line
        self.loader.flatten_mapping(node)  # puts what `<<` names before the mapping's own keys
        return {
            key.value: component(key.value, self.node(value, key.start_mark.line), self.folder)
            for key, value in node.value
        }

    def place(self, line: int) -> str:
        return f"{self.source}:{line + 1}" if self.lines else self.source


def component(key: str, node: Node, folder: Path) -> Node:
    """The value of a key, where it names a component by its file with the file's path absolute:
    it is relative to the folder of what names it."""
    if key != "name" or not isinstance(node.value, str):
        return node
    name = references.absolute(node.value, folder)
    return replace(node, value=name, text=name) if name != node.value else node


def merge(below: Node | None, above: Node) -> Node:
    """`above` on top of `below`, mapping by mapping; sections that name different components don't
    mix."""
    if below is None or not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    found = dict(below.value)
    for key, value in above.value.items():
        old = found.get(key)
        found[key] = value if key in COMPONENTS and not same(old, value) else merge(old, value)
    return replace(above, value=found)


def same(below: Node | None, above: Node) -> bool:
    """Do two sections name the same component? One without a name is of the other's."""
    if below is None or not isinstance(above.value, dict):
        return False
    return "name" not in above.value or above.get("name") == below.get("name")
