"""Scouts (Sol-RL, arXiv 2604.06916): of many candidates that were grown cheaply, which are grown
again in full, and how well their rewards told those of the full ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def best_and_worst(rewards: Mapping[int, float], count: int) -> list[int]:
    """Of a prompt's candidates by number, the best ⌈count/2⌉ and the worst ⌊count/2⌋ by reward,
    rising. Of equal ones those of lower numbers count as better. Raises ValueError where there are
    fewer than `count`."""
    if len(rewards) < count:
        raise ValueError(f"expected at least {count} candidates, got {len(rewards)}")
    ranked = sorted(rewards, key=lambda number: (-rewards[number], number))
    worst = count // 2
    return sorted(ranked[: count - worst] + ranked[len(ranked) - worst :])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, of two series [n]: Pearson's of their ranks, equal values having the mean of
    theirs. 0 where all values of one of them are equal: it says nothing on the other."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    one, other = (rank - rank.mean() for rank in ranks)
    size = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / size) if size else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] 0 … n − 1: how many values are smaller, and half of those that are equal to it."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    smaller = np.cumsum(counts) - counts
    found: NDArray[np.float64] = (smaller + (counts - 1) / 2)[at]
    return found
