"""Where a run comes from: of each of its drivers the command, the code, versions, the machine.

FOLDER/drivers/000002.provenance.json is of the second driver.
"""

from __future__ import annotations

import json
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from branchgrpo import __version__
from branchgrpo.config.schema import Config
from branchgrpo.config.secrets import masked, masked_text
from branchgrpo.files.whole import write_whole
from branchgrpo.runs.lease import DRIVERS, read_object

PACKAGES = ("torch", "ray", "diffusers", "transformers")
SUFFIX = ".provenance.json"
GIT_SECONDS = 10.0
"""Longest that git may take to answer: a working folder may be on slow storage."""

Provenance = dict[str, Any]
"""`command`, `folder`, `git` (`commit`, `clean`, or null), `versions`, `host`, `cards` (null: not
known), `seed`."""


def provenance(
    config: Config, arguments: Sequence[str], cards: Sequence[str] | None = None
) -> Provenance:
    """Of this process, without secrets. cards: GPUs by name."""
    return {
        "command": command(arguments),
        "folder": str(Path.cwd()),
        "git": git(Path.cwd()),
        "versions": versions(),
        "host": socket.gethostname(),
        "cards": None if cards is None else list(cards),
        "seed": config.run.seed,
    }


def write(folder: Path, number: int, found: Provenance) -> None:
    """Beside what else is known of the driver of this number."""
    place = folder / DRIVERS
    place.mkdir(exist_ok=True)
    write_whole(place / f"{number:06d}{SUFFIX}", json.dumps(found, indent=1) + "\n")


def read(folder: Path) -> list[Provenance]:
    """Of each driver of a run that told it, in their order."""
    places = sorted((folder / DRIVERS).glob(f"*{SUFFIX}"))
    return [found for path in places if (found := read_object(path))]


def command(arguments: Sequence[str]) -> str:
    """A command line as a shell takes it, without its secrets: those that config.yaml masks, too.
    arguments: as of sys.argv."""
    program = Path(arguments[0]).name if arguments else ""
    if program == "__main__.py":  # python -m branchgrpo
        program = "branchgrpo"
    return shlex.join([program, *_masked(list(arguments[1:]))])


def _masked(arguments: list[str]) -> list[str]:
    """--dotted.key VALUE, --dotted.key=VALUE and dotted.key=VALUE."""
    found, key = list[str](), ""
    for text in arguments:
        name, equals, value = text.partition("=")
        own = name.lstrip("-")
        if equals and all(part.replace("-", "_").isidentifier() for part in own.split(".")[:1]):
            found.append(f"{name}={_value(value, own)}")
        else:
            found.append(text if text.startswith("--") else _value(text, key))
        key = own if text.startswith("--") and not equals else ""
    return found


def _value(text: str, key: str) -> str:
    """A value of this dotted key, which may be YAML."""
    keys = key.split(".")
    with suppress(yaml.YAMLError):
        plain = yaml.safe_load(text)
        if isinstance(plain, (Mapping, list)):
            hidden = masked(plain, keys)
            if hidden != plain:
                return yaml.safe_dump(hidden, default_flow_style=True, width=10**6).strip()
            return masked_text(text)
    return str(masked(text, keys))


def git(folder: Path) -> dict[str, Any] | None:
    """`commit` of a working folder, and whether it was `clean` (null: not known in time); None
    where there is no git, or nothing that it knows."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain")
    return {"commit": commit.strip(), "clean": None if status is None else not status.strip()}


def _git(folder: Path, *arguments: str) -> str | None:
    line = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Of this package, Python, and those of PACKAGES that are installed."""
    found = {"branchgrpo": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def own(config: Config, cards: Sequence[str] | None = None) -> Provenance:
    """`provenance` of this process' own command line."""
    return provenance(config, sys.argv, cards)
