"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513) on what a detector found.

A record's metadata are as in GenEval's own files:

    {"tag": "position", "prompt": …,
     "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "color": "red",
                  "position": ["left of", 0]}],
     "exclude": [{"class": "cup", "count": 4}]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
"""Those that GenEval tells apart."""

PLACES = ("left of", "right of", "above", "below")

APART = 0.1
"""Objects whose centres are nearer than this share of their sizes are in no relation."""

STEEP = 0.5
"""Of the direction from one centre to the other, how much must point the way of a relation."""

COUNTING = "counting"
"""The tag of prompts about numbers, whose detections must be surer."""


@dataclass(frozen=True, slots=True)
class Detection:
    """An object in a picture."""

    box: tuple[float, float, float, float]  # left, upper, right, lower, in pixels
    confidence: float
    mask: NDArray[np.bool_] | None = None  # [H, W] where it is, of detectors that say so


@dataclass(frozen=True, slots=True)
class Required:
    """What a record wants of one class."""

    name: str
    count: int
    color: str = ""
    place: str = ""  # one of PLACES, or none
    of: int = 0  # that relation is to these: which of the record's requirements


@dataclass(frozen=True, slots=True)
class Task:
    """What a record asks for."""

    include: tuple[Required, ...]
    exclude: tuple[Required, ...]
    counting: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a picture comes to."""

    correct: bool  # GenEval's own: all is as wanted
    share: float  # of what was wanted, 0 … 1: 1 if and only if it is correct


class BadTask(ValueError):
    """Metadata that are no GenEval task."""


def task_of(metadata: Mapping[str, Any], classes: Sequence[str] = ()) -> Task:
    """Raises BadTask, in words, for metadata that are no task. classes: that the detector knows;
    none: any."""
    include = [_required(entry, "include", classes) for entry in _list(metadata, "include")]
    exclude = [_required(entry, "exclude", classes) for entry in _list(metadata, "exclude")]
    if not include and not exclude:
        raise BadTask("expected metadata include, a list of {class, count}, got none")
    for index, one in enumerate(include):
        if one.place and not 0 <= one.of < index:
            raise BadTask(
                f"include[{index}].position: expected the number of an earlier entry, got {one.of}"
            )
    return Task(tuple(include), tuple(exclude), metadata.get("tag") == COUNTING)


def _list(metadata: Mapping[str, Any], key: str) -> list[Any]:
    found = metadata.get(key) or []
    if not isinstance(found, list):
        raise BadTask(f"{key}: expected a list, got {found!r}")
    return found


def _required(entry: Any, key: str, classes: Sequence[str]) -> Required:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
        raise BadTask(f"{key}: expected entries with a class, got {entry!r}")
    name, count, color = entry["class"], entry.get("count", 1), entry.get("color") or ""
    if classes and name not in classes:
        raise BadTask(f"{key}: expected a class that the detector knows, got {name!r}")
    if type(count) is not int or count < 1:
        raise BadTask(f"{key}: expected a count of at least 1, got {count!r}")
    if color and color not in COLOURS:
        raise BadTask(f"{key}: expected a color of {', '.join(COLOURS)}, got {color!r}")
    if not (position := entry.get("position")):
        return Required(name, count, color)
    if (
        not isinstance(position, (list, tuple))
        or len(position) != 2
        or position[0] not in PLACES
        or type(position[1]) is not int
    ):
        raise BadTask(
            f"{key}: expected a position [{' | '.join(PLACES)}, number], got {position!r}"
        )
    return Required(name, count, color, position[0], position[1])


def judged(
    task: Task,
    found: Mapping[str, Sequence[Detection]],
    colours_of: Callable[[Sequence[Detection], str], Sequence[str]],
) -> Verdict:
    """Of the detections of each class, the surest first; `colours_of` names the colours of some of
    a class.

    The share is the mean over requirements: of a number the part that is there, of colours and
    places the part of the objects that have them, of what must not be there all or nothing.
    """
    shares, groups = list[float](), list[Sequence[Detection]]()
    for wanted in task.include:
        objects = found.get(wanted.name, ())[: wanted.count]
        there = len(objects) / wanted.count
        share, complete = there, there == 1
        if complete and wanted.color:
            named = colours_of(objects, wanted.name)
            share = min(1.0, sum(one == wanted.color for one in named) / wanted.count)
            complete = share == 1
        elif wanted.color or wanted.place:
            share /= 2  # what is missing has no colour and no place
        if wanted.place and complete:
            share = _in_place(objects, groups[wanted.of], wanted.place)
            complete = share == 1
        shares.append(share)
        groups.append(objects if complete else ())
    for unwanted in task.exclude:
        shares.append(float(len(found.get(unwanted.name, ())) < unwanted.count))
    return Verdict(all(share == 1 for share in shares), float(np.mean(shares)))


def _in_place(objects: Sequence[Detection], others: Sequence[Detection], place: str) -> float:
    """The part of all pairs that are in this relation; none where the others are not as wanted."""
    pairs = [place in relations(one, other) for one in objects for other in others]
    return sum(pairs) / len(pairs) if pairs else 0.0


def relations(one: Detection, other: Detection) -> set[str]:
    """How the first lies to the second: none of PLACES, one or two."""
    corners = np.array([one.box, other.box]).reshape(2, 2, 2)
    centre, size = corners.mean(1), np.abs(np.diff(corners, axis=1))[:, 0]
    offset = centre[0] - centre[1]
    reduced = np.maximum(np.abs(offset) - APART * size.sum(0), 0) * np.sign(offset)
    if np.all(np.abs(reduced) < 1e-3):
        return set()
    x, y = reduced / np.linalg.norm(offset)
    tests = {"left of": x < -STEEP, "right of": x > STEEP, "above": y < -STEEP, "below": y > STEEP}
    return {name for name, holds in tests.items() if holds}
