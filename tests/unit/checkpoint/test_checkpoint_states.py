"""States of a checkpoint come back as they were, or are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branchgrpo.checkpoint.store import Store

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Equal in value and type, NaN to NaN, -0.0 not to 0.0."""
    if isinstance(one, float):
        return type(other) is float and (
            np.float64(one).tobytes() == np.float64(other).tobytes()
            or (math.isnan(one) and math.isnan(other))
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_state(state: dict[str, Any]) -> None:
    store = Store("memory://any-state")
    assert same(state, store.save(0, 0, state, {}).state())


def test_state_of_numpy(tmp_path: Path) -> None:
    state = {
        "a": np.float32(0.1),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": (np.float64("nan"), np.uint8(1)),
        "e": np.str_("x"),
    }
    found = Store(tmp_path).save(0, 0, state, {}).state()
    assert same(
        found, {"a": float(np.float32(0.1)), "b": 3, "c": True, "d": [math.nan, 1], "e": "x"}
    )


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"b": [1, torch.ones(1)]}}, r"state\.a\.b\[1\]: expected None, .* got Tensor"),
        ({"a": np.ones(2)}, r"state\.a: .* got ndarray"),
        ({"a": {1: 2}}, r"state\.a: .* got a dict whose keys are not all strings"),
        ({"a": b"x"}, r"state\.a: .* got bytes"),
        ({"a": np.complex64(1j)}, r"state\.a: .* got complex"),
        ({"a": {"b"}}, r"state\.a: .* got set"),
    ],
)
def test_state_that_would_come_back_as_something_else(
    tmp_path: Path, state: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        Store(tmp_path).save(0, 0, state, {})
    assert list(tmp_path.iterdir()) == []
