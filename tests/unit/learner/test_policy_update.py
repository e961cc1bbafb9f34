"""KL to the base, behaviour means and step weights of the policy update, against slow float64
references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from support.small_adapter import SmallAdapter, moments
from test_update import PLAN, Case, close
from torch import Tensor

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.learner.batches import Latents
from branchgrpo.learner.policy import Tally
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


def test_edges_of_a_missing_child_change_nothing() -> None:
    case = Case()
    rows = case.batches(case.shards()[0]).take(0, 64)
    edges, _ = case.policy.edges(PLAN, rows)
    assert isinstance(edges, Edges) and not rows.present.all()
    assert torch.equal(edges.log_prob[~rows.present], edges.old_log_prob[~rows.present])
