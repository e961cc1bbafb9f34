"""HunyuanVideo-1.5 text-to-video through diffusers: latents [channels, frames, rows, columns],
text of Qwen2.5-VL, what the prompt quotes by ByT5, both with masks, true guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models import lora, scheduler
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import JOINT_ATTENTION
from branchgrpo.models.qwen_image import MASKED
from branchgrpo.models.skeleton import hollow
from branchgrpo.models.video import VideoOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GUIDER = "ClassifierFreeGuidance"

PLAIN = {
    "guidance_rescale": 0.0,
    "use_original_formulation": False,
    "start": 0.0,
    "stop": 1.0,
    "enabled": True,
}
"""A guider's config, beside its scale, that guides every step as PipelineAdapter.guide does."""

TOKENS = 1000
"""The stock pipeline's limit of text tokens."""

QUOTED = 256
"""ByT5's tokens of what a prompt quotes, at most."""


class HunyuanVideoModel(VideoOptions):
    """HunyuanVideo-1.5 text-to-video, or any folder that diffusers' HunyuanVideo15Pipeline loads.

    LoRA goes into the projections of attention, those of the text's refiner included;
    `lora_targets` takes ff.net.0.proj, ff.net.2 and those of ff_context too.
    """

    pipeline: ClassVar[str] = "HunyuanVideo15Pipeline"
    transformer: ClassVar[str] = "HunyuanVideo15Transformer3DModel"
    text_parts: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
    )
    attention_layers: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    # the pipeline has no loader, its denoiser has one
    lora_code: ClassVar[str] = f'pipe.transformer.load_lora_adapter(".", weight_name="{lora.FILE}")'
    guidance_key: ClassVar[str] = "guidance_scale"
    unit: ClassVar[int] = 1

    name: Literal["hunyuan_video"] = Field("hunyuan_video", description="the model family")
    height: int = Field(480, ge=16, description="picture height in pixels")
    width: int = Field(848, ge=16, description="picture width in pixels")
    true_cfg: float = Field(
        6.0,
        ge=1,
        description="classifier-free guidance, away from negative_prompt, in rollouts and "
        "training, in place of the guider's own scale; 1 = none, as distilled models need",
    )
    max_sequence_length: int = Field(
        TOKENS,
        ge=1,
        le=TOKENS,
        description="text tokens per prompt, after the pipeline's own instruction",
    )
    decode_batch: int = Field(
        1,
        ge=1,
        description="videos that are handed to the autoencoder together, which decodes them one by "
        "one; halved where they don't fit into a GPU's memory",
    )

    def check(self) -> None:
        super().check()
        if self.attention and self.attention not in MASKED:
            raise UserError(
                f"model.attention: expected one that takes a mask ({', '.join(MASKED)}), "
                f"got {self.attention!r}"
            )
        self._check_guider()
        plain = {"patch_size": 1, "patch_size_t": 1, "use_meanflow": False}
        if strange := _strange(self.denoiser_config(), plain):
            raise UserError(
                f"model.path: expected a {self.transformer} of patches of one latent and of one "
                f"time, got {strange}"
            )

    def _check_guider(self) -> None:
        """Raise UserError for a guider that does other than PipelineAdapter.guide."""
        kind = json_file("model.path", self.folder() / "model_index.json").get("guider")
        if kind != ["diffusers", GUIDER]:
            raise UserError(
                f"model.path: expected a guider {GUIDER} in {self.folder() / 'model_index.json'}, "
                f"got {kind[-1] if isinstance(kind, list) and kind else kind}"
            )
        path = self.folder() / "guider" / "guider_config.json"
        if strange := _strange(json_file("model.path", path), PLAIN):
            raise UserError(
                f"model.path: expected plain guidance of every step in {path}, got {strange}"
            )

    def scale(self) -> int:
        return int(self._autoencoder().get("spatial_compression_ratio", 16))

    def period(self) -> int:
        return int(self._autoencoder().get("temporal_compression_ratio", 4))

    def channels(self) -> int:
        return int(self._autoencoder().get("latent_channels", 32))

    def _autoencoder(self) -> dict[str, Any]:
        return json_file("model.path", self.folder() / "vae" / "config.json")

    def stock_call(self) -> dict[str, Any]:
        apart = {self.guidance_key, "max_sequence_length"}  # see setup_code
        return {key: value for key, value in super().stock_call().items() if key not in apart}

    def setup_code(self) -> list[str]:
        lines = [
            f"pipe.guider = pipe.guider.new({self.guidance_key}={self.true_cfg!r})",
            "pipe.vae.enable_slicing()",  # or it decodes the videos of several prompts not at all
        ]
        if self.max_sequence_length != TOKENS:
            lines.append(f"pipe.tokenizer_max_length = {self.max_sequence_length}")
        return lines

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.hunyuan_video import small_hunyuan_video

        small_hunyuan_video(folder)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> HunyuanVideo:
        return HunyuanVideo(self, device, parts)


