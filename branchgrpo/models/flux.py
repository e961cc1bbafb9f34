"""FLUX.1 through diffusers: packed latents [tokens, 4·channels], embedded guidance, CLIP and T5
text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import JOINT_ATTENTION, PipelineModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class FluxOptions(PipelineModel):
    """What the models of FLUX.1 have in common."""

    transformer: ClassVar[str] = "FluxTransformer2DModel"
    text_parts: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
    )
    attention_layers: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    guidance_key: ClassVar[str] = "true_cfg_scale"
    lora_alphas: ClassVar[bool] = True
    unit: ClassVar[int] = 2

    guidance: float = Field(3.5, ge=0, description="embedded guidance scale")
    max_sequence_length: int = Field(512, ge=1, description="T5 tokens per prompt")

    def family_call(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, **super().family_call()}


class FluxModel(FluxOptions):
    """FLUX.1-dev, or any folder that diffusers' FluxPipeline loads."""

    pipeline: ClassVar[str] = "FluxPipeline"

    name: Literal["flux"] = Field("flux", description="the model family")

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.flux import small_flux

        small_flux(folder)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Flux:
        return Flux(self, device, parts)


class Flux(PipelineAdapter):
    """A loaded FLUX."""

    options: FluxOptions

    def prepare(self) -> None:
        config, unit = self.options.denoiser_config(), 2 * self.options.scale()
        rows, columns = self.options.height // unit, self.options.width // unit
        self.img_ids = self.pipe._prepare_latent_image_ids(
            1, rows, columns, self.device, self.dtype
        )
        self.latent_shape = (rows * columns, int(config["in_channels"]))
        self.embeds_guidance = bool(config.get("guidance_embeds"))

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch

        with torch.no_grad():
            text, pooled, _ = self.pipe.encode_prompt(
                texts, device=self.device, max_sequence_length=self.options.max_sequence_length
            )
        return {"text": text, "pooled": pooled}

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        return [
            len(ids) for ids in self.pipe.tokenizer_2(texts, truncation=False)["input_ids"]
        ], self.options.max_sequence_length

    def tokens(self, cond: dict[str, Tensor]) -> int:
        return (self.latent_shape[0] + cond["text"].shape[-2]) * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        text = cond["text"].to(self.dtype)
        out: Tensor = self.denoiser(
            hidden_states=x.to(self.dtype),
            timestep=sigma.to(self.dtype),
            guidance=torch.full_like(sigma, self.options.guidance, dtype=torch.float32)
            if self.embeds_guidance
            else None,
            pooled_projections=cond["pooled"].to(self.dtype),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=self.img_ids,
            return_dict=False,
        )[0]
        return out.float()

    def pixels(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = self.pipe._unpack_latents(
            x0.to(vae.dtype), self.options.height, self.options.width, self.pipe.vae_scale_factor
        )
        image: Tensor = vae.decode(
            z / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False
        )[0]
        return image[:, :, None]

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        config = self.module.config
        text = torch.randn(
            rows,
            min(length, self.options.text_tokens),
            int(config.joint_attention_dim),
            generator=generator,
        )
        return {
            "text": text,
            "pooled": torch.randn(rows, int(config.pooled_projection_dim), generator=generator),
        }
