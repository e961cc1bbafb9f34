"""Every shipped preset against counts worked out by hand from METHODS.md, and options that cannot
be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from support.small_trees import QUICKSTART, header

from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.schedule import Schedule, static
from branchgrpo.algo.tree import topology
from branchgrpo.config import load as config
from branchgrpo.config.shipped import presets
from branchgrpo.errors import UserError
from branchgrpo.types import BranchPlan, TreeHeader

LAST = {"method.train_last_edge": "true"}
ALL_BUT_THE_LAST = tuple(range(19))


@dataclass(frozen=True)
class Counts:
    """Of one prompt's group at iteration 0: `edges` trained, `parents` whose forward trains
    them."""

    steps: int
    chains: int
    leaves: int
    splits: tuple[int, ...]
    random: tuple[int, ...]
    forwards: int
    edges: int
    parents: int


# Splits at 3, 6, 9, 12: levels of 1·4, 2·3, 4·3, 8·3, 16·7 nodes take a forward = 158; 2 + 4 + 8 +
# 16 = 30 edges of 15 parents.
SPLITS_ONLY = Counts(
    steps=20,
    chains=1,
    leaves=16,
    splits=(3, 6, 9, 12),
    random=(3, 6, 9, 12),
    forwards=158,
    edges=30,
    parents=15,
)
# Splits at 0, 3, 6, 9: 1 + 2·3 + 4·3 + 8·3 + 16·10 = 203 forwards, 218 edges; without the last
# step's 16, 202 edges of 187 parents.
PAPER_TREE = Counts(
    steps=20,
    chains=1,
    leaves=16,
    splits=(0, 3, 6, 9),
    random=ALL_BUT_THE_LAST,
    forwards=203,
    edges=202,
    parents=187,
)
CHAINS = Counts(
    steps=20,
    chains=16,
    leaves=16,
    splits=(),
    random=ALL_BUT_THE_LAST,
    forwards=16 * 20,
    edges=16 * 19,
    parents=16 * 19,
)
FLOW_CHAINS = Counts(
    steps=10,
    chains=24,
    leaves=24,
    splits=(),
    random=tuple(range(9)),
    forwards=240,
    edges=24 * 9,
    parents=24 * 9,
)

EXPECTED = {
    "branchgrpo": PAPER_TREE,
    "branchgrpo-adaptive": SPLITS_ONLY,
    "branchgrpo-antithetic": SPLITS_ONLY,
    "branchgrpo-splits": SPLITS_ONLY,
    # 0.4 of 7 steps: 3
    "branchgrpo-splits-flash": Counts(
        steps=16,
        chains=1,
        leaves=16,
        splits=(3, 6, 9, 12),
        random=(3, 6, 9, 12),
        forwards=4 + 6 + 12 + 24 + 16 * 3,
        edges=30,
        parents=15,
    ),
    # 0.2 of 16 steps: 3
    "branchgrpo-flash": Counts(
        steps=7,
        chains=1,
        leaves=16,
        splits=(0, 1, 2, 3),
        random=(0, 1, 2, 3),
        forwards=1 + 2 + 4 + 8 + 16 * 3,
        edges=30,
        parents=15,
    ),
    "branchgrpo-depthprune": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=ALL_BUT_THE_LAST,
        forwards=203,
        edges=202 - 5 * 16,
        parents=187 - 5 * 16,
    ),
    # steps 10 … 18, half the leaves
    "branchgrpo-widthprune": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=ALL_BUT_THE_LAST,
        forwards=203,
        edges=202 - 9 * 8,
        parents=187 - 9 * 8,
    ),
    "branchgrpo-extremes": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=ALL_BUT_THE_LAST,
        forwards=203,
        edges=202 - 9 * 8,
        parents=187 - 9 * 8,
    ),
    "branchgrpo-mix": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=(0, 1, 2, 3, 6, 9),
        forwards=203,
        edges=30 + 2 + 2,
        parents=15 + 2 + 2,
    ),
    "dancegrpo": CHAINS,
    "dancegrpo-private": CHAINS,
    "dancegrpo-tf06": Counts(
        steps=20,
        chains=16,
        leaves=16,
        splits=(),
        random=ALL_BUT_THE_LAST,
        forwards=320,
        edges=16 * 12,
        parents=16 * 12,
    ),
    "dancegrpo-bestofn": Counts(
        steps=20,
        chains=24,
        leaves=24,
        splits=(),
        random=ALL_BUT_THE_LAST,
        forwards=480,
        edges=8 * 19,
        parents=8 * 19,
    ),
    "flow-dppo": FLOW_CHAINS,
    "flowgrpo": FLOW_CHAINS,
    "grpo-guard": FLOW_CHAINS,
    "mixgrpo": Counts(
        steps=25,
        chains=16,
        leaves=16,
        splits=(),
        random=(0, 1, 2, 3),
        forwards=16 * 25,
        edges=16 * 4,
        parents=16 * 4,
    ),
    # 4 + round(0.4 · 21)
    "mixgrpo-flash": Counts(
        steps=12,
        chains=16,
        leaves=16,
        splits=(),
        random=(0, 1, 2, 3),
        forwards=16 * 12,
        edges=16 * 4,
        parents=16 * 4,
    ),
    # 4 + round(0.2 · 21)
    "mixgrpo-flash-star": Counts(
        steps=8,
        chains=16,
        leaves=16,
        splits=(),
        random=(0, 1, 2, 3),
        forwards=16 * 8,
        edges=16 * 4,
        parents=16 * 4,
    ),
    "tempflow": Counts(
        steps=10,
        chains=4,
        leaves=4 * 54,
        splits=tuple(range(9)),
        random=tuple(range(9)),
        forwards=4 * 279,
        edges=4 * 54,
        parents=4 * 9,
    ),
}


def load(preset: str, overrides: dict[str, str] | None = None) -> config.Config:
    return config.load(QUICKSTART, overrides or {}, preset)


def plan_at(loaded: config.Config, iteration: int = 0) -> BranchPlan:
    return loaded.method.plan(iteration, loaded.schedule(), loaded.run.seed)


def group(plan: BranchPlan) -> list[TreeHeader]:
    """One prompt's trees with random rewards."""
    rng = np.random.default_rng(3)
    return [
        header(plan, rng.standard_normal(topology(plan).leaves).tolist(), 0, tree)
        for tree in range(plan.chains)
    ]


