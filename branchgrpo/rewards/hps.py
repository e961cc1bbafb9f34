"""HPSv2 and HPSv2.1: human preference, learnt by fine-tuning open_clip's ViT-H-14 (Wu et al. 2023,
arXiv 2306.09341)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Footprint, PictureOptions, Resources
from branchgrpo.rewards.common.checkpoints import check_checkpoint, given
from branchgrpo.rewards.common.clip import OpenClipScorer, architecture, footprint
from branchgrpo.types import U8

if TYPE_CHECKING:
    from torch import Tensor

FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
REPOSITORY = "xswu/HPSv2"


class HpsReward(PictureOptions):
    """Score: cosine of the picture's and the prompt's features, without the logit scale, as the
    package hpsv2 reports it."""

    file_keys: ClassVar[tuple[str, ...]] = ("path",)
    has_features: ClassVar[bool] = True

    name: Literal["hps"] = Field("hps", description="the reward")
    path: str = Field(
        "",
        description="checkpoint; empty: where the package hpsv2 looks, $HPS_ROOT "
        "(~/.cache/hpsv2) and the Hugging Face cache",
    )
    version: Literal["v2.0", "v2.1"] = Field(
        "v2.1", description="which checkpoint an empty path stands for"
    )
    model: str = Field(
        "ViT-H-14",
        description="architecture: a name that open_clip knows, or a .json file of its model "
        "config",
    )

    def checkpoint(self) -> Path:
        """The checkpoint. Raises UserError where it is missing."""
        if self.path:
            return given("rewards.hps.path", self.path, "an HPSv2 checkpoint")
        from huggingface_hub import try_to_load_from_cache

        name = FILES[self.version]
        root = Path(os.environ.get("HPS_ROOT", "~/.cache/hpsv2")).expanduser()
        cached = try_to_load_from_cache(REPOSITORY, name)
        for path in (root / name, Path(cached) if isinstance(cached, str) else None):
            if path and path.is_file():
                return path
        raise UserError(
            f"rewards.hps.path: expected {name} in {root} or as part of {REPOSITORY} in the "
            "Hugging Face cache, found neither"
        )

    def check(self) -> None:
        architecture("rewards.hps.model", self.model)
        check_checkpoint("rewards.hps.path", self.checkpoint())

    def footprint(self, frames: int) -> Footprint:
        return footprint(self, architecture("rewards.hps.model", self.model), frames)

    def shrunk(self, folder: Path) -> Self | None:
        from branchgrpo.rewards.small.clips import save_hps

        path, model = save_hps(folder)
        return self.model_copy(update={"path": str(path), "model": str(model)})

    def build(self, resources: Resources) -> Hps:
        return Hps(self, resources.device)


class Hps(OpenClipScorer):
    """The loaded network."""

    def __init__(self, options: HpsReward, device: str):
        super().__init__(
            options,
            key="rewards.hps.path",
            config=architecture("rewards.hps.model", options.model),
            path=options.checkpoint(),
            device=device,
        )
        height, width = self.network.visual.image_size
        if height != width:
            raise UserError(
                f"rewards.hps.model: expected a square image_size, got {height} × {width} "
                f"in {options.model}"
            )
        self.size: int = height

    def prepared(self, pictures: U8) -> Tensor:
        return longest(pictures, self.size, self.device)


def longest(pictures: U8, size: int, device: str) -> Tensor:
    """Pictures u8 [B, H, W, 3] as hpsv2 prepares them, f32 [B, 3, size, size].

    The longest side becomes `size` (bicubic with antialias, as torchvision resizes tensors since
    0.17, on values 0 … 1, which may overshoot), the rest is padded with black, and CLIP's mean and
    deviation are applied. The package leaves a picture unpadded whose longest side is `size`
    already, and then fails unless it is square; here it is padded.
    """
    import torch
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from torch.nn.functional import interpolate, pad

    x = torch.tensor(pictures, device=device).permute(0, 3, 1, 2).contiguous().float().div(255)
    height, width = x.shape[2:]
    if max(height, width) != size:
        scale = size / float(max(height, width))
        x = interpolate(
            x,
            size=(round(height * scale), round(width * scale)),
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )
    below, right = size - x.shape[2], size - x.shape[3]
    x = pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
    mean, deviation = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    )
    return (x - mean) / deviation
