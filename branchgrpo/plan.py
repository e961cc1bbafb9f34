"""Noise levels of a schedule; building blocks that every method's plan is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from branchgrpo.types import F32, BranchPlan


def _shifted(t: np.ndarray, shift: float) -> F32:
    """σ = shift·t / (1 + (shift − 1)·t)."""
    return (shift * t / (1.0 + (shift - 1.0) * t)).astype(np.float32)


def sigmas(steps: int, shift: float) -> F32:
    """σ_i = shift·t / (1 + (shift − 1)·t), t = linspace(1, 0, T+1): [T+1], 1 … 0.

    With `shift` of a static FlowMatchEulerDiscreteScheduler these are its sigmas.
    """
    return _shifted(np.linspace(1.0, 0.0, steps + 1), shift)


def ode_plan(steps: int, shift: float) -> BranchPlan:
    """One deterministic chain: evaluation and pictures."""
    return BranchPlan(sigmas(steps, shift), (1,) * steps, ("ode",) * steps, (0.0,) * steps)


def with_tail(plan: BranchPlan, ratio: float, shift: float) -> BranchPlan:
    """The plan with the n steps behind its last random one replaced by max(1, round(ratio·n)) steps of DPM-Solver++.

    They are spaced like the schedule itself: evenly in t, then shifted (MixGRPO-Flash, arXiv 2507.21802).
    """
    start = max(step for step in range(plan.steps) if plan.stochastic[step]) + 1
    rest = plan.steps - start
    count = max(1, round(ratio * rest))
    tail = _shifted(np.linspace(1.0 - start / plan.steps, 0.0, count + 1), shift)
    return replace(
        plan,
        sigmas=np.concatenate([plan.sigmas[: start + 1], tail[1:]]),
        fanout=plan.fanout[:start] + (1,) * count,
        kernel=plan.kernel[:start] + ("dpm",) * count,
        noise_scale=plan.noise_scale[:start] + (0.0,) * count,
        weight=plan.weight and plan.weight[:start] + (1.0,) * count,
    )
