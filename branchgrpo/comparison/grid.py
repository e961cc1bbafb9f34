"""A small grid of config keys that every method of a comparison is tuned with: what was asked
for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from branchgrpo.comparison.budget import Budget
from branchgrpo.config import kinds
from branchgrpo.config.tree import Node, parse
from branchgrpo.config.tree import read as read_file
from branchgrpo.errors import UserError

Keys = dict[str, str]
"""Values by dotted key, as the command line has them."""

FIRST_SEED = 1000
"""Of the grid's runs: what is tuned has not seen the seeds that are compared."""


@dataclass(frozen=True)
class Grid:
    """values: of each dotted key, as the command line has them. seeds: runs of each point. budget:
    of each run."""

    values: dict[str, tuple[str, ...]]
    seeds: int
    budget: Budget

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError(f"--grid-seeds: expected at least 1, got {self.seeds}")
        if not self.values:
            raise UserError("--grid: expected at least one key with a list of values, got none")
        for key, values in self.values.items():
            if not re.fullmatch(r"\w+(\.\w+)*", key):
                raise UserError(f"--grid: expected dotted keys of the config, got {key!r}")
            if not values or len(set(values)) != len(values):
                raise UserError(
                    f"--grid: {key}: expected a list of different values, got "
                    f"{', '.join(values) or 'none'}"
                )

    def points(self, keys: Iterable[str]) -> list[Keys]:
        """All combinations of these keys' values, the last key's vary first; none for no key."""
        chosen = list(keys)
        combined = product(*(self.values[key] for key in chosen)) if chosen else ()
        return [dict(zip(chosen, values, strict=True)) for values in combined]

    @property
    def run_seeds(self) -> list[int]:
        """Seeds of each point's runs."""
        return [FIRST_SEED + number for number in range(self.seeds)]

    def request(self) -> str:
        """All of it, as JSON."""
        return json.dumps(
            [list(self.values.items()), self.seeds, self.budget.iterations, self.budget.seconds]
        )


def read(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Values by key of what follows --grid: a YAML file of keys with lists, or KEY=V1,V2. Raises
    UserError with one line."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        inline = equals and not Path(text).is_file()
        for name, values in ({key: _listed(listed)} if inline else _of_file(text)).items():
            if name in found:
                raise UserError(f"--grid: {name}: expected it once, got it twice")
            found[name] = values
    return found


def _listed(text: str) -> tuple[str, ...]:
    """Of `V1,V2`, each as YAML has it: `[1, 3],[2, 4]` are two lists."""
    try:
        return _texts(parse(f"[{text}]", "--grid"))
    except UserError as error:
        raise UserError(
            f"--grid: expected values as V1,V2 or [a, b],[c, d], got {text!r}"
        ) from error


def _of_file(text: str) -> dict[str, tuple[str, ...]]:
    try:
        tree = read_file(Path(text).expanduser())
    except UserError as error:
        words = str(error).removeprefix("config: ")
        raise UserError(f"--grid: expected KEY=V1,V2 or a file: {words}") from error
    found = {}
    for key, node in tree.value.items():
        if not isinstance(node.value, list):
            raise UserError(
                f"--grid: {node.origin}: expected a dotted key with a list of values, got {key}"
            )
        found[key] = _texts(node)
    return found


def _texts(node: Node) -> tuple[str, ...]:
    return tuple(
        json.dumps(kinds.plain(one, Any))
        if isinstance(one.value, dict | list) or one.text is None
        else one.text
        for one in node.value
    )
