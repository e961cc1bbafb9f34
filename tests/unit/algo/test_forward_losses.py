"""Losses on leaves, against their float64 formulas and closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from branchgrpo.algo.loss.awm import MatchingLoss
from branchgrpo.algo.loss.crd import CentredRewardLoss
from branchgrpo.algo.loss.decay import Decay
from branchgrpo.algo.loss.dgpo import GroupPreferenceLoss
from branchgrpo.algo.loss.forward import ForwardLoss, Points
from branchgrpo.algo.loss.nft import NegativeAwareLoss
from branchgrpo.algo.schedule import static
from tests.reference import forward_losses as reference

ADVANTAGE = [2.0, -1.5, 0.0, 7.0, -9.0, 0.3]
LEVELS = [1.0, 0.9, 0.6, 0.3, 0.1, 0.5]
SIGMAS = static(10, 3.0).levels


def drawn(seed: int = 0, kind: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """x0, noise, v, second, base [6, 2, 3]."""
    draw = torch.Generator().manual_seed(seed)
    names = ("x0", "noise", "v", "second", "base")
    return {name: torch.randn(6, 2, 3, generator=draw).to(kind) for name in names}


def points(values: dict[str, Tensor], **more: Any) -> Points:
    x0, noise = values["x0"], values["noise"]
    t = torch.tensor(LEVELS, dtype=x0.dtype)
    column = t[:, None, None]
    return Points(
        x0=x0,
        x=(1 - column) * x0 + column * noise,
        target=noise - x0,
        t=t,
        advantage=torch.tensor(ADVANTAGE, dtype=x0.dtype),
        v=values["v"].clone().requires_grad_(),
        base=values["base"],
        second=values["second"],
        **more,
    )


def scored(loss: ForwardLoss, found: Points) -> Points:
    """With scores, and their mean over all points as one group."""
    with torch.no_grad():
        score = loss.score(found)
    return replace(found, score=score, mean=score.mean().expand(len(score)))


def compared(loss: ForwardLoss, found: Points, wanted: Tensor, exact: Tensor) -> None:
    """Values, and gradients of the mean, within 1e-5 of the reference's."""
    value, ratio, cut = loss(found)
    assert value.shape == ratio.shape == cut.shape == (6,)
    assert not ratio.requires_grad and cut.dtype == torch.bool
    assert torch.allclose(value.detach().double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    value.mean().backward()
    wanted.mean().backward()
    assert found.v.grad is not None and exact.grad is not None
    assert torch.allclose(found.v.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    assert exact.grad.abs().max() > 1e-3


def exact_of(values: dict[str, Tensor]) -> Tensor:
    return values["v"].double().requires_grad_()


@pytest.mark.parametrize(("beta", "weighted"), [(1.0, True), (0.1, True), (0.5, False)])
def test_nft_is_its_formula(beta: float, weighted: bool) -> None:
    values = drawn(1)
    exact = exact_of(values)
    wanted = reference.nft(
        exact,
        values["second"],
        values["x0"],
        values["noise"],
        t=LEVELS,
        advantage=ADVANTAGE,
        beta=beta,
        weighted=weighted,
    )
    compared(NegativeAwareLoss(beta=beta, weighted=weighted), points(values), wanted, exact)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_optimum_of_nft_lies_by_its_rating_on_the_way_to_the_leaf(beta: float) -> None:
    """Unweighted, the loss of one sample is least at v_old + (2r̂ − 1)·(v* − v_old)/β."""
    loss, found = NegativeAwareLoss(beta=beta, weighted=False), points(drawn(2, torch.float64))
    assert found.second is not None
    way = 2 * found.spread(loss.rating(found.advantage)) - 1
    best = found.second + way * (found.target - found.second) / beta
    least = replace(found, v=best.requires_grad_())
    value, *_ = loss(least)
    value.sum().backward()
    assert best.grad is not None and best.grad.abs().max() < 1e-12
    for seed in range(3):
        off = drawn(seed + 10, torch.float64)["v"]
        assert (loss(replace(found, v=best.detach() + 0.1 * off))[0] > value.detach()).all()


@pytest.mark.parametrize("weighting", ["power", "uniform", "t", "t2"])
@pytest.mark.parametrize("clip_range", [1.0, 0.05])
def test_awm_is_its_formula(weighting: str, clip_range: float) -> None:
    values = drawn(3)
    loss = MatchingLoss(weighting=weighting, clip_range=clip_range)  # type: ignore[arg-type]
    old = values["v"] + 0.1 * drawn(4)["v"]
    exact = exact_of(values)
    args = values["x0"], values["noise"], LEVELS, weighting
    wanted = reference.awm(
        reference.log_p(exact, *args), reference.log_p(old, *args), ADVANTAGE, clip_range
    )
    wanted = wanted + ((exact - values["second"].double()) ** 2).flatten(1).mean(1)
    with torch.no_grad():
        score = loss.score(points(values | {"v": old}))
    compared(loss, points(values, score=score), wanted, exact)


def test_on_policy_the_gradient_of_awm_is_minus_advantage_times_that_of_log_p() -> None:
    found, values = points(drawn(5)), drawn(5)
    loss = MatchingLoss(mean_beta=0.0)
    assert loss.second == "none" and not loss.needs
    value, ratio, cut = loss(replace(found, second=None))
    value.sum().backward()
    assert torch.equal(ratio, torch.ones(6)) and not cut.any()
    exact = exact_of(values)
    reference.log_p(exact, values["x0"], values["noise"], LEVELS, "power").sum().backward()
    a = torch.tensor(ADVANTAGE, dtype=torch.float64).clamp(-5, 5)[:, None, None] / 5
    assert found.v.grad is not None and exact.grad is not None
    assert torch.allclose(found.v.grad.double(), -a * exact.grad, rtol=1e-5, atol=1e-6)


def test_dgpo_is_the_formula_of_the_whole_group() -> None:
    values = drawn(6)
    values["base"] = values["v"] + 0.02 * drawn(7)["base"]  # or ω would be 0 or 1
    exact = exact_of(values)
    bounded = [min(5.0, max(-5.0, a)) for a in ADVANTAGE]
    wanted = reference.dgpo(exact, values["base"], values["x0"], values["noise"], bounded)
    loss = GroupPreferenceLoss(clip_range=0.0)
    assert loss.second == "none" and loss.grouped
    found = scored(loss, points(values))
    assert found.mean is not None and 0.01 < torch.sigmoid(found.mean[0]) < 0.99
    compared(loss, replace(found, second=None), wanted, exact)


def test_dgpo_cuts_what_has_gone_far_enough_the_way_it_is_driven() -> None:
    values = drawn(8)
    values["base"] = values["v"] + 0.02 * drawn(9)["base"]
    found = points(values)
    loss = GroupPreferenceLoss()
    assert loss.second == "mean" and loss.clip_range == 0.01
    found = scored(loss, found)
    value, ratio, cut = loss(found)
    value.sum().backward()
    assert found.second is not None and found.v.grad is not None
    gain = found.error(found.second) - found.error(found.v.detach())
    wanted = [
        bool((a > 0 and gap.exp() > 1.01) or (a < 0 and gap.exp() < 0.99))
        for a, gap in zip(ADVANTAGE, gain, strict=True)
    ]
    assert cut.tolist() == wanted and any(wanted) and not all(wanted)
    assert torch.allclose(ratio, gain.exp())
    moved = found.v.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [a != 0 and not at for a, at in zip(ADVANTAGE, wanted, strict=True)]


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_crd_is_the_formula_of_the_whole_group(beta: float) -> None:
    """Among others, that the gradient of the group's mean may be left out."""
    values = drawn(11)
    exact = exact_of(values)
    wanted = reference.crd(
        exact, values["second"], values["x0"], values["noise"], ADVANTAGE, beta=beta
    )
    loss = CentredRewardLoss(beta=beta)
    compared(loss, scored(loss, points(values)), wanted, exact)


@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        (NegativeAwareLoss().old, {1: 0.001, 20: 0.02, 500: 0.5, 900: 0.5}),
        # its authors' for OCR
        (Decay(flat=75, rate=0.0075, most=0.999), {1: 0.0, 75: 0.0, 76: 0.0075, 400: 0.999}),
        (MatchingLoss().mean, {1: 0.001, 300: 0.3, 301: 0.3}),
        (CentredRewardLoss().old, {1: 0.251, 250: 0.5, 300: 0.5}),
    ],
)
def test_second_weights_follow_ever_slower(decay: Decay, wanted: dict[int, float]) -> None:
    assert {update: decay.at(update) for update in wanted} == pytest.approx(wanted)


