"""Wan2.1 and Wan2.2 text-to-video through diffusers: latents [channels, frames, rows, columns],
UMT5 text, classifier-free guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models import scheduler
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.files import json_file
from branchgrpo.models.two_denoisers import TwoDenoiserAdapter, TwoDenoiserOptions

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class WanOptions(TwoDenoiserOptions):
    """What Wan's pipelines have in common.

    LoRA goes into the projections of self- and cross-attention; `lora_targets` takes ffn.net.0.proj
    and ffn.net.2 too.
    """

    transformer: ClassVar[str] = "WanTransformer3DModel"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    attention_layers: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    guidance_key: ClassVar[str] = "guidance_scale"
    unit: ClassVar[int] = 2
    schedulers: ClassVar[tuple[str, ...]] = (scheduler.UNIPC, scheduler.EULER)
    # as diffusers' documentation has it for this autoencoder
    decoder_dtype: ClassVar[str] = "float32"

    height: int = Field(480, ge=16, description="picture height in pixels")
    width: int = Field(832, ge=16, description="picture width in pixels")
    true_cfg: float = Field(
        5.0,
        ge=1,
        description="classifier-free guidance, away from negative_prompt, in rollouts and "
        "training; 1 = none",
    )
    max_sequence_length: int = Field(
        512, ge=1, description="UMT5 tokens per prompt, to which shorter ones are padded"
    )
    decode_batch: int = Field(
        1,
        ge=1,
        description="videos the autoencoder decodes at once, each frame by frame; halved where "
        "they don't fit into a GPU's memory",
    )

    @property
    def per_token(self) -> bool:
        """Its denoiser takes a time step for every token: Wan2.2 TI2V."""
        return bool(self.index().get("expand_timesteps"))

    def scale(self) -> int:
        # files older than the key are all of this scale
        return int(self._autoencoder().get("scale_factor_spatial", 8))

    def period(self) -> int:
        return int(self._autoencoder().get("scale_factor_temporal", 4))

    def channels(self) -> int:
        return int(self._autoencoder().get("z_dim", 16))

    def _autoencoder(self) -> dict[str, Any]:
        return json_file("model.path", self.folder() / "vae" / "config.json")

    def times(self, config: dict[str, Any], steps: int) -> NDArray[np.float64]:
        return scheduler.own_times(config, steps)  # WanPipeline gives its scheduler none

    def small_keys(self) -> dict[str, Any]:
        found = super().small_keys()
        if self.small_per_token():  # whose latents are of twice as many pixels
            found |= {key: 64 for key in ("height", "width") if found[key] == 48}
        return found

    def small_per_token(self) -> bool:
        """Is a small model of Wan2.2 TI2V's form?"""
        return bool(self._large_index().get("expand_timesteps"))

    def small_two(self) -> bool:
        """Has a small model two denoisers, as Wan2.2 A14B?"""
        return self._large_index().get("boundary_ratio") is not None

    def _large_index(self) -> dict[str, Any]:
        """model_index.json of the model that a small one stands for; where nothing is known of it,
        it is of Wan2.1's form."""
        try:
            return json_file("model.path", self._sizes() / "model_index.json")
        except UserError:
            return {}


class WanModel(WanOptions):
    """Wan2.1-T2V-1.3B or -14B, Wan2.2-TI2V-5B or -T2V-A14B, or any folder that diffusers'
    WanPipeline loads."""

    pipeline: ClassVar[str] = "WanPipeline"

    name: Literal["wan"] = Field("wan", description="the model family")

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.wan import small_wan, small_wan22

        if self.small_per_token():
            small_wan22(folder)
        else:
            small_wan(folder, two=self.small_two())

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Wan:
        return Wan(self, device, parts)


class Wan(TwoDenoiserAdapter):
    """A loaded Wan."""

    options: WanOptions

    def prepare(self) -> None:
        options = self.options
        self.whole_timesteps = options.scheduler_config()["_class_name"] == scheduler.UNIPC
        self.latent_shape = options.shape()

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch

        length = self.options.max_sequence_length
        with torch.no_grad():
            text, _ = self.pipe.encode_prompt(
                texts,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                device=self.device,
            )
        return {"text": text}

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        return [
            len(ids) for ids in self.pipe.tokenizer(texts, truncation=False)["input_ids"]
        ], self.options.max_sequence_length

    def tokens(self, cond: dict[str, Tensor]) -> int:
        _, frames, rows, columns = self.latent_shape
        patches = frames * (rows // self.options.unit) * (columns // self.options.unit)
        return (patches + cond["text"].shape[-2]) * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        # Where Wan2.2's pipeline gives each token a time step, all of a row are equal: so is the
        # velocity of one for all, which takes far less memory.
        return self.denoised(x, self.timestep(sigma), cond["text"])

    def denoised(self, x: Tensor, timestep: Tensor, text: Tensor, **more: Any) -> Tensor:
        """What the denoiser makes of its input, in float32."""
        out: Tensor = self.denoiser(
            hidden_states=x.to(self.dtype),
            timestep=timestep,
            encoder_hidden_states=text.to(self.dtype),
            return_dict=False,
            **more,
        )[0]
        return out.float()

    def timestep(self, sigma: Tensor) -> Tensor:
        """[B] as the stock scheduler gives them to the denoiser."""
        found = scheduler.TRAIN_TIMESTEPS * sigma
        if self.whole_timesteps:  # that scheduler's begin below σ = 1 and are cut to integers
            found = found.clamp(max=scheduler.TRAIN_TIMESTEPS - 1).floor()
        return found

    def pixels(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        mean, std = self.statistics(vae.dtype)
        video: Tensor = vae.decode(x0.to(vae.dtype) * std + mean, return_dict=False)[0]
        return video

    def statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and deviation [channels, 1, 1, 1] that the denoiser's latents are free of."""
        import torch

        config = self.pipe.vae.config
        mean, std = (
            torch.tensor(one, device=self.device, dtype=dtype).view(-1, 1, 1, 1)
            for one in (config.latents_mean, config.latents_std)
        )
        return mean, std

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        width = int(self.module.config.text_dim)
        return {
            "text": torch.randn(
                rows, min(length, self.options.text_tokens), width, generator=generator
            )
        }
