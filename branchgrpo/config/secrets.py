"""Secrets in a config: how they are masked wherever it is written or sent, and given without being
written.

Secret are the values of a runtime_env's env_vars, passwords in URLs, and those of their query's
parameters that look like keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from branchgrpo.config.tree import Node
from branchgrpo.errors import UserError

MASK = "***masked***"
"""Stands for a secret in what is written. A config that has it is refused: it is not the truth."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^\s\"<>]+")
_USER = re.compile(r"(?<=://)([^/?#]*)(?=@)")
_PARAMETER = re.compile(r"(?<=[?&;])([^=&;#]+)=([^&;#']+)")
_SECRET = re.compile(
    r"token|secret|passw|pwd|signature|^sig$|credential|auth|(^|[-_])key|api_?key|access_?key",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)\}")


def masked(value: Any, keys: Sequence[str] = ()) -> Any:
    """A plain value of a config, without its secrets. keys: where it is."""
    if "env_vars" in keys and not isinstance(value, (Mapping, list, tuple)):
        return value if _REFERENCE.fullmatch(str(value)) else MASK
    if isinstance(value, Mapping):
        return {key: masked(below, [*keys, str(key)]) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(below, keys) for below in value]
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """A text without the secrets of the URLs in it."""
    return _URL.sub(_masked_url, text)


def _masked_url(match: re.Match[str]) -> str:
    def user(found: re.Match[str]) -> str:
        name, colon, password = found[1].partition(":")
        if colon:
            return f"{name}:{MASK}" if password else found[1]
        # https://TOKEN@host, but ssh://git@host
        return MASK if name and "http" in match[1].lower() else name

    url = _USER.sub(user, match[0], count=1)
    return _PARAMETER.sub(
        lambda found: f"{found[1]}={MASK}" if _SECRET.search(found[1]) else found[0], url
    )


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
    reference = _REFERENCE.fullmatch(text)
    if not reference:
        return text
    if reference[1] not in os.environ:
        raise UserError(
            f"{key}: expected the environment variable {reference[1]}, which is not set"
        )
    return os.environ[reference[1]]
