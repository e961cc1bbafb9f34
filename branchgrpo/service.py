"""What the driver needs of its surroundings, as protocols: the method's code runs on Ray, or in one
process in tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Reference = Any
"""A handle on a result that stays where it was made."""


class Flow(Protocol):
    """Pending tasks."""

    def run(self) -> None:
        """Until all tasks, and those their completion added, are done. Raises the first failure."""


class Pool(Protocol):
    """Equal workers; any of them may get any task."""

    def __len__(self) -> int: ...

    def flow(self) -> Any:
        """A new Flow."""

    def submit(
        self,
        flow: Any,
        method: str,
        *arguments: Any,
        returns: int = 1,
        size: float = 1.0,
        then: Callable[[list[Reference]], None],
    ) -> None:
        """Run a method on some worker; `then` gets references to its `returns` results when it is
        done. size: of the task beside others of its method: how long it may take."""

    def share(self, value: Any) -> Reference:
        """A value that several tasks take, sent once."""

    def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Run a method on every worker; results in their order."""

    def fetch(self, reference: Reference) -> Any:
        """A small result, into the driver."""


class RankGroup(Protocol):
    """Learner ranks, which work as one."""

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Run a method on every rank; results in rank order."""

    def begin(self, method: str, *arguments: Any, size: float = 1.0) -> Any:
        """The same without waiting. size: of the work beside other calls of the method: how long it
        may take."""

    def finish(self, call: Any) -> list[Any]:
        """Wait for what `begin` began; results in rank order."""


class Service(Protocol):
    """Everything a training run works with."""

    earlier: Counter[str]  # actors replaced under drivers before this one, by cause
    # failures of machines, not of the program: the run goes back to what it has saved
    faults: tuple[type[Exception], ...]

    @property
    def rollouts(self) -> Pool:
        """Those that grow trees."""

    @property
    def rewards(self) -> Sequence[Pool]:
        """Those that score, a pool for each of Config.reward_groups."""

    @property
    def learners(self) -> RankGroup:
        """Those that train."""

    def recover(self, error: Exception) -> bool:
        """Make everything work again after one of `faults`: no task pending, learners formed anew,
        with the untrained weights, if they are gone; returns whether they were. Raises the error
        when that happened too often."""

    def follow(self) -> dict[str, int]:
        """Follow wishes for more or fewer workers; returns workers by role. Called between
        iterations, too."""

    def restarts(self) -> dict[str, int]:
        """Actors replaced under this driver, by cause."""

    def leaving(self) -> bool:
        """Has it become known that machines with actors of this run will go? Each is told once. A
        checkpoint is due."""

    def regroup(self) -> str:
        """Form the learners anew, with the untrained weights, where their number is to change or
        their machines will go. Returns why; empty when nothing was done. Called after a
        checkpoint."""

    def stopping(self) -> bool:
        """Did somebody ask for the run to end after the present iteration?"""

    def report(self, values: Mapping[str, Any]) -> None:
        """Tell whoever watches how far the run is."""

    def publish(self, weights: str = "policy") -> int:
        """Weights of the learners (`policy`, or `ema`, their exponential mean) to every rollout
        worker, confirmed; returns their version."""

    def driver_bytes(self) -> int:
        """Bytes that passed through the driver since the last call."""


class Display(Protocol):
    """What a person sees."""

    def phase(self, text: str) -> None:
        """A step of start-up or finish begins."""

    def note(self, text: str) -> None:
        """Something worth keeping."""

    def update(self, iteration: int, values: Mapping[str, float]) -> None:
        """An iteration ended."""


class Log(Protocol):
    """Where metrics go."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Keep an iteration's metrics."""

    def rewind(self, iteration: int) -> None:
        """Forget the metrics of later iterations: they are done again."""
