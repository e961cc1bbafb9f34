"""What is estimated on the meta device is what the device holds at most, within 15 %."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench.gpu_parts.random_models import RandomFlux, write_folder
from support.on_device import peak_bytes

from branchgrpo.estimate import denoiser

BAND = 0.15
ROWS = 2


def options(device: str, folder: Path, **keys: Any) -> RandomFlux:
    """FLUX with fewer and narrower blocks: on a card half as wide as FLUX.1-dev, at 512²."""
    wide = device.startswith("cuda")
    heads = (12, 128, [16, 56, 56]) if wide else (4, 32, [8, 12, 12])
    write_folder(
        folder,
        "flux",
        num_layers=4 if wide else 2,
        num_single_layers=8 if wide else 3,
        num_attention_heads=heads[0],
        attention_head_dim=heads[1],
        axes_dims_rope=heads[2],
        joint_attention_dim=4096 if wide else 128,
        pooled_projection_dim=768 if wide else 32,
    )
    side, text = (512, 256) if wide else (256, 64)
    sizes = {"height": side, "width": side, "max_sequence_length": text, "lora_rank": 8}
    return RandomFlux(name="flux", path=str(folder), dtype="bfloat16", **sizes, **keys)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_peaks_are_those_estimated(device: str, tmp_path: Path, checkpointing: bool) -> None:
    chosen = options(device, tmp_path / "flux", gradient_checkpointing=checkpointing)
    tokens = chosen.max_sequence_length
    hollow, model = (chosen.build(place, ("denoiser",)) for place in ("meta", device))
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, *model.latent_shape, generator=draw).to(model.device)
    sigma = torch.full((ROWS,), 0.9, device=model.device)
    cond = model.fingerprint_conditioning(ROWS, tokens)

    def forward() -> None:
        with torch.no_grad():
            model.velocity(x, sigma, cond)

    def both() -> None:
        model.velocity(x, sigma, cond).square().mean().backward()

    for work, one in (
        (forward, denoiser.forward(hollow, model.latent_shape, tokens)),
        (both, denoiser.training(hollow, model.latent_shape, tokens)),
    ):
        found, wanted = peak_bytes(device, work), ROWS * one.peak
        assert abs(found - wanted) <= BAND * wanted, (work.__name__, found, wanted)
