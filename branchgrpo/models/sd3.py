"""Stable Diffusion 3 and 3.5 through diffusers: latents [channels, H/8, W/8], two CLIPs and T5,
true guidance."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models import scheduler
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import JOINT_ATTENTION, PipelineModel

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

CLIP_TOKENS = 77
"""Of every prompt, which come before T5's."""


class SD3Model(PipelineModel):
    """Stable Diffusion 3.5 medium or large, 3 medium, or any folder that diffusers'
    StableDiffusion3Pipeline loads."""

    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    transformer: ClassVar[str] = "SD3Transformer2DModel"
    text_parts: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    )
    # T5, which weighs more than the rest
    optional_parts: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    # Of `attn` and, in 3.5 medium, of the pictures' second attention `attn2`, which has the first
    # four.
    attention_layers: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    guidance_key: ClassVar[str] = "guidance_scale"
    unit: ClassVar[int] = 2

    name: Literal["sd3"] = Field("sd3", description="the model family")
    true_cfg: float = Field(
        4.5,
        ge=1,
        description="classifier-free guidance, away from negative_prompt, in rollouts and "
        "training; 1 = none",
    )
    max_sequence_length: int = Field(
        256, ge=1, le=512, description="T5 tokens per prompt; the two CLIPs read 77"
    )

    def check(self) -> None:
        super().check()
        if self.attention:
            raise UserError(
                f"model.attention: expected it empty, since diffusers' {self.transformer} "
                f"has no backends to choose from, got {self.attention!r}"
            )

    def check_size(self, section: str = "model") -> None:
        super().check_size(section)
        largest = int(self.denoiser_config()["pos_embed_max_size"]) * self.unit * self.scale()
        if max(self.height, self.width) > largest:
            raise UserError(
                f"{section}.height, {section}.width: expected at most {largest}, as many positions "
                f"as the model knows, got {self.height}×{self.width}"
            )

    @property
    def text_tokens(self) -> int:
        return CLIP_TOKENS + super().text_tokens

    def times(self, config: dict[str, Any], steps: int) -> NDArray[np.float64]:
        # StableDiffusion3Pipeline gives its scheduler none
        return scheduler.own_times(config, steps)

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.sd3 import small_sd3

        small_sd3(folder)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> SD3:
        return SD3(self, device, parts)


class SD3(PipelineAdapter):
    """A loaded SD3 or SD3.5."""

    options: SD3Model

    def prepare(self) -> None:
        options, config = self.options, self.options.denoiser_config()
        rows, columns = options.height // options.scale(), options.width // options.scale()
        self.latent_shape = (int(config["in_channels"]), rows, columns)
        self.positions = rows * columns // int(config["patch_size"]) ** 2
        # the pipeline asks the transformer how wide the zeros are that stand for a missing T5
        if self.denoiser is None:
            self.pipe.transformer = SimpleNamespace(config=SimpleNamespace(**config))

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch

        with torch.no_grad():
            text, _, pooled, _ = self.pipe.encode_prompt(
                texts,
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.options.max_sequence_length,
            )
        return {"text": text, "pooled": pooled}

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        t5 = self.pipe.tokenizer_3
        tokenizer, limit = (
            (t5, self.options.max_sequence_length)
            if t5 is not None
            else (self.pipe.tokenizer, self.pipe.tokenizer_max_length)
        )
        return [len(ids) for ids in tokenizer(texts, truncation=False)["input_ids"]], limit

    def tokens(self, cond: dict[str, Tensor]) -> int:
        return (self.positions + cond["text"].shape[-2]) * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.denoiser(
            hidden_states=x.to(self.dtype),
            timestep=1000 * sigma,
            encoder_hidden_states=cond["text"].to(self.dtype),
            pooled_projections=cond["pooled"].to(self.dtype),
            return_dict=False,
        )[0]
        return out.float()

    def pixels(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        image: Tensor = vae.decode(
            x0.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor,
            return_dict=False,
        )[0]
        return image[:, :, None]

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        config = self.module.config
        text = torch.randn(rows, length, int(config.joint_attention_dim), generator=generator)
        return {
            "text": text,
            "pooled": torch.randn(rows, int(config.pooled_projection_dim), generator=generator),
        }
