"""CLIPScore: does the picture show what the prompt says? (Hessel et al. 2021, arXiv 2104.08718)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.rewards.base import Footprint, PictureOptions, Resources
from branchgrpo.rewards.common.checkpoints import check_checkpoint, given
from branchgrpo.rewards.common.clip import OpenClipScorer, architecture, footprint
from branchgrpo.types import U8

if TYPE_CHECKING:
    from torch import Tensor

PATH, MODEL = "rewards.clip.path", "rewards.clip.model"


class ClipReward(PictureOptions):
    """Score: the plain cosine of the picture's and the prompt's features; neither × 2.5 nor cut at
    0 as in the paper."""

    file_keys: ClassVar[tuple[str, ...]] = ("path",)
    has_features: ClassVar[bool] = True

    name: Literal["clip"] = Field("clip", description="the reward")
    path: str = Field("", description="open_clip checkpoint, .safetensors or what torch.save wrote")
    model: str = Field(
        "ViT-B-32",
        description="architecture: a name that open_clip knows, or a .json file of its model "
        "config",
    )

    def check(self) -> None:
        architecture(MODEL, self.model)
        check_checkpoint(PATH, given(PATH, self.path, "an open_clip checkpoint"))

    def footprint(self, frames: int) -> Footprint:
        return footprint(self, architecture(MODEL, self.model), frames)

    def shrunk(self, folder: Path) -> Self | None:
        from branchgrpo.rewards.small.clips import save_open_clip

        path, model = save_open_clip(folder)
        return self.model_copy(update={"path": str(path), "model": str(model)})

    def build(self, resources: Resources) -> Clip:
        return Clip(self, resources.device)


class Clip(OpenClipScorer):
    """The loaded network, with open_clip's own preparation of pictures; `preprocess_cfg` of a .json
    file changes it."""

    def __init__(self, options: ClipReward, device: str):
        from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

        config = architecture(MODEL, options.model)
        super().__init__(
            options,
            key=PATH,
            config=config,
            path=given(PATH, options.path, "an open_clip checkpoint"),
            device=device,
        )
        wanted = config.get("preprocess_cfg", {}) | {"size": self.network.visual.image_size}
        self.transform = image_transform_v2(
            PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), wanted)), is_train=False
        )

    def prepared(self, pictures: U8) -> Tensor:
        import torch
        from PIL import Image

        return torch.stack([self.transform(Image.fromarray(picture)) for picture in pictures])
