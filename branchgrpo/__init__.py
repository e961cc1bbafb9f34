"""BranchGRPO: tree rollouts and dense credit for reinforcement learning of flow models, on Ray.

In Python (docs/api.md):

    import branchgrpo as bg
    config = bg.load_config("quickstart", overrides={"run.iterations": 50})
    result = bg.train(config, rewards=[my_function])

Importing this package imports neither torch nor Ray.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from branchgrpo.app.api import compare as compare
    from branchgrpo.app.api import evaluate as evaluate
    from branchgrpo.app.api import load_config as load_config
    from branchgrpo.app.api import register as register
    from branchgrpo.app.api import train as train
    from branchgrpo.errors import UserError as UserError
    from branchgrpo.types import Sample as Sample

__version__ = "0.1.0"

_API = "branchgrpo.app.api"
_PLACES = {
    "load_config": _API,
    "evaluate": _API,
    "register": _API,
    "UserError": "branchgrpo.errors",
    "Sample": "branchgrpo.types",
}
_ROOMS = ("train", "compare")
"""Rooms of this package whose name is also a function's."""

__all__ = ["Sample", "UserError", "__version__", "compare", "evaluate", "load_config", "register"]
__all__ += ["train"]


class _Room(ModuleType):
    """A room that is called as the function of its name: `branchgrpo.train(config)`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(import_module(_API), self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """Python sets a room as an attribute of its package when it is first imported, which would hide
    the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
