"""Secrets in values and texts that are written or sent, and how they are masked.

Secret are the values of a runtime_env's env_vars, passwords in URLs, and those of their query's
parameters that look like keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***masked***"
"""Stands for a secret in what is written. A config that has it is refused: it is not the truth."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^\s\"<>]+")
_USER = re.compile(r"(?<=://)([^/?#]*)(?=@)")
_PARAMETER = re.compile(r"(?<=[?&;])([^=&;#]+)=([^&;#']+)")
_SECRET = re.compile(
    r"token|secret|passw|pwd|signature|^sig$|credential|auth|(^|[-_])key|api_?key|access_?key",
    re.IGNORECASE,
)
REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
"""The value of a variable of the environment, as a config names it: no secret itself."""


def masked(value: Any, keys: Sequence[str] = ()) -> Any:
    """A plain value of a config, without its secrets. keys: where it is."""
    if "env_vars" in keys and not isinstance(value, (Mapping, list, tuple)):
        return value if REFERENCE.fullmatch(str(value)) else MASK
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
