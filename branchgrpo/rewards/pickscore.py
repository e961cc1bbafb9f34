"""PickScore: human preference, learnt by fine-tuning CLIP ViT-H/14 (Kirstain et al. 2023, arXiv
2305.01569)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.rewards.base import Footprint, PictureOptions, Resources
from branchgrpo.rewards.common.checkpoints import check_processor
from branchgrpo.rewards.common.clip import (
    CosineScorer,
    architecture,
    check_clip,
    footprint,
    load_clip,
)
from branchgrpo.types import U8

if TYPE_CHECKING:
    from torch import Tensor, nn

PATH, PROCESSOR = "rewards.pickscore.path", "rewards.pickscore.processor"


class PickScoreReward(PictureOptions):
    """Score: the plain cosine of the picture's and the prompt's features, the form DanceGRPO
    reports.

    `scale: logit` multiplies it by exp(logit_scale), about 100, the form PickScore was published
    in.
    """

    file_keys: ClassVar[tuple[str, ...]] = ("path", "processor")
    has_features: ClassVar[bool] = True

    name: Literal["pickscore"] = Field("pickscore", description="the reward")
    path: str = Field("", description="transformers CLIPModel folder with PickScore's weights")
    processor: str = Field(
        "", description="transformers CLIPProcessor folder; empty: the one at path"
    )
    scale: Literal["none", "logit"] = Field(
        "none", description="none: plain cosine; logit: times exp(logit_scale)"
    )

    def check(self) -> None:
        check_clip(PATH, self.path)
        check_processor(PROCESSOR, self.processor or self.path, tokenizer=True)

    def footprint(self, frames: int) -> Footprint:
        return footprint(self, architecture(PATH, "ViT-H-14"), frames)

    def shrunk(self, folder: Path) -> Self | None:
        from branchgrpo.rewards.small.clips import save_clip

        return self.model_copy(update={"path": str(save_clip(folder)), "processor": ""})

    def build(self, resources: Resources) -> PickScore:
        return PickScore(self, resources.device)


class PickScore(CosineScorer):
    """The loaded network."""

    def __init__(self, options: PickScoreReward, device: str):
        from transformers import CLIPProcessor

        super().__init__(options)
        self.model = load_clip(PATH, check_clip(PATH, options.path), options, device)
        self.processor = CLIPProcessor.from_pretrained(
            check_processor(PROCESSOR, options.processor or options.path, tokenizer=True),
            local_files_only=True,
        )
        self.factor = self.model.logit_scale.exp().item() if options.scale == "logit" else 1.0

    def networks(self) -> Iterable[nn.Module]:
        return (self.model,)

    def images(self, pictures: U8) -> Tensor:
        from PIL import Image

        pixels = self.processor.image_processor(
            [Image.fromarray(picture) for picture in pictures], return_tensors="pt"
        )["pixel_values"]
        features: Tensor = self.model.get_image_features(
            pixels.to(self.model.device, self.model.dtype)
        ).pooler_output
        return features

    def texts(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        # padded to one length, so that a prompt's features do not depend on its neighbours'
        tokens = self.processor.tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        features: Tensor = self.model.get_text_features(
            **tokens.to(self.model.device)
        ).pooler_output
        return features
