"""Every entry of every table, by a config that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from branchgrpo.config.registry import TABLES
from branchgrpo.config.schema import Config
from support.own_parts import MEMBERS
from support.small_trees import quickstart

SECTIONS = {
    "rewards": "rewards.0",
    "models": "model",
    "methods": "method",
    "advantage": "advantage",
    "pruning": "pruning.0",
    "loss": "loss",
    "sinks": "sinks.0",
}
"""Where a config names a component of each table."""


SHIPPED = [(kind, name) for kind, table in TABLES.items() for name in table.shipped]


EVERY = SHIPPED + [(kind, f"own:{name}") for kind, names in MEMBERS.items() for name in names]


NEEDED = {
    "remote": {"url": "http://127.0.0.1:1"},
    "judge": {"url": "http://127.0.0.1:1/v1", "model": "judge"},
    "pairwise": {"of": "{name: jpeg}"},
    "trunk": {"children": "4"},
    "wandb": {"project": "mine"},
    "mlflow": {"uri": "http://127.0.0.1:9"},
    **{name: {"path": "embedded:tiny-flux"} for name in TABLES["models"].shipped},
    "qwen_image_edit": {"path": "", "source_height": "32", "source_width": "32"},
    "flux": {"path": "embedded:tiny-flux", "height": "32", "width": "32"},
    "own:OwnFlux": {"path": "embedded:tiny-flux", "height": "32", "width": "32"},
}
"""Keys that a component must be given, or is small by."""


def loaded(own: Path, kind: str, name: str, **more: str) -> Config:
    """The quick start with this component."""
    section = SECTIONS[kind]
    keys = {f"{section}.name": name.replace("own:", f"{own}:")}
    given = NEEDED.get(name, {}) | more
    return quickstart(keys | {f"{section}.{key}": value for key, value in given.items()})


def component(found: Config, kind: str) -> Any:
    first = SECTIONS[kind].partition(".")[0]
    part: Any = getattr(found, first)
    return part[0] if isinstance(part, tuple) else part
