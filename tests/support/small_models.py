"""Small models of the real classes with random weights, saved in the real layout: their pipelines
load the folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tools.tiny_flux.model import DIGITS, WORDS, make_clip_tokenizer, make_t5_tokenizer

CLIP_TOKENS = 12


def loud(module: Any, factor: float) -> Any:
    """The module with its matrices scaled: transformers' initial weights are so small that all
    texts look alike."""
    with torch.no_grad():
        for value in module.parameters():
            if value.ndim > 1:
                value.mul_(factor)
    return module.eval()


def small_sd3(folder: Path, t5: bool = True) -> Path:
    """SD3.5: 4 pixels per latent, a first block with the second attention, positions for 96 pixels;
    without T5 if told so."""
    from diffusers import (
        AutoencoderKL,
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
        vae = AutoencoderKL(
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
            vae=vae.eval(),
            text_encoder=clips[0],
            tokenizer=tokenizer,
            text_encoder_2=clips[1],
            tokenizer_2=make_clip_tokenizer(CLIP_TOKENS),
            text_encoder_3=T5EncoderModel(config).eval() if t5 else None,
            tokenizer_3=tokenizer_3 if t5 else None,
        )
    pipe.save_pretrained(folder)
    return folder


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


def small_qwen_image(folder: Path) -> Path:
    """Qwen-Image: 4 pixels per latent, a scheduler that shifts by size, as the real one."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = _qwen_tokenizer()
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


def _qwen_tokenizer() -> Any:
    """A Qwen2Tokenizer with one token for each word of the pipeline's instruction, so that it has
    as many as the real one."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    instruction = (
        "system\nDescribe the image by detailing the color, shape, size, texture, "
        "quantity, text, spatial relationships of the objects and background:\nuser\n"
        "assistant\n"
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        vocab_size=2000,
        show_progress=False,
    )
    backend.train_from_iterator(
        [instruction, *(f" {word} {word}" for word in (*WORDS, *DIGITS))], trainer
    )
    model = json.loads(backend.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        additional_special_tokens=special[1:],
        model_max_length=4096,
    )
