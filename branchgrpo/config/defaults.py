"""What of a config is not as it would be if nobody had said anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.types import Component


class Difference(NamedTuple):
    """A key of a config. Values are plain, and masked where they are secret."""

    key: str  # dotted
    default: Any  # None where there is no default
    value: Any


def differing(config: Config) -> list[Difference]:
    """Keys whose values are not their defaults, in the config's own order; and the name of every
    component, which says what its keys are."""
    return list(_differing(config, None, configs.plain(config), ""))


def _differing(
    section: BaseModel, usual: BaseModel | None, shown: Any, prefix: str
) -> Iterator[Difference]:
    """usual: what the section is where nobody says anything, if it is of the same kind."""
    if named := isinstance(section, Component):
        yield Difference(f"{prefix}name", None, shown["name"])
    for name, field in type(section).model_fields.items():
        key, value = field.alias or name, getattr(section, name)
        default = getattr(usual, name) if usual else _default(field)
        dotted = f"{prefix}{key}"
        if isinstance(value, BaseModel):
            same = default if type(default) is type(value) else None
            yield from _differing(value, same, shown[key], f"{dotted}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for index, (one, plain) in enumerate(zip(value, shown[key], strict=True)):
                yield from _differing(one, None, plain, f"{dotted}.{index}.")
        elif field.is_required() and not usual:
            yield Difference(dotted, None, shown[key])
        elif not (named and name == "name") and value != default:
            yield Difference(dotted, default, shown[key])


def _default(field: FieldInfo) -> Any:
    """None where there is none."""
    return None if field.is_required() else field.get_default(call_default_factory=True)
