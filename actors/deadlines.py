"""What a method says of how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

M = TypeVar("M", bound=Callable[..., Any])


def storage_bound(method: M) -> M:
    """Marks a method that waits for files, perhaps of a slow or stalled storage: how long it took
    says little of the next time, so only the longest deadline holds for it."""
    method.storage_bound = True  # type: ignore[attr-defined]
    return method
