"""Training runs in one process, without a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from branchgrpo.config.schema import Config
from branchgrpo.service import Service
from branchgrpo.training.hooks import HOOKS
from branchgrpo.training.run import Run
from branchgrpo.types import F32, U8
from support.quiet_display import Quiet

CHANGEABLE = {
    "run.iterations": "8",
    "run.export": "none",
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.workers": "1",
    "rollout.threads": "1",
    "learner.threads": "1",
    "reward_workers.threads": "1",
    "rollout.prompts": "2",
    "evaluation.prompts": "4",
    "evaluation.every": "0",
    "evaluation.steps": "2",
    "evaluation.pictures": "2",
    "checkpoint.every": "1",
    "learner.warmup": "0",
    "learner.ema": "0.5",
    "learner.learning_rate": "0.001",
    "learner.schedule": "constant",
}
"""A small run that is cut off and goes on with changed keys."""


class Memory:
    """A log in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self.records.append({"iteration": iteration, **values})

    def pictures(self, iteration: int, tag: str, pixels: U8, captions: Sequence[str]) -> None:
        assert len(pixels) == len(captions)

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """Nobody looks."""

    def rewind(self, iteration: int) -> None:
        self.records = [one for one in self.records if one["iteration"] <= iteration]

    @property
    def updates(self) -> list[dict[str, float]]:
        """The records of updates: not those of the checks before and after training."""
        return [one for one in self.records if "reward/total" in one]


def run_of(
    loaded: Config,
    service: Service,
    where: Path,
    *,
    log: Memory | None = None,
    display: Quiet | None = None,
    **options: Any,
) -> Run:
    """A run whose untrained model is not measured, with checkpoints at `where`."""
    return Run(
        loaded,
        service,
        name="test",
        log=log or Memory(),
        display=display or Quiet(),
        hooks=HOOKS,
        checkpoints=str(where),
        **{"before": {}} | options,
    )
