"""First stage: the autoencoder that turns 32x32 pictures into 8x8 latents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from tools.tiny_flux.common import Progress, StageClock, set_learning_rate, to_unit

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

BATCH = 48
PEAK_RATE = 2e-3
WARM_UP = 50
KL_WEIGHT = 1e-3
SCALE_PICTURES = 2000
CHUNK = 500  # pictures a forward when nothing is trained


def train_autoencoder(
    vae: AutoencoderKL, pictures: np.ndarray, *, steps: int, seed: int, progress: Progress
) -> dict[str, float]:
    """Train ``vae`` in place on L1 + L2 and a small KL term."""
    generator = torch.Generator().manual_seed(seed)
    vae.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=PEAK_RATE, weight_decay=1e-4, betas=(0.9, 0.99)
    )
    clock = StageClock()
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        set_learning_rate(optimizer, PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * cosine + 1e-6)
        picked = torch.randint(0, len(pictures), (BATCH,), generator=generator)
        target = to_unit(pictures[picked.numpy()])
        posterior = vae.encode(target).latent_dist
        latents = posterior.sample(generator=generator)
        error = vae.decode(latents).sample - target
        loss = (
            error.abs().mean()
            + error.pow(2).mean()
            + KL_WEIGHT * posterior.kl().mean() / latents[0].numel()
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, clock.add(loss))
    vae.eval().requires_grad_(False)
    return clock.record(steps)


@torch.no_grad()
def set_latent_scale(vae: AutoencoderKL, pictures: np.ndarray) -> None:
    """Set the scaling and shift factors that give the latents of ``pictures`` mean 0 and deviation
    1."""
    means = _means(vae, pictures[:SCALE_PICTURES])
    vae.register_to_config(scaling_factor=float(1 / means.std()), shift_factor=float(means.mean()))


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """Return the scaled latents of pictures, packed as ``FluxPipeline`` packs them: ``[n, tokens,
    channels]``."""
    from diffusers import FluxPipeline

    scaled = (_means(vae, pictures) - vae.config.shift_factor) * vae.config.scaling_factor
    count, channels, height, width = scaled.shape
    packed: torch.Tensor = FluxPipeline._pack_latents(
        scaled.contiguous(), count, channels, height, width
    )
    return packed


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio, in dB, of decoding the encoded pictures."""
    target = to_unit(pictures)
    error = vae.decode(_means(vae, pictures)).sample - target
    return float(10 * torch.log10(4.0 / error.pow(2).mean()))


def _means(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    parts = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    return torch.cat([vae.encode(to_unit(part)).latent_dist.mean for part in parts])
