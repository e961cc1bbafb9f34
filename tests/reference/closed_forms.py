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


def flow(
    x: F64, v: F64, sigma: float, sigma_next: float, level: float, sigma_first: float
) -> tuple[F64, float]:
    """One Euler–Maruyama step of dx = [v + g²/(2σ)·(x + (1 − σ)·v)]dt + g dw with g = level·√(σ/(1
    − σ)).

    `sigma_first` (the schedule's second level) stands in for σ in 1 − σ where σ = 1.
    """
    dt = sigma_next - sigma
    g = level * math.sqrt(sigma / (1.0 - (sigma_first if sigma == 1.0 else sigma)))
    drift = v + g * g / (2.0 * sigma) * (x + (1.0 - sigma) * v)
    return x + drift * dt, g * math.sqrt(-dt)


def cps(x: F64, v: F64, sigma: float, sigma_next: float, level: float) -> tuple[F64, float]:
    """(1 − σ')·x̂0 + σ'·(cos φ·ε̂ + sin φ·ξ), φ = level·π/2: the predicted noise is turned towards
    fresh noise."""
    angle = level * math.pi / 2.0
    clean, noise = x - sigma * v, x + (1.0 - sigma) * v
    return (1.0 - sigma_next) * clean + sigma_next * math.cos(angle) * noise, sigma_next * math.sin(
        angle
    )


def dpm(
    x: F64, clean: F64, before: F64 | None, sigma: float, sigma_next: float, sigma_before: float
) -> F64:
    """DPM-Solver++(2M) in λ = log(α/σ), α = 1 − σ; `before` is the x̂0 of the step before, None at
    the first."""
    if sigma_next == 0.0:
        return clean

    def log_snr(level: float) -> float:
        return math.log(1.0 - level) - math.log(level)

    h, direction = log_snr(sigma_next) - log_snr(sigma), clean
    if before is not None:
        r = (log_snr(sigma) - log_snr(sigma_before)) / h
        direction = (1.0 + 1.0 / (2.0 * r)) * clean - 1.0 / (2.0 * r) * before
    return sigma_next / sigma * x - (1.0 - sigma_next) * math.expm1(-h) * direction


def mean_log_density(sample: F64, mean: F64, std: float) -> float:
    """Gaussian log density, averaged over the elements of one sample."""
    total = 0.0
    for a, b in zip(sample.ravel().tolist(), mean.ravel().tolist(), strict=True):
        total += -((a - b) ** 2) / (2.0 * std * std) - math.log(std * math.sqrt(2.0 * math.pi))
    return total / sample.size
