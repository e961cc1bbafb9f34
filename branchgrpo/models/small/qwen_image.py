"""A Qwen-Image folder of the real classes, narrow, shallow and with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.networks import loud
from branchgrpo.models.small.tokenizers import make_qwen_tokenizer


def small_qwen_image(folder: Path) -> Path:
    """Qwen-Image: 4 pixels per latent, a scheduler that shifts by size, as the real one."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = make_qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        transformer = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[-0.7, 0.1, 0.9, -0.2],
            latents_std=[2.8, 1.4, 2.3, 1.2],
        )
        pipe = QwenImagePipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
            vae=vae.eval(),
            text_encoder=_qwen_encoder(len(tokenizer)),
            tokenizer=tokenizer,
        )
    pipe.save_pretrained(folder)
    return folder


def _qwen_encoder(words: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": words,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    return loud(
        Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        8.0,
    )
