"""What a comparison may claim: simulated comparisons of equal and of different methods, and closed
forms."""

from __future__ import annotations

import numpy as np
import pytest

from branchgrpo.comparison.statistics import (
    F64,
    Curve,
    bootstrap,
    curve,
    differ,
    difference,
    level,
    over_seeds,
    time_to,
)

COMPARISONS, PROMPTS = 2000, 128
RUN = 0.08
"""Standard deviation of the held-out mean from run to run: that of docs/benchmarks' DanceGRPO
(0.357, 0.462, 0.521) and branchgrpo-flash at 1e-4 (0.773, 0.605, 0.690)."""


def simulated(seeds: int, gap: float) -> F64:
    """[comparisons, S, P] differences of two methods whose means are `gap` apart: each prompt has
    its own difficulty, each seed its own noise, both shared; each run has its luck, and each of its
    pictures."""
    draw = np.random.default_rng(int(1000 * gap) + seeds)
    prompt = draw.normal(0, 0.25, (COMPARISONS, 1, PROMPTS))
    seed = draw.normal(0, 0.05, (COMPARISONS, seeds, 1))

    def scores(mean: float) -> F64:
        run = draw.normal(0, RUN, (COMPARISONS, seeds, 1))
        picture = draw.normal(0, 0.2, (COMPARISONS, seeds, PROMPTS))
        found: F64 = np.clip(mean + prompt + seed + run + picture, 0, 1)
        return found

    return scores(0.4 + gap) - scores(0.4)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_methods_are_seldom_called_different(seeds: int) -> None:
    assert differ(simulated(seeds, 0.0)).mean() <= 0.07


def test_intervals_over_prompts_would_call_equal_methods_different() -> None:
    """What `compare` did: the spread of runs is not among the prompts."""
    found = simulated(3, 0.0).mean(axis=1)
    half = 1.96 * found.std(axis=-1, ddof=1) / PROMPTS**0.5
    assert (np.abs(found.mean(axis=-1)) > half).mean() > 0.3


def test_different_methods_are_called_different() -> None:
    assert differ(simulated(3, 0.4)).mean() > 0.75 and differ(simulated(5, 0.4)).mean() > 0.98


def test_one_seed_claims_nothing() -> None:
    one = np.full((1, 8), 0.5)
    assert (
        not differ(one)
        and difference(one + 0.1, one)["different"] is None
        and difference(one + 0.1, one)["low"] is None
    )
    assert over_seeds(np.array([0.3])) == {"mean": 0.3, "low": None, "high": None, "n": 1}
    rising = Curve(np.arange(1.0, 9)[None], np.linspace(0, 1, 8)[None])
    assert time_to(rising, rising, 0.5) == {"seconds": None, "by_seed": [None], "ratio": None}


def test_a_difference_by_hand() -> None:
    other = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    own = other + np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    found, half = difference(own, other), 4.302653 * 0.1 / 3**0.5  # t of 2 degrees of freedom
    assert (found["mean"], found["low"], found["high"], found["n"]) == pytest.approx(
        (0.2, 0.2 - half, 0.2 + half, 3)
    )
    # 0.2 − 0.248 < 0
    assert (
        found["bootstrap"] == pytest.approx({"low": 0.1, "high": 0.3})
        and found["different"] is False
    )


def test_the_bootstrap_draws_seeds_and_prompts() -> None:
    """The variance of a mean over independent cells s·ε[S, P] + rows a·ε[S] + columns b·ε[P], both
    drawn anew."""
    draw = np.random.default_rng(0)
    seeds, prompts = 40, 50
    found = draw.normal(0, 0.3, (seeds, 1)) + draw.normal(0, 0.4, (1, prompts))
    low, high = bootstrap(found)
    expected = found.mean(1).var() / seeds + found.mean(0).var() / prompts
    assert float(high - low) == pytest.approx(2 * 1.96 * expected**0.5, rel=0.08)


def test_seeds_that_agree_by_chance_do_not_hide_the_prompts() -> None:
    by_prompt = np.linspace(-1.0, 1.06, 20)
    found = np.tile(by_prompt, (3, 1))  # mean 0.03 in every seed, whose t interval is a point
    assert not differ(found) and differ(found + 1.0)


# Time to a gain


