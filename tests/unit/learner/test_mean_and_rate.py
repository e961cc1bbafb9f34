"""The exponential mean of the weights and the learning rate of the policy update, against closed
forms."""

from __future__ import annotations

import copy
from math import cos, pi

import numpy as np
import pytest
import torch
from support.small_trees import quickstart
from test_update import PLAN, Case, poisoned

from branchgrpo.learner.policy import Tally
from branchgrpo.learner.rates import ema_decay, rate_factor


@pytest.mark.parametrize(("decay", "every"), [(0.3, 1), (0.9, 1), (0.9, 2)])
def test_ema_is_the_weighted_mean_of_all_weights(decay: float, every: int) -> None:
    """Step k (from 0) multiplies what went before by min((1 + k)/(10 + k), decay), where it
    counts."""
    case = Case(
        **{
            "learner.ema": str(decay),
            "learner.ema_every": str(every),
            "learner.learning_rate": "0.01",
        }
    )
    names = list(case.model.trainable())
    history = [[value.detach().clone().double() for value in case.policy.parameters]]
    batches, steps = case.batches(case.shards()[0]), 6
    for _ in range(steps):
        case.policy.step(PLAN, batches, Tally())
        history.append([value.detach().clone().double() for value in case.policy.parameters])
    shares = np.zeros(steps + 1)  # of each of the weights in the mean
    shares[0] = 1
    for k in range(every - 1, steps, every):
        kept = min((1 + k) / (10 + k), decay)
        shares *= kept
        shares[k + 1] = 1 - kept
    assert shares.sum() == pytest.approx(1)
    for place, name in enumerate(names):
        wanted = sum(
            float(share) * weights[place] for share, weights in zip(shares, history, strict=True)
        )
        assert torch.allclose(case.policy.ema[name].double(), wanted, atol=1e-6)
        assert not torch.allclose(case.policy.ema[name].double(), history[-1][place], atol=1e-4)


def test_the_mean_soon_forgets_the_untrained_model() -> None:
    """What is left of it after n steps is 1·2·…·n / (10·…·(9 + n)) while it warms up; a constant
    0.999 kept 0.82 of 200 steps."""
    left = np.cumprod([ema_decay(0.999, taken) for taken in range(200)])
    assert (
        left[-1] < 1e-12 and left[0] == 0.1 and left[2] == pytest.approx(1 * 2 * 3 / (10 * 11 * 12))
    )
    # weights that move evenly: the mean is after them by a tenth of the way, at the end of which
    # it has 91 % of it
    mean = 0.0
    for taken in range(200):
        mean += (1 - ema_decay(0.999, taken)) * (taken + 1 - mean)
    assert mean / 200 == pytest.approx(0.905, abs=0.005)
    # and of weights that have settled after 100 steps it has all but a thousandth
    mean = 0.0
    for taken in range(200):
        mean += (1 - ema_decay(0.999, taken)) * (min(taken + 1, 100) - mean)
    assert mean / 100 == pytest.approx(1, abs=0.002)
    assert ema_decay(0.999, 8990) == 0.999 > ema_decay(0.999, 8000) and ema_decay(0.5, 100) == 0.5


def test_a_skipped_step_moves_neither_the_ema_nor_the_schedule() -> None:
    case = Case(**{"learner.ema": "0.5", "learner.warmup": "4", "learner.learning_rate": "0.01"})
    sound, broken = case.batches(case.shards()[0]), poisoned(case, float("nan"))
    case.policy.step(PLAN, sound, Tally())
    before, rate = copy.deepcopy(case.policy.ema), case.policy.learning_rate
    assert not np.isfinite(case.policy.step(PLAN, broken, Tally()))
    assert (
        all(torch.equal(before[name], value) for name, value in case.policy.ema.items())
        and case.policy.learning_rate == rate
    )
    case.policy.step(PLAN, sound, Tally())
    assert case.policy.learning_rate == pytest.approx(2 * rate)


SCHEDULES = {  # over 10 optimiser steps, of which 2 warm up; final rate 0.2
    "constant": [0.5, 1.0, *[1.0] * 8],
    "linear": [0.5, 1.0, *(1 - 0.8 * k / 8 for k in range(8))],
    "cosine": [0.5, 1.0, *(0.2 + 0.8 * (1 + cos(pi * k / 8)) / 2 for k in range(8))],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_schedules(schedule: str) -> None:
    options = {"learner.schedule": schedule, "learner.warmup": "2", "learner.final_rate": "0.2"}
    factors = [rate_factor(quickstart(options).learner, step, 10) for step in range(10)]
    assert factors == pytest.approx(SCHEDULES[schedule], rel=1e-12)
    end = 1.0 if schedule == "constant" else 0.2
    assert [
        rate_factor(quickstart(options).learner, step, 10) for step in (10, 11, 500)
    ] == pytest.approx([end] * 3)


def test_a_warm_up_as_long_as_the_run_is_all_there_is() -> None:
    options = quickstart({"learner.schedule": "cosine", "learner.warmup": "4"}).learner
    assert [rate_factor(options, step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adamw_moves_by_the_scheduled_rate(schedule: str) -> None:
    """Without momentum AdamW moves each weight by rate · g/(|g| + 1e-8)."""
    rate = 0.01
    options = {
        "learner.schedule": schedule,
        "learner.warmup": "2",
        "learner.final_rate": "0.2",
        "run.iterations": "5",
        "learner.optimiser_steps": "2",
    }
    case = Case(
        **options,
        **{
            "learner.betas": "[0.0, 0.0]",
            "learner.weight_decay": "0.0",
            "learner.learning_rate": str(rate),
        },
    )
    batches = case.batches(case.shards()[0])
    for factor in SCHEDULES[schedule]:
        before = [value.detach().clone() for value in case.policy.parameters]
        case.policy.step(PLAN, batches, Tally())
        for old, new in zip(before, case.policy.parameters, strict=True):
            assert torch.allclose(
                new.detach() - old, -rate * factor * new.grad / (new.grad.abs() + 1e-8), atol=1e-6
            )
        assert case.policy.learning_rate == pytest.approx(rate * factor)
