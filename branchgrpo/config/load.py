"""The configuration: a YAML file plus dotted command-line overrides, checked before anything
starts.

Loading one imports neither torch nor Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from branchgrpo.config import errors as config_errors
from branchgrpo.config import kinds, overrides, references, registry, secrets
from branchgrpo.config.schema import Config as Config
from branchgrpo.config.shipped import PRESETS, config_file, presets
from branchgrpo.config.tree import Node, merge, read
from branchgrpo.errors import UserError
from branchgrpo.rewards.base import RewardOptions

METHOD_SECTIONS = ("method", "advantage", "pruning", "loss")
"""What a preset decides in full."""


def _preset(name: Any) -> Node:
    """A preset's keys: one of ours, or a YAML file, which may itself be based on one of ours."""
    if name in presets():
        return read(PRESETS / f"{name}.yaml")
    if not str(name).endswith((".yaml", ".yml")):
        raise UserError(
            f"preset: expected a YAML file or one of {', '.join(presets())}, got "
            f"{name!r}{kinds.closest(name, presets())}"
        )
    tree, own = _own(read(Path(name).expanduser()), "preset")
    if own is not None and own.value not in presets():
        raise UserError(
            f"{own.origin}: preset: expected one of {', '.join(presets())}, got "
            f"{_shown(own)!r}{kinds.closest(own.value, presets())}"
        )
    return merge(_preset(own.value), tree) if own is not None else tree


def _labelled(preset: str) -> Node:
    """The label of runs by this preset: its name, or its file's."""
    name = Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset
    label = Node(re.sub(r"[^A-Za-z0-9._-]", "-", name), "preset")
    return Node({"run": Node({"label": label}, "preset")}, "preset")


def _own(tree: Node, key: str) -> tuple[Node, Node | None]:
    """A file's own keys, and the preset or base that it names."""
    own = tree.value.get(key)
    if own is not None and own.value is None:
        own = None
    return _without(tree, key), own


def _without(tree: Node, *keys: str) -> Node:
    return replace(tree, value={key: one for key, one in tree.value.items() if key not in keys})


def _based(path: Path, above: tuple[Path, ...] = ()) -> Node:
    """A file's keys on top of those of its `base`: a shipped config, or a YAML file, whose path is
    relative to the file's folder. A preset of its own replaces what the base says about the
    method."""
    tree, base = _own(read(path), "base")
    if base is None:
        return tree
    name, above = str(_shown(base)), (*above, path.resolve())
    try:
        file = path.parent / name if name.endswith((".yaml", ".yml")) else config_file(name)
    except UserError as error:
        raise UserError(f"{base.origin}: base: {str(error).removeprefix('config: ')}") from error
    if file.resolve() in above:
        raise UserError(
            f"{base.origin}: base: expected a file that is not based on this, got {name}"
        )
    below = _based(file, above)
    return merge(_without(below, *METHOD_SECTIONS) if "preset" in tree.value else below, tree)


def _shown(node: Node) -> Any:
    return kinds.plain(node, Any)


def load(path: Path, texts: Mapping[str, str] | None = None, preset: str | None = None) -> Config:
    """Read and check a config. Raises UserError with a line for each mistake: where it was written,
    the key, what was expected, what came.

    A file's own keys go on top of its `base` and of the preset that it names; `preset` (the command
    line's) replaces what the file says about the method; `texts`, the command line's dotted keys,
    go on top of all.
    """
    tree, own = _own(_based(path), "preset")
    if preset is not None:
        tree = merge(_without(tree, *METHOD_SECTIONS), _preset(preset))
        tree = merge(tree, _labelled(preset))
    elif own is not None:
        name = _shown(own)
        tree = merge(merge(_labelled(str(name)), _preset(name)), tree)
    return cast(Config, _checked(replace(tree, origin=str(path)), Config, texts or {}))


def reward(name: str, texts: Mapping[str, str], prefix: str = "reward.") -> RewardOptions:
    """Options of the reward `name` with these keys of the command line, which name them after
    `prefix`. Raises UserError as `load` does."""
    registry.retry()
    name, table = references.absolute(name, Path()), registry.REWARDS
    try:
        found = table.find(name)
    except KeyError:
        raise UserError(
            f"serve-reward: expected one of {', '.join(table.names())}, got "
            f"{name!r}{kinds.closest(name, table.names())}"
        ) from None
    except references.Unusable as error:
        raise UserError(f"serve-reward: {error}") from error
    tree = Node({"name": Node(name, "serve-reward", name)}, "serve-reward")
    return cast(RewardOptions, _checked(tree, found, texts, prefix))


def _checked(tree: Node, kind: Any, texts: Mapping[str, str], prefix: str = "") -> Any:
    registry.retry()
    tree, problems = overrides.apply(tree, kind, texts, f"--{prefix}")
    problems += secrets.missing(tree)
    try:
        found = kind.model_validate(kinds.plain(tree, kind))
    except ValidationError as error:
        problems += config_errors.lines(error, tree, kind, prefix)
    if problems:
        raise UserError("\n".join(problems))
    return found


def plain(config: Config) -> dict[str, Any]:
    """The whole config as mappings, lists and scalars, without its secrets: what may be written and
    sent."""
    found: dict[str, Any] = secrets.masked(config.model_dump(mode="json", by_alias=True))
    return found


def dump(config: Config) -> str:
    """The whole config as YAML, every default written out, secrets masked; `load` reads it back,
    where it had none."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
