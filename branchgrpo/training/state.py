"""What of a training run must survive a fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class TrainState:
    """How far training is. A fault may take it back to what a checkpoint holds; all work goes by
    it, so that whatever is called again does what is missing and nothing twice."""

    iteration: int = 0  # updates that the rollout workers have
    version: int = 0  # of the weights that they hold
    seconds: float = 0.0  # spent in iterations
    gates: dict[str, float] = field(default_factory=dict)  # what each start-up gate measured
    # of the present iteration
    record: dict[str, float] = field(default_factory=dict)  # its metrics, as far as they are known
    took: float = 0.0  # seconds
    done: set[str] = field(default_factory=set)  # hooks that have run after it
    concluded: bool = True  # nothing is left to do after it
    # of this driver
    begun: bool = False  # the run is this driver's, and went on from where it was
    updating: bool = False  # an update was begun that the rollout workers have not got
    saved: int = 0  # iteration of the newest checkpoint
    writing: int = 0  # of the one that is being written; 0: none is
    # why training ends here: "iterations", "max_minutes", "stop_when: CONDITION", "interrupted"
    stopped_by: str = ""
    complete: bool = False  # the trained model is measured and exported
    recoveries: int = 0

    def advance(self, version: int, seconds: float) -> None:
        """An update has reached the rollout workers; it must not be made again."""
        self.iteration += 1
        self.version = version
        self.seconds += seconds
        self.took = seconds
        self.record, self.done = {}, set()
        self.updating = self.concluded = False

    def passed(self, every: int, period: float) -> bool:
        """Is something due after this iteration that comes every so many iterations, and whenever
        so many seconds of training have passed? 0: never."""
        by_count = every > 0 and self.iteration % every == 0
        before = self.seconds - self.took
        return by_count or (period > 0 and self.seconds // period > before // period)

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        kept = {"iteration": self.iteration, "seconds": self.seconds, "gates": self.gates}
        return kept | {"stopped_by": self.stopped_by}

    def go_back(self, kept: Mapping[str, Any]) -> None:
        """To what a checkpoint holds; {}: to the beginning. What is left to do after the present
        iteration stays so where that is the checkpoint's, too."""
        iteration = kept.get("iteration", 0)
        if iteration != self.iteration:
            self.record, self.done = {}, set()
            self.concluded, self.stopped_by = True, ""
        self.iteration, self.saved, self.writing = iteration, iteration, 0
        self.seconds = kept.get("seconds", 0.0)
        self.gates = dict(kept.get("gates", {}))
        self.updating = False
