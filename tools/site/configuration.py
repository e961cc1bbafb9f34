"""Write docs/configuration.md from the schema: every key, its type, default and meaning.

python -m tools.site.configuration
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from branchgrpo.config import kinds
from branchgrpo.config.schema import Config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
HEAD = """\
# Configuration

<!-- Written by `python -m tools.site.configuration`. -->

A config is a YAML file of these sections. `branchgrpo train my.yaml` reads it; `base: NAME` at its
top goes on from a [shipped one](models.md#shipped-configs), so that the file says what differs;
`--preset NAME` lays a [method](methods.md#presets) on top; and each key may be given on the command
line by its dotted name:

```
branchgrpo train my.yaml --learner.learning_rate 1e-4 --rewards.0.weight 0.5
branchgrpo config my.yaml --preset dancegrpo    # what that comes to
branchgrpo config --schema                      # this page as a JSON schema, for editors
```

Sections with a `name` take one of several components, each with keys of its own, or a
[component of yours](plugins.md). Unknown keys are errors, which say what may be meant. Where the
default is –, the key must be given; a file with a `base` has it from there.
"""
PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text"}
PAGES = re.compile(r"docs/([\w-]+\.md)")
WORDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
Row = tuple[str, str, str]
"""Type, default and meaning."""


def page() -> str:
    """The whole page."""
    fields = Config.model_fields
    alone = {key: one for key, one in fields.items() if not _section(one.annotation)}
    top = {key: cells(one) for key, one in alone.items()}
    parts = [HEAD, "## At the top\n", table(top)]
    for key, one in fields.items():
        if key not in alone:
            parts += [f"## {one.alias or key}\n", f"{_sentence(one.description or '')}\n"]
            parts += section(one, one.alias or key)
    return "\n".join(parts)


def section(field: FieldInfo, key: str) -> Iterator[str]:
    """A section's keys, with those of the components that may fill it."""
    kind = kinds.entries(field.annotation) or field.annotation
    found = kinds.table(kind)
    if found is None:
        yield table({name: cells(row) for name, row in rows(kinds.chosen(kind, None))})
        return
    of_list = kinds.entries(field.annotation) is not None
    yield f"{'A list; each entry is' if of_list else 'It is'} one of:\n"
    known = {
        name: {key: cells(row) for key, row in rows(found.find(name)) if key != "name"}
        for name in found.shipped
    }
    yield "".join(f"- [`{name}`](#{_anchor(f'{key}: {name}')})\n" for name in known)
    common = shared(known)
    if common:
        yield "All have:\n"
        yield table(common)
    for name, keys in known.items():
        yield f"### {key}: {name}\n"
        own = {one: row for one, row in keys.items() if one not in common}
        yield table(own) if own else "No keys of its own.\n"


def shared(components: dict[str, dict[str, Row]]) -> dict[str, Row]:
    """Keys that all components have in the same meaning, with all their defaults."""
    first = next(iter(components.values()))
    found: dict[str, Row] = {}
    for key, (kind, _, meaning) in first.items():
        of_all = [keys.get(key, ("", "", "")) for keys in components.values()]
        if all((one[0], one[2]) == (kind, meaning) for one in of_all):
            by_default: dict[str, list[str]] = {}
            for name, (_, default, _) in zip(components, of_all, strict=True):
                by_default.setdefault(default, []).append(name)
            usual = max(by_default, key=lambda one: len(by_default[one]))
            others = [
                f"{default} ({', '.join(names)})"
                for default, names in by_default.items()
                if default != usual
            ]
            found[key] = kind, "; ".join([usual, *others]), meaning
    return found


def rows(model: Any, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Keys of a section, those of sections within it by their dotted names."""
    for name, field in model.model_fields.items():
        key = above + (field.alias or name)
        if _section(field.annotation) and not _component(field):
            base = field.get_default(call_default_factory=True)
            for inner, row in rows(kinds.chosen(field.annotation, None), f"{key}."):
                value = getattr(base, inner.rpartition(".")[2], PydanticUndefined)
                yield inner, _with_default(row, value)
        else:
            yield key, field


def _with_default(field: FieldInfo, value: Any) -> FieldInfo:
    return field.merge_field_infos(field, default=value)


def table(keys: dict[str, Row]) -> str:
    """Keys as a table."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {' | '.join(row)} |" for key, row in keys.items()]
    return "\n".join(lines) + "\n"


def cells(field: FieldInfo) -> Row:
    """Type, default and meaning of a key."""
    meaning = PAGES.sub(r"[\1](\1)", field.description or "").replace("|", "\\|")
    return described(field.annotation, field.metadata), _default(field), meaning


def described(kind: Any, metadata: Any = ()) -> str:
    """A type in words."""
    if get_origin(kind) is Annotated:
        inner, *extra = get_args(kind)
        return described(inner, [x for one in extra for x in getattr(one, "metadata", [one])])
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis:
        return f"list of {len(get_args(kind))}: {described(get_args(kind)[0])}"
    if (entry := kinds.entries(kind)) is not None:
        return f"list of {described(entry)}"
    if get_origin(kind) is dict:
        return f"mapping: {described(get_args(kind)[1])} by name"
    several = kinds.options(kind) if get_origin(kind) else [kind]
    if len(several) > 1:
        parts = get_args(kind)
        return " or ".join(
            "null" if one is type(None) else described(one, metadata) for one in parts
        )
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a component"
    return f"{PLAIN.get(kind, 'mapping')} {', '.join(_bounds(metadata))}".strip()


def _bounds(metadata: Any) -> Iterator[str]:
    for one in metadata:
        for word, sign in WORDS.items():
            if (bound := getattr(one, word, None)) is not None:
                yield f"{sign} {'2^63' if bound == 2**63 else bound}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "–"
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    if value is None:
        return "null"
    if value in ("", [], {}):
        return "empty"
    if isinstance(value, str) and not value.strip():
        return f'`"{value}"`'
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A value as a config has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _section(kind: Any) -> bool:
    entry = kinds.entries(kind)
    return kinds.is_section(kind if entry is None else entry)


def _component(field: FieldInfo) -> bool:
    kind = kinds.entries(field.annotation)
    return kinds.table(field.annotation if kind is None else kind) is not None


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _anchor(heading: str) -> str:
    return "".join(x for x in heading.lower() if x.isalnum() or x in "-_ ").replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
