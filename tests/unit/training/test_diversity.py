"""How far apart pictures are, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchgrpo.training.diversity import (
    cosine_distance,
    pixel_distance,
    shown,
    summarised,
)
from branchgrpo.types import TreePayload


def test_pictures_are_compared_by_value() -> None:
    black, grey = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    assert pixel_distance(np.stack([black, grey])) == pytest.approx(0.2)
    even = np.stack([np.full((2, 1, 3), value, np.uint8) for value in (0, 51, 255)])
    assert pixel_distance(even) == pytest.approx((0.2 + 1.0 + 0.8) / 3)  # of 3 pairs
    one_of_four = np.zeros((2, 4), np.uint8)
    one_of_four[1, 2] = 255
    assert pixel_distance(one_of_four) == 0.5
    assert pixel_distance(np.zeros((4, 8), np.uint8)) == 0.0


def test_features_are_compared_by_direction() -> None:
    x, y = np.array([3.0, 0.0], np.float32), np.array([0.0, 0.5], np.float32)
    assert cosine_distance(np.stack([x, y])) == pytest.approx(1)
    assert cosine_distance(np.stack([x, 7 * x])) == pytest.approx(0)
    assert cosine_distance(np.stack([x, -x])) == pytest.approx(2)
    # of the pairs: 1, 1 − √½ and 1 − √½
    assert cosine_distance(np.stack([x, y, x / 3 + 2 * y])) == pytest.approx(1 - np.sqrt(2) / 3)


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 1)])
def test_contrast_does_not_change_the_distance_of_features(shape: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert cosine_distance(3 * drawn) == pytest.approx(cosine_distance(drawn))
    slow = [
        1 - float(a.ravel() @ b.ravel()) / float(np.linalg.norm(a) * np.linalg.norm(b))
        for index, a in enumerate(drawn)
        for b in drawn[:index]
    ]
    assert cosine_distance(drawn) == pytest.approx(np.mean(slow))


def test_a_ratio_needs_what_was_before() -> None:
    after = {"latents": np.array([0.2, 0.4], np.float32), "clip": np.array([0.1, 0.1], np.float32)}
    before = {"latents": np.array([0.5, 0.7], np.float32)}
    found = summarised(after, before)
    assert found["latents"]["ratio"] == pytest.approx(0.5) and found["latents"]["n"] == 2
    assert "ratio" not in found["clip"]
    assert shown(found) is found["clip"] and shown({"latents": 1, "pixels": 2}) == 1
    assert shown({}) is None is shown(None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_latents_in_any_storage_dtype(dtype: str) -> None:
    from branchgrpo.models import weights as wire

    drawn = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    stored = drawn.to(getattr(torch, dtype))
    array, name = wire.to_numpy(stored)
    payload = TreePayload(
        subtree=np.zeros(3, np.int32),
        node=np.arange(3, dtype=np.int32),
        latents=array,
        dtype=name,
        parent=np.zeros(0, np.int32),
        velocity=np.zeros((0, 2, 4), np.float32),
    )
    np.testing.assert_array_equal(payload.float_latents(), stored.float().numpy())
