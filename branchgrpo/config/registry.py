"""Tables of components: a name of a config section → the class that fills it.

An entry is a pydantic class that is both the component's options and the component itself, so that
a config section, once validated, can be called. A name is

* of the table itself: one file and one line in `branchgrpo/KIND/__init__.py`, imported when named;
* registered by `register`, or by an installed package as an entry point of `branchgrpo.KIND`;
* `./FILE.py:NAME`, or `package.module:NAME` of an installed package (references.py).

The modules must import light packages only at their top: loading a config needs no torch. A
component that is not of the table itself gets a class of its own, whose `name` is the name by which
it was asked for; its instances are pickled with what makes that class again elsewhere.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic_core import PydanticKnownError, core_schema

from branchgrpo import models, rewards, sinks
from branchgrpo.algo import advantage, loss, methods, pruning
from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.loss.base import LossOptions
from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.pruning.base import PruningOptions
from branchgrpo.config import references
from branchgrpo.config.references import Object as Object
from branchgrpo.config.references import Source, Unusable
from branchgrpo.errors import UserError
from branchgrpo.models.base import ModelOptions
from branchgrpo.rewards.base import Nested, RewardOptions
from branchgrpo.rewards.function import component_of
from branchgrpo.sinks.base import SinkOptions
from branchgrpo.types import Component


class Table:
    """One kind of component. Annotates a field of the config, which it then validates."""

    def __init__(
        self,
        kind: str,
        base: type[Component],
        shipped: Mapping[str, str],
        must: str,
        adapt: Callable[[Any, str], type[Component]] | None = None,
    ):
        self.kind = kind
        self.base = base
        self.shipped = shipped
        self.must = must  # the method that makes a component one
        self.adapt = adapt  # a function → a component
        self.registered = dict[str, Source]()

    def names(self) -> list[str]:
        """What can be named by a word: shipped, registered and installed components."""
        return list(dict.fromkeys([*self.shipped, *self.registered, *self.installed()]))

    def installed(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages; a shipped name stays ours."""
        return {
            name: point
            for name, point in references.installed(f"branchgrpo.{self.kind}").items()
            if name not in self.shipped
        }

    def find(self, name: str) -> Any:
        """The component's class. Raises Unusable, and KeyError for a word that names none."""
        if name in self.shipped:
            return load(self.shipped[name])
        if name in self.registered:
            return self.plugged(name, self.registered[name])
        if references.is_reference(name):
            return self.plugged(name, references.parse(name))
        if point := self.installed().get(name):
            return self.plugged(name, references.parse(point.value))
        raise KeyError(name)

    def known(self, name: object) -> Any:
        """`find`, or None where there is none."""
        try:
            return self.find(str(name))
        except (KeyError, Unusable):
            return None

    def plugged(self, name: str, source: Source) -> Any:
        """The class behind a name that is not of the table itself. Raises Unusable, and the same
        again, without another try, until `retry`."""
        key = (self.kind, name, source)
        if key in _UNUSABLE:
            raise _UNUSABLE[key]
        try:
            return _plugged(*key)
        except Unusable as error:
            _UNUSABLE[key] = error
            raise

    def component(self, found: Any, name: str, where: str) -> type[Component]:
        """What was found, as a component. Raises Unusable for what is none."""
        wanted = f"a subclass of {self.base.__name__}"
        if self.adapt and callable(found) and not isinstance(found, type):
            try:
                return self.adapt(found, name)
            except ValueError as error:
                raise Unusable(f"{where}: {error}") from None
        if self.adapt:
            wanted += " or a function f(images, samples)"
        if not isinstance(found, type) or not issubclass(found, self.base) or found is self.base:
            raise Unusable(f"expected {wanted}, got {_described(found)} at {where}")
        if getattr(found, self.must) is getattr(self.base, self.must):
            raise Unusable(f"expected a method {self.must} of {found.__name__} at {where}")
        return found

    def validate(self, value: Any) -> Any:
        """A component from a section of a config."""
        if isinstance(value, self.base):
            return value
        if not isinstance(value, Mapping):
            raise PydanticKnownError("model_attributes_type")
        if "name" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
        name = str(value["name"])
        try:
            found = self.find(name)
        except KeyError:
            tags = {"discriminator": "'name'", "tag": name, "expected_tags": "a name"}
            raise PydanticKnownError("union_tag_invalid", tags) from None
        except Unusable as error:
            raise ValueError(f"name: {error}") from error
        return found.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """One of those that have a word for a name, or any other by reference."""
        known = {name: self._schema_of(name) for name in self.names()}
        found = handler(core_schema.tagged_union_schema(known, discriminator="name"))
        described = f"{references.FORMS}: a component of one's own, with its own keys"
        keys = {"name": {"type": "string", "pattern": ":", "description": described}}
        found["oneOf"].append({"type": "object", "properties": keys, "required": ["name"]})
        return found

    def _schema_of(self, name: str) -> Any:
        try:
            return self.find(name).__pydantic_core_schema__
        except Unusable as error:
            raise UserError(f"{self.kind}: {name}: {error}") from error


