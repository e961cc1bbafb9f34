"""Aesthetic rating: LAION's improved predictor, a head on CLIP ViT-L/14 (Schuhmann 2022,
improved-aesthetic-predictor)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Footprint, PictureOptions, PictureScorer, Resources
from branchgrpo.rewards.common.checkpoints import (
    check_checkpoint,
    check_processor,
    fit,
    given,
    read_state,
)
from branchgrpo.rewards.common.clip import architecture, check_clip, footprint, load_clip
from branchgrpo.types import F32, U8

if TYPE_CHECKING:
    from torch import Tensor, nn

PATH, HEAD = "rewards.aesthetic.path", "rewards.aesthetic.head"


class AestheticReward(PictureOptions):
    """Score: the rating, on a scale of 1 … 10, that the head gives the picture's L2-normalised CLIP
    features; prompts play no part."""

    file_keys: ClassVar[tuple[str, ...]] = ("path", "head")
    has_features: ClassVar[bool] = True

    name: Literal["aesthetic"] = Field("aesthetic", description="the reward")
    path: str = Field(
        "", description="transformers CLIPModel folder (ViT-L/14) with its image processor"
    )
    head: str = Field(
        "",
        description="checkpoint of the head, .safetensors or what torch.save wrote; the head "
        "stays in float32",
    )

    def check(self) -> None:
        check_clip(PATH, self.path)
        check_processor(PATH, self.path, tokenizer=False)
        check_checkpoint(HEAD, given(HEAD, self.head, "a checkpoint of the aesthetic head"))

    def footprint(self, frames: int) -> Footprint:
        return footprint(self, architecture(PATH, "ViT-L-14"), frames)

    def shrunk(self, folder: Path) -> Self | None:
        from branchgrpo.rewards.small.clips import save_clip, save_head

        path, head = save_clip(folder), save_head(folder)
        return self.model_copy(update={"path": str(path), "head": str(head)})

    def build(self, resources: Resources) -> Aesthetic:
        return Aesthetic(self, resources.device)


class Aesthetic(PictureScorer):
    """The loaded image encoder and head; the text encoder is dropped."""

    def __init__(self, options: AestheticReward, device: str):
        from transformers import CLIPImageProcessor

        super().__init__(options)
        folder = check_clip(PATH, options.path)
        model = load_clip(PATH, folder, options, device)
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self.head = load_head(
            given(HEAD, options.head, "a checkpoint of the aesthetic head"),
            self.projection.out_features,
        ).to(device)

    def networks(self) -> Iterable[nn.Module]:
        return self.vision, self.projection, self.head

    def pictures(self, pictures: U8, prompts: list[str]) -> F32:
        import torch

        del prompts
        with torch.inference_mode():
            scores: F32 = self.head(self._features(pictures)).squeeze(-1).cpu().numpy()
        return scores

    def pictured(self, pictures: U8) -> F32:
        found: F32 = self._features(pictures).cpu().numpy()
        return found

    def _features(self, pictures: U8) -> Tensor:
        import torch
        from PIL import Image
        from torch.nn.functional import normalize

        pixels = self.processor(
            [Image.fromarray(picture) for picture in pictures], return_tensors="pt"
        )["pixel_values"]
        with torch.inference_mode():
            features = self.projection(
                self.vision(pixels.to(self.vision.device, self.vision.dtype)).pooler_output
            )
            return normalize(features.float(), dim=-1)


def load_head(path: Path, width: int) -> nn.Module:
    """The head, from features of `width` to a rating; its checkpoint names layers.0 … layers.7, of
    which 1, 3 and 5 are dropouts.

    Raises UserError where the checkpoint is another's or takes features of another width.
    """
    from torch import nn

    state = read_state(HEAD, path)
    first = state.get("layers.0.weight")
    if first is None or first.ndim != 2:
        raise UserError(
            f"{HEAD}: expected a matrix layers.0.weight in {path}, got {sorted(state)[:3]}"
        )
    if first.shape[1] != width:
        raise UserError(
            f"{HEAD}: expected a head on the {width} features of {PATH}, got one on "
            f"{first.shape[1]} in {path}"
        )
    layers = [
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
    ]
    head = nn.ModuleDict(
        {"layers": nn.Sequential(*layers, nn.Linear(64, 16), nn.Linear(16, 1))}
    ).eval()
    fit(HEAD, path, head, state)
    return head["layers"]
