"""Steps of the deterministic tail against diffusers' DPM-Solver and float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.latents import batch
from torch import Tensor

from branchgrpo.algo import kernels
from branchgrpo.algo.plan import with_tail
from branchgrpo.algo.schedule import static
from branchgrpo.types import BranchPlan
from tests.reference import closed_forms


def tail_plan(random_steps: int, steps: int, ratio: float, shift: float = 3.0) -> BranchPlan:
    kernel = ("dance",) * random_steps + ("ode",) * (steps - random_steps)
    return with_tail(
        BranchPlan(static(steps, shift).levels, (1,) * steps, kernel, (0.3,) * steps),
        ratio,
        static(steps, shift),
    )


def curved(x: Tensor, sigma: float) -> Tensor:
    """A velocity that is linear in nothing."""
    return (
        torch.tanh(1.7 * x.roll(1, dims=-1)) + torch.sin(3.0 * x + 2.0 * sigma) - 0.3 * x**2 * sigma
    )


def follow_tail(plan: BranchPlan, start: int, x: Tensor) -> Tensor:
    clean = None
    for step in range(start, plan.steps):
        x, clean = kernels.deterministic(
            plan, step=step, x=x, v=curved(x, float(plan.sigmas[step])), previous=clean
        )
    return x


@pytest.mark.parametrize(
    ("random_steps", "steps", "count"),
    [
        (0, 10, 10),
        (0, 20, 8),
        (4, 25, 21),
        (4, 25, 8),
        (4, 25, 4),
        (13, 20, 3),
        (13, 20, 2),
        (3, 40, 15),
        (24, 25, 1),
    ],
)
def test_the_tail_is_diffusers_dpm_solver(random_steps: int, steps: int, count: int) -> None:
    """2M, midpoint form; of first order at the tail's first step (no history) and at its last (σ =
    0)."""
    from diffusers import DPMSolverMultistepScheduler

    plan = tail_plan(random_steps, steps, count / (steps - random_steps))
    assert plan.kernel == ("dance",) * random_steps + ("dpm",) * count
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(count)
    scheduler.sigmas = torch.from_numpy(plan.sigmas[random_steps:].copy())
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    x = batch(3, seed=9)[0]
    expected = x
    for index, time in enumerate(scheduler.timesteps):
        expected = scheduler.step(
            curved(expected, float(scheduler.sigmas[index])), time, expected
        ).prev_sample
    torch.testing.assert_close(follow_tail(plan, random_steps, x), expected, rtol=0, atol=2e-5)
    euler = x
    for step in range(random_steps, plan.steps):
        euler = euler + curved(euler, float(plan.sigmas[step])) * float(
            plan.sigmas[step + 1] - plan.sigmas[step]
        )
    gap = (euler - expected).abs().max().item()
    # the first and the last step are of first order, which is Euler's step
    assert gap > 1e-3 if count > 2 else gap < 1e-6


def test_the_tail_against_its_float64_formula() -> None:
    plan, start = tail_plan(5, 20, 0.4), 5
    x = batch(2, seed=4)[0]
    slow, before = x.double().numpy(), None
    for step in range(start, plan.steps):
        sigma, after, last = (float(plan.sigmas[index]) for index in (step, step + 1, step - 1))
        clean = slow - sigma * curved(torch.from_numpy(slow), sigma).numpy()
        slow = closed_forms.dpm(
            slow, clean=clean, before=before, sigma=sigma, sigma_next=after, sigma_before=last
        )
        before = clean
    np.testing.assert_allclose(follow_tail(plan, start, x).numpy(), slow, rtol=0, atol=2e-5)


def test_a_tail_of_one_step_gives_the_clean_picture() -> None:
    plan = tail_plan(12, 20, 0.01)
    assert plan.kernel[12:] == ("dpm",)
    x, v = batch(3)
    after, clean = kernels.deterministic(plan, step=12, x=x, v=v, previous=None)
    expected = x.double() - float(plan.sigmas[12]) * v.double()
    for found in (after, clean):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.2, 0.4, 1.0])
def test_the_tail_is_spaced_like_the_schedule(ratio: float) -> None:
    """Even in t from the step after the last random one, then shifted; what lies before is
    untouched."""
    plan, shift = tail_plan(4, 25, ratio, 2.0), 2.0
    t = np.linspace(21 / 25, 0.0, {0.2: 4, 0.4: 8, 1.0: 21}[ratio] + 1)
    np.testing.assert_allclose(
        plan.sigmas[4:], shift * t / (1 + (shift - 1) * t), rtol=0, atol=1e-7
    )
    np.testing.assert_array_equal(plan.sigmas[:5], static(25, shift).levels[:5])
    if ratio == 1.0:
        np.testing.assert_allclose(plan.sigmas, static(25, shift).levels, rtol=0, atol=1e-7)
