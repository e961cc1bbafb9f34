"""FLUX.1-Kontext through diffusers: FLUX.1 that edits a picture, whose latents follow those drawn
in the denoiser's sequence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models.base import ALL_PARTS, Part
from branchgrpo.models.flux import Flux, FluxOptions
from branchgrpo.models.pictures import opened, opening
from branchgrpo.types import Sample

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor


class FluxKontextModel(FluxOptions):
    """FLUX.1-Kontext-dev, or any folder that diffusers' FluxKontextPipeline loads. Each record has
    the picture to edit, its prompt is the instruction."""

    pipeline: ClassVar[str] = "FluxKontextPipeline"

    name: Literal["flux_kontext"] = Field("flux_kontext", description="the model family")
    guidance: float = Field(2.5, ge=0, description="embedded guidance scale")
    source_height: int = Field(
        0,
        ge=0,
        description="the picture to edit is resized to this height, whatever its shape; 0 = that "
        "of what is drawn",
    )
    source_width: int = Field(0, ge=0, description="and to this width; 0 = likewise")

    @property
    def pictures_taken(self) -> tuple[int, int]:
        return 1, 1

    @property
    def source_size(self) -> tuple[int, int]:
        """Height and width of pictures to edit, in pixels."""
        return self.source_height or self.height, self.source_width or self.width

    def check(self) -> None:
        super().check()
        unit, size = self.unit * self.scale(), self.source_size
        if size[0] % unit or size[1] % unit:
            raise UserError(
                f"model.source_height, model.source_width: expected multiples of {unit}, got "
                f"{size[0]}×{size[1]}"
            )

    def family_call(self) -> dict[str, Any]:
        # the stock pipeline would resize both pictures to about a megapixel
        area = {"max_area": self.height * self.width, "_auto_resize": False}
        return {**super().family_call(), **area}

    def picture_code(self) -> list[str]:
        size = str(self.source_size[::-1])
        return ["picture = " + opening('"picture.png"', size)]

    def text_keys(self) -> dict[str, Any]:
        return {**super().text_keys(), "source": list(self.source_size)}

    def small_keys(self) -> dict[str, Any]:
        return {**super().small_keys(), "source_height": 0, "source_width": 0}

    def write_small(self, folder: Path) -> None:
        from branchgrpo.models.small.flux import small_flux

        small_flux(folder, self.pipeline)

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> FluxKontext:
        return FluxKontext(self, device, parts)


class FluxKontext(Flux):
    """A loaded FLUX.1-Kontext."""

    options: FluxKontextModel

    def prepare(self) -> None:
        import torch

        super().prepare()
        unit = 2 * self.options.scale()
        self.source_grid = tuple(side // unit for side in self.options.source_size)
        ids = self.pipe._prepare_latent_image_ids(1, *self.source_grid, self.device, self.dtype)
        ids[..., 0] = 1  # what is drawn has 0 there
        self.drawn = len(self.img_ids)
        self.img_ids = torch.cat([self.img_ids, ids])

    def rows(self, shown: list[Sample]) -> dict[str, Tensor]:
        import torch

        sources = [self.encoded_source(opened(sample.images[0])) for sample in shown]
        return {**super().rows(shown), "source": torch.cat(sources)}

    def encoded_source(self, picture: Image) -> Tensor:
        """Packed latents [1, tokens, channels] of a picture to edit. Needs the autoencoder."""
        import torch

        pipe, vae = self.pipe, self.pipe.vae
        height, width = self.options.source_size
        processor = pipe.image_processor
        pixels = processor.preprocess(processor.resize(picture, height, width), height, width)
        with torch.no_grad():
            z = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        z = (z - vae.config.shift_factor) * vae.config.scaling_factor
        found: Tensor = pipe._pack_latents(z, *z.shape)
        return found.to(self.dtype)

    def tokens(self, cond: dict[str, Tensor]) -> int:
        source = cond["source"].shape[-2] * (2 if self.options.guided else 1)
        return super().tokens(cond) + int(source)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        together = torch.cat([x.to(self.dtype), cond["source"].to(self.dtype)], 1)
        return super().forward(together, sigma, cond)[:, : self.drawn]

    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        import torch

        tokens = self.source_grid[0] * self.source_grid[1]
        source = torch.randn(rows, tokens, self.latent_shape[1], generator=generator)
        return {**super().probe_texts(rows, generator, length), "source": source}
