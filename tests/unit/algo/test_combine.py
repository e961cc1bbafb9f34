"""Several rewards: weighted sums of scores and of advantages against numbers worked out apart."""

from __future__ import annotations

import numpy as np
import pytest
from support.small_trees import header, quickstart

from branchgrpo.config.schema import Config
from branchgrpo.types import F32, BranchPlan

TWO = "[{name: ocr, weight: 2.0, target: 'number (\\d+)'}, {name: jpeg, weight: -0.5}]"
SMALL = {
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "sampling.steps": "4",
    "rewards": TWO,
    "method.branch_noise": "correlated",
}


def config(**options: str) -> Config:
    return quickstart(SMALL | options)


def plan_of(loaded: Config) -> BranchPlan:
    return loaded.method.plan(0, loaded.schedule())


def scores(prompts: int = 2, trees: int = 1) -> dict[tuple[int, int], F32]:
    """Two rewards, the second on a scale a thousand times as wide."""
    draw = np.random.default_rng(4)
    return {
        (prompt, tree): (draw.normal(size=(2, 4)) * [[1.0], [1000.0]]).astype(np.float32)
        for prompt in range(prompts)
        for tree in range(trees)
    }


def test_totals_are_weighted_sums() -> None:
    found = config().credit.totals({(0, 0): np.array([[1, 2, 3, 4], [10, 20, 30, 40]], np.float32)})
    assert found[0, 0].tolist() == [-3, -6, -9, -12]  # 2·1 − 0.5·10 …


def test_by_reward_the_estimator_sees_the_sums() -> None:
    loaded, given = config(), scores()
    plan = plan_of(loaded)
    trees = [header(plan, loaded.credit.totals(given)[key].tolist(), *key) for key in given]
    wanted = loaded.advantage.credit(plan, trees)
    for one, other in zip(loaded.credit.assign(plan, trees, 0, given), wanted, strict=True):
        assert np.array_equal(one.advantage, other.advantage) and one.advantage.any()


@pytest.mark.parametrize("trees", [1, 2])
def test_by_advantage_each_reward_is_compared_alone(trees: int) -> None:
    loaded, given = config(combine="advantage"), scores(trees=trees)
    plan = plan_of(loaded)
    leaves = loaded.credit.leaf_rewards(given)
    grown = [header(plan, leaves[key].tolist(), *key) for key in given]
    found = loaded.credit.assign(plan, grown, 0, given)
    alone = [
        loaded.advantage.credit(
            plan, [header(plan, given[key][index].tolist(), *key) for key in given]
        )
        for index in range(2)
    ]
    for one, first, second in zip(found, *alone, strict=True):
        np.testing.assert_allclose(
            one.advantage, 2 * first.advantage - 0.5 * second.advantage, atol=1e-6
        )
        assert one.advantage.any()


def test_by_advantage_a_wider_scale_weighs_no_more() -> None:
    loaded, given = config(combine="advantage"), scores()
    plan = plan_of(loaded)
    wider = {key: values * np.array([[1], [7.0]], np.float32) for key, values in given.items()}

    def advantages(chosen: dict[tuple[int, int], F32]) -> F32:
        leaves = loaded.credit.leaf_rewards(chosen)
        return np.stack(
            [
                one.advantage
                for one in loaded.credit.assign(
                    plan, [header(plan, leaves[key].tolist(), *key) for key in chosen], 0, chosen
                )
            ]
        )

    np.testing.assert_allclose(advantages(given), advantages(wider), atol=1e-5)


def test_leaf_rewards_by_advantage_are_z_scores_of_the_prompt() -> None:
    loaded = config(combine="advantage")
    given = {
        (0, 0): np.array([[0, 1, 2, 3], [5, 5, 5, 5]], np.float32),
        (0, 1): np.array([[4, 5, 6, 7], [5, 5, 5, 5]], np.float32),
    }
    found, spread = loaded.credit.leaf_rewards(given), np.std(np.arange(8), ddof=1)
    # the second reward is flat: nothing
    np.testing.assert_allclose(found[0, 1], 2 * (np.arange(4, 8) - 3.5) / spread, rtol=1e-5)
    np.testing.assert_allclose(found[0, 0], 2 * (np.arange(4) - 3.5) / spread, rtol=1e-5)
