"""GenEval's rules on detections made by hand: one test a rule, and its edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from branchgrpo.rewards.geneval.rules import (
    BadTask,
    Detection,
    Verdict,
    judged,
    relations,
    task_of,
)


def box(x: float, y: float, size: float = 10.0, confidence: float = 0.9) -> Detection:
    """A square around (x, y)."""
    half = size / 2
    return Detection((x - half, y - half, x + half, y + half), confidence)


def verdict(
    metadata: dict[str, Any], found: dict[str, list[Detection]], colours: Sequence[str] = ()
) -> Verdict:
    names = iter(colours)
    return judged(task_of(metadata), found, lambda objects, _: [next(names) for _ in objects])


CUP = {"include": [{"class": "cup", "count": 1}]}


def test_an_object_is_there_or_not() -> None:
    assert verdict(CUP, {"cup": [box(0, 0)]}) == Verdict(True, 1.0)
    assert verdict(CUP, {"cup": [box(0, 0), box(9, 9)]}) == Verdict(True, 1.0)  # more is no fault
    assert verdict(CUP, {"dog": [box(0, 0)]}) == Verdict(False, 0.0)
    assert verdict(CUP, {}) == Verdict(False, 0.0)


def test_two_objects() -> None:
    both = {"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1}]}
    assert verdict(both, {"cup": [box(0, 0)], "dog": [box(5, 5)]}) == Verdict(True, 1.0)
    assert verdict(both, {"cup": [box(0, 0)]}) == Verdict(False, 0.5)


def test_a_number_must_be_met_and_not_exceeded() -> None:
    three = {
        "tag": "counting",
        "include": [{"class": "cup", "count": 3}],
        "exclude": [{"class": "cup", "count": 4}],
    }
    assert task_of(three).counting and not task_of(CUP).counting
    cups = [box(20.0 * n, 0) for n in range(5)]
    assert [verdict(three, {"cup": cups[:n]}) for n in range(6)] == [
        Verdict(False, 0.5),
        Verdict(False, pytest.approx((1 / 3 + 1) / 2)),
        Verdict(False, pytest.approx((2 / 3 + 1) / 2)),
        Verdict(True, 1.0),
        Verdict(False, 0.5),
        Verdict(False, 0.5),
    ]


def test_a_colour_counts_for_as_many_objects_as_are_wanted() -> None:
    two = {"include": [{"class": "cup", "count": 2, "color": "red"}]}
    cups = {"cup": [box(0, 0), box(30, 0), box(60, 0)]}
    assert verdict(two, cups, ["red", "red"]) == Verdict(True, 1.0)
    assert verdict(two, cups, ["red", "blue", "red"]) == Verdict(False, 0.5)  # the surest two
    assert verdict(two, cups, ["blue", "blue"]) == Verdict(False, 0.0)
    assert verdict(two, {"cup": cups["cup"][:1]}) == Verdict(False, 0.25)  # no colour is asked


def test_each_of_two_objects_has_its_own_colour() -> None:
    wanted = {
        "include": [
            {"class": "cup", "count": 1, "color": "red"},
            {"class": "dog", "count": 1, "color": "blue"},
        ]
    }
    found = {"cup": [box(0, 0)], "dog": [box(30, 0)]}
    assert verdict(wanted, found, ["red", "blue"]) == Verdict(True, 1.0)
    assert verdict(wanted, found, ["blue", "red"]) == Verdict(False, 0.0)  # swapped


def placed(place: str) -> dict[str, Any]:
    return {
        "include": [
            {"class": "dog", "count": 1},
            {"class": "cup", "count": 1, "position": [place, 0]},
        ]
    }


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [(-50, 0, "left of"), (50, 0, "right of"), (0, -50, "above"), (0, 50, "below")],
)
def test_a_place_is_that_of_the_centres(x: float, y: float, place: str) -> None:
    found = {"dog": [box(0, 0)], "cup": [box(x, y)]}
    assert verdict(placed(place), found) == Verdict(True, 1.0)
    assert relations(found["cup"][0], found["dog"][0]) == {place}
    others = {"left of", "right of", "above", "below"} - {place}
    assert all(verdict(placed(other), found) == Verdict(False, 0.5) for other in others)


def test_nearly_on_top_is_in_no_place_and_the_edge_is_a_tenth_of_both_sizes() -> None:
    dog = box(0, 0, 20)
    # sizes 20 and 10: a tenth of their sum is 3; of the rest more than half must point the way
    assert relations(box(2.9, 0), dog) == relations(box(3.0, 0), dog) == set()
    assert relations(box(5.9, 0), dog) == set()  # (5.9 − 3) / 5.9 < ½
    assert relations(box(6.1, 0), dog) == {"right of"}


def test_a_slope_is_in_two_places_and_a_steep_one_in_one() -> None:
    dog = box(0, 0, 1)
    assert relations(box(-100, -100, 1), dog) == {"left of", "above"}
    assert relations(box(-100, -10, 1), dog) == {"left of"}


def test_a_place_beside_what_is_missing_or_of_the_wrong_colour_is_not_met() -> None:
    assert verdict(placed("left of"), {"cup": [box(-50, 0)]}) == Verdict(False, 0.0)
    wanted = placed("left of")
    wanted["include"][0]["color"] = "red"
    found = {"dog": [box(0, 0)], "cup": [box(-50, 0)]}
    assert verdict(wanted, found, ["red"]) == Verdict(True, 1.0)
    assert verdict(wanted, found, ["blue"]) == Verdict(False, 0.0)


def test_colour_and_place_of_one_object() -> None:
    wanted = placed("left of")
    wanted["include"][1]["color"] = "red"
    found = {"dog": [box(0, 0)], "cup": [box(-50, 0)]}
    assert verdict(wanted, found, ["red"]) == Verdict(True, 1.0)
    assert verdict(wanted, found, ["pink"]) == Verdict(False, 0.5)


def test_what_must_not_be_there() -> None:
    assert verdict({"exclude": [{"class": "cup", "count": 1}]}, {}) == Verdict(True, 1.0)
    assert verdict({"exclude": [{"class": "cup", "count": 1}]}, {"cup": [box(0, 0)]}) == Verdict(
        False, 0.0
    )


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "expected metadata include"),
        ({"include": "cup"}, "include: expected a list, got 'cup'"),
        ({"include": ["cup"]}, "expected entries with a class, got 'cup'"),
        ({"include": [{"class": "cup", "count": 0}]}, "expected a count of at least 1, got 0"),
        ({"include": [{"class": "cup", "color": "beige"}]}, "expected a color of red"),
        ({"include": [{"class": "unicorn"}]}, "a class that the detector knows, got 'unicorn'"),
        (
            {"include": [{"class": "cup", "position": ["near", 0]}]},
            "expected a position [left of | right of | above | below, number]",
        ),
        (
            {"include": [{"class": "cup", "position": ["above", 0]}]},
            "include[0].position: expected the number of an earlier entry, got 0",
        ),
    ],
)
def test_metadata_that_are_no_task_are_refused(metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(BadTask) as caught:
        task_of(metadata, ("cup", "dog"))
    assert words in str(caught.value)
