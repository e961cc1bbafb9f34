"""The clipped surrogate, against its closed form."""

from __future__ import annotations

from math import log

import pytest
import torch

from branchgrpo.loss.base import Edges
from branchgrpo.loss.clipped import ClippedLoss

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


def edges(new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, std: float = 0.1, dt: float = -0.05, shift: float = 0.0) -> Edges:
    """Edges of which all transitions are alike."""
    column = torch.ones_like(new[..., :1])
    return Edges(new, old, advantage, std * column, dt * column, shift * column)


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope", "clipped"), CASES)
def test_closed_form(ratio: float, advantage: float, loss: float, slope: float, clipped: bool) -> None:
    old = torch.tensor([-0.4], dtype=torch.float64)
    new = (old + log(ratio)).requires_grad_()
    value, found, cut = ClippedLoss(clip_range=EPSILON)(edges(new, old, torch.tensor([advantage], dtype=torch.float64)))
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
