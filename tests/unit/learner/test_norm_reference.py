"""‖v‖ beside what it was, against closed forms and a slow walk in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.records import records
from support.small_adapter import SmallAdapter
from support.small_trees import plan_of
from test_policy_update import nudge

from branchgrpo.learner.norm_reference import NormReference
from branchgrpo.learner.portions import Portions
from branchgrpo.types import BranchPlan, Conditioning

PLAN = plan_of(*[1] * 10)  # of whose steps 0, 3, 6 and 9 are taken
STEPS = [0, 3, 6, 9]


def prompts(model: SmallAdapter) -> list[Conditioning]:
    return list(model.encode(records(["a", "b"])).split())


def portions() -> Portions:
    return Portions(64, torch.device("cpu"), sharded=False)


def drawn(model: SmallAdapter, plan: BranchPlan = PLAN, size: int = 3) -> NormReference:
    return NormReference.drawn(model, plan, prompts(model), portions=portions(), size=size, seed=7)


def norm(model: SmallAdapter, walked: SmallAdapter, steps: list[int]) -> float:
    """Root mean square of a model's velocities in float64, one latent at a time, where another
    one's walk comes by at these of its steps."""
    total, count, sigmas = 0.0, 0, [float(one) for one in PLAN.sigmas]
    noise = torch.randn(2, 6, generator=torch.Generator().manual_seed(7)).double()
    for x, text in zip(noise, prompts(model), strict=True):
        cond = {"text": torch.from_numpy(text.arrays["text"]).double()}
        for step, after in zip(STEPS, [3, 6, 9, 10], strict=True):
            sigma = torch.tensor([sigmas[step]], dtype=torch.float64)
            with torch.no_grad():
                v = model.velocity(x[None], sigma, cond)
                way = walked.velocity(x[None], sigma, cond)[0]
            if step in steps:
                total, count = total + v.square().sum().item(), count + v.numel()
            x = x + way * (sigmas[after] - sigmas[step])
    return (total / count) ** 0.5


def test_it_is_that_of_a_walk_one_latent_at_a_time() -> None:
    model = SmallAdapter()
    before = model.double()
    reference = drawn(model)
    assert len(reference.latents) == 8 and model.rows == [2] * 4
    assert reference.base == pytest.approx(norm(before, before, STEPS), rel=1e-5)
    assert reference.ratio(model, portions(), 8) == pytest.approx(1.0, abs=1e-6)
    nudge(model, 0.1)
    wanted = norm(model.double(), before, STEPS) / norm(before, before, STEPS)
    found = reference.ratio(model, portions(), 3)
    assert found == pytest.approx(wanted, rel=1e-5) and abs(found - 1) > 1e-3


@pytest.mark.parametrize("factor", [0.5, 1.15, 2.0])
def test_velocities_that_are_so_many_times_as_large(factor: float) -> None:
    model = SmallAdapter()
    reference = drawn(model)
    with torch.no_grad():
        for value in model.denoiser[2].parameters():  # the last layer is linear
            value.mul_(factor)
    for size in (1, 3, 64):
        model.rows.clear()
        assert reference.ratio(model, portions(), size) == pytest.approx(factor, rel=1e-6)
        assert max(model.rows) == min(size, 8) and sum(model.rows) == 8


def test_steps_of_frozen_weights_are_walked_and_not_measured() -> None:
    model = SmallAdapter()
    before = model.double()
    high = drawn(model, replace(PLAN, frozen=(False,) * 5 + (True,) * 5))
    assert len(high.latents) == 4
    assert high.base == pytest.approx(norm(before, before, [0, 3]), rel=1e-5)
    low = drawn(model, replace(PLAN, frozen=(True,) * 9 + (False,)))
    assert low.base == pytest.approx(norm(before, before, [9]), rel=1e-5)


def test_short_plans_have_fewer_levels() -> None:
    assert len(drawn(SmallAdapter(), plan_of(1, 1)).latents) == 4  # of two prompts


def test_what_is_kept_gives_the_same_figure() -> None:
    model = SmallAdapter()
    reference = drawn(model)
    kept = {name: value.clone() for name, value in reference.tensors().items()}
    nudge(model)
    again = NormReference.read(kept, model)
    assert again.ratio(model, portions(), 8) == reference.ratio(model, portions(), 8)
    with pytest.raises(ValueError, match="x: expected latents of shape"):
        NormReference.read({}, model)
