"""Groups whose leaves hardly differ: `min_spread`, with every estimator, and how many there are."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from support.small_trees import header, plan_of, quickstart

from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.advantage.depthwise import DepthWise
from branchgrpo.algo.advantage.group import GroupRelative
from branchgrpo.algo.credit import Credit
from branchgrpo.config import load as config
from branchgrpo.estimate.iteration import counts
from branchgrpo.types import F32, TreeCredit

PLAN = plan_of(2, 2, 1)
Scores = dict[tuple[int, int], F32]


def credit_of(estimator: AdvantageOptions, weights: tuple[float, ...] = (1.0,)) -> Credit:
    combine = "reward" if len(weights) == 1 else "advantage"
    return Credit(weights=weights, combine=combine, estimator=estimator, pruning=(), seed=0)


def assigned(credit: Credit, scores: Scores) -> dict[tuple[int, int], TreeCredit]:
    leaves = credit.leaf_rewards(scores)
    trees = [header(PLAN, leaves[name].tolist(), *name) for name in scores]
    return dict(zip(scores, credit.assign(PLAN, trees, 0, scores), strict=True))


def leaves_of(std: float) -> F32:
    """Four leaves of this (population) std."""
    return (0.5 + std * np.array([[1, -1, 1, -1]])).astype(np.float32)


@pytest.mark.parametrize("name", ["depthwise", "group"])
@pytest.mark.parametrize("std", ["", "global"])
def test_a_group_that_spreads_less_gets_nothing_and_others_what_they_got(
    name: str, std: str
) -> None:
    keys = {"min_spread": "0.05"} | ({"std": std} if std else {})
    given = {f"advantage.{key}": value for key, value in keys.items()}
    loaded = quickstart({"advantage.name": name} | given)
    free = loaded.advantage.model_copy(update={"min_spread": 0.0})
    scores = {(0, 0): leaves_of(0.049), (1, 0): leaves_of(0.051), (2, 0): leaves_of(0.0)}
    found, all_of_them = (assigned(credit_of(one), scores) for one in (loaded.advantage, free))
    assert not found[0, 0].advantage.any() and all_of_them[0, 0].advantage.any()
    assert np.array_equal(found[1, 0].advantage, all_of_them[1, 0].advantage)
    assert found[1, 0].advantage.any()
    for tree, other in zip(found.values(), all_of_them.values(), strict=True):
        assert np.array_equal(tree.node_reward, other.node_reward)
        assert np.array_equal(tree.keep, other.keep)  # it counts in the loss' mean


def test_a_group_is_what_the_estimator_compares() -> None:
    """Two flat trees far apart are one group of a prompt, and two groups of trees."""
    scores = {(0, 0): leaves_of(0.001), (0, 1): 1 + leaves_of(0.001)}
    together = assigned(credit_of(DepthWise(min_spread=0.1)), scores)
    assert all(tree.advantage.any() for tree in together.values())
    for options in ({"group": "tree"}, {"std": "tree"}):
        apart = assigned(credit_of(DepthWise(min_spread=0.1, **options)), scores)
        assert not any(tree.advantage.any() for tree in apart.values())


def test_by_advantage_each_reward_is_judged_on_its_own_scale() -> None:
    """The second reward, with a spread of 0.02 beside 20, is flat; so is what pruning goes by."""
    credit = credit_of(GroupRelative(min_spread=0.1), weights=(1.0, 3.0))
    narrow, wide = leaves_of(0.02), leaves_of(20.0)[:, ::-1]
    found = assigned(credit, {(0, 0): np.concatenate([wide, narrow])})[0, 0]
    alone = assigned(credit_of(GroupRelative()), {(0, 0): wide})[0, 0]
    assert np.array_equal(found.advantage, alone.advantage) and found.advantage.any()
    spread = sqrt(4 / 3)  # unbiased, of ±1
    levels = credit.leaf_rewards({(0, 0): np.concatenate([wide, narrow])})[0, 0]
    assert levels == pytest.approx(np.array([-1, 1, -1, 1]) / spread, rel=1e-5)


def test_by_default_nothing_changes() -> None:
    for estimator in (DepthWise(), GroupRelative()):
        tiny = {(0, 0): np.array([[0.0, 3e-6, 0.0, 3e-6]], np.float32)}
        assert assigned(credit_of(estimator), tiny)[0, 0].advantage.any()


def test_share_of_flat_groups() -> None:
    scores = {(prompt, 0): leaves_of(std) for prompt, std in enumerate((0.001, 0.009, 0.011, 0.3))}
    assert credit_of(DepthWise()).flat_groups(scores) == 0.5  # below 0.01
    assert credit_of(DepthWise(min_spread=0.005)).flat_groups(scores) == 0.25
    assert credit_of(DepthWise(min_spread=0.1)).flat_groups(scores) == 0.75
    both = {name: np.concatenate([one, leaves_of(1.0)]) for name, one in scores.items()}
    assert credit_of(DepthWise(), (1.0, 1.0)).flat_groups(both) == 0.25  # of eight
    trees = {(0, 0): leaves_of(0.001), (0, 1): 1 + leaves_of(0.3)}
    assert credit_of(DepthWise(group="tree")).flat_groups(trees) == 0.5
    assert credit_of(DepthWise()).flat_groups(trees) == 0.0


def test_an_estimate_takes_no_group_for_flat() -> None:
    """Rewards on a scale of hundreds want such a bound: as many parents train as without."""

    def trained(**keys: str) -> float:
        loaded: config.Config = quickstart({f"advantage.{key}": one for key, one in keys.items()})
        return counts(loaded, loaded.schedule(), workers=1).trained

    assert trained(min_spread="100") == trained() > 0