def trained(loaded: config.Config, iteration: int = 0) -> np.ndarray:
    """[trees, N] which edges are trained: random, and not pruned."""
    plan = plan_at(loaded, iteration)
    return np.stack([one.keep for one in loaded.credit.assign(plan, group(plan), iteration, {})])


def counts(loaded: config.Config, iteration: int = 0) -> Counts:
    plan, keep = plan_at(loaded, iteration), trained(loaded, iteration)
    topo = topology(plan)
    random = tuple(step for step in range(plan.steps) if plan.stochastic[step])
    forwards = plan.chains * len(np.unique(topo.parent[1:]))
    parents = sum(len(np.unique(topo.parent[tree])) for tree in keep)
    return Counts(
        steps=plan.steps,
        chains=plan.chains,
        leaves=plan.chains * topo.leaves,
        splits=plan.splits,
        random=random,
        forwards=forwards,
        edges=int(keep.sum()),
        parents=parents,
    )


def test_the_table_has_every_preset() -> None:
    assert sorted([*EXPECTED, "flowgrpo-fast"]) == presets()


@pytest.mark.parametrize("preset", EXPECTED)
def test_counts_of_a_preset(preset: str) -> None:
    assert counts(load(preset)) == EXPECTED[preset]


STEPS = {
    3: (
        "branchgrpo branchgrpo-depthprune branchgrpo-extremes branchgrpo-mix "
        "branchgrpo-widthprune dancegrpo dancegrpo-bestofn dancegrpo-private dancegrpo-tf06"
    ),
    4: "mixgrpo mixgrpo-flash mixgrpo-flash-star",
    2: "flow-dppo flowgrpo flowgrpo-fast grpo-guard tempflow",
    1: (
        "branchgrpo-adaptive branchgrpo-antithetic branchgrpo-flash branchgrpo-splits "
        "branchgrpo-splits-flash"
    ),
}
"""Optimiser steps per rollout: those of the published code (METHODS.md), of ours what measured best
(docs/benchmarks)."""


