"""What the points of a grid came to: scores, the best, and whether it lies at an edge."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.comparison.common import done
from branchgrpo.files.whole import write_whole

Found = dict[str, Any]
"""JSON."""

FAILED = "failed.json"
"""Why a run of a grid came to no end."""

ENDS = ("lowest", "highest")


def fail(folder: Path, why: str) -> None:
    """The run of this folder has ended without a score."""
    write_whole(folder / FAILED, json.dumps({"failed": why}) + "\n")


def ended(folder: Path) -> bool:
    """Has the run of this folder ended, with a score or without?"""
    return done(folder) or (folder / FAILED).is_file()


def outcome(folder: Path) -> tuple[float | None, list[str], str]:
    """Of a run that has ended: its score, what gave the alarm, and why it counts as failed."""
    if not done(folder):
        kept = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return None, [], str(kept["failed"])
    kept = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    score = float(np.mean(kept["after"]["total"], dtype=np.float64))
    if not math.isfinite(score):
        return None, [], "its score is not a number"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return score, list(summary["alarms"]), ""


def best_of(points: Sequence[Found]) -> int | None:
    """The point, counted from 1, of the highest score; one that gave an alarm only where all did;
    of equals the first. None where all failed."""
    there = [number for number, point in enumerate(points, 1) if point["score"] is not None]
    return max(
        there,
        key=lambda number: (not points[number - 1]["alarms"], points[number - 1]["score"]),
        default=None,
    )


def edges(points: Sequence[Found], best: int) -> dict[str, str]:
    """Keys whose value at the best point is the lowest or the highest that was tried, of numbers
    with more than one value."""
    found = {}
    for key, value in points[best - 1]["keys"].items():
        tried = [point["keys"][key] for point in points]
        numbers = all(type(one) in (int, float) for one in tried)
        if numbers and len(set(tried)) > 1 and value in (ends := (min(tried), max(tried))):
            found[key] = ENDS[ends.index(value)]
    return found
