"""KL to the base, behaviour means, EMA, learning rates and step weights of the policy update,
against slow float64 references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from math import cos, pi, sqrt

import numpy as np
import pytest
import torch
from support.small_adapter import SmallAdapter, moments
from support.small_trees import quickstart
from test_update import PLAN, Case, close, poisoned
from torch import Tensor

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.learner.batches import Latents
from branchgrpo.learner.policy import Tally, ema_decay, rate_factor
from branchgrpo.types import BranchPlan

COMB = TempFlowMethod(children=3, seeds=1, kernel="dance", eta=0.3).plan(0, static(4, 3.0))
EdgeLoss = Callable[[int, int, Tensor, float], Tensor]
"""(tree, node, mean under the present policy [S], std) → loss of the edge into the node."""


def nudge(model: SmallAdapter, size: float = 0.02) -> None:
    """Move every weight a little."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for value in model.denoiser.parameters():
            value.add_(size * torch.randn(value.shape, generator=draw))


def mean_of(case: Case, model: SmallAdapter, tree: int, node: int) -> tuple[Tensor, float]:
    """(μ [S], std) of the edge into a node under `model` (float64)."""
    topo = topology(case.plan)
    return moments(
        model,
        plan=case.plan,
        step=int(topo.step[node]),
        x=case.latents[tree, int(topo.parent[node])],
        text=case.cond["text"][tree],
    )


def kept(case: Case) -> list[tuple[int, int]]:
    """(tree, node) of all kept edges."""
    return [
        (tree, node)
        for tree, credit in enumerate(case.credits)
        for node in np.flatnonzero(credit.keep).tolist()
    ]


def slow_gradient(case: Case, edge_loss: EdgeLoss) -> Tensor:
    """Gradient of the weighted mean over kept edges, one forward per edge, for the model as it is
    now."""
    exact, step = case.model.double(), topology(case.plan).step
    losses = []
    for tree, node in kept(case):
        mean, std = mean_of(case, exact, tree, node)
        losses.append(float(case.plan.weights[step[node]]) * edge_loss(tree, node, mean, std))
    torch.stack(losses).mean().backward()
    return torch.cat([value.grad.flatten() for value in exact.denoiser.parameters()])


def clipped_loss(case: Case, clip: float) -> EdgeLoss:
    def loss(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        log_prob = (
            torch.distributions.Normal(mean, std).log_prob(case.latents[tree, node].double()).mean()
        )
        ratio = (log_prob - float(case.trees[tree].log_prob[node])).exp()
        a = float(case.credits[tree].advantage[node])
        return torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))

    return loss


def behaviour_of(case: Case) -> tuple[SmallAdapter, Latents]:
    """The policy as it is now in float64, and its velocities one node at a time, as rollouts keep
    them."""
    policy, topo = case.model.double(), topology(case.plan)

    def velocity(tree: int, node: int) -> Tensor:
        sigma = torch.tensor([float(case.plan.sigmas[int(topo.step[node]) + 1])])
        with torch.no_grad():
            return policy.velocity(
                case.latents[tree, node].double()[None],
                sigma.double(),
                {"text": case.cond["text"][tree].double()[None]},
            )[0].float()

    return policy, velocity


def test_kl_of_a_policy_to_itself_is_0_and_adds_no_gradient() -> None:
    plain = Case()
    case = Case(**{"loss.kl_beta": "100.0"})
    tally = Tally()
    case.model.freeze_base()
    plain.policy.step(PLAN, plain.batches(plain.shards()[0]), Tally())
    case.policy.step(PLAN, case.batches(case.shards()[0]), tally)
    assert tally.kl == 0.0
    assert close(case.gradient(), plain.gradient(), 1e-6)


def test_kl_is_the_distance_of_the_means_from_the_frozen_base() -> None:
    case = Case(**{"loss.kl_beta": "1.0"})
    case.model.freeze_base()
    base = case.model.double()
    nudge(case.model)
    exact = case.model.double()
    rows = case.batches(case.shards()[0]).take(0, 64)
    edges, mean = case.policy.edges(PLAN, rows)
    found = case.policy.kl(PLAN, rows, mean, edges.std)[:, 0]
    for row, ((tree, _), (child, *_)) in enumerate(
        zip(case.shards()[0].parents.tolist(), case.shards()[0].edges.tolist(), strict=True)
    ):
        (new, std), (old, _) = (mean_of(case, model, tree, child) for model in (exact, base))
        total = sum((a - b) ** 2 for a, b in zip(new.tolist(), old.tolist(), strict=True))
        assert found[row].item() == pytest.approx(total / len(new) / (2 * std**2), rel=1e-3)
    assert found.min() > 0


