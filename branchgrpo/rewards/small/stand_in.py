"""What scores in place of a reward whose files are missing."""

from __future__ import annotations

from pathlib import Path

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import RewardOptions
from branchgrpo.rewards.jpeg import JpegReward


def stand_in(reward: RewardOptions, folder: Path) -> tuple[RewardOptions, str]:
    """The reward and "" where its files are there. Else a small random network of its class in
    `folder`, or the size of a JPEG where it makes none; and what it is, with what is missing. The
    size of a JPEG, too, for what another machine scores.

    Raises UserError for files that are there and wrong.
    """
    try:
        reward.check()
        if reward.elsewhere:
            return jpeg(reward), "jpeg (another machine scores)"
    except UserError as error:
        named = reward.needed_files()
        if named and all(Path(path).expanduser().exists() for path in named):
            raise
        if small := reward.shrunk(folder):
            return small, f"a small random network ({error})"
        return jpeg(reward), f"jpeg ({error})"
    return reward, ""


def jpeg(reward: RewardOptions) -> JpegReward:
    """The size of a JPEG, under another reward's name."""
    return JpegReward(label=reward.title, weight=reward.weight, runtime_env=reward.runtime_env)
