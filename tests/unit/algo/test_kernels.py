"""Transitions and log densities against float64 formulas and torch.distributions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.latents import batch

from branchgrpo.algo import kernels
from branchgrpo.algo.plan import ode_plan, with_tail
from branchgrpo.algo.schedule import static
from branchgrpo.types import BranchPlan
from tests.reference import closed_forms


def column(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1), value)


def mixed_plan(branch_noise: str = "correlated") -> BranchPlan:
    """Six steps of both kernels, different η and fanouts."""
    kernel = ("dance", "ode", "dance", "dance", "ode", "ode")
    return BranchPlan(
        sigmas=static(6, 3.0).levels,
        fanout=(2, 1, 4, 1, 1, 1),
        kernel=kernel,
        noise_scale=(0.3, 0.0, 0.7, 0.25, 0.0, 0.0),
        branch_noise=branch_noise,
        branch_scale=4.0,
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("eta", [0.25, 0.3, 1.0])
def test_dance_against_its_float64_formula(shift: float, eta: float) -> None:
    steps = 20
    levels = static(steps, shift).levels
    plan = BranchPlan(levels, (1,) * steps, ("dance",) * (steps - 1) + ("ode",), (eta,) * steps)
    x, v = batch(steps - 1)
    mean, std = kernels.transition(plan, torch.arange(steps - 1), x, v)
    assert mean.shape == x.shape
    assert std.shape == (steps - 1, 1, 1)
    for step in range(steps - 1):
        expected = closed_forms.dance(
            x[step].double().numpy(),
            v=v[step].double().numpy(),
            sigma=float(levels[step]),
            sigma_next=float(levels[step + 1]),
            eta=eta,
        )
        np.testing.assert_allclose(mean[step].numpy(), expected[0], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(std[step].item(), expected[1], rtol=2e-6)


def test_dance_without_noise_is_the_ode() -> None:
    x, v = batch(3)
    straight, zero = kernels.ode(
        x, v=v, sigma=column(0.8), sigma_next=column(0.7), scale=column(0.0)
    )
    mean, std = kernels.dance(x, v=v, sigma=column(0.8), sigma_next=column(0.7), scale=column(0.0))
    assert torch.equal(mean, straight)
    assert torch.equal(zero, torch.zeros(1, 1, 1))
    assert torch.equal(std, zero)
    for eta in (1e-2, 1e-3):  # std falls with η, the drift with η²
        mean, std = kernels.dance(
            x, v=v, sigma=column(0.8), sigma_next=column(0.7), scale=column(eta)
        )
        assert (mean - straight).abs().max() < eta**2 + 1e-6
        assert std.item() == pytest.approx(eta * 0.1**0.5, rel=1e-5)


def test_the_last_ode_step_gives_the_clean_picture() -> None:
    plan = ode_plan(static(20, 3.0))
    x, v = batch(4)
    mean, std = kernels.transition(plan, torch.full((4,), 19), x, v)
    np.testing.assert_allclose(
        mean.numpy(), x.numpy() - plan.sigmas[19] * v.numpy(), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(std, torch.zeros(4, 1, 1))


def test_ode_follows_a_straight_path_exactly() -> None:
    """With the velocity ε − x0 of one pair, x stays (1 − σ)·x0 + σ·ε at every level."""
    plan = ode_plan(static(20, 3.0))
    noise, clean = batch(2)
    x = noise
    for step in range(20):
        x, _ = kernels.transition(plan, torch.full((2,), step), x, noise - clean)
        level = float(plan.sigmas[step + 1])
        torch.testing.assert_close(x, (1 - level) * clean + level * noise, rtol=0, atol=3e-6)


def test_log_prob_is_the_mean_of_the_normal_density() -> None:
    sample, mean = batch(6, seed=3)
    std = torch.tensor([0.01, 0.05, 0.3, 1.0, 2.0, 7.0]).view(6, 1, 1)
    sample = mean + std * sample
    found = kernels.log_prob(sample, mean, std)
    expected = (
        torch.distributions.Normal(mean.double(), std.double())
        .log_prob(sample.double())
        .mean(dim=(1, 2))
    )
    assert found.shape == (6,)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    for row in range(6):
        slow = closed_forms.mean_log_density(
            sample[row].double().numpy(), mean[row].double().numpy(), std[row].item()
        )
        assert found[row].item() == pytest.approx(slow, rel=1e-5, abs=1e-5)


def test_log_prob_scores_the_stored_value() -> None:
    """A bfloat16 sample is scored at its rounded value, in float32."""
    noise, mean = batch(4, seed=5)
    std = torch.full((4, 1, 1), 0.05)
    stored = (mean + std * noise).bfloat16()
    found = kernels.log_prob(stored, mean, std)
    assert found.dtype == torch.float32
    expected = (
        torch.distributions.Normal(mean.double(), std.double())
        .log_prob(stored.double())
        .mean(dim=(1, 2))
    )
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["correlated", "scaled", "antithetic"])
def test_mixed_steps_equal_one_by_one(form: str) -> None:
    plan = mixed_plan(form)
    steps = torch.tensor([4, 0, 2, 5, 1, 3, 0, 2])
    x, v = batch(len(steps))
    mean, std = kernels.transition(plan, steps, x, v)
    for row in range(len(steps)):
        alone_mean, alone_std = kernels.transition(
            plan, steps[row : row + 1], x[row : row + 1], v[row : row + 1]
        )
        assert torch.equal(mean[row : row + 1], alone_mean)
        assert torch.equal(std[row : row + 1], alone_std)


def test_mixed_steps_against_the_formulas() -> None:
    plan, steps = mixed_plan(), [5, 2, 0, 1, 3, 4]
    x, v = batch(len(steps))
    mean, std = kernels.transition(plan, torch.tensor(steps), x, v)
    for row, step in enumerate(steps):
        values = (
            x[row].double().numpy(),
            v[row].double().numpy(),
            float(plan.sigmas[step]),
            float(plan.sigmas[step + 1]),
        )
        expected = (
            closed_forms.ode(*values)
            if plan.kernel[step] == "ode"
            else closed_forms.dance(*values, plan.noise_scale[step])
        )
        np.testing.assert_allclose(mean[row].numpy(), expected[0], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(std[row].item(), expected[1], rtol=2e-6)


def test_scaled_noise_multiplies_the_std_at_splits_alone() -> None:
    x, v = batch(6)
    plain_mean, plain_std = kernels.transition(mixed_plan(), torch.arange(6), x, v)
    mean, std = kernels.transition(mixed_plan("scaled"), torch.arange(6), x, v)
    assert torch.equal(mean, plain_mean)
    factors = torch.tensor([4.0, 1.0, 4.0, 1.0, 1.0, 1.0]).view(6, 1, 1)  # steps 0 and 2 split
    assert torch.equal(std, plain_std * factors)


def test_low_precision_inputs_are_computed_in_float32() -> None:
    x, v = batch(6)
    x, v = x.bfloat16(), v.bfloat16()
    mean, std = kernels.transition(mixed_plan(), torch.arange(6), x, v)
    wide_mean, wide_std = kernels.transition(mixed_plan(), torch.arange(6), x.float(), v.float())
    assert mean.dtype == std.dtype == torch.float32
    assert torch.equal(mean, wide_mean)
    assert torch.equal(std, wide_std)


def whole_schedule(kernel: str, level: float, steps: int, shift: float) -> BranchPlan:
    """Every step but the last is random."""
    return BranchPlan(
        static(steps, shift).levels,
        (1,) * steps,
        (kernel,) * (steps - 1) + ("ode",),
        (level,) * (steps - 1) + (0.0,),
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("kernel", "level"), [("flow", 0.7), ("flow", 0.9), ("cps", 0.8), ("cps", 0.3), ("cps", 1.0)]
)
def test_flow_and_cps_against_their_float64_formulas(
    kernel: str, level: float, shift: float
) -> None:
    """From pure noise (σ = 1) to the last step, which is not random."""
    steps = 10
    plan = whole_schedule(kernel, level, steps, shift)
    x, v = batch(steps)
    mean, std = kernels.transition(plan, torch.arange(steps), x, v)
    for step in range(steps):
        values = (
            x[step].double().numpy(),
            v[step].double().numpy(),
            float(plan.sigmas[step]),
            float(plan.sigmas[step + 1]),
        )
        if step == steps - 1:
            expected = closed_forms.ode(*values)
        elif kernel == "flow":
            expected = closed_forms.flow(*values, level, float(plan.sigmas[1]))
        else:
            expected = closed_forms.cps(*values, level)
        np.testing.assert_allclose(mean[step].numpy(), expected[0], rtol=5e-6, atol=5e-6)
        np.testing.assert_allclose(std[step].item(), expected[1], rtol=2e-6)


def test_stds_of_every_step() -> None:
    levels = static(6, 3.0).levels
    kernel = ("flow", "ode", "dance", "cps", "flow", "ode")
    plan = BranchPlan(
        sigmas=levels,
        fanout=(2, 1, 4, 1, 1, 1),
        kernel=kernel,
        noise_scale=(0.7, 0.0, 0.3, 0.8, 0.9, 0.0),
        branch_noise="correlated",
        branch_scale=4.0,
    )
    s = levels.astype(float)
    expected = [
        0.7 * math.sqrt(1 / (1 - s[1]) * (1 - s[1])),  # σ = 1: the denominator takes the next level
        0.0,
        0.3 * math.sqrt(s[2] - s[3]),
        s[4] * math.sin(0.4 * math.pi),
        0.9 * math.sqrt(s[4] / (1 - s[4]) * (s[4] - s[5])),
        0.0,
    ]
    np.testing.assert_allclose(kernels.stds(plan), expected, rtol=1e-5)
    scaled = [4.0 * expected[0], 0.0, 4.0 * expected[2], *expected[3:]]  # steps 0 and 2 split
    np.testing.assert_allclose(
        kernels.stds(replace(plan, branch_noise="scaled")), scaled, rtol=1e-5
    )
    assert kernels.stds(ode_plan(static(6, 3.0))) == [0.0] * 6
    tailed = with_tail(
        replace(plan, kernel=("flow",) + ("ode",) * 5, fanout=(2,) + (1,) * 5), 0.4, static(6, 3.0)
    )
    np.testing.assert_allclose(kernels.stds(tailed), [expected[0], 0.0, 0.0], rtol=1e-5)


def test_noise_levels_that_cannot_be_written_are_taken_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Ray serves arrays read-only."""
    plan = mixed_plan()
    plan.sigmas.flags.writeable = False
    x, v = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    kernels.transition(plan, torch.tensor([0, 2]), x, v)
    assert not [one for one in recwarn if "writable" in str(one.message)]
