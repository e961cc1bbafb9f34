"""Z-Image through diffusers: latents [channels, H/8, W/8], text of Qwen3 of its own length, a
denoiser that knows 1 − σ and the negative velocity, true guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models import scheduler
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.models.qwen_image import MASKED
from branchgrpo.models.texts import chat_lengths

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MULTIPLE = 32
"""The denoiser fills text and picture up to multiples of so many tokens, which it reads."""


class ZImageModel(PipelineModel):
    """Z-Image or Z-Image-Turbo, or any folder that diffusers' ZImagePipeline loads.

    LoRA goes into the projections of attention; `lora_targets` takes feed_forward.w1, .w2 and .w3
    too.
    """

    pipeline: ClassVar[str] = "ZImagePipeline"
    transformer: ClassVar[str] = "ZImageTransformer2DModel"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    attention_layers: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    guidance_key: ClassVar[str] = "guidance_scale"
    unit: ClassVar[int] = 2

    name: Literal["z_image"] = Field("z_image", description="the model family")
    true_cfg: float = Field(
        6.0,
        ge=1,
        description="classifier-free guidance, away from negative_prompt, in rollouts and "
        "training; one more than the stock pipeline's guidance_scale; 1 = none, as Turbo needs",
    )
    cfg_normalization: float = Field(
        0.0,
        ge=0,
        description="the guided velocity is at most so many times as long as that of the prompt "
        "alone; 0 = as long as it comes",
    )
    cfg_truncation: float = Field(
        1.0, ge=0, le=1, description="no guidance once 1 - σ is above this; 1 = to the end"
    )
    max_sequence_length: int = Field(
        512, ge=1, description="text tokens per prompt, chat template included"
    )

    def check(self) -> None:
        super().check()
        if self.attention and self.attention not in MASKED:
            raise UserError(
                f"model.attention: expected one that takes a mask ({', '.join(MASKED)}), "
                f"got {self.attention!r}"
            )
        # as many positions as the denoiser knows; beyond them a card fails without a word
        longest = (self.denoiser_config()["axes_lens"][0] - 2) // MULTIPLE * MULTIPLE
        if self.max_sequence_length > longest:
            raise UserError(
                f"model.max_sequence_length: expected at most {longest}, as many positions as "
                f"the model knows, got {self.max_sequence_length}"
            )

    def check_size(self, section: str = "model") -> None:
        super().check_size(section)
        _, rows, columns = self.denoiser_config()["axes_lens"]
        unit = self.unit * self.scale()
        if self.height > rows * unit or self.width > columns * unit:
            raise UserError(
                f"{section}.height, {section}.width: expected at most {rows * unit} and "
                f"{columns * unit}, as many positions as the model knows, got "
                f"{self.height}×{self.width}"
            )

    def stock_guidance(self) -> dict[str, Any]:
        found: dict[str, Any] = {self.guidance_key: self.true_cfg - 1}
        if not self.guided:
            return found
        return found | {
            "cfg_normalization": self.cfg_normalization,
            "cfg_truncation": self.cfg_truncation,
        }

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.z_image import small_z_image

        small_z_image(folder)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> ZImage:
        return ZImage(self, device, parts)


class ZImage(PipelineAdapter):
    """A loaded Z-Image."""

    options: ZImageModel

    def prepare(self) -> None:
        options = self.options
        rows, columns = options.height // options.scale(), options.width // options.scale()
        self.latent_shape = (int(options.denoiser_config()["in_channels"]), rows, columns)

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        with torch.no_grad():
            found, _ = self.pipe.encode_prompt(
                list(texts),  # which the pipeline overwrites
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.options.max_sequence_length,
            )
        return {
            "text": pad_sequence(found, batch_first=True),
            "mask": pad_sequence([one.new_ones(len(one)).float() for one in found], True),
        }

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        lengths = chat_lengths(self.pipe.tokenizer, texts, thinking=True)
        return lengths, self.options.max_sequence_length

    def tokens(self, cond: dict[str, Tensor]) -> int:
        _, rows, columns = self.latent_shape
        patches = (rows // self.options.unit) * (columns // self.options.unit)
        filled = sum(-(-count // MULTIPLE) for count in (patches, cond["text"].shape[-2]))
        return filled * MULTIPLE * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        text, mask = cond["text"].to(self.dtype), cond["mask"]
        # without values, texts are as long as they can be
        lengths = [text.shape[1]] * len(x) if mask.is_meta else mask.sum(1).long().tolist()
        out: list[Tensor] = self.denoiser(
            [row[:, None] for row in x.to(self.dtype)],  # of one frame
            _one_minus(sigma),
            [row[:length] for row, length in zip(text, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(out)[:, :, 0].float()

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        if not self.options.guided:
            return self.forward(x, sigma, cond)
        both = {name: torch.cat([array[:, 0], array[:, 1]]) for name, array in cond.items()}
        wanted, unwanted = self.forward(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        late = _one_minus(sigma) > self.options.cfg_truncation
        return torch.where(late[:, None, None, None], wanted, self.guide(wanted, unwanted))

    def guide(self, wanted: Tensor, unwanted: Tensor) -> Tensor:
        """Guidance, no longer than `cfg_normalization` allows, as the pipeline does it."""
        guided = super().guide(wanted, unwanted)
        if not self.options.cfg_normalization:
            return guided
        most, length = (one.flatten(1).norm(dim=1) for one in (wanted, guided))
        factor: Tensor = (self.options.cfg_normalization * most / length).clamp(max=1.0)
        return guided * factor[:, None, None, None]

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

        # two tokens fewer in every second row
        shorter = 2 * (torch.arange(rows)[:, None] % 2)
        mask = (torch.arange(length) < length - shorter).float()
        width = int(self.module.config.cap_feat_dim)
        text = torch.randn(rows, length, width, generator=generator)
        return {"text": text * mask[:, :, None], "mask": mask}


def _one_minus(sigma: Tensor) -> Tensor:
    """1 − σ, rounded as the pipeline does it."""
    last = scheduler.TRAIN_TIMESTEPS
    return (last - last * sigma) / last
