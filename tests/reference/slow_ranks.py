"""Choices and correlations by ranks, from their definitions, by loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt


def better(rewards: Mapping[int, float], one: int, other: int) -> bool:
    """Whether candidate `one` stands before `other`."""
    if rewards[one] == rewards[other]:
        return one < other
    return rewards[one] > rewards[other]


def best_and_worst(rewards: Mapping[int, float], count: int) -> list[int]:
    """Candidates that fewer than half of `count` stand before (rounded up), or after (down)."""
    found = []
    for one in rewards:
        before = sum(better(rewards, other, one) for other in rewards)
        after = sum(better(rewards, one, other) for other in rewards)
        if before < (count + 1) // 2 or after < count // 2:
            found.append(one)
    return sorted(found)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation of ranks; the rank of equal values is the mean of their places."""
    ranks = []
    for values in (first, second):
        ordered = sorted(values)
        places = {v: [i for i, other in enumerate(ordered) if other == v] for v in values}
        ranks.append([sum(places[v]) / len(places[v]) for v in values])
    means = [sum(rank) / len(rank) for rank in ranks]
    product, squares = 0.0, [0.0, 0.0]
    for pair in zip(*ranks, strict=True):
        off = [value - mean for value, mean in zip(pair, means, strict=True)]
        product += off[0] * off[1]
        squares = [squares[side] + off[side] ** 2 for side in range(2)]
    return product / sqrt(squares[0] * squares[1])
