"""A checkpoint that was written on one device goes on on the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.small_batch import batch, config, outcome

from actors.learner import Learner
from branchgrpo.service import CheckpointRequest

OPTIONS = {"learner.ema": "0.9", "gates.enabled": "false", "model.lora_rank": "4"}


@pytest.mark.parametrize("back", [False, True])
def test_it_is_read_on_the_other_device(roles: dict[str, str], tmp_path: Path, back: bool) -> None:
    places = [config(1, OPTIONS), config(1, OPTIONS | roles)]
    writer, reader = (Learner(one, 0, list) for one in (places[::-1] if back else places))
    for learner in (writer, reader):
        learner.join(1, "")
    arguments = batch()
    outcome(writer, arguments)
    driver = {"iteration": 1, "seconds": 1.0, "gates": {}}
    writer.checkpoint(CheckpointRequest(where=str(tmp_path), iteration=1, fence=0, driver=driver))
    assert reader.restore(str(tmp_path)).driver == driver
    for name, value in writer.policy.named_masters().items():
        held = reader.policy.named_masters()[name]
        assert torch.equal(held.cpu(), value.cpu())
        for moment in ("exp_avg", "exp_avg_sq"):
            one, other = (
                policy.optimiser.state[tensor][moment].cpu()
                for policy, tensor in ((writer.policy, value), (reader.policy, held))
            )
            assert torch.equal(one, other), (name, moment)
            # A has no gradient while B is still nothing
            assert one.any() or ".lora_A." in name, (name, moment)
        assert torch.equal(reader.policy.ema[name].cpu(), writer.policy.ema[name].cpu())
    assert (reader.version, writer.version) == (1, 1)
    device = torch.device(reader.config.learner.device).type
    assert {value.device.type for value in reader.model.trainable().values()} == {device}
