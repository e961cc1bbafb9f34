"""Components outside the tables: `./FILE.py:NAME` of a file, `package.module:NAME` of an installed
package. What they are called, and how they are imported.

A file stands alone: it is read as text, so that it can be sent to workers which do not have it.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import re
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from branchgrpo.errors import UserError, one_line

_FILE = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_MODULE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")

FORMS = "./FILE.py:NAME or package.module:NAME"


class Unusable(ValueError):
    """No component is behind a name; the message is one line that says what was expected, and
    where."""


def is_reference(name: str) -> bool:
    """Is it meant as one? Names in tables have neither colons nor slashes."""
    return ":" in name or "/" in name or name.endswith(".py")


def absolute(name: str, folder: Path) -> str:
    """The same with the path of its file absolute, which is relative to `folder`; any other name as
    it is."""
    found = _FILE.fullmatch(name)
    if not found:
        return name
    return f"{os.path.abspath(folder / Path(found[1]).expanduser())}:{found[2]}"


def attribute(name: str) -> str:
    """What a component is called in its file or module; a name in a table as it is."""
    return name.rpartition(":")[2]


@dataclass(frozen=True, slots=True)
class Module:
    """NAME of an installed module, which every machine must have."""

    module: str
    name: str

    def load(self) -> Any:
        """The object. Raises Unusable."""
        try:
            found = import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name and f"{self.module}.".startswith(f"{error.name}."):
                raise Unusable(
                    f"expected an installed module {self.module}, found no {error.name}"
                ) from error
            raise Unusable(f"{self.module} cannot be imported: {_why(error, '')}") from error
        except (Exception, SystemExit) as error:  # whatever somebody else's module does
            raise Unusable(f"{self.module} cannot be imported: {_why(error, '')}") from error
        return _member(found, self.name, self.module)


@dataclass(frozen=True, slots=True)
class File:
    """NAME of a file, with the file's text: the text travels, the file need not be there."""

    path: str
    text: str
    name: str

    @property
    def module(self) -> str:
        """The module that it becomes, the same in every process."""
        digest = hashlib.sha256(f"{self.path}\0{self.text}".encode()).hexdigest()[:12]
        return f"branchgrpo_file_{Path(self.path).stem}_{digest}"

    def load(self) -> Any:
        """The object; the file is executed once in a process. Raises Unusable."""
        if self.module not in sys.modules:
            self._execute()
        return _member(sys.modules[self.module], self.name, self.path)

    def _execute(self) -> None:
        module = ModuleType(self.module)
        module.__file__ = self.path
        if not os.path.exists(self.path):  # so that tracebacks show its lines
            lines = self.text.splitlines(keepends=True)
            linecache.cache[self.path] = (len(self.text), None, lines, self.path)
        sys.modules[self.module] = module  # before: dataclasses and pydantic look there
        try:
            exec(compile(self.text, self.path, "exec"), vars(module))
        except (Exception, SystemExit) as error:  # whatever somebody else's file does
            del sys.modules[self.module]
            raise Unusable(
                f"{self.path} cannot be imported: {_why(error, self.path)}{self._beside(error)}"
            ) from error

    def _beside(self, error: BaseException) -> str:
        missing = (getattr(error, "name", None) or "").partition(".")[0]
        beside = Path(self.path).with_name(missing) if missing else None
        if beside is None or not (beside.is_dir() or beside.with_suffix(".py").is_file()):
            return ""
        return (
            f" ({missing} lies beside it, but only the file itself travels to the workers: put "
            "both in one file, or install them and name package.module:NAME)"
        )


class Object:
    """A class or function that `register` was given; it travels as pickle sends it."""

    def __init__(self, value: Any):
        self.value = value

    def load(self) -> Any:
        return self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Object) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


Source = Module | File | Object


def parse(name: str) -> Module | File:
    """What a reference names. Raises Unusable for other names, and for a file that cannot be
    read."""
    if found := _FILE.fullmatch(name):
        path = Path(found[1]).expanduser().absolute()
        try:
            return File(str(path), path.read_text(encoding="utf-8"), found[2])
        except FileNotFoundError:
            raise Unusable(f"expected a Python file, found nothing at {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable(
                f"expected a Python file, cannot read {path}: {one_line(error)}"
            ) from error
    if found := _MODULE.fullmatch(name):
        return Module(found[1], found[2])
    raise Unusable(f"expected {FORMS}, got {name!r}")


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Entry points of installed packages, by name. Raises UserError where two take one name."""
    found = dict[str, EntryPoint]()
    for point in entry_points(group=group):
        if (other := found.get(point.name)) and other.value != point.value:
            raise UserError(
                f"{group}: expected different names of entry points, got {point.name} twice: "
                f"{other.value} and {point.value}"
            )
        found[point.name] = point
    return found


def _member(module: ModuleType, name: str, where: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        own = [
            key
            for key, value in vars(module).items()
            if not key.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
        there = f", which has {', '.join(own)}" if own else ""
        raise Unusable(f"expected {name} in {where}{there}") from None


def _why(error: BaseException, path: str) -> str:
    """What went wrong, with the line of the file at `path`."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == path else None
    for frame in traceback.extract_tb(error.__traceback__):
        line = frame.lineno if frame.filename == path else line
    words = error.msg if isinstance(error, SyntaxError) else one_line(error)
    return f"{f'line {line}: ' if line else ''}{type(error).__name__}: {words}"
