"""Wan2.1 text-to-video through diffusers: latents [16, frames, rows, columns], UMT5 text,
classifier-free guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models import scheduler
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import PipelineModel

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class WanModel(PipelineModel):
    """Wan2.1-T2V-1.3B or -14B, or any folder that diffusers' WanPipeline loads with a single
    denoiser.

    LoRA goes into the projections of self- and cross-attention; `lora_targets` takes ffn.net.0.proj
    and ffn.net.2 too.
    """

    pipeline: ClassVar[str] = "WanPipeline"
    transformer: ClassVar[str] = "WanTransformer3DModel"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    attention_layers: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    guidance_key: ClassVar[str] = "guidance_scale"
    unit: ClassVar[int] = 2
    schedulers: ClassVar[tuple[str, ...]] = (scheduler.UNIPC, scheduler.EULER)
    output: ClassVar[str] = "frames"
    # as diffusers' documentation has it for this autoencoder
    decoder_dtype: ClassVar[str] = "float32"

    name: Literal["wan"] = Field("wan", description="the model family")
    height: int = Field(480, ge=16, description="picture height in pixels")
    width: int = Field(832, ge=16, description="picture width in pixels")
    frames: int = Field(17, ge=1, description="frames of a video in training: 1 + a multiple of 4")
    evaluation_frames: int = Field(
        0, ge=0, description="frames of a video in evaluation; 0 = frames"
    )
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

    def check(self) -> None:
        super().check()
        index = json_file("model.path", self.folder() / "model_index.json")
        if index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
            raise UserError(
                "model.path: expected a Wan2.1 folder, whose one denoiser serves every "
                f"noise level, got Wan2.2 at {self.folder()}"
            )
        for key, count in (
            ("frames", self.frames),
            ("evaluation_frames", self.evaluation_frames or self.frames),
        ):
            if (count - 1) % self.period():
                raise UserError(
                    f"model.{key}: expected 1 + a multiple of {self.period()}, got {count}"
                )

    def scale(self) -> int:
        # files older than the key are all of this scale
        return int(self._autoencoder().get("scale_factor_spatial", 8))

    def period(self) -> int:
        """Frames per latent frame, but for the first, which stands alone."""
        return int(self._autoencoder().get("scale_factor_temporal", 4))

    @property
    def frames_drawn(self) -> int:
        return self.frames

    def shape(self) -> tuple[int, ...]:
        """Shape of a video's latents."""
        channels = int(self._autoencoder().get("z_dim", 16))
        return (
            channels,
            (self.frames - 1) // self.period() + 1,
            self.height // self.scale(),
            self.width // self.scale(),
        )

    def in_evaluation(self, height: int, width: int) -> Self:
        longer = {"frames": self.evaluation_frames or self.frames}
        return super().in_evaluation(height, width).model_copy(update=longer)

    def _autoencoder(self) -> dict[str, Any]:
        return json_file("model.path", self.folder() / "vae" / "config.json")

    def times(self, config: dict[str, Any], steps: int) -> NDArray[np.float64]:
        return scheduler.own_times(config, steps)  # WanPipeline gives its scheduler none

    def picture_tokens(self) -> int:
        return 0

    def family_call(self) -> dict[str, Any]:
        return {"num_frames": self.frames, **super().family_call()}

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.wan import small_wan

        small_wan(folder)

    def small_keys(self) -> dict[str, Any]:
        longer = min(self.evaluation_frames, 9)
        return {**super().small_keys(), "frames": min(self.frames, 5), "evaluation_frames": longer}

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Wan:
        return Wan(self, device, parts)


class Wan(PipelineAdapter):
    """A loaded Wan2.1."""

    options: WanModel

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
        timestep = scheduler.TRAIN_TIMESTEPS * sigma
        if self.whole_timesteps:  # that scheduler's begin below σ = 1 and are cut to integers
            timestep = timestep.clamp(max=scheduler.TRAIN_TIMESTEPS - 1).floor()
        out: Tensor = self.denoiser(
            hidden_states=x.to(self.dtype),
            timestep=timestep,
            encoder_hidden_states=cond["text"].to(self.dtype),
            return_dict=False,
        )[0]
        return out.float()

    def pixels(self, x0: Tensor) -> Tensor:
        import torch

        vae = self.pipe.vae
        std, mean = (
            torch.tensor(one, device=x0.device, dtype=vae.dtype).view(-1, 1, 1, 1)
            for one in (vae.config.latents_std, vae.config.latents_mean)
        )
        video: Tensor = vae.decode(x0.to(vae.dtype) * std + mean, return_dict=False)[0]
        return video

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
