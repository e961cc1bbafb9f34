"""Running out of memory halves batches and changes no result; nothing grows with iterations."""

from __future__ import annotations

import pytest
import torch
from support.on_device import PROMPTS, TREES, Small, held_bytes, room_for
from support.small_trees import plan_of

from branchgrpo.errors import UserError
from branchgrpo.rollout.sampler import Sampler, Segment

PLAN = plan_of(8, 2, 1, 1)  # 2 trees of 16 leaves
FITS, MANY = 4, 32
SIDE = 128
"""Pixels: on a card, what 32 rows take must stand out from what torch reserves at least."""

Families = dict[str, Small]


def grown(model: object, max_batch: int) -> tuple[Sampler, Segment]:
    sampler = Sampler(model, 5, torch.float32, max_batch)  # type: ignore[arg-type]
    conditioning = model.encode(PROMPTS)  # type: ignore[attr-defined]
    roots = sampler.roots(PLAN, TREES)
    return sampler, sampler.grow(
        PLAN, subtrees=TREES, x=roots, start=0, stop=PLAN.steps, conditioning=conditioning
    )


def test_forwards_that_do_not_fit_are_halved(families: Families, device: str) -> None:
    model = families["flux"].build(device, height=SIDE, width=SIDE)
    _, wanted = grown(model, MANY)
    with room_for(model, "velocity", lambda rows: grown(model, rows), fits=FITS, too_many=MANY):
        sampler, found = grown(model, MANY)
    assert found.halved >= 1 and 1 <= sampler.max_batch < MANY
    assert wanted.halved == 0 and found.forwards == wanted.forwards
    torch.testing.assert_close(found.frontier, wanted.frontier, rtol=0, atol=1e-3)


def test_a_forward_of_one_latent_that_does_not_fit_is_one_line(
    families: Families, device: str
) -> None:
    model = families["flux"].build(device, height=SIDE, width=SIDE)

    def none(rows: int) -> None:
        """Nothing fits beside what is there."""
        if rows:
            grown(model, rows)

    with room_for(model, "velocity", none, fits=0, too_many=MANY), pytest.raises(UserError) as line:
        grown(model, MANY)
    assert str(line.value).startswith("rollout.max_batch: out of memory even with 1 latent")
    assert "\n" not in str(line.value)


def test_nothing_grows_with_iterations(families: Families, device: str) -> None:
    """Growing, and forward, backward and step of the adapters, 50 times."""
    model = families["flux"].build(device, lora_rank=4)
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=1e-3)
    x = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(device)
    cond = model.fingerprint_conditioning(4)
    held = []
    for _ in range(50):
        grown(model, 16)
        model.velocity(x, torch.full((4,), 0.5, device=x.device), cond).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        held.append(held_bytes(device))
    assert held[-1] == held[4] > 0
