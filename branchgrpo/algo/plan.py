"""Building blocks that every method's plan is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import BranchPlan


def ode_plan(schedule: Schedule) -> BranchPlan:
    """One deterministic chain: evaluation and pictures."""
    steps = schedule.steps
    return BranchPlan(schedule.levels, (1,) * steps, ("ode",) * steps, (0.0,) * steps)


def with_tail(plan: BranchPlan, ratio: float, schedule: Schedule) -> BranchPlan:
    """The plan with the n steps after its last random one (all, where none is) replaced by
    max(1, round(ratio·n)) steps of DPM-Solver++.

    They are spaced like the schedule itself (MixGRPO-Flash, arXiv 2507.21802).
    """
    start = max((step for step in range(plan.steps) if plan.stochastic[step]), default=-1) + 1
    count = max(1, round(ratio * (plan.steps - start)))
    return replace(
        plan,
        sigmas=np.concatenate([plan.sigmas[:start], schedule.tail(start, count)]),
        fanout=plan.fanout[:start] + (1,) * count,
        kernel=plan.kernel[:start] + ("dpm",) * count,
        noise_scale=plan.noise_scale[:start] + (0.0,) * count,
        weight=plan.weight and plan.weight[:start] + (1.0,) * count,
    )
