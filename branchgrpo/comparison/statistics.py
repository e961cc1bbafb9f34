"""The numbers of a comparison: differences paired by seed, and when a method reaches a gain.

Runs of one method differ by more than their held-out prompts tell, so every interval is Student's t
over seeds. S seeds, P held-out prompts, K checks of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from branchgrpo.report.student import quantile

F64 = NDArray[np.float64]
Metrics = dict[str, Any]
"""JSON: numbers, and null for what too few seeds cannot tell."""

RESAMPLED = 2000
"""Bootstrap samples."""

PART = 0.5
"""Of the best method's gain is the level whose time counts, where no gain was named."""


def over_seeds(values: F64) -> Metrics:
    """Mean of one figure of each seed [S], and its 95 % t interval [low, high]: null for one
    seed."""
    mean, half = float(np.mean(values)), float(half_width(np.asarray(values, np.float64)))
    known = math.isfinite(half)
    return {
        "mean": mean,
        "low": mean - half if known else None,
        "high": mean + half if known else None,
        "n": len(values),
    }


def half_width(values: F64) -> F64:
    """Half of the 95 % t interval of the mean over the last axis [..., S]; NaN for one seed."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    found: F64 = quantile(count - 1) * values.std(axis=-1, ddof=1) / math.sqrt(count)
    return found


@lru_cache(maxsize=8)
def _weights(seeds: int, prompts: int) -> tuple[F64, F64]:
    """How often each seed [B, S] and prompt [B, P] is drawn with replacement, as parts of all."""
    draw = np.random.default_rng(0)
    rows = draw.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLED) / seeds
    columns = draw.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLED) / prompts
    return rows, columns


def bootstrap(differences: F64) -> tuple[F64, F64]:
    """2.5 and 97.5 % quantiles of the mean of differences [..., S, P], seeds and prompts drawn
    anew."""
    seeds, prompts = differences.shape[-2:]
    rows, columns = _weights(seeds, prompts)
    both = (rows[:, :, None] * columns[:, None, :]).reshape(RESAMPLED, -1)
    means = differences.reshape(*differences.shape[:-2], -1) @ both.T
    low, high = np.quantile(means, (0.025, 0.975), axis=-1)
    return low, high


def differ(differences: F64) -> NDArray[np.bool_]:
    """Whether methods are called different, from their differences [..., S, P] by seed and prompt.

    The t interval over seeds must exclude 0, and so must the bootstrap over seeds and prompts,
    which sees what three seeds that agree by chance hide. One seed is never enough.
    """
    if differences.shape[-2] < 2:
        return np.zeros(differences.shape[:-2], bool)
    by_seed = differences.mean(axis=-1)
    low, high = bootstrap(differences)
    found: NDArray[np.bool_] = (np.abs(by_seed.mean(axis=-1)) > half_width(by_seed)) & (
        (low > 0) | (high < 0)
    )
    return found


def difference(own: F64, other: F64) -> Metrics:
    """What `own` [S, P] is above `other` [S, P] of the same seeds and prompts; `different` is null
    for one seed."""
    found = over_seeds((own - other).mean(axis=1))
    if len(own) < 2:
        return found | {"bootstrap": None, "different": None}
    low, high = bootstrap(own - other)
    return found | {
        "bootstrap": {"low": float(low), "high": float(high)},
        "different": bool(differ(own - other)),
    }


@dataclass(frozen=True)
class Curve:
    """Held-out gain over the untrained model at the checks that all seeds made, on the same
    prompts."""

    seconds: F64  # [S, K] of training
    gain: F64  # [S, K]

    @property
    def last(self) -> F64:
        """[S] gain at the last check."""
        return self.gain[:, -1]

    def noise(self) -> tuple[float, int]:
        """Standard deviation of one check of one run around a smooth curve, and its degrees of
        freedom; (NaN, 0) below 3 checks.

        From second differences, whose variance is 6 times that of a check where the curve is
        straight. They overlap, so they tell about half as much as their number.
        """
        bends = np.diff(self.gain, n=2, axis=1)
        if not bends.size:
            return math.nan, 0
        return math.sqrt(float(np.square(bends).mean()) / 6), max(1, bends.size // 2)

    def reaches(self, level: float) -> float | None:
        """Seconds at which the mean over seeds is above `level` by more than its noise, at a check
        and the next; None: never."""
        return _crossing(
            self.seconds.mean(axis=0), self.gain.mean(axis=0), level, self._margin(len(self.gain))
        )

    def each(self, level: float) -> list[float | None]:
        """The same of every seed alone."""
        margin = self._margin(1)
        return [
            _crossing(seconds, gain, level, margin)
            for seconds, gain in zip(self.seconds, self.gain, strict=True)
        ]

    def _margin(self, runs: int) -> float:
        """Half of the 95 % interval of a check's mean over so many runs."""
        deviation, freedom = self.noise()
        return quantile(freedom) * deviation / math.sqrt(runs) if freedom else math.nan


