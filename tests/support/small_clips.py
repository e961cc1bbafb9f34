"""The rewards on small random CLIPs, in the formats of the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchgrpo.errors import UserError
from branchgrpo.rewards.aesthetic import AestheticReward
from branchgrpo.rewards.base import Resources, RewardOptions
from branchgrpo.rewards.clip import ClipReward
from branchgrpo.rewards.hps import HpsReward
from branchgrpo.rewards.small.clips import save_head, save_hps, save_open_clip


def hps_reward(folder: Path) -> HpsReward:
    path, model = save_hps(folder)
    return HpsReward(path=str(path), model=str(model))


def clip_reward(folder: Path) -> ClipReward:
    path, model = save_open_clip(folder)
    return ClipReward(path=str(path), model=str(model))


def aesthetic_reward(clip_model: Path, folder: Path) -> AestheticReward:
    return AestheticReward(path=str(clip_model), head=str(save_head(folder)))


def refused(options: RewardOptions, build: bool = False) -> str:
    """The message of check, or of build once check has passed."""
    if build:
        options.check()
    with pytest.raises(UserError) as caught:
        options.build(Resources()) if build else options.check()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"rewards.{options.name}.")
    return str(caught.value)
