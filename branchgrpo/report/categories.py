"""Scores of held-out prompts by a part of their metadata, as suites publish them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from branchgrpo.types import F32, Sample

NONE = "none"
"""Category of a record without one."""


def of(sample: Sample, key: str) -> str:
    """The category of a record: text as it is, anything else as JSON."""
    value = sample.metadata.get(key)
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def means(
    scores: Mapping[str, F32], samples: Sequence[Sample], key: str
) -> dict[str, dict[str, float]]:
    """By category, in the order they come: how many prompts it has (`n`), and the mean of each
    score [P] over these. samples: those of the scores come first."""
    count = len(next(iter(scores.values())))
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(samples[:count]):
        places.setdefault(of(sample, key), []).append(place)
    return {
        name: {"n": len(rows)}
        | {score: float(values[rows].mean(dtype=float)) for score, values in scores.items()}
        for name, rows in places.items()
    }


def both(
    before: Mapping[str, F32], after: Mapping[str, F32], samples: Sequence[Sample], key: str
) -> dict[str, dict[str, Any]]:
    """By category: `n`, and before, after and difference of each score that both have."""
    old, new = means(before, samples, key), means(after, samples, key)
    return {
        name: {"n": row["n"]}
        | {
            score: {
                "before": old[name][score],
                "after": row[score],
                "difference": row[score] - old[name][score],
            }
            for score in after
            if score in before
        }
        for name, row in new.items()
    }
