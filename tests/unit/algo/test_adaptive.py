"""Adaptive splits: the variance that each split adds, and where the splits go."""

from __future__ import annotations

import numpy as np
import pytest
from support.small_trees import quickstart

from branchgrpo.algo import noise
from branchgrpo.algo.methods.adaptive import SplitChooser, variance_components
from branchgrpo.algo.methods.base import MethodRun
from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.schedule import static
from branchgrpo.types import TreeKey

STEPS = 12


def nested(
    draw: np.random.Generator, components: list[float], trees: int, fanout: int
) -> np.ndarray:
    """Leaf rewards [trees, L]: at every split each child adds its own N(0, component); the root
    adds what all leaves share."""
    value = draw.normal(0.0, 10.0, (trees, 1))
    for component in components:
        value = np.repeat(value, fanout, axis=1)
        value = value + draw.normal(0.0, np.sqrt(component), value.shape)
    return value


def method(splits: tuple[int, ...] = (0, 3, 6), fanout: int = 2, every: int = 1) -> BranchMethod:
    return BranchMethod(
        splits=splits,
        fanout=fanout,
        leaves=fanout ** len(splits),
        stochastic="splits",
        adapt_every=every,
        branch_noise="independent",
    )


def chosen(
    worth: np.ndarray, iterations: int, count: int = 3, seed: int = 0, every: int = 1
) -> tuple[SplitChooser, list[tuple[int, ...]]]:
    """A chooser fed with trees whose splits add exactly `worth` [T−1], and the splits of every
    iteration."""
    chooser, used = SplitChooser(method(tuple(range(count)), every=every), STEPS, seed), []
    for iteration in range(iterations):
        plan = chooser.method.plan(iteration, static(STEPS, 3.0))
        used.append(plan.splits)
        chooser.observe(plan, exact_leaves([float(worth[step]) for step in plan.splits]))
    return chooser, used


def exact_leaves(components: list[float]) -> np.ndarray:
    """One tree of fanout 2 whose components of variance are exactly these: children are ±d apart
    from their parent's value.

    Siblings' means differ by 2d, an unbiased variance of 2d²; so V_j = 2d_j² = C_j + V_{j+1} / 2.
    """
    between = 0.0
    gaps: list[float] = []
    for component in reversed(components):
        between = component + between / 2
        gaps.insert(0, float(np.sqrt(between / 2)))
    value = np.array([[5.0]])
    for gap in gaps:
        value = np.stack([value - gap, value + gap], 2).reshape(1, -1)
    return value


def test_by_hand() -> None:
    leaves = np.array([[1.0, 3.0, 7.0, 5.0], [0.0, 4.0, 2.0, 2.0]], np.float32)
    # last split: variances 2 2 | 8 0, mean 3; first: means 2 6 | 2 2, variances 8 0, mean 4, of
    # which 3/2 is noise from below
    assert variance_components(leaves, 2) == pytest.approx([4.0 - 3.0 / 2.0, 3.0])


def test_three_children_by_hand() -> None:
    leaves = np.array([[0.0, 3.0, 6.0, 9.0, 9.0, 9.0, 3.0, 0.0, 0.0]], np.float32)
    # variances 9 0 3, mean 4; means 3 9 1, variance 52/3
    assert variance_components(leaves, 3) == pytest.approx([52.0 / 3.0 - 4.0 / 3.0, 4.0], rel=1e-6)


def test_a_split_that_adds_less_than_the_noise_from_below_counts_as_nothing() -> None:
    assert variance_components(np.array([[0.0, 2.0, 2.0, 0.0]], np.float32), 2) == [0.0, 2.0]


def test_exact_components_are_found() -> None:
    for components in ([0.5, 2.0, 0.1], [3.0], [1.0, 1.0, 1.0, 1.0], [0.0, 2.0]):
        assert variance_components(exact_leaves(components), 2) == pytest.approx(components)


@pytest.mark.parametrize(
    ("components", "fanout"), [([0.5, 2.0, 0.1, 1.0], 2), ([1.0, 0.3], 3), ([4.0, 0.05, 0.05], 2)]
)
def test_components_of_a_nested_design(components: list[float], fanout: int) -> None:
    """An unbiased variance v of f normal values has Var v = 2v²/(f−1), so the mean of V_j over n
    independent trees has a standard error of at most V_j·√(2/(f−1)/n); C_j = V_j − V_{j+1}/f is off
    by at most five of its own and of V_{j+1}/f's."""
    trees = 20000
    found = variance_components(nested(np.random.default_rng(0), components, trees, fanout), fanout)
    between = [0.0]
    for component in reversed(components):
        between.insert(0, component + between[0] / fanout)
    error = np.sqrt(2 / (fanout - 1) / trees)
    for place, component in enumerate(components):
        assert abs(found[place] - component) <= 5 * error * (
            between[place] + between[place + 1] / fanout
        )


def linear(form: str, slopes: list[float], trees: int, fanout: int, scale: float) -> np.ndarray:
    """Leaf rewards [trees, L] that are linear in the noises of all splits: the sampler's own
    noises, a number of each for every tree."""
    key = TreeKey("run", 0, 0, 0)
    values = np.zeros((1, trees))
    node = 0
    for slope in slopes:
        first = node + len(values)  # breadth first
        below = []
        for parent in range(len(values)):
            children = [first + parent * fanout + child for child in range(fanout)]
            below.append(
                values[parent]
                + slope
                * noise.branch(
                    form,
                    scale=scale,
                    seed=0,
                    key=key,
                    parent=node + parent,
                    children=children,
                    shape=(trees,),
                ).numpy()
            )
        node, values = first, np.concatenate(below)
    return values.T


