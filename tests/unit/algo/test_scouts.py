"""Which candidates scouts choose, how they are grown, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from support.presets import load

from branchgrpo.algo.methods.chains import ChainMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.scouts import best_and_worst, rank_correlation
from branchgrpo.errors import UserError
from tests.reference import slow_ranks


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("kinds", [1, 3, 1000])
def test_the_best_and_the_worst_are_those_of_the_slow_reference(count: int, kinds: int) -> None:
    """kinds: of rewards, so that many are equal where they are few."""
    draw = np.random.default_rng(count * kinds)
    for _ in range(20):
        numbers = draw.permutation(12).tolist()
        rewards = dict(zip(numbers, draw.integers(kinds, size=12).tolist(), strict=True))
        found = best_and_worst(rewards, count)
        assert found == slow_ranks.best_and_worst(rewards, count)
        assert len(found) == count


def test_choices_by_hand() -> None:
    rewards = {0: 0.3, 1: 0.9, 2: 0.1, 3: 0.5, 4: 0.7}
    assert best_and_worst(rewards, 2) == [1, 2]
    assert best_and_worst(rewards, 3) == [1, 2, 4]  # of an odd number one more is of the best
    assert best_and_worst(rewards, 4) == [0, 1, 2, 4]
    assert best_and_worst(dict.fromkeys(range(5), 0.5), 3) == [0, 1, 4]
    with pytest.raises(ValueError, match="expected at least 6 candidates, got 5"):
        best_and_worst(rewards, 6)


@pytest.mark.parametrize("kinds", [3, 1000])
def test_rank_correlation_is_the_slow_references(kinds: int) -> None:
    draw = np.random.default_rng(kinds)
    for _ in range(20):
        first, second = draw.integers(kinds, size=(2, 9)).astype(float)
        assert rank_correlation(first, second) == pytest.approx(
            slow_ranks.spearman(first.tolist(), second.tolist()), abs=1e-12
        )


def test_rank_correlation_without_ties_is_the_closed_form() -> None:
    """1 − 6 Σ d² / (n (n² − 1)), whatever grows with the ranks."""
    order = [2, 0, 1, 4, 3]
    distance = sum((place - value) ** 2 for place, value in enumerate(order))
    expected = 1 - 6 * distance / (5 * 24)
    assert rank_correlation(np.exp(range(5)), order) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [5, 4, -1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3], [7, 7, 7]) == 0.0


@pytest.mark.parametrize("stochastic", ["all", "none"])
def test_scouts_take_few_steps_of_the_schedule_from_roots_of_their_own(stochastic: str) -> None:
    method = ChainMethod.model_validate(
        {"chains": 4, "root": "private", "stochastic": stochastic, "scouts": 9}
    )
    schedule = static(10, 3.0)
    plan = method.scouting(schedule)
    assert plan is not None
    # a third of ten steps, at steps 0, 10/3 and 20/3
    times = np.array([1.0, 2 / 3, 1 / 3])
    np.testing.assert_allclose(plan.sigmas, [*(3 * times / (1 + 2 * times)), 0.0], rtol=1e-6)
    assert plan.kernel == ("dpm",) * 3 and set(plan.fanout) == {1}
    assert plan.chains == 9 and not plan.shared_root and not any(plan.stochastic)
    # the iteration's own plan knows nothing of them
    plain = method.model_copy(update={"scouts": 0})
    own, other = method.plan(3, schedule), plain.plan(3, schedule)
    assert (own.kernel, own.chains) == (other.kernel, 4) and plain.scouting(schedule) is None
    assert np.array_equal(own.sigmas, other.sigmas)


@pytest.mark.parametrize(("asked", "steps", "taken"), [(0, 2, 1), (0, 5, 2), (6, 10, 6), (7, 7, 7)])
def test_steps_of_a_scout(asked: int, steps: int, taken: int) -> None:
    method = ChainMethod(chains=2, root="private", scouts=3, scout_steps=asked)
    method.check(steps)
    plan = method.scouting(static(steps, 1.0))
    assert plan is not None and plan.steps == taken


def test_the_preset_is_nft_of_24_among_96() -> None:
    """Sol-RL's counts: 6 of 10 steps, the best 12 and the worst 12 of 96."""
    found, nft = load("nft-scouts"), load("nft")
    plan = found.method.scouting(found.schedule())
    assert plan is not None and (plan.chains, plan.steps) == (96, 6)
    keys = {"method.scouts": "0", "method.scout_steps": "0", "run.label": nft.run.label}
    assert load("nft-scouts", keys).model_dump(mode="json") == nft.model_dump(mode="json")


@pytest.mark.parametrize(
    ("preset", "keys", "message"),
    [
        ("nft", {"method.scouts": "24"}, "method.scouts: expected more than chains, 24, or 0, got"),
        ("nft", {"method.scouts": "-1"}, "method.scouts: "),
        ("nft-scouts", {"method.scout_steps": "11"}, "expected at most sampling.steps, 10, got 11"),
        ("dancegrpo", {"method.scouts": "32"}, "method.scouts: expected 0 with root: shared"),
        ("branchgrpo", {"method.scouts": "32"}, "unknown key of branchgrpo, a key of chains"),
        ("tempflow", {"method.scouts": "32"}, "unknown key of tempflow, a key of chains"),
    ],
)
def test_scouts_that_cannot_be_are_one_line(
    preset: str, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(preset, keys)
    assert message in str(caught.value) and "\n" not in str(caught.value)
