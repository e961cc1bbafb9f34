"""The noise levels of T denoising steps. Methods take a `Schedule`; model families make it
(`ModelOptions.schedule`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from branchgrpo.types import F32


@dataclass(frozen=True, eq=False)
class Schedule:
    """Levels σ_i = shift·t_i / (1 + (shift − 1)·t_i), then 0; with `terminal`, 1 − σ is scaled so
    that the last before 0 is that."""

    times: NDArray[np.float64]  # [T] t_i, falling from 1, before the shift
    shift: float
    terminal: float = 0.0  # 0 = none

    @property
    def steps(self) -> int:
        """T."""
        return len(self.times)

    @property
    def levels(self) -> F32:
        """[T+1] σ, 1 … 0."""
        return np.append(self._shifted(self.times), 0.0).astype(np.float32)

    def tail(self, start: int, count: int) -> F32:
        """[count+1] levels from that of step `start` to 0 in `count` steps, at most T − start: the
        schedule's own at evenly spaced step numbers, between which t is linear."""
        at = start + np.arange(count) * ((self.steps - start) / count)
        times = np.interp(at, np.arange(self.steps), self.times)
        return np.append(self._shifted(times), 0.0).astype(np.float32)

    def _shifted(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        levels, last = (
            self.shift * t / (1.0 + (self.shift - 1.0) * t) for t in (times, self.times[-1])
        )
        return (
            1.0 - (1.0 - levels) * ((1.0 - self.terminal) / (1.0 - last))
            if self.terminal
            else levels
        )


def static(steps: int, shift: float) -> Schedule:
    """t even from 1 to 0 (DanceGRPO's and BranchGRPO's schedule, and FLUX's with a static
    shift)."""
    return Schedule(np.linspace(1.0, 0.0, steps + 1)[:-1], shift)
