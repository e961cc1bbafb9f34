"""Models of the published shapes with random weights that are made on the device: nothing is read,
and nothing crosses from main memory.

The options are a config's `model` section, by `model.name: …/random_models.py:RandomFlux`. All but
the weights and the text encoders (texts become random numbers of the right shape) is the product's
own path: adapters, attention, compiling, checkpointing, decoding.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.models import pipeline
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.flux import Flux, FluxModel
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.models.sd3 import SD3, SD3Model
from branchgrpo.models.wan import Wan, WanModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
KL = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

SHAPES: dict[str, dict[str, Any]] = {
    # black-forest-labs/FLUX.1-dev
    "flux": {
        "transformer": {
            "_class_name": "FluxTransformer2DModel",
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": [16, 56, 56],
        },
        "vae": KL | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "scheduler": EULER
        | {
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        },
    },
    # stabilityai/stable-diffusion-3.5-medium
    "sd3": {
        "transformer": {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
            "qk_norm": "rms_norm",
        },
        "vae": KL | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        "scheduler": EULER,
    },
    # Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    "wan": {
        "transformer": {
            "_class_name": "WanTransformer3DModel",
            "num_attention_heads": 12,
            "attention_head_dim": 128,
            "text_dim": 4096,
            "freq_dim": 256,
            "ffn_dim": 8960,
            "num_layers": 30,
        },
        "vae": {"_class_name": "AutoencoderKLWan", "base_dim": 96, "z_dim": 16},
        "scheduler": {
            "_class_name": "UniPCMultistepScheduler",
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": 3.0,
        },
    },
}
NARROW: dict[str, dict[str, dict[str, Any]]] = {
    "flux": {
        "transformer": {
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 16,
            "axes_dims_rope": [4, 6, 6],
        },
        "vae": {"block_out_channels": [32, 32, 32, 32]},
    },
    "sd3": {
        "transformer": {
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 48,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 28,
            "pos_embed_max_size": 12,
            "sample_size": 8,
            "dual_attention_layers": [0],
        },
        "vae": {"block_out_channels": [32, 32, 32, 32]},
    },
    "wan": {
        "transformer": {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 32,
            "num_layers": 2,
        },
        "vae": {"base_dim": 4, "num_res_blocks": 1},
    },
}
"""What is smaller in a shape for machines without a card: the same classes and paths."""

DEPTH = ("num_layers", "num_single_layers")


def write_folder(folder: Path, family: str, small: bool = False, **changes: Any) -> Path:
    """A folder of configs in diffusers' layout, without weights. changes: keys of the denoiser's
    config."""
    kind = FAMILIES[family]
    parts = {name: dict(config) for name, config in SHAPES[family].items()}
    if small:
        for name, config in NARROW[family].items():
            parts[name] |= config
    parts["transformer"] |= changes
    index = {name: ["diffusers", config["_class_name"]] for name, config in parts.items()}
    texts = {part: ["transformers", "T5EncoderModel"] for part in kind.text_parts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": kind.pipeline, **index, **texts})
    )
    for name, config in parts.items():
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name).mkdir(exist_ok=True)
        (folder / name / file).write_text(json.dumps(config))
    return folder


def random_module(kind: Any, folder: Path, dtype: torch.dtype, device: str) -> Any:
    """A network by its config, with random matrices of gain 1, norms that do nothing and its own
    tables."""
    import torch

    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        module = kind.from_config(config)
    exact = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    for name, value in module.named_parameters():
        value.data = value.data.to(torch.float32 if exact & set(name.split(".")) else dtype)
    module.to_empty(device=device)
    draw = None if device == "meta" else torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim > 1:
                value.normal_(0.0, value[0].numel() ** -0.5, generator=draw)
            else:
                value.fill_(float(name.endswith("weight")))
    _set_tables(module, kind, config, exact=exact, dtype=dtype)
    return module


def _set_tables(
    module: Any, kind: Any, config: dict[str, Any], *, exact: set[str], dtype: torch.dtype
) -> None:
    """Buffers hold positions, which a module made without memory lacks: those of a shallow one."""
    if not any(True for _ in module.buffers()):
        return
    shallow = dict(
        kind.from_config(config | {key: 1 for key in DEPTH if key in config}).named_buffers()
    )
    for name, value in module.named_buffers():
        whole = value.dtype.is_floating_point and not exact & set(name.split("."))
        value.data = shallow[name].to(value.device, dtype if whole else value.dtype)


@contextmanager
def random_weights(device: str) -> Iterator[None]:
    """Networks that adapters load meanwhile are random ones."""
    load = pipeline.whole
    pipeline.whole = lambda kind, folder, dtype: random_module(kind, folder, dtype, device)
    try:
        yield
    finally:
        pipeline.whole = load


class _RandomTexts:
    """Texts as random numbers, the same for the same text. Mixed into a family's adapter."""

    options: Any
    device: torch.device
    dtype: torch.dtype

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch

        rows = []
        for text in texts:
            draw = torch.Generator(self.device).manual_seed(zlib.crc32(text.encode()))
            rows.append(
                {
                    name: torch.randn(shape, generator=draw, device=self.device, dtype=self.dtype)
                    for name, shape in self.options.text_shapes().items()
                }
            )
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        return [len(text.split()) for text in texts], self.options.max_sequence_length


class _RandomFlux(_RandomTexts, Flux):
    """FLUX."""


class _RandomSD3(_RandomTexts, SD3):
    """Stable Diffusion 3.5."""


class _RandomWan(_RandomTexts, Wan):
    """Wan2.1."""


def _built(kind: Any, options: PipelineModel, device: str, parts: tuple[Part, ...]) -> Any:
    """The adapter, without text encoders."""
    with random_weights(device):
        return kind(options, device, tuple(part for part in parts if part != "encoders"))


class RandomFlux(FluxModel):
    """FLUX with random weights."""

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.denoiser_config()
        return {
            "text": (self.max_sequence_length, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Any:
        return _built(_RandomFlux, self, device, parts)


class RandomSD3(SD3Model):
    """Stable Diffusion 3.5 with random weights."""

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.denoiser_config()
        return {
            "text": (77 + self.max_sequence_length, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Any:
        return _built(_RandomSD3, self, device, parts)


class RandomWan(WanModel):
    """Wan2.1 with random weights."""

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"text": (self.max_sequence_length, self.denoiser_config()["text_dim"])}

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Any:
        return _built(_RandomWan, self, device, parts)


FAMILIES: dict[str, Any] = {"flux": RandomFlux, "sd3": RandomSD3, "wan": RandomWan}
