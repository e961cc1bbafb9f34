"""A HunyuanVideo-1.5 folder of the real classes, narrow, shallow and with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.networks import loud
from branchgrpo.models.small.tokenizers import make_qwen_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""How Qwen2.5 asks."""

BEFORE = 108
"""Tokens of the pipeline's instruction, which it cuts off."""


def small_hunyuan_video(folder: Path) -> Path:
    """HunyuanVideo-1.5 text-to-video: 16 × 16 pixels and 4 frames per latent, a static shift, and a
    guider, as the real one."""
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
    )
    from transformers import ByT5Tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        pipe = HunyuanVideo15Pipeline(
            text_encoder=None,
            tokenizer=None,
            transformer=_transformer(),
            vae=_autoencoder(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            text_encoder_2=_quoted_encoder(),
            tokenizer_2=ByT5Tokenizer(),
            guider=ClassifierFreeGuidance(guidance_scale=6.0),
        )
        tokenizer = make_qwen_tokenizer(f"system\n{pipe.system_message}\nuser\nassistant\n")
        tokenizer.chat_template = TEMPLATE
        pipe.register_modules(tokenizer=tokenizer, text_encoder=_text_encoder(len(tokenizer)))
    pipe.save_pretrained(folder)
    return folder


def _transformer() -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    found = HunyuanVideo15Transformer3DModel(
        in_channels=17,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=32,
        text_embed_2_dim=24,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        task_type="t2v",
    )
    return loud(found, 1.5)


def _autoencoder() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo15

    found = AutoencoderKLHunyuanVideo15(
        latent_channels=8, block_out_channels=(8, 8, 8, 16, 16), layers_per_block=1
    )
    with torch.no_grad():
        found.decoder.conv_out.conv.weight.mul_(2.0)  # pictures with contrast
    return found.eval()


def _text_encoder(words: int) -> Any:
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
        bos_token_id=0,
        eos_token_id=0,
    )
    return loud(Qwen2_5_VLTextModel(config), 8.0)


def _quoted_encoder() -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return loud(
        T5EncoderModel(
            T5Config(vocab_size=384, relative_attention_num_buckets=8, dropout_rate=0.0, **sizes)
        ),
        3.0,
    )
