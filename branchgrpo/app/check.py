"""What is checked before anything starts."""

from __future__ import annotations

from pathlib import Path

from branchgrpo.config import secrets, trained_steps
from branchgrpo.config.schema import Config
from branchgrpo.data import check as prompt_check
from branchgrpo.report.sinks import check_sinks
from branchgrpo.runs import places


def check(config: Config, folder: Path | None = None) -> None:
    """What can be known to be wrong before anything starts. Raises UserError. folder: what is
    written, where it is not run.folder."""
    config.model.check()
    config.evaluated.check_size("evaluation")
    config.evaluation_schedule()
    trained_steps.check(config)
    for index, reward in enumerate(config.all_rewards):
        reward.check()
        secrets.given(reward.runtime_env, f"{config.reward_key(index)}.runtime_env")
    check_sinks(config.all_sinks)
    prompt_check.check(config)
    places.check_folders(config, folder)
