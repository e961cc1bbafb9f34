"""Qwen-Image-Edit through diffusers, in the form of 2509 and 2511: Qwen-Image that edits pictures.
Qwen2.5-VL reads them beside the text, and their latents follow those drawn in the denoiser's
sequence."""

from __future__ import annotations

from importlib import import_module
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.pictures import opened, opening
from branchgrpo.models.qwen_image import QwenImage, QwenImageOptions
from branchgrpo.types import Picture, Sample

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

SIDE = 32
"""diffusers rounds the sides of pictures to multiples of it."""

CELL = 28
"""Sides in pixels of what Qwen2.5-VL reads as a token."""

AROUND = 7
"""Tokens that the pipeline has around each picture: `Picture 1: `, and two marks."""

VISION_END = "<|vision_end|>"
MODULE = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"


class QwenImageEditModel(QwenImageOptions):
    """Qwen-Image-Edit-2509 or -2511, or any folder that diffusers' QwenImageEditPlusPipeline loads.
    Each record has `pictures` pictures, its prompt is the instruction."""

    pipeline: ClassVar[str] = "QwenImageEditPlusPipeline"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "processor")

    name: Literal["qwen_image_edit"] = Field("qwen_image_edit", description="the model family")
    pictures: int = Field(1, ge=1, description="pictures to edit that each record comes with")
    source_height: int = Field(
        0,
        ge=0,
        description="they are resized to this height, whatever their shape; 0, as source_width: to "
        "the shape of what is drawn, of as many pixels as in the stock pipeline, about a million",
    )
    source_width: int = Field(0, ge=0, description="and to this width")
    max_sequence_length: int = Field(
        512,
        ge=1,
        le=1024,
        description="text tokens per prompt, after the pipeline's own instruction and the "
        "pictures; longer ones are cut, which the stock pipeline does not",
    )

    @property
    def pictures_taken(self) -> tuple[int, int]:
        return self.pictures, self.pictures

    @property
    def source_size(self) -> tuple[int, int]:
        """Height and width of pictures to edit, in pixels, as the autoencoder sees them."""
        if self.source_height:
            return self.source_height, self.source_width
        return sides(stock().VAE_IMAGE_SIZE, self.height, self.width)

    @property
    def condition_size(self) -> tuple[int, int]:
        """Their height and width as the text encoder sees them."""
        return sides(stock().CONDITION_IMAGE_SIZE, *self.source_size)

    @property
    def text_tokens(self) -> int:
        height, width = (round(side / CELL) for side in self.condition_size)
        return super().text_tokens + self.pictures * (height * width + AROUND)

    def check(self) -> None:
        super().check()
        unit = lcm(SIDE, self.unit * self.scale())
        size = self.source_height, self.source_width
        if bool(size[0]) != bool(size[1]) or size[0] % unit or size[1] % unit:
            raise UserError(
                f"model.source_height, model.source_width: expected multiples of {unit}, or 0 "
                f"both, got {size[0]}×{size[1]}"
            )

    def picture_code(self) -> list[str]:
        package, _, module = MODULE.rpartition(".")
        height, width = self.source_height, self.source_width
        size = [
            f"size = stock.calculate_dimensions(stock.VAE_IMAGE_SIZE, {self.width / self.height})"
        ]
        if height:
            size = [f"stock.VAE_IMAGE_SIZE = {height * width}", f"size = {(width, height)}"]
        names = [f"picture-{index + 1}.png" for index in range(self.pictures)]
        opens = f"picture = [{opening('name', 'size')} for name in {names}]"
        return [f"from {package} import {module} as stock", *size, opens]

    def text_keys(self) -> dict[str, Any]:
        shape = [self.source_height, self.source_width]
        shown = shape if self.source_height else self.width / self.height
        return {**super().text_keys(), "source": shown, "pictures": self.pictures}

    def small_keys(self) -> dict[str, Any]:
        return {**super().small_keys(), "source_height": SIDE, "source_width": SIDE}

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.qwen_image import small_qwen_image_edit

        small_qwen_image_edit(folder)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> QwenImageEdit:
        return QwenImageEdit(self, device, parts)


