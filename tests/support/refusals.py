"""Refusals of the cluster, in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.errors import PlacementError


def refusal(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(PlacementError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
