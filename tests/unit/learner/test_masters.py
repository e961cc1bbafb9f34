"""Weights in bfloat16 learn: float32 masters take AdamW's steps, the model follows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_batch import batch, config

from actors.learner import Learner
from actors.rollout import RolloutWorker
from branchgrpo.service import CheckpointRequest

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


def test_adapters_are_of_the_models_dtype_and_learn_by_float32_masters() -> None:
    """Learners, rollout workers, and what goes between them; steps that bfloat16 would round away
    add up in the masters."""
    arguments = batch()
    # between 1/16 and 1/8 the numbers of bfloat16 are 4.9e-4 apart: more than twice a step
    adapters = HALF | {"model.lora_rank": "4", "learner.learning_rate": "2e-4"}
    learner = Learner(config(1, adapters), 0, list)
    learner.join(1, "")
    worker = RolloutWorker(config(1, adapters), 0)
    worker.ready()
    for model in (learner.model, worker.model):
        assert {value.dtype for value in model.module.parameters()} == {torch.bfloat16}
    assert all(master.dtype == torch.float32 for master in learner.policy.masters)
    start = [value.detach().clone() for value in learner.policy.parameters]
    moved = list[float]()
    for _ in range(3):  # A has a gradient from the second step on, when B is not 0 any more
        learner.version = 0  # the same trees again
        assert learner.update(*arguments).skipped_steps == 0
        pairs = zip(learner.policy.parameters, start, strict=True)
        changed = [(new != old)[(old.abs() > 1 / 16) & (old.abs() < 1 / 8)] for new, old in pairs]
        moved.append(float(torch.cat(changed).float().mean()))
    assert moved[:2] == [0.0, 0.0] and moved[2] > 0.5
    pairs = zip(learner.policy.masters, learner.policy.parameters, strict=True)
    assert all(torch.equal(master.bfloat16(), value) for master, value in pairs)
    _, update, *chunks = learner.publish()
    assert set(update.dtypes) == {"bfloat16"}
    assert sum(len(part) for chunk in chunks for part in chunk) == 2 * sum(
        value.numel() for value in learner.policy.parameters
    )
    assert worker.load_weights(update, *chunks) == update.digest
    assert np.array_equal(worker.fingerprint(), learner.fingerprint())


def test_a_checkpoint_of_float32_adapters_is_gone_on_from(tmp_path: Path) -> None:
    """What is in checkpoints are the masters, so adapters of either dtype read it."""
    folder = str(tmp_path)
    first = Learner(config(1, HALF | {"model.lora_rank": "4", "model.dtype": "float32"}), 0, list)
    first.join(1, "")
    first.update(*batch())
    first.checkpoint(CheckpointRequest(where=folder, iteration=1, fence=1, driver={}))
    other = Learner(config(1, HALF | {"model.lora_rank": "4"}), 0, list)
    other.restore(folder)
    pairs = zip(first.policy.masters, other.policy.masters, strict=True)
    assert all(torch.equal(wanted, found) for wanted, found in pairs)
    assert all(
        torch.equal(master.bfloat16(), value)
        for master, value in zip(other.policy.masters, other.policy.parameters, strict=True)
    )


def test_rollouts_get_bfloat16() -> None:
    learner = Learner(config(1, HALF), 0, list)
    learner.join(1, "")
    assert set(learner.publish()[1].dtypes) == {"bfloat16"}
    with pytest.raises(ValueError, match="differing"):
        learner.model.load({})
