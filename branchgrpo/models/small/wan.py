"""A Wan2.1 folder of the real classes, narrow, shallow and with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.tokenizers import make_t5_tokenizer

TOKENS = 24
"""Tokens that its tokenizer takes of a prompt."""


def small_wan(folder: Path, seed: int = 0) -> Path:
    """Write it with WanPipeline.save_pretrained; all scales are those of the full model (8 × 8
    pixels, 4 frames)."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = make_t5_tokenizer(TOKENS)
        pipe = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer)),
            vae=_autoencoder(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=_transformer(),
        )
    pipe.save_pretrained(folder)
    return folder


def _transformer() -> Any:
    from diffusers import WanTransformer3DModel

    found = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
    )
    with torch.no_grad():
        found.proj_out.weight.mul_(3.0)  # velocities about as large as the noise
    return found


def _autoencoder() -> Any:
    from diffusers import AutoencoderKLWan

    found = AutoencoderKLWan(base_dim=4, num_res_blocks=1)
    with torch.no_grad():
        found.decoder.conv_out.weight.mul_(2.0)  # pictures with contrast
    return found


def _text_encoder(vocabulary: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary, relative_attention_num_buckets=8, dropout_rate=0.0, **sizes
        )
    )
