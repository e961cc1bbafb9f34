"""Tensors of every dtype that travels come through main memory to the bit, and weights by
digest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from branchgrpo.models import weights as wire

NAMES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")


def every_pattern(name: str, device: str) -> torch.Tensor:
    """2¹⁶ values: of dtypes of two bytes all there are, not-a-numbers included."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    dtype = wire.dtype_named(name)
    if dtype.itemsize == 2:
        return patterns.view(dtype).to(device)
    return patterns.to(dtype).reshape(256, 256).to(device)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name: str, device: str) -> None:
    sent = every_pattern(name, device)
    array, told = wire.to_numpy(sent)
    assert told == name and array.nbytes == sent.nbytes
    back = wire.to_torch(array, told).to(device)
    assert back.dtype == sent.dtype and back.shape == sent.shape
    assert torch.equal(*(value.cpu().flatten().view(torch.uint8) for value in (back, sent)))


def weights(device: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=draw).to(dtype).to(device)
        for name, shape, dtype in (
            ("one", (300, 40), torch.bfloat16),
            ("two", (1000,), torch.float32),
            ("three", (3, 1 << 17), torch.bfloat16),
        )
    }


@pytest.mark.parametrize("to", ["cpu", "device"])
@pytest.mark.parametrize("source", ["cpu", "device"])
def test_weights_cross_by_digest(source: str, to: str, device: str) -> None:
    places = {"cpu": "cpu", "device": device}
    sent = weights(places[source])
    held = {name: torch.zeros_like(value, device=places[to]) for name, value in sent.items()}
    update, chunks = wire.pack_weights(3, sent, 1 << 18)
    assert len(chunks) > 1
    assert wire.load_weights(update, chunks, held) == update.digest == wire.digest_of(held)
    assert all(torch.equal(held[name].cpu(), value.cpu()) for name, value in sent.items())


def test_a_flipped_bit_is_noticed(device: str) -> None:
    sent = weights(device)
    update, chunks = wire.pack_weights(3, sent, 1 << 30)
    chunks[0][1] = np.array(chunks[0][1])
    chunks[0][1][17] ^= 4
    with pytest.raises(ValueError, match="after loading"):
        wire.load_weights(update, chunks, {name: value.clone() for name, value in sent.items()})
