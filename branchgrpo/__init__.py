"""BranchGRPO: tree rollouts and dense credit for reinforcement learning of flow models, on Ray.

In Python (docs/api.md):

    import branchgrpo as bg
    config = bg.load_config("quickstart", overrides={"run.iterations": 50})
    result = bg.train(config, rewards=[my_function])

Importing this package imports neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
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
    "train": _API,
    "evaluate": _API,
    "compare": _API,
    "register": _API,
    "UserError": "branchgrpo.errors",
    "Sample": "branchgrpo.types",
}

__all__ = [
    "Sample",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "load_config",
    "register",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