def line(gains: list[float], seeds: int = 2, pace: float = 10.0) -> Curve:
    """Seeds with the same curve; a check every `pace` seconds."""
    seconds = pace * np.arange(1, len(gains) + 1)
    return curve([(seconds, np.array(gains))] * seeds)


def test_time_to_a_gain_in_closed_form() -> None:
    # straight: no noise
    slow, fast = line([0.1, 0.2, 0.3, 0.4, 0.5]), line([0.2, 0.4, 0.6, 0.8, 1.0])
    assert slow.noise()[0] == pytest.approx(0, abs=1e-12) and slow.reaches(0.25) == pytest.approx(
        25
    )
    found = time_to(fast, slow, 0.25)
    assert found["seconds"] == pytest.approx(12.5) and found["by_seed"] == pytest.approx(
        [12.5, 12.5]
    )
    assert found["ratio"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2})
    assert time_to(slow, slow, 0.25)["ratio"]["mean"] == 1


def test_the_noise_of_a_check() -> None:
    draw = np.random.default_rng(0)
    straight = np.linspace(0, 0.5, 200) + draw.normal(0, 0.02, (3, 200))
    deviation, freedom = Curve(np.tile(np.arange(200.0), (3, 1)), straight).noise()
    assert deviation == pytest.approx(0.02, rel=0.1) and freedom == 297
    # too few checks to know
    assert np.isnan(line([0.1, 0.2]).noise()[0]) and line([0.1, 0.2]).reaches(0.05) is None


@pytest.mark.parametrize(
    ("gains", "seconds"),
    [
        ([0.0, 0.4, 0.0, 0.0, 0.0, 0.0], None),  # one lucky check
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.9], None),  # the last has no next
        ([0.3, 0.6, 0.9, 1.2, 1.5, 1.8], 10 / 3),  # the first: straight from 0 at the start
    ],
)
def test_a_gain_must_hold(gains: list[float], seconds: float | None) -> None:
    found = line(gains).reaches(0.1)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_runs_of_unequal_length_are_compared_as_far_as_all_went() -> None:
    found = curve(
        [
            (np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3])),
            (np.array([2.0, 4.0]), np.array([0.3, 0.4])),
        ]
    )
    assert found.seconds.tolist() == [[1.0, 2.0], [2.0, 4.0]] and found.last.tolist() == [0.2, 0.4]


def test_the_level() -> None:
    curves = {"a": line([0.1, 0.2, 0.3]), "b": line([0.1, 0.2, 0.5])}
    assert level(curves, 0.1) == {"gain": 0.1, "named": True, "best": None}
    assert level(curves, None) == {"gain": 0.25, "named": False, "best": "b"}
    unsure = curve([(np.arange(3.0), np.full(3, 0.9)), (np.arange(3.0), np.full(3, -0.1))])
    assert level(curves | {"c": unsure}, None)["best"] == "b"  # c ends with 0.4 ± 6.4
    assert level({"c": unsure, "flat": line([0.0] * 3)}, None) == {
        "gain": None,
        "named": False,
        "best": None,
    }


def pair(draw: np.random.Generator, rise: float) -> tuple[Curve, Curve]:
    """Two equal methods of 3 seeds and 15 checks: runs end `rise` ± their luck higher, checks have
    noise of their own."""
    seconds, part = np.tile(10.0 * np.arange(1, 16), (3, 1)), np.arange(1, 16) / 15
    ends = rise + draw.normal(0, RUN, (2, 3, 1))
    first, second = ends * part + draw.normal(0, 0.012, (2, 3, 15))
    return Curve(seconds, first), Curve(seconds, second)


@pytest.mark.parametrize("gain", [None, 0.1])
def test_equal_methods_on_a_flat_curve_reach_nothing(gain: float | None) -> None:
    draw = np.random.default_rng(1)
    reached = 0
    for _ in range(400):
        own, other = pair(draw, 0.0)
        reached += (
            time_to(own, other, level({"own": own, "other": other}, gain)["gain"])["seconds"]
            is not None
        )
    assert reached <= 0.07 * 400


def test_equal_methods_take_equally_long() -> None:
    draw = np.random.default_rng(2)
    ratios, called = [], 0
    for _ in range(400):
        own, other = pair(draw, 0.3)
        ratio = time_to(own, other, 0.1)["ratio"]
        ratios.append(ratio["mean"])
        called += ratio["low"] is not None and not ratio["low"] <= 1 <= ratio["high"]
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=0.05) and called <= 0.07 * 400
