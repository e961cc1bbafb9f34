"""What random steps leave of the marginals of the flow, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from branchgrpo.algo import kernels


def test_dance_keeps_the_marginals_of_the_flow() -> None:
    """For x = (1 − σ)·x0 + σ·ε of one known x0, mean and variance after the step are those of
    σ_next, to order dt²."""
    clean = 1.7
    sigma = 0.6
    eta = 0.9

    def errors(dt: float) -> tuple[float, float]:
        """Of mean and variance, from where the kernel takes the mean and the ±1σ points of the
        Gaussian at σ."""
        x = torch.tensor(
            [(1 - sigma) * clean - sigma, (1 - sigma) * clean + sigma], dtype=torch.float64
        )[:, None]
        v = (x - clean) / sigma  # ε − x0
        mean, std = kernels.dance(
            x,
            v=v,
            sigma=torch.tensor(sigma),
            sigma_next=torch.tensor(sigma - dt, dtype=torch.float64),
            scale=torch.tensor(eta),
        )
        after = mean.flatten().tolist()
        middle, slope = sum(after) / 2, (after[1] - after[0]) / 2
        return middle - (1 - sigma + dt) * clean, slope**2 + std.item() ** 2 - (sigma - dt) ** 2

    for coarse, fine in zip(errors(0.02), errors(0.01), strict=True):
        assert abs(fine) < 3e-4
        assert abs(coarse) < 1e-3
        assert abs(fine) < 0.3 * abs(coarse) + 1e-7  # a first-order error would only halve


def after_a_step(
    kernel: kernels.Kernel,
    velocity: Callable[[Tensor], Tensor],
    mean: float,
    var: float,
    sigma: float,
    dt: float,
    level: float,
) -> list[float]:
    """[mean, variance] of x_next for x ~ N(mean, var) and an affine velocity: the kernel's mean is
    affine too, so two points tell all."""
    x = torch.tensor([[mean - math.sqrt(var)], [mean + math.sqrt(var)]], dtype=torch.float64)
    levels = [
        torch.full((1, 1), value, dtype=torch.float64) for value in (sigma, sigma - dt, level)
    ]
    below, std = kernel(x, velocity(x), *levels)
    low, high = below.flatten().tolist()
    return [(low + high) / 2, ((high - low) / 2) ** 2 + std.item() ** 2]


@pytest.mark.parametrize("sigma", [0.9, 0.6, 0.25])
@pytest.mark.parametrize(
    ("kernel", "level"), [(kernels.flow, 0.7), (kernels.dance, 0.7), (kernels.ode, 0.0)]
)
def test_the_marginals_of_gaussian_data_survive_a_small_step(
    kernel: kernels.Kernel, level: float, sigma: float
) -> None:
    """x0 ~ N(m, τ²): then x_σ ~ N((1 − σ)m, (1 − σ)²τ² + σ²) and v(x) = E[ε − x0 | x] is affine.
    The error is of order dt²."""
    m, tau2 = 1.7, 0.4

    def marginal(s: float) -> list[float]:
        return [(1 - s) * m, (1 - s) ** 2 * tau2 + s**2]

    centre, var = marginal(sigma)

    def velocity(x: Tensor) -> Tensor:
        return (sigma - (1 - sigma) * tau2) / var * (x - centre) - m

    def errors(dt: float) -> list[float]:
        found = after_a_step(
            kernel, velocity=velocity, mean=centre, var=var, sigma=sigma, dt=dt, level=level
        )
        return [abs(got - want) for got, want in zip(found, marginal(sigma - dt), strict=True)]

    for coarse, fine in zip(errors(2e-3), errors(1e-3), strict=True):
        assert fine < 2e-5
        assert fine < 0.27 * coarse + 1e-12  # a first-order error would only halve


@pytest.mark.parametrize(("sigma", "dt"), [(1.0, 0.3), (0.9, 0.05), (0.5, 0.4), (0.2, 0.2)])
@pytest.mark.parametrize("level", [0.0, 0.3, 0.8, 1.0])
def test_cps_keeps_the_noise_of_the_schedule_exactly(level: float, sigma: float, dt: float) -> None:
    """x = (1 − σ)·x0 + σ·ε with its true velocity ε − x0: the sample is N((1 − σ')·x0, σ'²) for any
    step size."""
    clean = -1.3
    found = after_a_step(
        kernels.cps,
        velocity=lambda x: (x - clean) / sigma,
        mean=(1 - sigma) * clean,
        var=sigma**2,
        sigma=sigma,
        dt=dt,
        level=level,
    )
    np.testing.assert_allclose(
        found, [(1 - sigma + dt) * clean, (sigma - dt) ** 2], rtol=1e-12, atol=1e-12
    )