def test_optimiser_steps_of_every_preset() -> None:
    expected = {name: steps for steps, names in STEPS.items() for name in names.split()}
    assert {name: load(name).learner.optimiser_steps for name in presets()} == expected


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        # β with the divisor 2·std², std = s·√(−dt)
        ("flowgrpo", {"loss.kl_beta": 0.004, "advantage.std": "global", "method.chains": 24}),
        (
            "flowgrpo-fast",
            {
                "method.window.size": 3,
                "method.window.reach": 0.5,
                "method.kernel": "cps",
                "loss.clip_range": 1e-5,
                "advantage.std": "global",
                "advantage.unbiased": False,
                "advantage.epsilon": 1e-4,
                "learner.ema": 0.9,
                "learner.ema_every": 8,
                "evaluation.weights": "ema",
            },
        ),
        (
            "mixgrpo-flash",
            {"method.window.interval": 20, "method.window.size": 4, "method.tail_ratio": 0.4},
        ),
        ("mixgrpo-flash-star", {"method.window.interval": 20, "method.tail_ratio": 0.2}),
        ("mixgrpo", {"method.window.interval": 25}),
        ("dancegrpo-bestofn", {"method.chains": 24}),
    ],
)
def test_published_constants(preset: str, published: dict[str, Any]) -> None:
    loaded = load(preset)
    for key, value in published.items():
        found: Any = loaded
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value, key


def test_best_of_n_trains_the_four_best_and_the_four_worst_of_24() -> None:
    loaded = load("dancegrpo-bestofn")
    rewards = np.random.default_rng(0).permutation(24).astype(np.float32)
    plan = plan_at(loaded)
    keep = [
        one.keep.any()
        for one in loaded.credit.assign(
            plan, [header(plan, [float(one)], 0, tree) for tree, one in enumerate(rewards)], 0, {}
        )
    ]
    assert sorted(rewards[keep].tolist()) == [0, 1, 2, 3, 20, 21, 22, 23]


class Alternating(MethodOptions):
    """A user's own: noise in every other step of the first half."""

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        random = [step % 2 == 0 and step < schedule.steps // 2 for step in range(schedule.steps)]
        return BranchPlan(
            sigmas=schedule.levels,
            fanout=(1,) * schedule.steps,
            kernel=tuple("dance" if one else "ode" for one in random),
            noise_scale=tuple(0.3 if one else 0.0 for one in random),
        )


def test_the_tail_that_is_asked_for_is_every_methods() -> None:
    schedule = static(10, 3.0)  # random: 0, 2, 4; the 5 steps after them become 2
    assert Alternating().plan(0, schedule).steps == 10
    plan = Alternating(tail="dpm", tail_ratio=0.4).plan(0, schedule)
    assert plan.kernel == ("dance", "ode", "dance", "ode", "dance", "dpm", "dpm")


def test_flowgrpo_fast_splits_where_its_window_is() -> None:
    """10 steps, the first half holds windows of three at 0 … 2: w + 1 forwards of the trunk, then
    24 rows for 9 − w steps."""
    loaded, seen = load("flowgrpo-fast"), set()
    for iteration in range(60):
        w = plan_at(loaded, iteration).splits[0]
        seen.add(w)
        assert counts(loaded, iteration) == Counts(
            steps=10,
            chains=1,
            leaves=24,
            splits=(w,),
            random=(w, w + 1, w + 2),
            forwards=w + 1 + 24 * (9 - w),
            edges=72,
            parents=49,
        )
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    "preset",
    [
        name
        for name, expected in EXPECTED.items()
        if expected.splits == (0, 3, 6, 9) and name != "branchgrpo-mix"
    ],
)
def test_the_papers_counts_with_the_last_edge(preset: str) -> None:
    """13.63 edges a leaf; 8.63 with half of the 10 post-split steps, or five of them, left out.
    Sliding changes nothing."""
    expected = 218 if preset == "branchgrpo" else 138
    loaded = load(preset, LAST)
    for iteration in (0, 29, 30, 60, 120, 150, 1000):
        assert trained(loaded, iteration).sum() == expected, iteration
    assert counts(loaded).forwards == 203


