"""Rewards score on the device as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.records import records
from support.small_clips import aesthetic_reward, clip_reward, hps_reward

from branchgrpo.rewards.base import PictureOptions, Resources
from branchgrpo.rewards.pickscore import PickScoreReward
from branchgrpo.rewards.small.clips import save_clip

MADE: dict[str, Callable[[Path], PictureOptions]] = {
    "hps": hps_reward,
    "clip": clip_reward,
    "pickscore": lambda folder: PickScoreReward(path=str(save_clip(folder))),
    "aesthetic": lambda folder: aesthetic_reward(save_clip(folder), folder),
}
PROMPTS = ["a red cube on a green table", "two dogs", "a portrait", "a cat on a roof", "the sea"]


@pytest.mark.parametrize("name", MADE)
def test_scores_are_those_of_the_cpu(name: str, device: str, tmp_path: Path) -> None:
    options = MADE[name](tmp_path)
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (5, 1, 8, 8, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, 2).repeat(16, 3)
    wanted, found, half = (
        kind.build(Resources(device=place)).score(pixels, records(PROMPTS))["score"]
        for kind, place in (
            (options, "cpu"),
            (options, device),
            (options.model_copy(update={"dtype": "bfloat16"}), device),
        )
    )
    spread = float(wanted.std())
    assert spread > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * spread)
    assert np.abs(half - wanted).max() <= 0.05 * np.abs(wanted).max() + 0.5 * spread
