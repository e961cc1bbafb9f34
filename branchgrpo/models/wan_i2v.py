"""Wan2.1 and Wan2.2 TI2V image-to-video through diffusers: videos that begin with a record's
picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.files import json_file
from branchgrpo.models.pictures import opened, opening
from branchgrpo.models.wan import Wan, WanOptions
from branchgrpo.types import Picture, Sample

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

IMAGE_PARTS = ("image_encoder", "image_processor")
"""Of Wan2.1: CLIP's encoder of pictures."""


class WanI2VModel(WanOptions):
    """Wan2.1-I2V-14B, Wan2.2-TI2V-5B or -I2V-A14B, or any folder that diffusers'
    WanImageToVideoPipeline loads. Each record has the first frame, resized to height and width
    whatever its shape."""

    pipeline: ClassVar[str] = "WanImageToVideoPipeline"
    also_loads: ClassVar[tuple[str, ...]] = ("WanPipeline",)
    text_parts: ClassVar[tuple[str, ...]] = (*WanOptions.text_parts, *IMAGE_PARTS)
    optional_parts: ClassVar[tuple[str, ...]] = IMAGE_PARTS
    attention_layers: ClassVar[tuple[str, ...]] = (
        *WanOptions.attention_layers,
        *("add_k_proj", "add_v_proj"),  # of the picture's tokens, where the model has them
    )

    name: Literal["wan_i2v"] = Field("wan_i2v", description="the model family")

    def check(self) -> None:
        super().check()
        index, config = self.index(), self.denoiser_config()
        latents = self.shape()[0]
        wanted = latents if self.per_token else 2 * latents + self.period()
        if config.get("in_channels") != wanted or config.get("pos_embed_seq_len"):
            raise UserError(
                "model.path: expected a denoiser that takes a first frame alone, of "
                f"{wanted} channels, in {self.folder() / 'transformer'}, got "
                f"{config.get('in_channels')}, or one that takes the last frame too"
            )
        if config.get("image_dim") and not (index.get("image_encoder") or [None])[-1]:
            raise UserError(
                f"model.path: expected an image_encoder in {self.folder() / 'model_index.json'}, "
                "which names none"
            )
        for key, count in (("frames", self.frames), ("evaluation_frames", self.evaluation_frames)):
            if count == 1:
                raise UserError(f"model.{key}: expected more than the first frame, got 1")

    @property
    def pictures_taken(self) -> tuple[int, int]:
        return 1, 1

    @property
    def source_frames(self) -> int:
        """That are encoded: the picture alone, or that and what follows it."""
        return 1 if self.per_token else self.frames

    def vision_tokens(self) -> int:
        """Tokens of a picture in CLIP's encoder, by its config."""
        config = json_file("model.path", self.folder() / "image_encoder" / "config.json")
        return int((config["image_size"] // config["patch_size"]) ** 2 + 1)

    def picture_code(self) -> list[str]:
        return ["picture = " + opening('"picture.png"', str((self.width, self.height)))]

    def text_keys(self) -> dict[str, Any]:
        return {**super().text_keys(), "source": [self.source_frames, self.height, self.width]}

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.wan import small_wan22, small_wan_i2v

        if self.small_per_token():
            small_wan22(folder)
        else:
            small_wan_i2v(folder, two=self.small_two())

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> WanI2V:
        return WanI2V(self, device, parts)


class WanI2V(Wan):
    """A loaded Wan that takes the first frame.

    Wan2.1 gets it as further channels, of latents and of a mask, and as CLIP's tokens beside the
    text. Wan2.2 TI2V gets it in place of the first latent frame, whose tokens have time step 0.
    """

    options: WanI2VModel

    def prepare(self) -> None:
        super().prepare()
        self.per_token = self.options.per_token
        self.image_width = self.options.denoiser_config().get("image_dim")

    def rows(self, shown: list[Sample]) -> dict[str, Tensor]:
        import torch
        from PIL import Image

        size = self.options.width, self.options.height
        encoded: dict[Picture, dict[str, Tensor]] = {}
        for shown_picture in (sample.images[0] for sample in shown):
            if shown_picture not in encoded:  # most have a negative prompt beside the prompt
                picture = opened(shown_picture).resize(size, Image.Resampling.LANCZOS)
                encoded[shown_picture] = self.encoded_picture(picture)
        each = [encoded[sample.images[0]] for sample in shown]
        return {
            **super().rows(shown),
            **{name: torch.cat([one[name] for one in each]) for name in each[0]},
        }

    def encoded_picture(self, picture: Image) -> dict[str, Tensor]:
        """What the denoiser gets of a first frame, one row each. Needs the encoders and the
        autoencoder."""
        import torch

        found = {"source": self.encoded_source(picture)}
        if self.image_width:
            with torch.no_grad():
                found["image"] = self.pipe.encode_image(picture, self.device).to(self.dtype)
        return found

    def encoded_source(self, picture: Image) -> Tensor:
        """Latents [1, channels, frames, rows, columns] of a first frame, followed by nothing where
        the model takes a whole video. Needs the autoencoder."""
        import torch

        vae, (height, width) = self.pipe.vae, self.options.picture_size
        pixels = self.pipe.video_processor.preprocess(picture, height=height, width=width)
        video = pixels[:, :, None].to(self.device, vae.dtype)
        # grey after it
        nothing = video.new_zeros(1, 3, self.options.source_frames - 1, height, width)
        mean, std = self.statistics(torch.float32)
        with torch.no_grad():
            z = vae.encode(torch.cat([video, nothing], 2)).latent_dist.mode().float()
        found: Tensor = (z - mean) / std
        # TI2V's are part of the video that comes out, and not rounded
        return found if self.per_token else found.to(self.dtype)

    def tokens(self, cond: dict[str, Tensor]) -> int:
        image = (
            cond["image"].shape[-2] * (2 if self.options.guided else 1) if "image" in cond else 0
        )
        return super().tokens(cond) + image

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return (self._in_place if self.per_token else self._beside)(x, sigma, cond)

    def _beside(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The first frame in further channels."""
        import torch

        frames, rows, columns = x.shape[2:]
        mask = x.new_zeros(len(x), self.options.period(), frames, rows, columns)
        mask[:, :, 0] = 1  # of pixels' frames, by latent frame: the first is known
        whole = torch.cat([one.to(self.dtype) for one in (x, mask, cond["source"])], 1)
        image = cond["image"].to(self.dtype) if self.image_width else None
        return self.denoised(
            whole, self.timestep(sigma), cond["text"], encoder_hidden_states_image=image
        )

    def _in_place(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The first frame in place of the first latent frame.

        The stock pipeline puts it there in every forward and at the end. Here the latents' first
        frame is on the straight line from its noise to it, with that line's velocity: every forward
        has the same input, the end is the same, and it says nothing of the policy.
        """
        import torch

        source, rest = cond["source"].to(x.dtype), x[:, :, 1:]
        patch = self.options.unit
        timestep = self.timestep(sigma)[:, None, None, None].expand(
            len(x), x.shape[2], x.shape[3] // patch, x.shape[4] // patch
        )
        timestep = torch.cat([torch.zeros_like(timestep[:, :1]), timestep[:, 1:]], 1).flatten(1)
        velocity = self.denoised(torch.cat([source, rest], 2), timestep, cond["text"])
        line = (x[:, :, :1] - source).float() / sigma.float()[:, None, None, None, None]
        return torch.cat([line, velocity[:, :, 1:]], 2)

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        channels, frames, *grid = self.latent_shape
        known = 1 if self.per_token else frames
        found = super().probe_texts(rows, generator, length)
        found["source"] = torch.randn(rows, channels, known, *grid, generator=generator)
        if self.image_width:
            vision = self.options.vision_tokens()
            found["image"] = torch.randn(rows, vision, self.image_width, generator=generator)
        return found