class HunyuanVideo(PipelineAdapter):
    """A loaded HunyuanVideo-1.5."""

    options: HunyuanVideoModel

    def _pipeline(self, kind: Any, given: dict[str, Any]) -> Any:
        import diffusers

        if "vae" in given and given["vae"] is None:  # its constructor reads the config of one
            vae = diffusers.AutoencoderKLHunyuanVideo15
            given = {**given, "vae": hollow(vae, self.options.folder() / "vae", self.dtype)}
            found = super()._pipeline(kind, given)
            found.vae = None
        else:
            found = super()._pipeline(kind, given)
        found.tokenizer_max_length = self.options.max_sequence_length
        if found.vae is not None:  # its attention's mask fits one video alone
            found.vae.enable_slicing()
        return found

    def prepare(self) -> None:
        self.latent_shape = self.options.shape()
        if self.denoiser is not None:
            last = f"transformer_blocks.{int(self.options.denoiser_config()['num_layers']) - 1}."
            # nobody reads the last block's text, nor pictures of which there are none: no gradient
            unread = (f"{last}attn.to_add_out.", f"{last}ff_context.", "image_embedder.")
            for name, value in self.denoiser.named_parameters():
                if name.startswith(unread):
                    value.requires_grad_(False)

    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        import torch

        with torch.no_grad():
            text, mask, quoted, quoted_mask = self.pipe.encode_prompt(
                list(texts), device=self.device, dtype=self.dtype, batch_size=len(texts)
            )
        text, mask = _trimmed(text, mask.float())
        quoted, quoted_mask = _trimmed(quoted, quoted_mask.float())
        return {"text": text, "mask": mask, "quoted": quoted, "quoted_mask": quoted_mask}

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        pipe = self.pipe
        asked = [
            pipe.tokenizer.apply_chat_template(
                [
                    {"role": "system", "content": pipe.system_message},
                    {"role": "user", "content": text or " "},
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
            for text in texts
        ]
        found = pipe.tokenizer(asked, truncation=False)["input_ids"]
        before = pipe.prompt_template_encode_start_idx
        return [len(ids) - before for ids in found], self.options.max_sequence_length

    def tokens(self, cond: dict[str, Tensor]) -> int:
        _, frames, rows, columns = self.latent_shape
        text = cond["text"].shape[-2] + cond["quoted"].shape[-2] + 1
        return (frames * rows * columns + text) * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        x = x.to(self.dtype)
        # of a first frame, and where there is one: none
        none = x.new_zeros(len(x), x.shape[1] + 1, *x.shape[2:])
        out: Tensor = (self.by_shapes if x.is_meta else self.denoiser)(
            hidden_states=torch.cat([x, none], 1),
            # rounded as the pipeline does it
            timestep=(scheduler.TRAIN_TIMESTEPS * sigma).to(self.dtype),
            encoder_hidden_states=cond["text"].to(self.dtype),
            encoder_attention_mask=cond["mask"].to(self.dtype),
            encoder_hidden_states_2=cond["quoted"].to(self.dtype),
            encoder_attention_mask_2=cond["quoted_mask"].to(self.dtype),
            # the stock pipeline gives 729 tokens, all masked: one is as good
            image_embeds=x.new_zeros(len(x), 1, int(self.module.config.image_embed_dim)),
            return_dict=False,
        )[0]
        return out.float()

    def by_shapes(self, **given: Any) -> tuple[Tensor]:
        """The denoiser without a look at values, which tensors without any need: the same velocity
        by the denoiser's own parts. It puts no valid tokens of text first: attention does not feel
        their order, only their mask."""
        import torch

        net, x, time = self.module, given["hidden_states"], given["timestep"]
        picture, masks = (
            given["image_embeds"],
            ("encoder_attention_mask_2", "encoder_attention_mask"),
        )
        rope, embedded = net.rope(x), net.time_embed(time)
        parts = (
            net.image_embedder(picture) * 0.0,
            net.context_embedder_2(given["encoder_hidden_states_2"]),
            net.context_embedder(given["encoder_hidden_states"], time, given[masks[1]]),
        )
        kinds = net.cond_type_embed.weight.flip(0)  # of texts, quotations, pictures
        text = torch.cat([part + kind for part, kind in zip(parts, kinds, strict=True)], 1)
        absent = given[masks[0]].new_zeros(picture.shape[:2])
        mask = torch.cat([absent, *(given[name] for name in masks)], 1).bool()
        found = net.x_embedder(x)
        again = torch.is_grad_enabled() and net.gradient_checkpointing
        for block in net.transformer_blocks:
            taken = (found, text, embedded, mask, rope)
            found, text = (
                net._gradient_checkpointing_func(block, *taken) if again else block(*taken)
            )
        out: Tensor = net.proj_out(net.norm_out(found, embedded))
        return (out.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]),)

    def pixels(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        video: Tensor = vae.decode(x0.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[
            0
        ]
        return video

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        config = self.module.config
        found: dict[str, Tensor] = {}
        for name, other, width, most in (
            ("text", "mask", config.text_embed_dim, length),
            ("quoted", "quoted_mask", config.text_embed_2_dim, min(length, QUOTED)),
        ):
            # two tokens fewer in every second row
            shorter = 2 * (torch.arange(rows)[:, None] % 2)
            mask = (torch.arange(most) < most - shorter).float()
            text = torch.randn(rows, most, int(width), generator=generator)
            found |= {name: text * mask[:, :, None], other: mask}
        return found


def _strange(config: dict[str, Any], plain: dict[str, Any]) -> str:
    """What of a config is not as it is here; keys that it lacks are."""
    found = {key: config.get(key, value) for key, value in plain.items()}
    return ", ".join(f"{key}: {found[key]}" for key in plain if found[key] != plain[key])


def _trimmed(text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[n, l, d] and [n, l], without what all rows have masked at the end, down to one token, and
    zeros where a row is masked: the denoiser reads nothing of it."""
    read = mask.any(0).nonzero()
    width = int(read.max()) + 1 if len(read) else 1
    return text[:, :width] * mask[:, :width, None].to(text.dtype), mask[:, :width]
