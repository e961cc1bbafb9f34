"""Networks that rest in main memory, on a card: its memory is free between turns, scores and
encodings are the same."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from support.records import records
from torch import nn

from branchgrpo.models.flux import FluxModel
from branchgrpo.models.offload import Offloaded
from branchgrpo.rewards.base import Scorer
from branchgrpo.rewards.offloaded import OffloadedScorer
from branchgrpo.types import F32, U8, Sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MB = 2**20


def network() -> nn.Module:
    """128 MB of float32 and 32 MB of bfloat16."""
    wide = [nn.Linear(4096, 4096, bias=False), nn.Linear(4096, 4096, bias=False)]
    narrow = nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16)
    return nn.Sequential(*wide, narrow).cuda().requires_grad_(False)


def used() -> int:
    """What the caching allocator holds of the card, in MB: other processes cannot have it."""
    torch.cuda.synchronize()
    return torch.cuda.memory_reserved() // MB


def test_the_card_is_free_between_turns() -> None:
    torch.cuda.empty_cache()
    before = used()
    module = network()
    loaded = used() - before
    assert loaded >= 160
    offloaded = Offloaded([module], "cuda")
    for _ in range(3):
        assert used() - before <= 2
        assert all(value.is_pinned() for value in module.parameters())
        with offloaded.on_device():
            assert 160 <= used() - before <= loaded + 2
            assert all(value.is_cuda for value in module.parameters())
    assert used() - before <= 2


class Wide(Scorer):
    def __init__(self) -> None:
        self.module = network()

    def networks(self) -> Iterable[nn.Module]:
        return (self.module,)

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        del samples
        x = torch.from_numpy(pixels.reshape(len(pixels), -1)[:, :4096]).cuda().float() / 255
        with torch.inference_mode():
            wide = self.module[1](self.module[0](x))  # type: ignore[index]
            rows = self.module[2](wide.bfloat16()).float().mean(1)  # type: ignore[index]
        found: F32 = rows.cpu().numpy()
        return {"score": found}


def test_scores_are_the_same() -> None:
    scorer = Wide()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 64, 64, 3), np.uint8)
    wanted = scorer.score(pixels, records([""] * 8))["score"]
    offloaded = OffloadedScorer(scorer, "cuda")
    for _ in range(2):
        assert np.array_equal(offloaded.score(pixels, records([""] * 8))["score"], wanted)


def test_encodings_are_the_same() -> None:
    options = {"path": "embedded:tiny-flux", "height": 32, "width": 32, "max_sequence_length": 16}
    there, resting = (FluxModel(offload_encoders=rest, **options) for rest in (False, True))
    wanted = there.build("cuda").encode(records(["the number 38"])).arrays
    model = resting.build("cuda")
    for _ in range(2):
        assert not next(model.pipe.text_encoder_2.parameters()).is_cuda
        found = model.encode(records(["the number 38"])).arrays
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert next(model.denoiser.parameters()).is_cuda and next(model.pipe.vae.parameters()).is_cuda
