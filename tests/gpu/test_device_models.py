"""Every family computes on the device what it computes on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.on_device import FAMILIES, PROMPTS, Small, forward, relative
from support.records import records

Families = dict[str, Small]


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_velocities_and_gradients(families: Families, family: str, rank: int, device: str) -> None:
    (wanted, slopes), (found, others) = (
        forward(families[family].build(place, lora_rank=rank)) for place in ("cpu", device)
    )
    assert float(wanted.std()) > 0.1 and slopes.keys() == others.keys()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    norms = [float(value.norm()) for value in slopes.values()]
    for (name, value), norm in zip(slopes.items(), norms, strict=True):
        assert float((others[name] - value).norm()) <= 1e-3 * norm + 1e-5 * max(norms), name


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_gradients(
    families: Families, family: str, device: str
) -> None:
    plain, again = (
        forward(families[family].build(device, lora_rank=4, gradient_checkpointing=keep))[1]
        for keep in (False, True)
    )
    assert plain.keys() == again.keys() and any(value.any() for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_pixels(families: Families, family: str, device: str) -> None:
    here, there = (families[family].build(place) for place in ("cpu", device))
    wanted, found = (
        {name: value.cpu().float() for name, value in model.conditioning(both).items()}
        for model, both in ((model, model.encode(records(PROMPTS))) for model in (here, there))
    )
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    x = torch.randn(2, *here.latent_shape, generator=torch.Generator().manual_seed(1))
    pixels, others = (model.decode(x.to(model.device)).astype(int) for model in (here, there))
    assert pixels.std() > 1 and np.abs(pixels - others).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near_float32_of_the_cpu(families: Families, family: str, device: str) -> None:
    wanted, _ = forward(families[family].build("cpu"))
    found, _ = forward(families[family].build(device, dtype="bfloat16"))
    assert 0 < relative(found, wanted) < 0.15  # guidance triples what rounding does


def test_compiled_blocks_compute_what_eager_ones_do(families: Families, device: str) -> None:
    eager, compiled = (
        families["flux"].build(device, lora_rank=4, compile=compile) for compile in (False, True)
    )
    for rows in (2, 3):
        (wanted, slopes), (found, others) = (forward(model, rows) for model in (eager, compiled))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
        for name, value in slopes.items():
            torch.testing.assert_close(others[name], value, rtol=1e-2, atol=1e-5)