def test_kl_is_in_the_gradient_where_the_advantage_is_0() -> None:
    beta, tally = 0.7, Tally()
    case = Case(**{"loss.kl_beta": str(beta)})
    case.model.freeze_base()
    base = case.model.double()
    nudge(case.model)
    case.credits = [
        replace(credit, advantage=np.zeros_like(credit.advantage)) for credit in case.credits
    ]
    assert len(case.shards()[0].parents) == 0  # without KL there is nothing to compute
    divergences: list[float] = []

    def kl(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        with torch.no_grad():
            other, _ = mean_of(case, base, tree, node)
        divergences.append(((mean - other).square().mean() / (2 * std**2)).item())
        return beta * (mean - other).square().mean() / (2 * std**2)

    wanted = slow_gradient(case, kl)
    case.policy.step(PLAN, case.batches(case.shards(every=True)[0], 3), tally)
    assert close(case.gradient(), wanted)
    assert tally.kl == pytest.approx(sum(divergences), rel=1e-3)
    assert tally.edges == len(kept(case)) == len(divergences)
    assert tally.loss == pytest.approx(beta * np.mean(divergences), rel=1e-3)


def test_policy_and_kl_terms_add_up() -> None:
    beta, clip = 3.0, 0.05
    case = Case(**{"loss.kl_beta": str(beta), "loss.clip_range": str(clip)})
    case.model.freeze_base()
    base = case.model.double()
    nudge(case.model)
    surrogate = clipped_loss(case, clip)

    def both(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        with torch.no_grad():
            other, _ = mean_of(case, base, tree, node)
        return surrogate(tree, node, mean, std) + beta * (mean - other).square().mean() / (
            2 * std**2
        )

    wanted = slow_gradient(case, both)
    case.policy.step(PLAN, case.batches(case.shards(every=True)[0]), Tally())
    assert close(case.gradient(), wanted)


def test_the_base_does_not_follow_the_policy() -> None:
    case = Case(**{"loss.kl_beta": "1.0", "learner.learning_rate": "0.1"})
    case.model.freeze_base()
    before = copy.deepcopy(case.model.base.state_dict())
    case.policy.step(PLAN, case.batches(case.shards()[0]), Tally())
    after = case.model.base.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(
        not torch.equal(before[name], value)
        for name, value in case.model.denoiser.state_dict().items()
    )
    assert not any(value.requires_grad for value in case.model.base.parameters())
    assert set(map(id, case.policy.parameters)).isdisjoint(map(id, case.model.base.parameters()))


@pytest.mark.parametrize("plan", [PLAN, COMB], ids=["tree", "comb"])
def test_mean_drift_is_the_squared_move_of_the_mean_since_the_rollout(plan: BranchPlan) -> None:
    case = Case(plan=plan)
    behaviour, velocities = behaviour_of(case)
    rows = case.batches(case.shards()[0], velocities=velocities).take(0, 64)
    still, _ = case.policy.edges(case.plan, rows)
    assert still.mean_drift.shape == still.std.shape == still.dt.shape == (len(rows.x), 1)
    assert still.mean_drift.max().item() <= 1e-12  # float32 rounding of a mean of size 1, squared
    nudge(case.model)
    exact, (moved, _) = case.model.double(), case.policy.edges(case.plan, rows)
    one = case.shards()[0]
    for row, ((tree, _), (child, *_)) in enumerate(
        zip(one.parents.tolist(), one.edges.tolist(), strict=True)
    ):
        (new, std), (old, _) = (mean_of(case, model, tree, child) for model in (exact, behaviour))
        step = int(topology(case.plan).step[child])
        assert moved.mean_drift[row].item() == pytest.approx(
            (new - old).square().mean().item(), rel=1e-3
        )
        assert moved.std[row].item() == pytest.approx(std, rel=1e-5)
        assert moved.dt[row].item() == pytest.approx(
            float(case.plan.sigmas[step + 1]) - float(case.plan.sigmas[step]), rel=1e-5
        )
    assert moved.mean_drift.requires_grad


def test_every_optimiser_step_measures_guard_from_the_behaviour_policy() -> None:
    """With both policies Gaussian, (Δlog π + b)·std = mean (y − μ_old)(μ − μ_old) / std, which the
    reference uses."""
    clip = 0.002
    case = Case(
        off=0.0,
        **{
            "loss.name": "guard",
            "loss.clip_range": str(clip),
            "learner.learning_rate": "0.003",
            "learner.warmup": "0",
            "learner.schedule": "constant",
        },
    )
    behaviour, velocities = behaviour_of(case)
    ratios: list[float] = []

    def guard(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        with torch.no_grad():
            old, _ = mean_of(case, behaviour, tree, node)
        ratio = (((case.latents[tree, node].double() - old) * (mean - old)).mean() / std).exp()
        a = float(case.credits[tree].advantage[node])
        ratios.append(ratio.item())
        step = int(topology(case.plan).step[node])
        return torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip)) / (
            float(case.plan.sigmas[step]) - float(case.plan.sigmas[step + 1])
        )

    batches = case.batches(case.shards()[0], 4, velocities)
    for turn in range(3):
        ratios.clear()
        wanted = slow_gradient(case, guard)
        case.policy.step(PLAN, batches, Tally())
        assert close(case.gradient(), wanted, 1e-3), turn
        # from the second step on there is something to clip
        assert (max(ratios) > 1 + clip) is (turn > 0)


def test_noise_aware_weights_multiply_the_loss_of_each_step() -> None:
    dts = np.diff(COMB.sigmas.astype(np.float64))
    assert list(COMB.weight) == pytest.approx(
        [*(2.25 * 0.3 * sqrt(-dt) for dt in dts[:-1]), 1.0], rel=1e-5
    )
    case = Case(plan=COMB)
    wanted = slow_gradient(case, clipped_loss(case, 1e-2))
    case.policy.step(COMB, case.batches(case.shards()[0], 2), Tally())
    assert close(case.gradient(), wanted)
    doubled, plain = (
        Case(plan=replace(COMB, weight=weight))
        for weight in (tuple(2 * one for one in COMB.weight), ())
    )
    for other in (doubled, plain):
        other.policy.step(other.plan, other.batches(other.shards()[0]), Tally())
    assert close(doubled.gradient(), 2 * wanted)
    # or the weights would not matter
    assert not close(
        plain.gradient() * float(wanted.norm() / plain.gradient().norm()), wanted, 0.01
    )


@pytest.mark.parametrize(("decay", "every"), [(0.3, 1), (0.9, 1), (0.9, 2)])
def test_ema_is_the_weighted_mean_of_all_weights(decay: float, every: int) -> None:
    """Step k (from 0) multiplies what went before by min((1 + k)/(10 + k), decay), where it
    counts."""
    case = Case(
        **{
            "learner.ema": str(decay),
            "learner.ema_every": str(every),
            "learner.learning_rate": "0.01",
        }
    )
    names = list(case.model.trainable())
    history = [[value.detach().clone().double() for value in case.policy.parameters]]
    batches, steps = case.batches(case.shards()[0]), 6
    for _ in range(steps):
        case.policy.step(PLAN, batches, Tally())
        history.append([value.detach().clone().double() for value in case.policy.parameters])
    shares = np.zeros(steps + 1)  # of each of the weights in the mean
    shares[0] = 1
    for k in range(every - 1, steps, every):
        kept = min((1 + k) / (10 + k), decay)
        shares *= kept
        shares[k + 1] = 1 - kept
    assert shares.sum() == pytest.approx(1)
    for place, name in enumerate(names):
        wanted = sum(
            float(share) * weights[place] for share, weights in zip(shares, history, strict=True)
        )
        assert torch.allclose(case.policy.ema[name].double(), wanted, atol=1e-6)
        assert not torch.allclose(case.policy.ema[name].double(), history[-1][place], atol=1e-4)


def test_the_mean_soon_forgets_the_untrained_model() -> None:
    """What is left of it after n steps is 1·2·…·n / (10·…·(9 + n)) while it warms up; a constant
    0.999 kept 0.82 of 200 steps."""
    left = np.cumprod([ema_decay(0.999, taken) for taken in range(200)])
    assert (
        left[-1] < 1e-12 and left[0] == 0.1 and left[2] == pytest.approx(1 * 2 * 3 / (10 * 11 * 12))
    )
    # weights that move evenly: the mean is after them by a tenth of the way, at the end of which
    # it has 91 % of it
    mean = 0.0
    for taken in range(200):
        mean += (1 - ema_decay(0.999, taken)) * (taken + 1 - mean)
    assert mean / 200 == pytest.approx(0.905, abs=0.005)
    # and of weights that have settled after 100 steps it has all but a thousandth
    mean = 0.0
    for taken in range(200):
        mean += (1 - ema_decay(0.999, taken)) * (min(taken + 1, 100) - mean)
    assert mean / 100 == pytest.approx(1, abs=0.002)
    assert ema_decay(0.999, 8990) == 0.999 > ema_decay(0.999, 8000) and ema_decay(0.5, 100) == 0.5


def test_a_skipped_step_moves_neither_the_ema_nor_the_schedule() -> None:
    case = Case(**{"learner.ema": "0.5", "learner.warmup": "4", "learner.learning_rate": "0.01"})
    sound, broken = case.batches(case.shards()[0]), poisoned(case, float("nan"))
    case.policy.step(PLAN, sound, Tally())
    before, rate = copy.deepcopy(case.policy.ema), case.policy.learning_rate
    assert not np.isfinite(case.policy.step(PLAN, broken, Tally()))
    assert (
        all(torch.equal(before[name], value) for name, value in case.policy.ema.items())
        and case.policy.learning_rate == rate
    )
    case.policy.step(PLAN, sound, Tally())
    assert case.policy.learning_rate == pytest.approx(2 * rate)


SCHEDULES = {  # over 10 optimiser steps, of which 2 warm up; final rate 0.2
    "constant": [0.5, 1.0, *[1.0] * 8],
    "linear": [0.5, 1.0, *(1 - 0.8 * k / 8 for k in range(8))],
    "cosine": [0.5, 1.0, *(0.2 + 0.8 * (1 + cos(pi * k / 8)) / 2 for k in range(8))],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_schedules(schedule: str) -> None:
    options = {"learner.schedule": schedule, "learner.warmup": "2", "learner.final_rate": "0.2"}
    factors = [rate_factor(quickstart(options).learner, step, 10) for step in range(10)]
    assert factors == pytest.approx(SCHEDULES[schedule], rel=1e-12)
    end = 1.0 if schedule == "constant" else 0.2
    assert [
        rate_factor(quickstart(options).learner, step, 10) for step in (10, 11, 500)
    ] == pytest.approx([end] * 3)


def test_a_warm_up_as_long_as_the_run_is_all_there_is() -> None:
    options = quickstart({"learner.schedule": "cosine", "learner.warmup": "4"}).learner
    assert [rate_factor(options, step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adamw_moves_by_the_scheduled_rate(schedule: str) -> None:
    """Without momentum AdamW moves each weight by rate · g/(|g| + 1e-8)."""
    rate = 0.01
    options = {
        "learner.schedule": schedule,
        "learner.warmup": "2",
        "learner.final_rate": "0.2",
        "run.iterations": "5",
        "learner.optimiser_steps": "2",
    }
    case = Case(
        **options,
        **{
            "learner.betas": "[0.0, 0.0]",
            "learner.weight_decay": "0.0",
            "learner.learning_rate": str(rate),
        },
    )
    batches = case.batches(case.shards()[0])
    for factor in SCHEDULES[schedule]:
        before = [value.detach().clone() for value in case.policy.parameters]
        case.policy.step(PLAN, batches, Tally())
        for old, new in zip(before, case.policy.parameters, strict=True):
            assert torch.allclose(
                new.detach() - old, -rate * factor * new.grad / (new.grad.abs() + 1e-8), atol=1e-6
            )
        assert case.policy.learning_rate == pytest.approx(rate * factor)


def test_edges_of_a_missing_child_change_nothing() -> None:
    case = Case()
    rows = case.batches(case.shards()[0]).take(0, 64)
    edges, _ = case.policy.edges(PLAN, rows)
    assert isinstance(edges, Edges) and not rows.present.all()
    assert torch.equal(edges.log_prob[~rows.present], edges.old_log_prob[~rows.present])
