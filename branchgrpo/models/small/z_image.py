"""A Z-Image folder of the real classes, narrow, shallow and with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.networks import qwen3
from branchgrpo.models.small.tokenizers import make_qwen3_tokenizer

POSITIONS = (96, 16, 16)
"""Of text and frames, of rows and of columns, that its denoiser knows."""


def small_z_image(folder: Path) -> Path:
    """Z-Image: 4 pixels per latent, tokens that fill up text and picture, a static shift, as the
    real one."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )
    from transformers import Qwen3Model

    tokenizer = make_qwen3_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            axes_dims=[4, 6, 6],
            axes_lens=list(POSITIONS),
        )
        with torch.no_grad():
            for pad in (transformer.x_pad_token, transformer.cap_pad_token):
                pad.normal_()
        pipe = ZImagePipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=_autoencoder(),
            text_encoder=qwen3(Qwen3Model, len(tokenizer), width=24, layers=3, factor=8.0),
            tokenizer=tokenizer,
        )
    pipe.save_pretrained(folder)
    return folder


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    found = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    return found.eval()
