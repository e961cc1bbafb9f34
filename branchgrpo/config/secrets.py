"""Secrets in a config: masked wherever it is written or sent (files/masks.py), and given without
being written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from branchgrpo.config.tree import Node
from branchgrpo.errors import UserError
from branchgrpo.files.masks import MASK as MASK
from branchgrpo.files.masks import REFERENCE
from branchgrpo.files.masks import masked as masked
from branchgrpo.files.masks import masked_text as masked_text


def missing(tree: Node, keys: tuple[str, ...] = ()) -> Iterator[str]:
    """A line for each value that was masked when the config was written."""
    if isinstance(tree.value, dict):
        for key, below in tree.value.items():
            yield from missing(below, (*keys, key))
    elif isinstance(tree.value, list):
        for index, below in enumerate(tree.value):
            yield from missing(below, (*keys, str(index)))
    elif MASK in str(tree.value):
        dotted = ".".join(keys)
        variable = ", or as ${VARIABLE} of the environment" if "env_vars" in keys else ""
        yield (
            f"{tree.origin}: {dotted}: expected a secret, which was masked when this was "
            f"written: give it here, by --{dotted} VALUE{variable}"
        )


def given(runtime_env: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A runtime_env for Ray: each of its env_vars that is ${NAME} has this process' value of NAME.

    Other texts stay: in a longer one Ray puts the node's own values. Raises UserError, with `key`,
    for a variable that is not set.
    """
    found = dict(runtime_env)
    if "env_vars" in found:
        found["env_vars"] = {
            name: _given(text, f"{key}.env_vars.{name}") for name, text in found["env_vars"].items()
        }
    return found


def _given(text: str, key: str) -> str:
    reference = REFERENCE.fullmatch(text)
    if not reference:
        return text
    if reference[1] not in os.environ:
        raise UserError(
            f"{key}: expected the environment variable {reference[1]}, which is not set"
        )
    return os.environ[reference[1]]