def curve(runs: list[tuple[F64, F64]]) -> Curve:
    """Of (seconds [K], gain [K]) of each seed. Runs that made more checks than others are cut to
    the others' number."""
    count = min(len(seconds) for seconds, _ in runs)
    return Curve(
        np.stack([seconds[:count] for seconds, _ in runs]),
        np.stack([gain[:count] for _, gain in runs]),
    )


def _crossing(seconds: F64, gain: F64, level: float, margin: float) -> float | None:
    """Where gain − margin, straight between checks and 0 at the start, passes `level` for two
    checks in a row."""
    above = gain - margin >= level  # NaN: never
    held = np.flatnonzero(above[:-1] & above[1:])
    if not held.size:
        return None
    first = int(held[0])
    before, began = (gain[first - 1], seconds[first - 1]) if first else (0.0, 0.0)
    part = (level + margin - before) / (gain[first] - before) if gain[first] > before else 1.0
    return float(began + min(1.0, max(0.0, part)) * (seconds[first] - began))


def level(curves: dict[str, Curve], gain: float | None) -> Metrics:
    """The gain whose time counts: the one named before the runs, else half of the best method's,
    `gain` null where no method's gain at its last check is surely above 0."""
    if gain is not None:
        return {"gain": gain, "named": True, "best": None}
    sure = {
        name: float(one.last.mean())
        for name, one in curves.items()
        if one.last.mean() > half_width(one.last)
    }
    best = max(sure, key=lambda name: sure[name], default=None)
    return {"gain": PART * sure[best] if best else None, "named": False, "best": best}


def time_to(own: Curve, other: Curve | None, gain: float | None) -> Metrics:
    """Seconds until `own` reaches a gain; by seed too; and what part that is of `other`'s seconds.

    The part is that of the mean curves; its interval is Student's t over the seeds' logarithms,
    null unless every seed of both reached the gain. Everything is null for one seed, which cannot
    tell.
    """
    nothing: Metrics = {"seconds": None, "by_seed": [None] * len(own.gain), "ratio": None}
    if gain is None or len(own.gain) < 2:
        return nothing
    found: Metrics = {"seconds": own.reaches(gain), "by_seed": own.each(gain), "ratio": None}
    theirs = other.reaches(gain) if other else None
    if other is None or found["seconds"] is None or not theirs:
        return found
    ratio: Metrics = {
        "mean": found["seconds"] / theirs,
        "low": None,
        "high": None,
        "n": len(own.gain),
    }
    pairs = list(zip(found["by_seed"], other.each(gain), strict=True))
    if all(mine and others for mine, others in pairs):
        logs = over_seeds(np.log([mine / others for mine, others in pairs]))
        ratio |= {"low": math.exp(logs["low"]), "high": math.exp(logs["high"])}
    return found | {"ratio": ratio}
