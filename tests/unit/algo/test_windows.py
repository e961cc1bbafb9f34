"""Sliding windows against what METHODS says of them, counted out one
iteration at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from pydantic import ValidationError

from branchgrpo.algo.methods.window import Window

pytestmark = pytest.mark.heavy

ITERATIONS = 400
"""Longer than the windows that are counted out by them take to come to their end."""


def slow_positions(steps: int, size: int, stride: int, reach: float) -> list[list[int]]:
    """From step 0 in strides; the position that reaches the last usable step is the last one."""
    usable = [step for step in range(steps - 1) if step < max(1, math.ceil(reach * steps))]
    found = []
    for start in usable[::stride]:
        found.append([step for step in usable if start <= step < start + size])
        if usable[-1] in found[-1]:
            break
    return found


def timetable(stays: list[int], at_end: str) -> list[int]:
    """Index of the position at each iteration, counted out."""
    found: list[int] = []
    while len(found) < ITERATIONS:
        found += [index for index, stay in enumerate(stays) for _ in range(stay)]
        if at_end == "stay":
            found += [len(stays) - 1] * ITERATIONS
    return found[:ITERATIONS]


@pytest.mark.parametrize("at_end", ["stay", "wrap"])
@pytest.mark.parametrize("strategy", ["progressive", "decay", "exp_decay"])
def test_the_window_is_where_its_timetable_says(strategy: str, at_end: str) -> None:
    for steps, size, stride, reach in itertools.product(
        (5, 20), (1, 4, 7), (1, 4), (0.3, 0.5, 1.0)
    ):
        window = Window(
            size=size,
            stride=stride,
            interval=7,
            strategy=strategy,
            at_end=at_end,
            reach=reach,
            threshold=3,
            decay=0.17,
        )
        positions = slow_positions(steps, size, stride, reach)
        assert [list(position) for position in window.positions(steps)] == positions
        stays = []
        for position in positions:
            exact = {
                "progressive": 7.0,
                "decay": 7 * (1 - position[0] / (steps - 1)),
                "exp_decay": 7 * math.exp(-0.17 * max(0, position[0] - 3)),
            }[strategy]
            stays.append(max(1, round(exact)))
        for iteration, index in enumerate(timetable(stays, at_end)):
            found = window.at(iteration, steps, seed=0)
            assert list(found) == positions[index], (window, iteration)
            assert found and found[-1] < steps - 1


def test_progressive_advances_by_a_stride_each_interval() -> None:
    """MixGRPO: 4 of 25 steps, stride 1, every 25 iterations; steps 20 … 23 are the last stop, step
    24 is never random."""
    for at_end in ("stay", "wrap"):
        window = Window(size=4, stride=1, interval=25, at_end=at_end)
        for iteration in range(600):  # the last stop begins at 500
            turn = iteration // 25
            start = min(turn, 20) if at_end == "stay" else turn % 21
            assert window.at(iteration, 25, 0) == (start, start + 1, start + 2, start + 3)


def test_the_five_positions_of_branchgrpo_mix() -> None:
    window = Window(size=4, stride=4, interval=30)
    stops = [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15), (16, 17, 18)]
    assert window.positions(20) == stops
    for iteration in range(ITERATIONS):
        assert window.at(iteration, 20, 0) == stops[iteration // 30 % 5]


def test_decay_stays_ever_shorter() -> None:
    """interval·(1 − start/(T − 1)): with T = 11 and interval 10 that is 10 − start."""
    assert Window(size=4, strategy="decay", interval=10).stays(11) == [10, 9, 8, 7, 6, 5, 4]
    assert Window(size=1, strategy="decay", interval=10).stays(11) == [
        10,
        9,
        8,
        7,
        6,
        5,
        4,
        3,
        2,
        1,
    ]
    assert Window(size=4, strategy="decay", interval=1).stays(11) == [1] * 7  # never 0


def test_exp_decay_halves_behind_its_threshold() -> None:
    """interval·exp(−k·max(0, start − threshold)) with k = log 2."""
    window = Window(size=4, strategy="exp_decay", interval=16, decay=math.log(2.0), threshold=2)
    assert window.stays(11) == [16, 16, 16, 8, 4, 2, 1]
    assert window.stays(13) == [16, 16, 16, 8, 4, 2, 1, 1, 1]  # never 0


@pytest.mark.parametrize(("size", "stride", "reach"), [(4, 1, 1.0), (4, 4, 1.0), (2, 1, 0.5)])
def test_random_windows_depend_on_seed_and_iteration_alone_and_cover_all_positions(
    size: int, stride: int, reach: float
) -> None:
    window = Window(size=size, stride=stride, strategy="random", reach=reach)
    found = [window.at(iteration, 20, 3) for iteration in range(ITERATIONS)]
    again = {
        iteration: Window(**window.model_dump()).at(iteration, 20, 3)
        for iteration in np.random.default_rng(0).permutation(ITERATIONS).tolist()
    }
    assert [again[iteration] for iteration in range(ITERATIONS)] == found
    assert [window.at(iteration, 20, 4) for iteration in range(ITERATIONS)] != found
    positions = [tuple(position) for position in slow_positions(20, size, stride, reach)]
    counts = np.array([found.count(position) for position in positions])
    assert counts.sum() == ITERATIONS  # no others
    expected = ITERATIONS / len(positions)
    spread = math.sqrt(expected * (1 - 1 / len(positions)))
    assert np.abs(counts - expected).max() < 5 * spread


def test_geometric_windows_come_as_often_as_published() -> None:
    """TreeGRPO, T = 10, w = 3, r = ½: Pr[i] = (1 − r)·r^i / (1 − r^(T − w)), i = 0 … T − w − 1."""
    window = Window(size=3, strategy="geometric", ratio=0.5)
    expected = np.array([0.5 * 0.5**i / (1 - 0.5**7) for i in range(7)])
    assert window.probabilities(10) == pytest.approx(expected, rel=1e-12)
    assert expected.sum() == pytest.approx(1.0) and window.positions(10)[-1] == (6, 7, 8)
    starts = [window.at(iteration, 10, 1)[0] for iteration in range(20_000)]
    shares = np.bincount(starts, minlength=7) / 20_000
    assert np.abs(shares - expected).max() < 5 * math.sqrt(0.25 / 20_000)
    assert shares == pytest.approx(expected, rel=0.35)
    others = [window.at(iteration, 10, 2)[0] for iteration in range(200)]
    assert starts[:200] != others
    assert [window.at(iteration, 10, 1)[0] for iteration in range(200)] == starts[:200]
    even = Window(size=3, strategy="geometric", ratio=0.999).probabilities(10)
    assert even == pytest.approx([1 / 7] * 7, rel=0.01)


@pytest.mark.parametrize("strategy", ["progressive", "random", "geometric", "decay", "exp_decay"])
def test_a_window_without_steps_is_always_empty(strategy: str) -> None:
    window = Window(size=0, strategy=strategy)
    assert {window.at(iteration, 20, 1) for iteration in range(ITERATIONS)} == {()}


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize("strategy", ["progressive", "random", "geometric", "decay", "exp_decay"])
def test_short_schedules_keep_a_window(strategy: str, steps: int) -> None:
    """Wider than the schedule, or reaching over less than one step: never empty, never the last
    step."""
    for size, reach in ((9, 1.0), (1, 0.01), (9, 0.01)):
        window = Window(size=size, strategy=strategy, reach=reach, interval=3)
        for iteration in range(50):
            found = window.at(iteration, steps, 0)
            assert found and found[0] >= 0 and found[-1] < steps - 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"stride": 0},
        {"interval": 0},
        {"reach": 0.0},
        {"reach": 1.1},
        {"strategy": "drunk"},
        {"ratio": 0.0},
        {"ratio": 1.0},
        {"at_end": "stop"},
    ],
)
def test_windows_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Window(**wrong)