def test_the_papers_count_of_mix() -> None:
    """Split edges 30; the windows add 2+2, 4+4+8, 8+16+16, 4·16 and 4·16 between them: 67.6 on
    average, 4.23 a leaf."""
    loaded = load("branchgrpo-mix", LAST)
    found = [int(trained(loaded, 30 * position).sum()) for position in range(5)]
    assert found == [34, 46, 70, 94, 94]
    assert sum(found) / 5 == pytest.approx(67.6)
    assert [int(trained(load("branchgrpo-mix"), 30 * position).sum()) for position in range(5)] == [
        34,
        46,
        70,
        94,
        94 - 16,
    ]


@pytest.mark.parametrize(
    ("preset", "plain", "last"),
    [("dancegrpo", 19, 20), ("dancegrpo-tf06", 12, 12), ("dancegrpo-bestofn", 19, 20)],
)
def test_trained_steps_of_a_dancegrpo_chain(preset: str, plain: int, last: int) -> None:
    for loaded, steps in ((load(preset), plain), (load(preset, LAST), last)):
        for iteration in (0, 7):
            of_chain = trained(loaded, iteration).sum(1)
            assert set(of_chain.tolist()) - {0} == {steps}
            assert (of_chain > 0).sum() == (8 if preset == "dancegrpo-bestofn" else 16)


def test_timestep_fraction_draws_steps_of_its_own_for_each_chain_and_iteration() -> None:
    loaded = load("dancegrpo-tf06")
    masks = [tuple(row) for iteration in range(3) for row in trained(loaded, iteration).tolist()]
    assert len(set(masks)) > 40  # of 48 draws of 12 out of 19
    share = np.mean(masks, axis=0)[1:]  # node n of a chain is the edge of step n − 1
    assert share[-1] == 0 and share[:-1].min() > 0.3
    assert np.array_equal(trained(loaded, 2), trained(loaded, 2))


