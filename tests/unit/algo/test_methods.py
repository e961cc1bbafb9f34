"""Every shipped preset against counts worked out by hand from METHODS.md, and options that cannot
be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support.presets import LAST, load, plan_at, trained
from support.small_trees import header

from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.schedule import Schedule, static
from branchgrpo.algo.tree import topology
from branchgrpo.config.shipped import presets
from branchgrpo.errors import UserError
from branchgrpo.types import BranchPlan

STEPS = {
    3: (
        "branchgrpo branchgrpo-depthprune branchgrpo-extremes branchgrpo-mix "
        "branchgrpo-widthprune dancegrpo dancegrpo-bestofn dancegrpo-private dancegrpo-tf06"
    ),
    4: "mixgrpo mixgrpo-flash mixgrpo-flash-star",
    2: "flow-dppo flowgrpo flowgrpo-fast grpo-guard tempflow",
    1: (
        "awm branchgrpo-adaptive branchgrpo-antithetic branchgrpo-flash branchgrpo-splits "
        "branchgrpo-splits-flash crd dgpo nft nft-flash nft-scouts nft-tree "
        "treegrpo"
    ),
}
"""Optimiser steps per rollout: those of the published code (METHODS.md; of TreeGRPO none is), of
ours what measured best (docs/benchmarks)."""


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
        (
            "treegrpo",
            {
                "sampling.steps": 10,
                "method.fanout": 3,
                "method.window.size": 3,
                "method.window.ratio": 0.5,
                "loss.kl_beta": 0.0,
                "rollout.trees_per_prompt": 1,
            },
        ),
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


def test_timestep_fraction_draws_steps_of_its_own_for_each_chain_and_iteration() -> None:
    loaded = load("dancegrpo-tf06")
    masks = [tuple(row) for iteration in range(3) for row in trained(loaded, iteration).tolist()]
    assert len(set(masks)) > 40  # of 48 draws of 12 out of 19
    share = np.mean(masks, axis=0)[1:]  # node n of a chain is the edge of step n − 1
    assert share[-1] == 0 and share[:-1].min() > 0.3
    assert np.array_equal(trained(loaded, 2), trained(loaded, 2))


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
    noiseless = {"awm", "crd", "dgpo", "nft", "nft-scouts"}
    private = {"dancegrpo-private", "flow-dppo", "flowgrpo", "grpo-guard", "tempflow"} | noiseless
    assert {name for name in presets() if not plan_at(load(name)).shared_root} == private
    noise = {"flow": 0.7, "cps": 0.8, "dance": 0.3}
    for name in presets():
        plan = plan_at(load(name))
        if name in noiseless:
            assert set(plan.kernel) == {"ode" if name in ("awm", "crd") else "dpm"}
            continue
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
    """Or none at all, where only leaves are trained."""
    # what splits at given steps, or at three in a row, or scouts in six wants a longer schedule
    lengths = (20,) if preset.startswith(("branch", "treegrpo", "nft-")) else (2, 3, 5, 25)
    for steps in lengths:
        loaded = load(preset, {"sampling.steps": str(steps)})
        for iteration in range(0, 1000, 13):
            plan = plan_at(loaded, iteration)
            assert any(plan.stochastic) == loaded.method.random and not plan.stochastic[-1]
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
        ("treegrpo", {"method.window.size": "0"}, ["window", "got 0 … 0 of 0"]),
        ("treegrpo", {"sampling.steps": "3"}, ["window", "got 2 … 2 of 3", "schedule of 3"]),
        ("treegrpo", {"method.window.stride": "4"}, ["window", "got 1 … 3 of 3"]),
        ("treegrpo", {"method.window.ratio": "1"}, ["ratio", "got 1"]),
        ("nft", {"loss.old.most": "1"}, ["loss.old.most", "got 1"]),
        ("nft", {"loss": "{name: clipped}"}, ["loss", "nft, awm, dgpo, crd", "clipped"]),
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
