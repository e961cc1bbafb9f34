"""The transition formulas, written out in float64 numpy without the package."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def ode(x: F64, v: F64, sigma: float, sigma_next: float) -> tuple[F64, float]:
    """Euler step along the probability-flow ODE."""
    return x - v * (sigma - sigma_next), 0.0


def dance(x: F64, v: F64, sigma: float, sigma_next: float, eta: float) -> tuple[F64, float]:
    """x + v·dt − ½η²·score·dt and η·√(−dt).

    With x̂0 = x − σv, the score −(x − (1 − σ)·x̂0)/σ² is −(x + (1 − σ)·v)/σ.
    """
    dt = sigma_next - sigma
    score = -(x + (1.0 - sigma) * v) / sigma
    return x + (v - 0.5 * eta * eta * score) * dt, eta * math.sqrt(sigma - sigma_next)


def mean_log_density(sample: F64, mean: F64, std: float) -> float:
    """Gaussian log density, averaged over the elements of one sample."""
    total = 0.0
    for a, b in zip(sample.ravel().tolist(), mean.ravel().tolist(), strict=True):
        total += -((a - b) ** 2) / (2.0 * std * std) - math.log(std * math.sqrt(2.0 * math.pi))
    return total / sample.size
