"""The policy losses, against their closed forms."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import pytest
import torch

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.loss.clipped import ClippedLoss
from branchgrpo.algo.loss.dppo import DivergenceLoss
from branchgrpo.algo.loss.guard import GuardLoss

EPSILON = 0.1
CASES = [  # ratio, advantage, loss, d loss / d log-prob, clipped
    (1.05, 2.0, -2.10, -2.10, False),
    (0.95, 2.0, -1.90, -1.90, False),
    (1.30, 2.0, -2.20, 0.0, True),  # good already and made likelier: no more of it
    (0.70, 2.0, -1.40, -1.40, False),  # good but made less likely: the full gradient
    (1.05, -2.0, 2.10, 2.10, False),
    (1.30, -2.0, 2.60, 2.60, False),
    (0.70, -2.0, 1.80, 0.0, True),
    (0.95, -2.0, 1.90, 1.90, False),
    (1.30, 0.0, 0.0, 0.0, False),
    (0.70, 0.0, 0.0, 0.0, False),
]


def edges(
    new: torch.Tensor,
    old: torch.Tensor,
    advantage: torch.Tensor,
    std: float = 0.1,
    dt: float = -0.05,
    drift: float = 0.0,
) -> Edges:
    """Edges of which all transitions are alike."""
    column = torch.ones_like(new[..., :1])
    return Edges(
        log_prob=new,
        old_log_prob=old,
        advantage=advantage,
        std=std * column,
        dt=dt * column,
        mean_drift=drift * column,
    )


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope", "clipped"), CASES)
def test_closed_form(
    ratio: float, advantage: float, loss: float, slope: float, clipped: bool
) -> None:
    old = torch.tensor([-0.4], dtype=torch.float64)
    new = (old + log(ratio)).requires_grad_()
    value, found, cut = ClippedLoss(clip_range=EPSILON)(
        edges(new, old, torch.tensor([advantage], dtype=torch.float64))
    )
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert found.item() == pytest.approx(ratio)
    assert not found.requires_grad and not cut.requires_grad
    assert new.grad is not None and new.grad.item() == pytest.approx(slope)
    assert bool(cut) is clipped


def test_on_policy_the_gradient_is_minus_the_advantage() -> None:
    advantage = torch.tensor([[1.5, -0.5], [0.0, 3.0]])
    new = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, ratio, cut = ClippedLoss()(edges(new, new.detach(), advantage))
    loss.sum().backward()
    assert new.grad is not None and torch.equal(new.grad, -advantage)
    assert torch.equal(ratio, torch.ones(2, 2)) and not cut.any()
    assert loss.shape == ratio.shape == cut.shape == (2, 2)


def draws(seed: int, rows: int = 6, columns: int = 3) -> tuple[torch.Tensor, ...]:
    """(new, old, advantage, std, dt, drift) in float64; no two transitions are alike."""
    generator = torch.Generator().manual_seed(seed)
    new, noise, advantage = (
        torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    std, dt, drift = (
        0.1 + torch.rand(rows, 1, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return new, new - 0.2 * noise, advantage, std, -dt / 10, drift / 10


def slopes(
    loss: Callable[[Edges], tuple[torch.Tensor, ...]], *values: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """(loss, ratio, cut, d Σ loss / d log-prob, d Σ loss / d drift)."""
    new, old, advantage, std, dt, drift = values
    new, drift = new.clone().requires_grad_(), drift.clone().requires_grad_()
    value, ratio, cut = loss(
        Edges(log_prob=new, old_log_prob=old, advantage=advantage, std=std, dt=dt, mean_drift=drift)
    )
    by_new, by_drift = torch.autograd.grad(value.sum(), (new, drift), allow_unused=True)
    assert not ratio.requires_grad and not cut.requires_grad
    return (
        value.detach(),
        ratio,
        cut,
        by_new,
        torch.zeros_like(drift) if by_drift is None else by_drift,
    )


def test_guard_closed_form() -> None:
    values = draws(1)
    value, ratio, cut, by_new, by_drift = slopes(GuardLoss(clip_range=EPSILON), *values)
    new, old, advantage, std, dt, drift = (one.tolist() for one in values)
    for i in range(6):
        slope_of_drift, s = 0.0, std[i][0]
        for k in range(3):
            a = advantage[i][k]
            rho = exp((new[i][k] - old[i][k] + drift[i][0] / (2 * s * s)) * s)
            bounded = min(max(rho, 1 - EPSILON), 1 + EPSILON)
            is_cut = -a * bounded > -a * rho
            slope = 0.0 if is_cut else -a * rho * s / -dt[i][0]  # ∂ρ/∂ log π = ρ·std
            slope_of_drift += slope / (2 * s * s)
            assert value[i, k].item() == pytest.approx(
                max(-a * rho, -a * bounded) / -dt[i][0], rel=1e-12
            )
            assert ratio[i, k].item() == pytest.approx(rho, rel=1e-12) and bool(cut[i, k]) is is_cut
            assert by_new[i, k].item() == pytest.approx(slope, rel=1e-12)
        assert by_drift[i, 0].item() == pytest.approx(slope_of_drift, rel=1e-12)
    assert cut.any() and not cut.all()


def test_guard_without_scale_and_drift_is_the_clipped_surrogate() -> None:
    new, old, advantage, std, dt, drift = draws(2)
    values = (
        new,
        old,
        advantage,
        torch.ones_like(std),
        -torch.ones_like(dt),
        torch.zeros_like(drift),
    )
    for found, wanted in zip(
        slopes(GuardLoss(clip_range=EPSILON), *values)[:4],
        slopes(ClippedLoss(clip_range=EPSILON), *values)[:4],
        strict=True,
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("threshold", [1e-6, 0.2, 1.0, 1e6])
def test_dppo_closed_form(threshold: float) -> None:
    values = draws(3)
    value, ratio, cut, by_new, by_drift = slopes(DivergenceLoss(threshold=threshold), *values)
    new, old, advantage, std, _, drift = (one.tolist() for one in values)
    for i in range(6):
        divergence = drift[i][0] / (2 * std[i][0] ** 2)
        for k in range(3):
            a, rho = advantage[i][k], exp(new[i][k] - old[i][k])
            is_cut = divergence >= threshold and (rho - 1) * a > 0
            wanted = 0.0 if is_cut else -a * rho
            assert value[i, k].item() == pytest.approx(wanted, rel=1e-12)
            assert by_new[i, k].item() == pytest.approx(wanted, rel=1e-12)  # ∂ρ/∂ log π = ρ
            assert ratio[i, k].item() == pytest.approx(rho, rel=1e-12) and bool(cut[i, k]) is is_cut
    assert not by_drift.any()  # the divergence decides, but has no gradient


def test_dppo_without_a_bound_is_the_surrogate_without_clipping() -> None:
    values = draws(4)
    for found, wanted in zip(
        slopes(DivergenceLoss(threshold=1e30), *values)[:4],
        slopes(ClippedLoss(clip_range=1e30), *values)[:4],
        strict=True,
    ):
        assert torch.equal(found, wanted)


def test_dppo_with_a_bound_of_nothing_cuts_exactly_what_moves_away() -> None:
    new, old, advantage, *rest = draws(5)
    cut = slopes(DivergenceLoss(threshold=1e-30), new, old, advantage, *rest)[2]
    away = (new > old) & (advantage > 0) | (new < old) & (advantage < 0)
    assert torch.equal(cut, away) and away.any() and not away.all()


def test_dppo_keeps_an_edge_that_comes_back_or_has_no_advantage() -> None:
    old, drift = torch.zeros(1, 5, dtype=torch.float64), 1.0
    new = torch.tensor([[0.1, -0.1, 0.1, -0.1, 0.0]], dtype=torch.float64)
    advantage = torch.tensor([[-1.0, 1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert not DivergenceLoss(threshold=1e-12)(edges(new, old, advantage, drift=drift))[2].any()


@pytest.mark.parametrize("loss", [ClippedLoss(), GuardLoss(), DivergenceLoss()])
def test_an_unmoved_policy_has_ratio_1_and_nothing_is_cut(
    loss: Callable[[Edges], tuple[torch.Tensor, ...]],
) -> None:
    new, _, advantage, std, dt, drift = draws(6)
    value, ratio, cut, by_new, _ = slopes(
        loss, new, new, advantage, std, dt, torch.zeros_like(drift)
    )
    factor = std / -dt if isinstance(loss, GuardLoss) else torch.ones_like(std)
    assert torch.equal(ratio, torch.ones_like(ratio)) and not cut.any()
    assert torch.allclose(by_new, -advantage * factor, rtol=1e-12)
    assert torch.allclose(
        value, -advantage / -dt if isinstance(loss, GuardLoss) else -advantage, rtol=1e-12
    )