@pytest.mark.parametrize(
    ("form", "fanout"),
    [
        ("independent", 2),
        ("correlated", 2),
        ("correlated", 3),
        ("antithetic", 2),
        ("antithetic", 4),
    ],
)
def test_components_of_a_linear_reward_under_each_branch_noise(form: str, fanout: int) -> None:
    """Children a·ξ from their parent: unbiased variance a² of independent noises, a²·s²/(1+s²) of
    correlated ones; of f children in opposite pairs the squares sum to 2·Σξ² over f/2 pairs with
    mean 0, so f·a²/(f−1)."""
    slopes = [1.0, 0.8, 1.5]
    scale = 1.5
    trees = 100_000
    part = {
        "independent": 1.0,
        "correlated": scale**2 / (1 + scale**2),
        "antithetic": fanout / (fanout - 1),
    }[form]
    found = variance_components(
        linear(form, slopes=slopes, trees=trees, fanout=fanout, scale=scale), fanout, form, scale
    )
    assert found == pytest.approx([part * slope**2 for slope in slopes], rel=0.08)


def test_opposite_noises_leave_nothing_to_a_split_above() -> None:
    """±1 at the first split, ±3 at the second: pairs' means are exact, so 2·1² and 2·3²;
    subtracting would give nothing to the first."""
    leaves = np.array([[1 + 3, 1 - 3, -1 + 3, -1 - 3]], np.float32)
    assert variance_components(leaves, 2, "antithetic") == [2.0, 18.0]


def test_the_chooser_knows_its_trees_noise() -> None:
    chooser = SplitChooser(
        method((0, 3)).model_copy(update={"branch_noise": "antithetic"}), STEPS, 0
    )
    chooser.observe(
        chooser.method.plan(0, static(STEPS, 3.0)), np.array([[4.0, -2.0, 2.0, -4.0]], np.float32)
    )
    assert (chooser.worth[0], chooser.worth[3]) == (2.0, 18.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_step_is_tried_before_any_is_chosen(count: int, seed: int) -> None:
    needed = -(-(STEPS - 1) // count)
    _, used = chosen(np.linspace(1.0, 2.0, STEPS - 1), needed + 1, count, seed)
    assert {step for splits in used[:needed] for step in splits} == set(range(STEPS - 1))


def test_the_best_steps_are_chosen_and_one_stays_free_to_measure_the_rest() -> None:
    worth = np.array([0.1, 0.2, 5.0, 0.3, 0.1, 0.2, 0.3, 3.0, 0.1, 0.2, 0.1])
    chooser, used = chosen(worth, 40)
    assert chooser.worth == pytest.approx(worth)
    later = used[4:]
    assert all({2, 7} < set(splits) for splits in later)
    explored = [next(step for step in splits if step not in (2, 7)) for splits in later]
    # in turn, the oldest first
    assert all(len(set(explored[first : first + 9])) == 9 for first in range(len(explored) - 8))


def test_the_choice_follows_a_change() -> None:
    worth = np.full(STEPS - 1, 0.1)
    worth[[1, 2]] = 2.0
    chooser, _ = chosen(worth, 10)
    assert {1, 2} < set(chooser.method.splits)
    worth[[1, 2]], worth[[8, 9]] = 0.0, 4.0
    for iteration in range(60):
        plan = chooser.method.plan(iteration, static(STEPS, 3.0))
        chooser.observe(plan, exact_leaves([float(worth[step]) for step in plan.splits]))
    assert {8, 9} < set(chooser.method.splits)


@pytest.mark.parametrize("count", [1, 2, 5, STEPS - 1])
def test_splits_are_always_valid(count: int) -> None:
    draw = np.random.default_rng(count)
    chooser = SplitChooser(method(tuple(range(count))), STEPS, 3)
    for iteration in range(50):
        splits = chooser.method.splits
        assert (
            len(splits) == count
            and list(splits) == sorted(set(splits))
            and 0 <= splits[0]
            and splits[-1] <= STEPS - 2
        )
        chooser.method.check(STEPS)
        plan = chooser.method.plan(iteration, static(STEPS, 3.0))
        assert plan.splits == splits
        chooser.observe(plan, draw.normal(size=(1, 2**count)))


def test_splits_stay_for_adapt_every_iterations_and_measurements_are_averaged() -> None:
    chooser = SplitChooser(method((0, 3), every=3), STEPS, 0)
    plan = chooser.method.plan(0, static(STEPS, 3.0))
    for values in ([1.0, 2.0], [3.0, 0.0]):
        chooser.observe(plan, exact_leaves(values))
        assert chooser.method.splits == (0, 3)
    assert chooser.worth[[0, 3]] == pytest.approx([0.8 * 1.0 + 0.2 * 3.0, 0.8 * 2.0])
    chooser.observe(plan, exact_leaves([1.0, 1.0]))
    assert not {0, 3} & set(chooser.method.splits)


def test_the_seed_decides_the_order() -> None:
    worth = np.ones(STEPS - 1)
    assert (
        chosen(worth, 12, seed=1)[1] == chosen(worth, 12, seed=1)[1] != chosen(worth, 12, seed=2)[1]
    )


def test_it_is_off_unless_asked_for() -> None:
    assert BranchMethod().adapt_every == quickstart().method.adapt_every == 0
    assert type(BranchMethod().start(STEPS, seed=0)) is MethodRun
    assert isinstance(BranchMethod(adapt_every=5).start(STEPS, seed=0), SplitChooser)
