"""Tables of import strings: a method, reward, model, rule or loss is one file and one line.

Every entry is a pydantic class that is both the component's options and the component itself, so
that a config section, once validated, can be called. The modules must import light packages only at
their top: loading a config needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, Union

from pydantic import Field

from branchgrpo.types import Component


def load(target: str) -> type[Component]:
    """The class behind "package.module:Class"."""
    module, _, attribute = target.partition(":")
    found: type[Component] = getattr(import_module(module), attribute)
    return found


def union(table: dict[str, str]) -> Any:
    """A pydantic type for "one of this table", told apart by the key `name`."""
    classes = [load(target) for target in table.values()]
    if len(classes) == 1:
        return classes[0]
    # made at run time
    return Annotated[Union[tuple(classes)], Field(discriminator="name")]  # noqa: UP007
