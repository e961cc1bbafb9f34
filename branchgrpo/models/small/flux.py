"""A small text-to-image model in the layout of FLUX.1: the model of the quick start, of the tests,
and of `train --smoke`.

Every part is the class that a full FLUX.1 checkpoint uses (``FluxTransformer2DModel``,
``AutoencoderKL``, ``CLIPTextModel``, ``T5EncoderModel`` and their tokenizers), only narrow and
shallow, so the code that trains the small model is the code that trains the large one.
:func:`build_tiny_flux` writes one with random weights; ``tools.tiny_flux`` makes the trained one in
``branchgrpo/assets/tiny-flux``.

diffusers and transformers are imported inside the functions, because importing them takes seconds.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from branchgrpo.models.small.tokenizers import (
    TEXT_TOKENS,
    make_clip_tokenizer,
    make_t5_tokenizer,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

PARTS = (
    *("scheduler", "vae", "transformer"),
    *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
)
PIXELS = 32  # side of the pictures that the trained model draws
SCHEDULE_SHIFT = 3.0


@dataclass(frozen=True)
class TinyFluxSizes:
    """Sizes of the parts; the defaults are those of the embedded model."""

    vae_channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 8
    double_blocks: int = 1
    single_blocks: int = 4
    heads: int = 4
    head_dim: int = 28
    rope_axes: tuple[int, int, int] = (8, 10, 10)
    clip_width: int = 64
    clip_layers: int = 2
    t5_width: int = 64
    t5_layers: int = 2
    text_heads: int = 4
    text_tokens: int = TEXT_TOKENS

    def __post_init__(self) -> None:
        if sum(self.rope_axes) != self.head_dim:
            raise ValueError(f"rope_axes {self.rope_axes} must add up to head_dim {self.head_dim}")
        for width in (self.clip_width, self.t5_width):
            if width % self.text_heads:
                raise ValueError(
                    f"text width {width} must be a multiple of text_heads {self.text_heads}"
                )


def build_tiny_flux(
    folder: str | Path, sizes: TinyFluxSizes | None = None, *, seed: int = 0
) -> Path:
    """Write a randomly initialised model to ``folder`` and return the folder.

    ``diffusers.FluxPipeline.from_pretrained(folder)`` loads it. The same sizes and seed give the
    same weights.
    """
    return save_tiny_flux(make_tiny_flux(sizes, seed=seed), folder)


def small_flux(folder: Path, pipeline: str = "FluxPipeline") -> Path:
    """FLUX.1 narrower still, with a scheduler that shifts by size, as the real one; 8 pixels a
    token of the picture. pipeline: diffusers' class that the folder names."""
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = make_tiny_flux(
        TinyFluxSizes(vae_channels=(8, 8, 16), latent_channels=4, single_blocks=1, heads=2)
    )
    pipe.register_modules(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=4096
        )
    )
    pipe = getattr(diffusers, pipeline)(
        **{name: pipe.components[name] for name in PARTS}  # those that all its pipelines have
    )
    pipe.save_pretrained(folder)
    return folder


def make_tiny_flux(sizes: TinyFluxSizes | None = None, *, seed: int = 0) -> FluxPipeline:
    """Return a randomly initialised ``FluxPipeline`` in float32, leaving torch's global random
    state as it was."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    sizes = sizes or TinyFluxSizes()
    tokenizer = make_clip_tokenizer(sizes.text_tokens)
    tokenizer_2 = make_t5_tokenizer(sizes.text_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=SCHEDULE_SHIFT, use_dynamic_shifting=False
            ),
            vae=_make_vae(sizes),
            text_encoder=_make_clip(sizes, tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=_make_t5(sizes, tokenizer_2),
            tokenizer_2=tokenizer_2,
            transformer=_make_transformer(sizes),
        )
    for module in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.transformer):
        module.eval()
    return pipe


def save_tiny_flux(pipe: FluxPipeline, folder: str | Path) -> Path:
    """Save ``pipe`` in float16, in a form that loads as float32 by default.

    Unlike diffusers, transformers loads a model in the type that its configuration names, so the
    text encoders' configurations are made to name float32.
    """
    folder = Path(folder)
    half = {
        name: copy.deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in pipe.components.items()
    }
    type(pipe)(**half).save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        config = json.loads(path.read_text())
        config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def sizes_as_dict(sizes: TinyFluxSizes) -> dict[str, int | list[int]]:
    """Return the sizes in the form that JSON keeps."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(sizes).items()
    }


def _make_vae(sizes: TinyFluxSizes) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    depth = len(sizes.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=sizes.vae_channels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=8,
        sample_size=PIXELS,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _make_transformer(sizes: TinyFluxSizes) -> FluxTransformer2DModel:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * sizes.latent_channels,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sizes.head_dim,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.t5_width,
        pooled_projection_dim=sizes.clip_width,
        guidance_embeds=True,
        axes_dims_rope=sizes.rope_axes,
    )


def _make_clip(sizes: TinyFluxSizes, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.clip_width,
        intermediate_size=2 * sizes.clip_width,
        projection_dim=sizes.clip_width,
        num_hidden_layers=sizes.clip_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=sizes.text_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # the pooled output is read at the first of these
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _make_t5(sizes: TinyFluxSizes, tokenizer: T5Tokenizer) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=sizes.t5_width,
        d_kv=sizes.t5_width // sizes.text_heads,
        d_ff=2 * sizes.t5_width,
        num_layers=sizes.t5_layers,
        num_heads=sizes.text_heads,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=sizes.text_tokens,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5EncoderModel(config)