def test_levels_are_those_of_the_sampler() -> None:
    draw = np.random.default_rng(0)
    assert np.array_equal(NegativeAwareLoss().levels(SIGMAS, draw), SIGMAS[:9])  # 99 % of 10
    assert len(NegativeAwareLoss().levels(static(1, 1.0).levels, draw)) == 1
    seen = set()
    for _ in range(50):
        levels = MatchingLoss().levels(SIGMAS, draw)
        at = [int(np.flatnonzero(SIGMAS == level)[0]) for level in levels]
        # 6 equal parts of 1 … 9
        assert all(1 + 8 * k // 6 <= step < 1 + 8 * (k + 1) / 6 for k, step in enumerate(at)), at
        seen |= set(at)
    assert seen == set(range(1, 9))
    assert set(MatchingLoss().levels(static(2, 1.0).levels, draw)) == {np.float32(0.5)}
    for _ in range(20):
        levels = GroupPreferenceLoss().levels(SIGMAS, draw)
        assert len(set(levels)) == 4 and set(levels) <= set(SIGMAS[:7])
    assert len(GroupPreferenceLoss().levels(static(3, 1.0).levels, draw)) == 2


def test_fewer_levels_are_drawn_alike_from_all() -> None:
    draw, counted = np.random.default_rng(1), np.zeros(9)
    for _ in range(300):
        levels = NegativeAwareLoss(times=3).levels(SIGMAS, draw)
        assert (np.diff(levels) < 0).all()
        counted += np.isin(SIGMAS[:9], levels)
    assert counted.sum() == 900 and (np.abs(counted - 100) < 40).all()  # five deviations
