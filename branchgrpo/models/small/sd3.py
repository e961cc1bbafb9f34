"""An SD3.5 folder of the real classes, narrow, shallow and with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.networks import loud
from branchgrpo.models.small.tokenizers import make_clip_tokenizer, make_t5_tokenizer

CLIP_TOKENS = 12


def small_sd3(folder: Path, t5: bool = True) -> Path:
    """SD3.5: 4 pixels per latent, a first block with the second attention, positions for 96 pixels;
    without T5 if told so."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import T5Config, T5EncoderModel

    tokenizer, tokenizer_3 = make_clip_tokenizer(CLIP_TOKENS), make_t5_tokenizer(CLIP_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=48,
            caption_projection_dim=32,
            pooled_projection_dim=28,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        vae = _autoencoder()
        config = T5Config(
            vocab_size=len(tokenizer_3),
            d_model=48,
            d_kv=12,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        clips = [_clip(tokenizer, width, projection) for width, projection in ((16, 12), (24, 16))]
        pipe = StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=clips[0],
            tokenizer=tokenizer,
            text_encoder_2=clips[1],
            tokenizer_2=make_clip_tokenizer(CLIP_TOKENS),
            text_encoder_3=T5EncoderModel(config).eval() if t5 else None,
            tokenizer_3=tokenizer_3 if t5 else None,
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
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )
    return found.eval()


def _clip(tokenizer: Any, width: int, projection: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return loud(CLIPTextModelWithProjection(config), 8.0)
