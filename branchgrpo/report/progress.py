"""How far a run is and how it does, as the terminal shows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from branchgrpo.report.sinks import smooth

RECENT = 50
"""Iterations that the pace, the trend and the sparkline look back on."""


class Progress:
    """How far a run is and how it does."""

    def __init__(self, iterations: int, metric: str, max_minutes: float = 0.0):
        self.iterations = iterations
        self.metric = metric
        self.max_minutes = max_minutes
        self.iteration = 0
        self.values: dict[str, float] = {}  # of the last iteration
        self.rewards: deque[float] = deque(maxlen=RECENT)
        self.held_out: list[tuple[int, float]] = []  # (iteration, score)
        self.scores: dict[str, float] = {}  # the last held-out scores, by reward/score
        self.begun = 0.0
        # when training began, when each iteration ended
        self.stamps: deque[float] = deque(maxlen=RECENT + 1)

    def add(self, iteration: int, values: Mapping[str, float], now: float) -> None:
        """Take in an iteration that ended at `now`, in seconds of any clock."""
        self.iteration, self.values = iteration, dict(values)
        if iteration > 0:
            if not self.stamps:
                self.begun = now - values.get("time/iteration", 0.0)
                self.stamps.append(self.begun)
            self.stamps.append(now)
        if "reward/total" in values:
            self.rewards.append(values["reward/total"])
        self.scores |= {
            name.removeprefix("held_out/"): value
            for name, value in values.items()
            if name.startswith("held_out/")
        }
        if f"held_out/{self.metric}" in values:
            self.held_out.append((iteration, values[f"held_out/{self.metric}"]))

    @property
    def elapsed(self) -> float:
        """Seconds of training up to the last iteration."""
        return self.stamps[-1] - self.begun if self.stamps else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds from the last iteration to the end of training; None before the first one."""
        if not self.stamps:
            return None
        if not self.iterations:
            return max(0.0, 60 * self.max_minutes - self.elapsed)
        left = (
            (self.iterations - self.iteration)
            * (self.stamps[-1] - self.stamps[0])
            / (len(self.stamps) - 1)
        )
        return max(
            0.0, min(left, 60 * self.max_minutes - self.elapsed) if self.max_minutes else left
        )

    @property
    def others(self) -> dict[str, float]:
        """Held-out scores beside the one that decides, by reward/score: where there are several
        rewards."""
        several = len({name.partition("/")[0] for name in self.scores}) > 1
        return (
            {name: value for name, value in self.scores.items() if name != self.metric}
            if several
            else {}
        )

    @property
    def done(self) -> str:
        """Iterations done, of those planned."""
        return f"{self.iteration}/{self.iterations}" if self.iterations else str(self.iteration)

    @property
    def trend(self) -> str:
        """Arrow: where the exponential mean of the reward went in ten iterations, against how much
        the reward jumps."""
        means = smooth(self.rewards)
        if len(means) < 5:
            return "→"  # too early to say
        centre = sum(self.rewards) / len(self.rewards)
        spread = (sum((reward - centre) ** 2 for reward in self.rewards) / len(self.rewards)) ** 0.5
        change = means[-1] - means[max(0, len(means) - 11)]
        if change > 0.1 * spread:
            return "↑"
        return "↓" if change < -0.1 * spread else "→"