def test_mixgrpo_of_the_published_table() -> None:
    """T = 20, a window of 5: 20 forwards a chain, of which 5 are trained, wherever the window
    is."""
    loaded = load("mixgrpo", {"sampling.steps": "20", "method.window.size": "5"})
    for iteration in range(0, 1000, 25):
        start = min(iteration // 25, 14)  # steps 14 … 18 at last
        assert counts(loaded, iteration) == Counts(
            steps=20,
            chains=16,
            leaves=16,
            splits=(),
            random=tuple(range(start, start + 5)),
            forwards=320,
            edges=80,
            parents=80,
        )


def test_mixgrpo_flash_compresses_what_lies_behind_the_window() -> None:
    flash, star = load("mixgrpo-flash"), load("mixgrpo-flash-star")
    for turn in range(40):
        start = min(turn, 20)
        count = max(1, round(0.4 * (21 - start)))
        plan, frozen = plan_at(flash, 20 * turn), plan_at(star, 20 * turn)
        assert plan.kernel == ("ode",) * start + ("flow",) * 4 + ("dpm",) * count
        assert frozen.kernel == ("flow",) * 4 + ("dpm",) * 4
        for one in (plan, frozen):
            assert one.sigmas[0] == 1.0 and one.sigmas[-1] == 0.0 and one.kernel[-1] == "dpm"
        np.testing.assert_array_equal(plan.sigmas[: start + 5], static(25, 3.0).levels[: start + 5])


def test_roots_and_kernels_of_the_presets() -> None:
    private = {"dancegrpo-private", "flow-dppo", "flowgrpo", "grpo-guard", "tempflow"}
    assert {name for name in presets() if not plan_at(load(name)).shared_root} == private
    noise = {"flow": 0.7, "cps": 0.8, "dance": 0.3}
    for name in presets():
        plan = plan_at(load(name))
        danced = name.startswith(("branch", "dance")) and name != "branchgrpo-flash"
        family = "dance" if danced else "cps" if name == "flowgrpo-fast" else "flow"
        assert {plan.kernel[step] for step in range(plan.steps) if plan.stochastic[step]} == {
            family
        }
        assert {plan.noise_scale[step] for step in range(plan.steps) if plan.stochastic[step]} == {
            noise[family]
        }


def test_tempflow_weighs_a_step_by_its_noise() -> None:
    plan = plan_at(load("tempflow"))
    s = plan.sigmas.astype(float)
    denominator = [1 - s[1], *(1 - s[1:9])]  # σ = 1 takes the next level's
    expected = [2.25 * 0.7 * math.sqrt(s[i] / denominator[i] * (s[i] - s[i + 1])) for i in range(9)]
    np.testing.assert_allclose(plan.weights[:9], expected, rtol=1e-5)
    assert plan_at(load("tempflow", {"method.noise_weight": "0"})).weights.tolist() == [1.0] * 10


@pytest.mark.parametrize("preset", presets())
def test_plans_over_training_have_random_steps_but_never_the_last(preset: str) -> None:
    lengths = (20,) if preset.startswith("branch") else (2, 3, 5, 25)
    for steps in lengths:
        loaded = load(preset, {"sampling.steps": str(steps)})
        for iteration in range(0, 1000, 13):
            plan = plan_at(loaded, iteration)
            assert any(plan.stochastic) and not plan.stochastic[-1]
            assert plan.sigmas[0] == 1.0 and plan.sigmas[-1] == 0.0
            assert topology(plan).leaves * plan.chains >= 2


@pytest.mark.parametrize(
    ("preset", "overrides", "parts"),
    [
        ("mixgrpo", {"method.window.size": "0"}, ["window.size", "got 0"]),
        ("flowgrpo-fast", {"method.window.size": "0"}, ["window.size", "got 0"]),
        ("dancegrpo", LAST | {"method.kernel": "cps"}, ["train_last_edge", "dance or flow"]),
        ("branchgrpo", LAST | {"method.kernel": "cps"}, ["train_last_edge", "dance or flow"]),
        ("branchgrpo-splits", LAST, ["train_last_edge", "stochastic"]),
        ("branchgrpo", LAST | {"method.tail": "dpm"}, ["train_last_edge", "tail"]),
        ("dancegrpo", LAST | {"method.tail": "dpm"}, ["train_last_edge", "tail"]),
        ("mixgrpo", LAST, ["train_last_edge", "stochastic"]),
        ("tempflow", LAST, ["train_last_edge", "unknown key"]),
        ("tempflow", {"rollout.fork_depth": "2"}, ["fork_depth", "tempflow"]),
        ("branchgrpo", {"sampling.steps": "10"}, ["splits", "0 … 8", "9"]),
        ("dancegrpo", {"method.chains": "1"}, ["chains", "got 1"]),
        ("mixgrpo-flash", {"method.tail_ratio": "0"}, ["tail_ratio", "got 0"]),
        ("dancergpo", {}, ["preset", "dancegrpo", "'dancergpo'"]),
        ("flowgrpo-fast", {"method.eta": "2.5"}, ["eta"]),
    ],
)
def test_options_that_cannot_be_are_one_line(
    preset: str, overrides: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load(preset, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("fanout", "kernel", "match"),
    [
        ((2, 1, 1), ("flow", "ode", "flow"), "last step"),
        ((1, 2, 1), ("flow", "ode", "ode"), "step 1 splits"),
        ((2, 1, 1), ("flow", "dpm", "ode"), "dpm"),
        ((2, 1), ("flow", "ode", "ode"), "shape|steps"),
    ],
)
def test_plans_that_cannot_be(fanout: tuple[int, ...], kernel: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BranchPlan(static(3, 3.0).levels, fanout, kernel, (0.7,) * 3)
