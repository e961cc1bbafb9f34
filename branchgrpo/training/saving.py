"""Checkpoints of a run, as the driver sees them: claimed, written, asked after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import time
from typing import Any

from branchgrpo.checkpoint.store import Store
from branchgrpo.config.sections import Checkpoint
from branchgrpo.errors import StaleFence
from branchgrpo.service import CheckpointRequest, Display, SavedCheckpoint, Service
from branchgrpo.training.state import TrainState


class Saving:
    """One at a time: training may go on while one is written."""

    def __init__(self, options: Checkpoint, service: Service, display: Display, where: str):
        self.options, self.where = options, where
        self.service, self.display = service, display
        self.fence = 0

    def claim(self) -> None:
        """Fence off the drivers before this one."""
        if self.options.kept:
            self.fence = Store(self.where, self.options.keep).claim()

    def save(self, state: TrainState, driver: Mapping[str, Any], wait: bool) -> None:
        """Write a checkpoint, or begin to. One that cannot be written is said; training goes on.
        Raises StaleFence when another driver has taken the run over."""
        if state.writing:
            self.ask(state, wait=True)
        request = CheckpointRequest(
            where=self.where,
            iteration=state.iteration,
            fence=self.fence,
            driver=driver,
            wait=wait,
        )
        with self._taken_over():
            found = self.service.learners.checkpoint(request)
        self._told(state, state.iteration, found)

    def ask(self, state: TrainState, wait: bool) -> None:
        """What became of the one that is being written. Raises as `save`."""
        with self._taken_over():
            found = self.service.learners.checkpointed(wait)
        self._told(state, state.writing, found)

    def _told(self, state: TrainState, iteration: int, found: SavedCheckpoint) -> None:
        state.writing = iteration if found.pending else 0
        if found.failed:
            self.display.note(
                f"checkpoint of iteration {iteration} could not be written: {found.failed}; "
                "training goes on"
            )
        elif found.path:  # else it is pending, or a fault took the answer along
            state.saved = iteration
            told = {"iteration": iteration, "path": self.where, "time": time()}
            self.service.report({"checkpoint": told})

    @contextmanager
    def _taken_over(self) -> Iterator[None]:
        """Whoever watches is told of a newer fence."""
        try:
            yield
        except StaleFence:
            rejected = {"checkpoint/rejected": 1.0}
            self.service.report({"phase": "taken over by another program", "metrics": rejected})
            raise
