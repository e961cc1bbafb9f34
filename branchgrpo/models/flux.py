"""FLUX.1 through diffusers: packed latents [tokens, 4·channels], embedded guidance, CLIP and T5 text."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models.base import Adapter, ModelOptions
from branchgrpo.types import U8, Conditioning

if TYPE_CHECKING:
    import torch
    from torch import Tensor


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Attention projections of FluxTransformer2DModel."""


class FluxModel(ModelOptions):
    """FLUX.1-dev, or any folder that diffusers' FluxPipeline loads."""

    name: Literal["flux"] = Field("flux", description="the model family")
    height: int = Field(720, ge=16, description="picture height in pixels")
    width: int = Field(720, ge=16, description="picture width in pixels")
    guidance: float = Field(3.5, ge=0, description="embedded guidance scale")
    max_sequence_length: int = Field(512, ge=1, description="T5 tokens per prompt")
    decode_batch: int = Field(16, ge=1, description="pictures the autoencoder decodes at once")

    def check(self) -> None:
        index = json.loads((self.folder() / "model_index.json").read_text())
        if index.get("_class_name") != "FluxPipeline":
            raise UserError(f"model.path: expected a FluxPipeline folder, got {index.get('_class_name')} at {self.folder()}")
        unit = 2 * self.scale()
        if self.height % unit or self.width % unit:
            raise UserError(f"model.height, model.width: expected multiples of {unit}, got {self.height}×{self.width}")

    def scale(self) -> int:
        """Pixels per latent, along each side. Raises UserError when the autoencoder's config is missing."""
        path = self.folder() / "vae" / "config.json"
        if not path.is_file():
            raise UserError(f"model.path: expected {path}, which is missing")
        return int(2 ** (len(json.loads(path.read_text())["block_out_channels"]) - 1))

    def build(self, device: str, denoiser_only: bool = False) -> Flux:
        """Load the pipeline's parts with diffusers."""
        return Flux(self, device, denoiser_only)


class Flux(Adapter):
    """A loaded FLUX. Prompts are encoded and pixels decoded by diffusers' own pipeline."""

    def __init__(self, options: FluxModel, device: str, denoiser_only: bool):
        import torch
        from diffusers import FluxPipeline, FluxTransformer2DModel

        from branchgrpo.wire import dtype_named

        self.options, self.device = options, torch.device(device)
        dtype, folder = dtype_named(options.dtype), options.folder()
        transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
        if options.lora_rank:
            from peft import LoraConfig

            alpha = options.lora_alpha or 2 * options.lora_rank
            transformer.requires_grad_(False)
            transformer.add_adapter(LoraConfig(r=options.lora_rank, lora_alpha=alpha, target_modules=list(options.lora_targets or ATTENTION)))
            self.adapted = True
        self.denoiser = transformer.to(self.device).eval()
        if not denoiser_only:
            self.pipe = FluxPipeline.from_pretrained(folder, transformer=self.denoiser, torch_dtype=dtype).to(self.device)
            for part in (self.pipe.text_encoder, self.pipe.text_encoder_2, self.pipe.vae):
                part.eval().requires_grad_(False)
        unit = 2 * options.scale()
        rows, columns = options.height // unit, options.width // unit
        self.latent_shape = (rows * columns, int(transformer.config.in_channels))
        self.img_ids = FluxPipeline._prepare_latent_image_ids(1, rows, columns, self.device, dtype)
        self.guided = bool(transformer.config.guidance_embeds)
        self.dtype: torch.dtype = dtype

    def encode(self, prompts: list[str]) -> Conditioning:
        import torch

        texts = [*prompts, self.options.negative_prompt] if self.options.true_cfg > 1 else prompts
        with torch.no_grad():
            text, pooled, _ = self.pipe.encode_prompt(texts, device=self.device, max_sequence_length=self.options.max_sequence_length)
        arrays = {"text": text.float().cpu().numpy(), "pooled": pooled.float().cpu().numpy()}
        if self.options.true_cfg > 1:  # each prompt's row carries the negative one, so that rows stay independent
            arrays = {name: np.stack([array[: len(prompts)], np.broadcast_to(array[-1:], array[: len(prompts)].shape)], 1) for name, array in arrays.items()}
        return Conditioning(arrays, len(prompts))

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        if self.options.true_cfg == 1:
            return self._forward(x, sigma, cond)
        both = {name: torch.cat([array[:, 0], array[:, 1]]) for name, array in cond.items()}
        wanted, unwanted = self._forward(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return unwanted + self.options.true_cfg * (wanted - unwanted)

    def tokens(self, cond: dict[str, Tensor]) -> int:
        return (self.latent_shape[0] + cond["text"].shape[-2]) * (1 if self.options.true_cfg == 1 else 2)

    def _forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        text = cond["text"].to(self.dtype)
        out: Tensor = self.denoiser(
            hidden_states=x.to(self.dtype),
            timestep=sigma.to(self.dtype),
            guidance=torch.full_like(sigma, self.options.guidance, dtype=torch.float32) if self.guided else None,
            pooled_projections=cond["pooled"].to(self.dtype),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=self.img_ids,
            return_dict=False,
        )[0]
        return out.float()

    def decode(self, x0: Tensor) -> U8:
        import torch

        pipe, pixels = self.pipe, []
        with torch.no_grad():
            for part in torch.split(x0, self.options.decode_batch):
                z = pipe._unpack_latents(part.to(self.dtype), self.options.height, self.options.width, pipe.vae_scale_factor)
                z = z / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
                image = pipe.vae.decode(z, return_dict=False)[0]
                array = pipe.image_processor.postprocess(image, output_type="np")
                pixels.append((array * 255).round().astype("uint8"))
        return np.concatenate(pixels)[:, None]

    def probe_conditioning(self, rows: int) -> dict[str, Tensor]:
        import torch

        generator, config = torch.Generator().manual_seed(1), self.module.config
        text = torch.randn(rows, min(8, self.options.max_sequence_length), int(config.joint_attention_dim), generator=generator)
        pooled = torch.randn(rows, int(config.pooled_projection_dim), generator=generator)
        found = {"text": text.to(self.device), "pooled": pooled.to(self.device)}
        return found if self.options.true_cfg == 1 else {name: torch.stack([array, array.flip(0)], 1) for name, array in found.items()}

    def save(self, folder: Path, source: Path) -> None:
        copytree(source, folder, ignore=lambda _, names: [name for name in names if name == "transformer"], dirs_exist_ok=True)
        module = self.module
        if self.adapted:  # a stock pipeline loads plain weights: merge the adapters into a copy
            module = deepcopy(module)
            module.fuse_lora()
            module.unload_lora()
        module.save_pretrained(folder / "transformer")
