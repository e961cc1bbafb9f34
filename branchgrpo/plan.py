"""Noise levels of a schedule; building blocks that every method's plan is made of."""

from __future__ import annotations

import numpy as np

from branchgrpo.types import F32, BranchPlan


def sigmas(steps: int, shift: float) -> F32:
    """σ_i = shift·t / (1 + (shift − 1)·t), t = linspace(1, 0, T+1): [T+1], 1 … 0.

    With `shift` of a static FlowMatchEulerDiscreteScheduler these are its sigmas.
    """
    t = np.linspace(1.0, 0.0, steps + 1)
    return (shift * t / (1.0 + (shift - 1.0) * t)).astype(np.float32)


def ode_plan(steps: int, shift: float) -> BranchPlan:
    """One deterministic chain: evaluation and pictures."""
    return BranchPlan(sigmas(steps, shift), (1,) * steps, ("ode",) * steps, (0.0,) * steps)
