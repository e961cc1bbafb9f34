"""FLUX.2-klein through diffusers: latents [4·channels, rows, columns] of 2 × 2 patches, normalised
by the autoencoder's statistics; text of three layers of Qwen3; true guidance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.algo.schedule import Schedule
from branchgrpo.errors import UserError
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import JOINT_ATTENTION, PipelineModel
from branchgrpo.models.texts import chat_lengths

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LARGE = 4300
"""Tokens of a picture above which μ does not depend on the number of steps."""


class Flux2KleinModel(PipelineModel):
    """FLUX.2-klein (4B, 9B, distilled or base), or any folder that diffusers' Flux2KleinPipeline
    loads.

    LoRA goes into the projections of attention, which blocks of one stream share with their
    feed-forward layers; `lora_targets` takes ff.linear_in and ff.linear_out too.
    """

    pipeline: ClassVar[str] = "Flux2KleinPipeline"
    transformer: ClassVar[str] = "Flux2Transformer2DModel"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    attention_layers: ClassVar[tuple[str, ...]] = (*JOINT_ATTENTION, "to_qkv_mlp_proj")
    guidance_key: ClassVar[str] = "guidance_scale"
    unit: ClassVar[int] = 2

    name: Literal["flux2_klein"] = Field("flux2_klein", description="the model family")
    true_cfg: float = Field(
        4.0,
        ge=1,
        description="classifier-free guidance, away from an empty prompt, in rollouts and "
        "training; 1 = none, which distilled models need",
    )
    max_sequence_length: int = Field(
        512,
        ge=1,
        description="text tokens per prompt, chat template included; shorter prompts are filled "
        "up to it, which pictures depend on: the model's authors use 512",
    )

    def check(self) -> None:
        super().check()
        if self.negative_prompt:
            raise UserError(
                f"model.negative_prompt: expected it empty, since diffusers' {self.pipeline} "
                f"guides away from an empty prompt alone, got {self.negative_prompt!r}"
            )
        index = json_file("model.path", self.folder() / "model_index.json")
        if self.guided and index.get("is_distilled"):
            raise UserError(
                f"model.true_cfg: expected 1, since {self.folder()} is distilled (is_distilled "
                f"in its model_index.json) and takes no guidance, got {self.true_cfg}"
            )

    def schedule(self, steps: int, shift: float | None = None) -> Schedule:
        found = self.scheduler_config(shift)
        if not found.get("use_dynamic_shifting"):
            return super().schedule(steps, shift)
        mu = empirical_mu(self.picture_tokens(), steps)
        return Schedule(
            self.times(found, steps),
            mu if found.get("time_shift_type") == "linear" else math.exp(mu),
            float(found.get("shift_terminal") or 0.0),
        )

    @property
    def adapted_layers(self) -> tuple[str, ...]:
        if self.lora_targets:
            return self.lora_targets
        # by their whole names: in blocks of two streams `to_out` is a list
        count = int(self.denoiser_config()["num_single_layers"])
        return (
            *self.attention_layers,
            *(f"single_transformer_blocks.{block}.attn.to_out" for block in range(count)),
        )

    def stock_call(self) -> dict[str, Any]:
        # the pipeline's own negative prompt is the empty one
        return {
            key: value for key, value in super().stock_call().items() if key != "negative_prompt"
        }

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.flux2_klein import small_flux2_klein

        small_flux2_klein(folder, distilled=not self.guided)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Flux2Klein:
        return Flux2Klein(self, device, parts)


def empirical_mu(tokens: int, steps: int) -> float:
    """μ of the dynamic shift of a picture of so many tokens: what FLUX.2's authors fitted at 10 and
    at 200 steps, both linear in the tokens, and between and beyond on the line through the two."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > LARGE:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return few + (many - few) * (steps - 10) / 190


class Flux2Klein(PipelineAdapter):
    """A loaded FLUX.2-klein."""

    options: Flux2KleinModel

    def prepare(self) -> None:
        import torch

        options = self.options
        unit = options.unit * options.scale()
        rows, columns = options.height // unit, options.width // unit
        self.latent_shape = (int(options.denoiser_config()["in_channels"]), rows, columns)
        # (picture, row, column, place in the text)
        self.img_ids = torch.cartesian_prod(
            torch.arange(1), torch.arange(rows), torch.arange(columns), torch.arange(1)
        ).to(self.device)
        if self.denoiser is not None:
            for name, value in self.denoiser.named_parameters():
                # the pipeline gives it nothing, also where a folder has it: no gradient
                if ".guidance_embedder." in name:
                    value.requires_grad_(False)

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch

        with torch.no_grad():
            text, _ = self.pipe.encode_prompt(
                texts, device=self.device, max_sequence_length=self.options.max_sequence_length
            )
        return {"text": text}

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        lengths = chat_lengths(self.pipe.tokenizer, texts, thinking=False)
        return lengths, self.options.max_sequence_length

    def tokens(self, cond: dict[str, Tensor]) -> int:
        _, rows, columns = self.latent_shape
        return (rows * columns + cond["text"].shape[-2]) * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        text = cond["text"].to(self.dtype)
        places = torch.zeros(text.shape[1], 4, dtype=torch.long, device=x.device)
        places[:, 3] = torch.arange(text.shape[1], device=x.device)
        out: Tensor = self.denoiser(
            hidden_states=x.to(self.dtype).flatten(2).transpose(1, 2),
            timestep=(1000 * sigma).to(self.dtype) / 1000,  # rounded as the pipeline does it
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=places,
            img_ids=self.img_ids,
            return_dict=False,
        )[0]
        return out.float().transpose(1, 2).reshape(x.shape)

    def pixels(self, x0: Tensor) -> Tensor:
        import torch

        vae = self.pipe.vae
        z = x0.to(vae.dtype)
        mean, variance = (
            values[:, None, None] for values in (vae.bn.running_mean, vae.bn.running_var)
        )
        std = torch.sqrt(variance + vae.config.batch_norm_eps)
        patches = z * std.to(z.dtype) + mean.to(z.dtype)
        image: Tensor = vae.decode(self.pipe._unpatchify_latents(patches), return_dict=False)[0]
        return image[:, :, None]

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        width = int(self.module.config.joint_attention_dim)
        return {
            "text": torch.randn(
                rows, min(length, self.options.text_tokens), width, generator=generator
            )
        }