def load(target: str) -> Any:
    """The class behind "package.module:Class" of our own."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


REWARDS = Table("rewards", RewardOptions, rewards.REGISTRY, must="build", adapt=component_of)
Nested.validate = REWARDS.validate
MODELS = Table("models", ModelOptions, models.REGISTRY, must="build")
METHODS = Table("methods", MethodOptions, methods.REGISTRY, must="full_plan")
ADVANTAGE = Table("advantage", AdvantageOptions, advantage.REGISTRY, must="credit")
PRUNING = Table("pruning", PruningOptions, pruning.REGISTRY, must="keep")
LOSS = Table("loss", LossOptions, loss.REGISTRY, must="__call__")
SINKS = Table("sinks", SinkOptions, sinks.REGISTRY, must="open")

TABLES = {
    table.kind: table for table in (REWARDS, MODELS, METHODS, ADVANTAGE, PRUNING, LOSS, SINKS)
}

_BY_BASE = {table.base: table for table in TABLES.values()}


def table_of(kind: Any) -> Table | None:
    """The table whose components a field of this type holds."""
    return _BY_BASE.get(kind) if isinstance(kind, type) else None


_UNUSABLE = dict[tuple[str, str, Source], Unusable]()


def retry() -> None:
    """What could not be imported may be tried again: a config is asked for the same component many
    times while it is read."""
    _UNUSABLE.clear()


def register(kind: str, name: str, target: Any) -> None:
    """Give a component of one's own a name in a table, in this process and the workers of its runs;
    the same name again replaces it.

    kind: rewards, models, methods, advantage, pruning, loss or sinks. target: a class, for rewards
    also a function f(images, samples) -> list[float]; or `./FILE.py:NAME`, `package.module:NAME`.
    Raises UserError for what is no component, and for names that are taken or no words.
    """
    if kind not in TABLES:
        raise UserError(f"register: expected one of {', '.join(TABLES)}, got {kind!r}")
    table = TABLES[kind]
    if not name.replace("-", "_").replace(".", "_").isidentifier():
        raise UserError(f"register: expected a name of letters, digits, . _ and -, got {name!r}")
    if name in table.shipped:
        raise UserError(f"register: expected a name that is free, got {name!r}, which is shipped")
    retry()
    try:
        source = references.parse(target) if isinstance(target, str) else Object(target)
        table.plugged(name, source)
    except Unusable as error:
        raise UserError(f"register: {name}: {error}") from error
    table.registered[name] = source


@cache
def _plugged(kind: str, name: str, source: Source) -> Any:
    """Each component has one class in a process, so that equal configs are equal."""
    table = TABLES[kind]
    found = table.component(source.load(), references.attribute(name), _place(source))

    def reduced(self: Component) -> Any:
        state = self.model_dump(), pickle.dumps(self.__getstate__())
        return _blank, (kind, name, source), state, None, None, _fill

    described = f"the component: {name}"
    members = {
        "__module__": found.__module__,
        "__qualname__": found.__qualname__,
        "__doc__": found.__doc__,
        "__annotations__": {"name": Literal[name], "plugin": ClassVar[bool]},
        "name": Field(name, description=described),
        "plugin": True,
        "__reduce__": reduced,
    }
    metaclass: Any = type(found)
    return metaclass(found.__name__, (found,), members)


def _blank(kind: str, name: str, source: Source) -> Any:
    """An instance that pickle fills: one that cannot be used, where its class cannot be had."""
    try:
        made = TABLES[kind].plugged(name, source)
    except Unusable as error:
        made = _absent(TABLES[kind], f"{kind}: {error}: what it imports must be on every worker")
    return made.__new__(made)


def _fill(made: Any, state: tuple[dict[str, Any], bytes]) -> None:
    """Its values: as they are, or as plain ones where their classes cannot be had either."""
    plain, whole = state
    if getattr(type(made), "plugin", False):
        made.__setstate__(pickle.loads(whole))
    else:
        object.__setattr__(made, "__dict__", plain)


def _absent(table: Table, why: str) -> Any:
    """A component whose values can be read and nothing else: a process that needs more of it ends
    with one line that says why it is not there, and one that does not need it goes on."""

    def read(self: Component, key: str) -> Any:
        values = object.__getattribute__(self, "__dict__")
        if key in values or key in ("called", "title") or key.startswith(("_", "model_")):
            return object.__getattribute__(self, key)
        raise UserError(why)

    def use(self: Component, *arguments: Any, **keys: Any) -> Any:
        raise UserError(why)

    metaclass: Any = type(table.base)
    members = {"__module__": __name__, "__getattribute__": read, table.must: use}
    return metaclass(f"Absent{table.base.__name__}", (table.base,), members)


def _place(source: Source) -> str:
    if isinstance(source, Object):
        return f"{getattr(source.value, '__module__', '')}.{_described(source.value)}"
    return f"{source.path if isinstance(source, references.File) else source.module}:{source.name}"


def _described(found: Any) -> str:
    what = "the class" if isinstance(found, type) else type(found).__name__
    return f"{what} {getattr(found, '__name__', repr(found)[:60])}"