def stock() -> Any:
    """The stock pipeline's module, which says how large pictures are made."""
    return import_module(MODULE)


def sides(area: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) that the stock pipeline gives a picture of this shape, of about this area."""
    found: tuple[int, int] = stock().calculate_dimensions(area, width / height)[::-1]
    return found


class QwenImageEdit(QwenImage):
    """A loaded Qwen-Image-Edit."""

    options: QwenImageEditModel

    def prepare(self) -> None:
        super().prepare()
        options, unit = self.options, self.options.unit * self.options.scale()
        height, width = (side // unit for side in options.source_size)
        self.grids = [*self.grids, *[(1, height, width)] * options.pictures]
        self.source_tokens = options.pictures * height * width

    def rows(self, shown: list[Sample]) -> dict[str, Tensor]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        texts: list[Tensor] = []
        sources: dict[tuple[Picture, ...], Tensor] = {}
        with torch.no_grad():
            for sample in shown:
                pictures = self.resized(sample)
                if sample.images not in sources:  # those of its negative prompt are the same
                    sources[sample.images] = self.encoded_sources(pictures)
                texts.append(self.encoded_text(sample.prompt, pictures))
        return {
            "text": pad_sequence(texts, batch_first=True),
            "mask": pad_sequence([torch.ones(len(text)) for text in texts], batch_first=True),
            "source": torch.cat([sources[sample.images] for sample in shown]),
        }

    def resized(self, sample: Sample) -> list[Image]:
        """A record's pictures as the stock pipeline is given them. Raises UserError where there are
        more or fewer of them than all records have."""
        if len(sample.images) != self.options.pictures:
            raise UserError(
                f"prompts: expected {self.options.pictures} pictures (model.pictures) with each "
                f"record, got {len(sample.images)} with {sample.prompt!r}"
            )
        resize, size = self.pipe.image_processor.resize, self.options.source_size
        return [resize(opened(picture), *size) for picture in sample.images]

    def encoded_sources(self, pictures: list[Image]) -> Tensor:
        """Packed latents [1, tokens, channels] of resized pictures, one after another. Needs the
        autoencoder."""
        import torch

        pipe, vae = self.pipe, self.pipe.vae
        found = []
        for picture in pictures:
            pixels = pipe.image_processor.preprocess(picture, *self.options.source_size)
            z = pipe._encode_vae_image(pixels[:, :, None].to(self.device, vae.dtype), None)
            found.append(pipe._pack_latents(z, 1, z.shape[1], *z.shape[3:]))
        return torch.cat(found, 1).to(self.dtype)

    def encoded_text(self, text: str, pictures: list[Image]) -> Tensor:
        """Rows [tokens, width] of a prompt with its resized pictures before it."""
        pipe, size = self.pipe, self.options.condition_size
        rows: Tensor = pipe.encode_prompt(
            [text],
            image=[pipe.image_processor.resize(picture, *size) for picture in pictures],
            device=self.device,
        )[0][0]
        (length,), limit = self.tokenize([text])
        return rows[: len(rows) - max(0, length - limit)]

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        pipe = self.pipe
        after = pipe.prompt_template_encode.partition("{}")[2]
        found = pipe.tokenizer([f"{VISION_END}{text}{after}" for text in texts], truncation=False)
        return [len(ids) - 1 for ids in found["input_ids"]], self.options.max_sequence_length

    def tokens(self, cond: dict[str, Tensor]) -> int:
        return super().tokens(cond) + self.source_tokens * (2 if self.options.guided else 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        together = torch.cat([x.to(self.dtype), cond["source"].to(self.dtype)], 1)
        return super().forward(together, sigma, cond)[:, : x.shape[1]]

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        source = torch.randn(rows, self.source_tokens, self.latent_shape[1], generator=generator)
        return {**super().probe_texts(rows, generator, length), "source": source}
