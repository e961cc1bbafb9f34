"""Wan folders of the real classes, narrow, shallow and with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from branchgrpo.models.small.networks import loud
from branchgrpo.models.small.tokenizers import make_t5_tokenizer

TOKENS = 24
"""Tokens that its tokenizer takes of a prompt."""

CHANNELS = 48
"""Of Wan2.2 TI2V's latents."""


def small_wan(folder: Path, seed: int = 0, two: bool = False) -> Path:
    """Wan2.1 text-to-video; all scales are those of the full model (8 × 8 pixels, 4 frames). With
    `two` denoisers, Wan2.2 A14B."""
    more = {"boundary_ratio": 0.875} if two else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _save(folder, "WanPipeline", 3.0, vae=_autoencoder, transformer=_transformer, **more)


def small_wan22(folder: Path, pipeline: str = "WanPipeline") -> Path:
    """Wan2.2 TI2V, also for its first frame: 16 × 16 pixels, a residual autoencoder of pixels in
    patches, and a time step for each token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return _save(
            folder,
            pipeline,
            5.0,
            vae=_residual_autoencoder,
            transformer=lambda: _transformer(in_channels=CHANNELS, out_channels=CHANNELS),
            expand_timesteps=True,
        )


def small_wan_i2v(folder: Path, two: bool = False) -> Path:
    """Wan2.1 image-to-video, with CLIP's encoder of pictures: of 16 × 16 pixels, in 17 tokens. With
    `two` denoisers, Wan2.2 A14B, which has no such encoder."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        if two:
            return _save(
                folder,
                "WanImageToVideoPipeline",
                3.0,
                vae=_autoencoder,
                transformer=lambda: _transformer(in_channels=36),
                boundary_ratio=0.9,
                image_encoder=None,
                image_processor=None,
            )
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        )
        side = {"height": 16, "width": 16}
        return _save(
            folder,
            "WanImageToVideoPipeline",
            3.0,
            vae=_autoencoder,
            # latents, a mask of 4 frames, and the first frame's latents
            transformer=lambda: _transformer(in_channels=36, image_dim=16, added_kv_proj_dim=24),
            image_encoder=loud(CLIPVisionModel(vision), 5.0),
            image_processor=CLIPImageProcessor(size=side, crop_size=side),
        )


def _save(
    folder: Path, pipeline: str, shift: float, vae: Any, transformer: Any, **more: Any
) -> Path:
    """Write it with the pipeline's own save_pretrained; with a boundary_ratio, two denoisers."""
    import diffusers

    tokenizer = make_t5_tokenizer(TOKENS)
    second = {"transformer_2": transformer()} if "boundary_ratio" in more else {}
    pipe = getattr(diffusers, pipeline)(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(len(tokenizer)),
        vae=vae(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        ),
        transformer=transformer(),
        **second,
        **more,
    )
    pipe.save_pretrained(folder)
    return folder


def _transformer(**more: Any) -> Any:
    from diffusers import WanTransformer3DModel

    found = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        **more,
    )
    with torch.no_grad():
        found.proj_out.weight.mul_(3.0)  # velocities about as large as the noise
    return found


def _autoencoder() -> Any:
    from diffusers import AutoencoderKLWan

    return _contrasting(AutoencoderKLWan(base_dim=4, num_res_blocks=1))


def _residual_autoencoder() -> Any:
    from diffusers import AutoencoderKLWan

    return _contrasting(
        AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=8,
            z_dim=CHANNELS,
            num_res_blocks=1,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=(torch.randn(CHANNELS) / 4).tolist(),
            latents_std=(0.5 + torch.rand(CHANNELS)).tolist(),
        )
    )


def _contrasting(autoencoder: Any) -> Any:
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight.mul_(2.0)  # pictures with contrast
    return autoencoder


def _text_encoder(vocabulary: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary, relative_attention_num_buckets=8, dropout_rate=0.0, **sizes
        )
    )
