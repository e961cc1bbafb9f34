"""The configuration: a YAML file plus dotted command-line overrides, checked before anything starts.

Loading one imports neither torch nor Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from branchgrpo.errors import UserError
from branchgrpo.schema import Config as Config

PRESETS = Path(__file__).resolve().parents[1] / "configs" / "methods"
"""Where presets are: a method by one line."""

COMPONENTS = ("model", "method", "advantage", "loss")
"""Sections whose `name` picks one of several."""

METHOD_SECTIONS = ("method", "advantage", "pruning", "loss")
"""What a preset decides in full."""


def presets() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: a date that is none, bytes that are not UTF-8
        raise UserError(f"config: expected a YAML file, cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: expected a mapping of sections in {path}, got {type(tree).__name__}")
    return tree


def _preset(name: Any) -> dict[str, Any]:
    """A preset's keys: one of ours, or a YAML file, which may itself be based on one of ours."""
    if name in presets():
        return _yaml(PRESETS / f"{name}.yaml")
    if not str(name).endswith((".yaml", ".yml")):
        raise UserError(f"preset: expected a YAML file or one of {', '.join(presets())}, got {name!r}")
    tree = _yaml(Path(name).expanduser())
    own = tree.pop("preset", None)
    if own is not None and own not in presets():
        raise UserError(f"{name}: preset: expected one of {', '.join(presets())}, got {own!r}")
    found: dict[str, Any] = _merge(_preset(own), tree) if own is not None else tree
    return found


def _merge(below: Any, above: Any) -> Any:
    """`above` on top of `below`, mapping by mapping; sections that name different components don't mix."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _replaced(below.get(key), value) if key in COMPONENTS else _merge(below.get(key), value) for key, value in above.items()}


def _replaced(below: Any, above: Any) -> Any:
    same = isinstance(below, dict) and isinstance(above, dict) and below.get("name") == above.get("name", below.get("name"))
    return _merge(below, above) if same else above


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a.b.c in nested dicts and lists; a number names a list's entry."""
    *path, last = dotted.split(".")
    node: Any = tree
    try:
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"--{dotted}: there is no such key") from error


def value(key: str, text: str) -> Any:
    """An override's text as YAML reads it; nothing is an empty string. Raises UserError that names the key."""
    try:
        return yaml.safe_load(text) if text else ""
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"--{key}: expected a YAML value, got {text!r}") from error


def load(path: Path, overrides: dict[str, str] | None = None, preset: str | None = None) -> Config:
    """Read and check a config. Raises UserError with one line that names the key.

    A file's own keys go on top of the preset that it names; `preset` (the command line's) replaces what the file
    says about the method; overrides go on top of all.
    """
    tree = _yaml(path)
    own = tree.pop("preset", None)
    if preset is not None:
        tree = _merge({key: value for key, value in tree.items() if key not in METHOD_SECTIONS}, _preset(preset))
    elif own is not None:
        tree = _merge(_preset(own), tree)
    for key, text in (overrides or {}).items():
        _set(tree, key, value(key, text))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(path, error)) from error


def _one_line(path: Path, error: ValidationError) -> str:
    first, *rest = error.errors()
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    got = "" if first["type"] in ("extra_forbidden", "missing", "value_error") else f", got {first['input']!r}"
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{path}: {where + ': ' if where else ''}{message}{got}{more}"


def dump(config: Config) -> str:
    """The whole config as YAML, every default written out; `load` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
