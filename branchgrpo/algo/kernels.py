"""Transitions of the denoising process: (mean, std) of x_next given x. One function serves rollout
and learner.

Notation: σ noise level (1 = noise), v velocity, dt = σ_next − σ < 0, x̂0 = x − σ·v. All in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from branchgrpo.algo.noise import std_factor
from branchgrpo.types import BranchPlan

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def ode(
    x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Euler step of the probability-flow ODE: mean x + v·dt, std 0. `scale` has no effect."""
    return x + v * (sigma_next - sigma), torch.zeros_like(sigma)


def dance(
    x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The SDE of DanceGRPO, which BranchGRPO uses: scale = η.

    mean x + v·dt − ½η²·score·dt, score = −(x − (1−σ)·x̂0)/σ²; std η·√(−dt).
    """
    dt = sigma_next - sigma
    x0 = x - sigma * v
    score = -(x - (1.0 - sigma) * x0) / sigma**2
    return x + v * dt - 0.5 * scale**2 * score * dt, scale * torch.sqrt(-dt)


def flow(
    x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The SDE of Flow-GRPO (arXiv 2505.05470, eq. 9), which MixGRPO and TempFlow-GRPO use: scale =
    noise level a.

    With s = a·√(σ/(1−σ)): mean x·(1 + s²·dt/(2σ)) + v·(1 + s²(1−σ)/(2σ))·dt; std s·√(−dt). At σ = 1
    the denominator of s uses the next level instead, as s would be infinite.
    """
    dt = sigma_next - sigma
    s2 = scale**2 * sigma / (1.0 - torch.where(sigma < 1.0, sigma, sigma_next))
    mean = x * (1.0 + s2 * dt / (2.0 * sigma)) + v * (1.0 + s2 * (1.0 - sigma) / (2.0 * sigma)) * dt
    return mean, torch.sqrt(-s2 * dt)


def cps(
    x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Coefficients-preserving sampling (arXiv 2509.05952): scale = noise level a in [0, 1].

    With s = σ_next·sin(a·π/2): mean (1−σ_next)·x̂0 + √(σ_next²−s²)·x̂1, x̂1 = x + (1−σ)·v; std s.
    The noise in the sample stays σ_next² = s² + (σ_next²−s²).
    """
    std = sigma_next * torch.sin(scale * (math.pi / 2.0))
    clean, noise = x - sigma * v, x + (1.0 - sigma) * v
    return (1.0 - sigma_next) * clean + torch.sqrt(sigma_next**2 - std**2) * noise, std


KERNELS: dict[str, Kernel] = {"ode": ode, "dance": dance, "flow": flow, "cps": cps}


def deterministic(
    plan: BranchPlan, step: int, x: Tensor, v: Tensor, previous: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(x_next, x̂0) of a step without noise, float32. `previous` is the x̂0 of the step before, for
    `dpm`.

    `ode`: Euler. `dpm`: DPM-Solver++(2M) (arXiv 2211.01095), midpoint form, of first order at its
    first and at the last step of the schedule; α = 1 − σ.
    """
    x, v = x.float(), v.float()
    sigma, after = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
    clean = x - sigma * v
    if plan.kernel[step] != "dpm" or after == 0.0:  # at σ = 0 both give x̂0
        return x + v * (after - sigma), clean
    direction = clean
    if step > 0 and plan.kernel[step - 1] == "dpm" and previous is not None:
        h = _log_snr(after) - _log_snr(sigma)
        before = _log_snr(sigma) - _log_snr(float(plan.sigmas[step - 1]))
        direction = clean + 0.5 * h / before * (clean - previous)
    expm1 = after / sigma * (1.0 - sigma) / (1.0 - after) - 1.0  # e^−h − 1
    return after / sigma * x - (1.0 - after) * expm1 * direction, clean


def _log_snr(sigma: float) -> float:
    """λ = log(α/σ); of pure noise −∞, so that the step after it is of first order."""
    return math.log((1.0 - sigma) / sigma) if sigma < 1.0 else -math.inf


def transition(plan: BranchPlan, steps: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [B, *S], std [B, 1, …]) of the random children of B nodes, in float32.

    steps: [B] long, the step each node is about to take; steps of different kernels may be mixed,
    but for the multistep `dpm`, which needs a history.
    """
    x, v = x.float(), v.float()
    column = (-1,) + (1,) * (x.ndim - 1)
    levels = torch.tensor(plan.sigmas, device=x.device)
    sigma, sigma_next = levels[steps].view(column), levels[steps + 1].view(column)
    scale = torch.tensor(plan.noise_scale, device=x.device)[steps].view(column)
    factors = [std_factor(plan.branch_noise, plan.branch_scale, fanout) for fanout in plan.fanout]
    factor = torch.tensor(factors, device=x.device)[steps].view(column)
    names = sorted({plan.kernel[step] for step in set(steps.tolist())})
    mean, std = KERNELS[names[0]](x, v, sigma, sigma_next, scale)
    for name in names[1:]:
        rows = torch.tensor(
            [plan.kernel[step] == name for step in steps.tolist()], device=x.device
        ).view(column)
        other_mean, other_std = KERNELS[name](x, v, sigma, sigma_next, scale)
        mean, std = torch.where(rows, other_mean, mean), torch.where(rows, other_std, std)
    return mean, std * factor


def stds(plan: BranchPlan) -> list[float]:
    """[T] std of each step's random children; 0 where a step has none. (It depends on neither x nor
    v.)"""
    nothing = torch.zeros(plan.steps, 1)
    random = torch.tensor(plan.stochastic)[:, None]
    steps = torch.where(
        random[:, 0],
        torch.arange(plan.steps),
        plan.stochastic.index(True) if any(plan.stochastic) else 0,
    )
    found: list[float] = torch.where(random, transition(plan, steps, nothing, nothing)[1], nothing)[
        :, 0
    ].tolist()
    return found


def log_prob(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean over all non-batch dimensions of the Gaussian log density: [B], float32.

    `sample` is the value as it is stored: cast it first, then score it. Scoring before the cast
    biases the on-policy log-ratio by as much as the clip range.
    """
    z = (sample.float() - mean) / std
    density = -0.5 * z.square() - torch.log(std) - 0.5 * math.log(2.0 * math.pi)
    return density.flatten(1).mean(1)
