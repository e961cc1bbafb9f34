"""Weights in bfloat16 learn: float32 masters take AdamW's steps, the model follows them."""

from __future__ import annotations

import pytest
import torch
from support.small_batch import batch, config

from actors.learner import Learner

pytestmark = pytest.mark.networks

HALF = {
    "model.dtype": "bfloat16",
    "gates.enabled": "false",
    "learner.learning_rate": "1e-6",
    "learner.warmup": "0",
    "learner.schedule": "constant",
}


def test_steps_below_the_precision_of_bfloat16_add_up() -> None:
    arguments = batch()
    learner = Learner(config(1, HALF), 0, list)
    learner.join(1, "")
    start = [value.detach().clone() for value in learner.model.trainable().values()]
    for version in range(3):
        learner.version = 0  # the same trees again
        stats = learner.update(*arguments)
        assert stats.skipped_steps == 0, version
    masters = learner.policy.masters
    assert all(
        value.dtype == torch.bfloat16 for value in learner.model.trainable().values()
    ) and all(value.dtype == torch.float32 for value in masters)
    moved = torch.cat(
        [
            (master - value.float()).abs().flatten()
            for master, value in zip(masters, start, strict=True)
        ]
    )
    # three steps of 1e-6, most of them the same way
    assert float((moved > 2e-6).float().mean()) > 0.5
    for master, value in zip(masters, learner.model.trainable().values(), strict=True):
        assert torch.equal(master.bfloat16(), value)


def test_adapters_are_float32_beside_bfloat16_weights() -> None:
    learner = Learner(config(1, HALF | {"model.lora_rank": "4"}), 0, list)
    learner.join(1, "")
    kinds = {value.requires_grad: value.dtype for value in learner.model.module.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert all(
        master is value
        for master, value in zip(learner.policy.masters, learner.policy.parameters, strict=True)
    )
    _, update, *chunks = learner.publish()
    assert set(update.dtypes) == {"float32"}
    assert sum(len(part) for chunk in chunks for part in chunk) == 4 * sum(
        value.numel() for value in learner.policy.parameters
    )


def test_rollouts_get_bfloat16() -> None:
    learner = Learner(config(1, HALF), 0, list)
    learner.join(1, "")
    assert set(learner.publish()[1].dtypes) == {"bfloat16"}
    with pytest.raises(ValueError, match="differing"):
        learner.model.load({})
