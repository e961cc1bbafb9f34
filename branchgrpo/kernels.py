"""Transitions of the denoising process: (mean, std) of x_next given x. One function serves rollout and learner.

Notation: σ noise level (1 = noise), v velocity, dt = σ_next − σ < 0, x̂0 = x − σ·v. All in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from branchgrpo.noise import std_factor
from branchgrpo.types import BranchPlan

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def ode(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Euler step of the probability-flow ODE: mean x + v·dt, std 0. `scale` has no effect."""
    return x + v * (sigma_next - sigma), torch.zeros_like(sigma)


def dance(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The SDE of DanceGRPO, which BranchGRPO uses: scale = η.

    mean x + v·dt − ½η²·score·dt, score = −(x − (1−σ)·x̂0)/σ²; std η·√(−dt).
    """
    dt = sigma_next - sigma
    x0 = x - sigma * v
    score = -(x - (1.0 - sigma) * x0) / sigma**2
    return x + v * dt - 0.5 * scale**2 * score * dt, scale * torch.sqrt(-dt)


KERNELS: dict[str, Kernel] = {"ode": ode, "dance": dance}


def transition(plan: BranchPlan, steps: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [B, *S], std [B, 1, …]) of the children of B nodes, in float32.

    steps: [B] long, the step each node is about to take; steps of different kernels may be mixed.
    """
    x, v = x.float(), v.float()
    column = (-1,) + (1,) * (x.ndim - 1)
    levels = torch.from_numpy(plan.sigmas).to(x.device)
    sigma, sigma_next = levels[steps].view(column), levels[steps + 1].view(column)
    scale = torch.tensor(plan.noise_scale, device=x.device)[steps].view(column)
    factors = [std_factor(plan.branch_noise, plan.branch_scale, fanout) for fanout in plan.fanout]
    factor = torch.tensor(factors, device=x.device)[steps].view(column)
    names = sorted({plan.kernel[step] for step in set(steps.tolist())})
    mean, std = KERNELS[names[0]](x, v, sigma, sigma_next, scale)
    for name in names[1:]:
        rows = torch.tensor([plan.kernel[step] == name for step in steps.tolist()], device=x.device).view(column)
        other_mean, other_std = KERNELS[name](x, v, sigma, sigma_next, scale)
        mean, std = torch.where(rows, other_mean, mean), torch.where(rows, other_std, std)
    return mean, std * factor


def log_prob(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean over all non-batch dimensions of the Gaussian log density: [B], float32.

    `sample` is the value as it is stored: cast it first, then score it. Scoring before the cast biases the
    on-policy log-ratio by as much as the clip range.
    """
    z = (sample.float() - mean) / std
    density = -0.5 * z.square() - torch.log(std) - 0.5 * math.log(2.0 * math.pi)
    return density.flatten(1).mean(1)
