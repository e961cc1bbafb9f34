"""Qwen-Image and Qwen-Image-Edit folders of the real classes, narrow, shallow and with random
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.networks import loud
from branchgrpo.models.small.tokenizers import make_qwen_tokenizer

EDITING = (
    "system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate.\nuser\nassistant\nPicture 1: 2: 3:"
)
"""What Qwen-Image-Edit's pipeline says around a prompt."""

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def small_qwen_image(folder: Path) -> Path:
    """Qwen-Image: 4 pixels per latent, a scheduler that shifts by size, as the real one."""
    from diffusers import QwenImagePipeline

    tokenizer = make_qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        parts = _parts()
        pipe = QwenImagePipeline(
            **parts, text_encoder=_qwen_encoder(len(tokenizer)), tokenizer=tokenizer
        )
    pipe.save_pretrained(folder)
    return folder


def small_qwen_image_edit(folder: Path, zero_cond_t: bool = True) -> Path:
    """The same, as Qwen-Image-Edit has it. zero_cond_t: pictures to edit are at time 0, as in 2511;
    not in 2509."""
    from diffusers import QwenImageEditPlusPipeline
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = make_qwen_tokenizer(EDITING, VISION)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(
            ("vision_start", "vision_end", "image", "video"), VISION, strict=True
        )
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        parts = _parts(zero_cond_t=zero_cond_t)
        loud(parts["vae"], 3.0)  # or all pictures to edit would look alike
        pipe = QwenImageEditPlusPipeline(
            **parts,
            text_encoder=_qwen_encoder(len(tokenizer), **ids),
            tokenizer=tokenizer,
            processor=Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor()),
        )
    pipe.save_pretrained(folder)
    return folder


def _parts(**more: Any) -> dict[str, Any]:
    """Denoiser, autoencoder and scheduler. more: of the denoiser's config."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageTransformer2DModel,
    )

    return {
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            **more,
        ).eval(),
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[-0.7, 0.1, 0.9, -0.2],
            latents_std=[2.8, 1.4, 2.3, 1.2],
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
    }


def _qwen_encoder(words: int, **ids: int) -> Any:
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
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        ),
        8.0,
    )
