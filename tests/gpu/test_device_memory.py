"""Running out of memory halves batches and changes no result; nothing grows with iterations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.on_device import PROMPTS, TREES, Small, held_bytes, room_for
from support.records import records
from support.small_batch import batch, config, outcome
from support.small_trees import plan_of

from actors.learner import Learner
from branchgrpo.errors import UserError
from branchgrpo.rollout.sampler import Sampler, Segment

PLAN = plan_of(8, 2, 1, 1)  # 2 trees of 16 leaves
FITS, MANY = 4, 32
SIDE = 128
"""Pixels: on a card, what 32 rows take must stand out from what torch reserves at least."""

Families = dict[str, Small]


def grown(model: object, max_batch: int) -> tuple[Sampler, Segment]:
    sampler = Sampler(model, 5, torch.float32, max_batch)  # type: ignore[arg-type]
    conditioning = model.encode(records(PROMPTS))  # type: ignore[attr-defined]
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


def decoded(model: Any, rows: int) -> np.ndarray | None:
    """Pixels of so many latents; nothing of none."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(MANY, *model.latent_shape, generator=draw)[:rows].to(model.device)
    return model.decode(x) if rows else None


def test_decoding_that_does_not_fit_is_halved(families: Families, device: str) -> None:
    model = families["flux"].build(device, height=SIDE, width=SIDE, decode_batch=MANY)
    wanted = decoded(model, MANY)
    assert model.decodings_halved == 0
    with room_for(model, "pixels", lambda rows: decoded(model, rows), fits=FITS, too_many=MANY):
        found = decoded(model, MANY)
    assert model.decodings_halved >= 1 and 1 <= model.decoding.most < MANY
    assert found is not None and wanted is not None and wanted.std() > 1
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_one_latent_that_cannot_be_decoded_is_one_line(families: Families, device: str) -> None:
    model = families["flux"].build(device, height=SIDE, width=SIDE, decode_batch=MANY)
    with (
        room_for(model, "pixels", lambda rows: decoded(model, rows), fits=0, too_many=MANY),
        pytest.raises(UserError) as line,
    ):
        decoded(model, MANY)
    assert str(line.value).startswith("model.decode_batch: out of memory even with 1 latent")
    assert "\n" not in str(line.value)


LEARNER = {
    "model.height": str(SIDE),
    "model.width": str(SIDE),
    "model.lora_rank": "4",
    "gates.enabled": "false",
    "learner.learning_rate": "1e-12",  # updates start from the same weights
}


class Updates:
    """The same trees, again and again, on a learner whose weights stay as they are."""

    def __init__(self, roles: dict[str, str]):
        self.request = batch(LEARNER)
        self.learner = Learner(config(1, LEARNER | roles), 0, list)
        self.learner.join(1, "")

    def __call__(self, rows: int) -> dict[str, Any]:
        """An update in micro-batches of so many parents; nothing of none."""
        self.learner.version, self.learner.policy.portions.most = 0, rows
        return outcome(self.learner, self.request) if rows else {}


def test_an_update_that_does_not_fit_is_halved(roles: dict[str, str]) -> None:
    updates = Updates(roles | {"learner.micro_batch": str(MANY)})
    wanted = updates(MANY)
    with room_for(updates.learner.model, "velocity", updates, fits=FITS, too_many=MANY):
        found = updates(MANY)
    assert wanted["stats"].halved == 0 and found["stats"].halved >= 1
    assert found["stats"].forwards == wanted["stats"].forwards > FITS
    here, there = (
        torch.cat([value.float().flatten().cpu() for value in one["gradient"].values()])
        for one in (wanted, found)
    )
    assert float((there - here).norm()) <= 1e-2 * float(here.norm()) > 0


def test_one_parent_that_does_not_fit_is_one_line(roles: dict[str, str]) -> None:
    updates = Updates(roles)
    with (
        room_for(updates.learner.model, "velocity", updates, fits=0, too_many=MANY),
        pytest.raises(UserError) as line,
    ):
        updates(MANY)
    assert str(line.value).startswith("learner.micro_batch: out of memory even with 1 parent")
    assert "\n" not in str(line.value)


def test_nothing_grows_with_iterations(families: Families, device: str) -> None:
    """Growing, and forward, backward and step of the adapters, 50 times; on the CPU, where it is
    the test that is tried, ten times."""
    model = families["flux"].build(device, lora_rank=4)
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=1e-3)
    x = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(device)
    cond = model.fingerprint_conditioning(4)
    held = []
    for _ in range(50 if device.startswith("cuda") else 10):
        grown(model, 16)
        model.velocity(x, torch.full((4,), 0.5, device=x.device), cond).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        held.append(held_bytes(device))
    assert held[-1] == held[4] > 0
