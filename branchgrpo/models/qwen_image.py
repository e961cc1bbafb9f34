"""Qwen-Image through diffusers: packed latents [tokens, 4·channels], text of Qwen2.5-VL with a
mask, true guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import JOINT_ATTENTION, PipelineModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MASKED = (
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_math",
    "flex",
    "flash_varlen",
    "xformers",
)
"""diffusers' attention backends that take a mask, which text of different lengths needs."""


class QwenImageOptions(PipelineModel):
    """What Qwen-Image and Qwen-Image-Edit have in common."""

    transformer: ClassVar[str] = "QwenImageTransformer2DModel"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    attention_layers: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    guidance_key: ClassVar[str] = "true_cfg_scale"
    unit: ClassVar[int] = 2

    true_cfg: float = Field(
        4.0,
        ge=1,
        description="classifier-free guidance, away from negative_prompt, in rollouts and "
        "training; 1 = none",
    )
    negative_prompt: str = Field(
        " ", description="what true_cfg guides away from; the model's authors use a space"
    )
    max_sequence_length: int = Field(
        512,
        ge=1,
        le=1024,
        description="text tokens per prompt, after the pipeline's own instruction",
    )

    def check(self) -> None:
        super().check()
        if self.attention and self.attention not in MASKED:
            raise UserError(
                f"model.attention: expected one that takes a mask ({', '.join(MASKED)}), "
                f"got {self.attention!r}"
            )
        if self.denoiser_config().get("guidance_embeds"):
            raise UserError(
                f"model.path: expected a {self.transformer} without guidance_embeds, which "
                "diffusers cannot run, got one with it"
            )

    def scale(self) -> int:
        return int(
            2
            ** len(
                json_file("model.path", self.folder() / "vae" / "config.json")[
                    "temperal_downsample"
                ]
            )
        )


class QwenImageModel(QwenImageOptions):
    """Qwen-Image, or any folder that diffusers' QwenImagePipeline loads."""

    pipeline: ClassVar[str] = "QwenImagePipeline"

    name: Literal["qwen_image"] = Field("qwen_image", description="the model family")

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.qwen_image import small_qwen_image

        small_qwen_image(folder)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> QwenImage:
        return QwenImage(self, device, parts)


class QwenImage(PipelineAdapter):
    """A loaded Qwen-Image."""

    options: QwenImageOptions

    def prepare(self) -> None:
        options, config = self.options, self.options.denoiser_config()
        unit = options.unit * options.scale()
        grid = (1, options.height // unit, options.width // unit)
        self.grids = [grid]  # of the pictures in a row of the denoiser's sequence
        self.latent_shape = (grid[1] * grid[2], int(config["in_channels"]))
        if self.denoiser is not None:
            last = f"transformer_blocks.{int(config['num_layers']) - 1}."
            for name, value in self.denoiser.named_parameters():
                # nobody reads the last block's text: no gradient
                if name.startswith((f"{last}attn.to_add_out.", f"{last}txt_mlp.")):
                    value.requires_grad_(False)

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch

        with torch.no_grad():
            text, mask = self.pipe.encode_prompt(
                texts, device=self.device, max_sequence_length=self.options.max_sequence_length
            )
        # None: all texts are equally long
        mask = torch.ones(text.shape[:2]) if mask is None else mask.float()
        return {"text": text, "mask": mask}

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        pipe = self.pipe
        found = pipe.tokenizer(
            [pipe.prompt_template_encode.format(text) for text in texts], truncation=False
        )["input_ids"]
        return [
            len(ids) - pipe.prompt_template_encode_start_idx for ids in found
        ], self.options.max_sequence_length

    def tokens(self, cond: dict[str, Tensor]) -> int:
        return (self.latent_shape[0] + cond["text"].shape[-2]) * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.denoiser(
            hidden_states=x.to(self.dtype),
            timestep=(1000 * sigma).to(self.dtype) / 1000,  # rounded as the pipeline does it
            encoder_hidden_states=cond["text"].to(self.dtype),
            encoder_hidden_states_mask=cond["mask"].bool(),
            img_shapes=[self.grids] * len(x),
            return_dict=False,
        )[0]
        return out.float()

    def guide(self, wanted: Tensor, unwanted: Tensor) -> Tensor:
        """Guidance that keeps each token as long as without it, as the pipeline does."""
        guided = super().guide(wanted, unwanted)
        rescaled: Tensor = guided * (
            wanted.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        )
        return rescaled

    def pixels(self, x0: Tensor) -> Tensor:
        import torch

        vae = self.pipe.vae
        z = self.pipe._unpack_latents(
            x0.to(vae.dtype), self.options.height, self.options.width, self.options.scale()
        )
        mean, std = (
            torch.tensor(values, device=z.device, dtype=z.dtype)[:, None, None, None]
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        image: Tensor = vae.decode(z * std + mean, return_dict=False)[0]
        return image

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        # two tokens fewer in every second row
        shorter = 2 * (torch.arange(rows)[:, None] % 2)
        mask = (torch.arange(length) < length - shorter).float()
        return {
            "text": torch.randn(
                rows, length, int(self.module.config.joint_attention_dim), generator=generator
            )
            * mask[:, :, None],
            "mask": mask,
        }
