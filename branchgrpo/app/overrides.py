"""Dotted overrides of the config among the arguments of a command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from branchgrpo.config.kinds import closest, fields
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError

CONFIG_KEYS = list(fields(Config))
"""Keys of a config at its top."""

REWARD_KEYS = "reward."
"""Begins the overrides of serve-reward, which name keys of the reward itself."""


def valued(commands: Iterable[argparse.ArgumentParser]) -> set[str]:
    """Options of these commands that take a value."""
    return {
        name
        for command in commands
        for action in command._actions
        if action.nargs != 0
        for name in action.option_strings
    }


def overrides(arguments: list[str], valued: set[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--dotted.key value`, `--dotted.key=value` and `dotted.key=value` out of the arguments;
    `valued` are the other options with a value."""
    plain: list[str] = []
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        key, equals, value = first.partition("=")
        if first in valued and rest:
            plain += [first, rest.pop(0)]
            continue
        if equals and _names_key(key) and not Path(first).exists():
            found[key] = value
            continue
        if not key.startswith("--") or not ("." in key or key[2:] in CONFIG_KEYS):
            plain.append(first)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                begins = f" ({key}=VALUE where it begins with --)" if rest else ""
                raise UserError(f"command line: expected a value after {key}{begins}")
            value = rest.pop(0)
        found[key[2:]] = value
    return plain, found


def _names_key(text: str) -> bool:
    """Is this, without dashes, meant as a key of the config, or of a reward that is served?"""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", text):
        return False
    first, dot, _ = text.partition(".")
    return first in CONFIG_KEYS or bool(
        dot and (first + dot == REWARD_KEYS or closest(first, CONFIG_KEYS))
    )
