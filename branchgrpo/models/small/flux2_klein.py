"""A FLUX.2-klein folder of the real classes, narrow, shallow and with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.networks import qwen3
from branchgrpo.models.small.tokenizers import make_qwen3_tokenizer

WIDTH, LAYERS = 16, 28
"""Of the text encoder, whose layers 9, 18 and 27 are read, the last before the final norm."""


def small_flux2_klein(folder: Path, distilled: bool = False) -> Path:
    """FLUX.2-klein: 4 pixels per latent, statistics of latents that are not those of plain noise, a
    scheduler that shifts by size and steps, as the real one."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3ForCausalLM

    tokenizer = make_qwen3_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        with torch.no_grad():
            for name, value in transformer.named_parameters():
                if "modulation" in name:
                    value.mul_(8.0)  # blocks that do something, so that texts matter
        pipe = Flux2KleinPipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
            ),
            vae=_autoencoder(),
            text_encoder=qwen3(
                Qwen3ForCausalLM, len(tokenizer), width=WIDTH, layers=LAYERS, factor=4.0
            ),
            tokenizer=tokenizer,
            is_distilled=distilled,
        )
    pipe.save_pretrained(folder)
    return folder


def _autoencoder() -> Any:
    from diffusers import AutoencoderKLFlux2

    found = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    with torch.no_grad():
        found.bn.running_mean.uniform_(-0.5, 0.5)
        found.bn.running_var.uniform_(0.5, 4.0)
    return found.eval()
