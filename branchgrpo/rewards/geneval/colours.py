"""Which colour an object has, by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from branchgrpo.rewards.common.clip import check_clip
from branchgrpo.rewards.geneval.rules import COLOURS, Detection
from branchgrpo.types import U8

KEY = "rewards.geneval.clip"

GREY = 153
"""What is around an object that a mask cuts out."""

PHRASES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
"""What a picture of an object of a colour is called; features are means over them."""


class Colours:
    """CLIP, asked which colour an object has."""

    def __init__(self, path: str, dtype: str, device: str):
        import torch
        from transformers import CLIPModel, CLIPProcessor

        folder = check_clip(KEY, path)
        self.device, self.dtype = device, getattr(torch, dtype)
        self.model: Any = CLIPModel.from_pretrained(
            folder, dtype=self.dtype, local_files_only=True, use_safetensors=True
        )
        self.model.eval().to(device)
        self.processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.known: dict[str, Any] = {}

    def of(self, picture: U8, objects: Sequence[Detection], name: str) -> list[str]:
        """The most likely of COLOURS of each object."""
        import torch
        from torch.nn.functional import normalize

        crops = [_cut_out(picture, one) for one in objects]
        inputs = self.processor(images=crops, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            seen = normalize(
                _features(
                    self.model.get_image_features(
                        pixel_values=inputs["pixel_values"].to(self.dtype)
                    )
                ).float(),
                dim=-1,
            )
            best = (seen @ self._texts(name).T).argmax(1).tolist()
        return [COLOURS[index] for index in best]

    def _texts(self, name: str) -> Any:
        """[colours, D] features of what objects of a class are called, in each colour."""
        import torch
        from torch.nn.functional import normalize

        if name not in self.known:
            texts = [phrase.format(colour, name) for colour in COLOURS for phrase in PHRASES]
            inputs = self.processor(
                text=texts, padding=True, truncation=True, return_tensors="pt"
            ).to(self.device)
            with torch.inference_mode():
                found = normalize(_features(self.model.get_text_features(**inputs)).float(), dim=-1)
            means = found.reshape(len(COLOURS), len(PHRASES), -1).mean(1)
            self.known[name] = normalize(means, dim=-1)
        return self.known[name]


def _features(found: Any) -> Any:
    """Newer transformers wrap them."""
    return getattr(found, "pooler_output", found)


def _cut_out(picture: U8, one: Detection) -> Image.Image:
    """An object alone: what is around it in its box is grey, where there is a mask."""
    if one.mask is not None:
        picture = np.where(one.mask[..., None], picture, np.uint8(GREY))
    return Image.fromarray(picture).crop(_whole(one.box, picture))


def _whole(box: Sequence[float], picture: U8) -> tuple[int, int, int, int]:
    """A box in whole pixels, within the picture, of at least one."""
    height, width = picture.shape[:2]
    left = min(max(0, int(box[0])), width - 1)
    upper = min(max(0, int(box[1])), height - 1)
    right = min(width, max(left + 1, round(box[2])))
    lower = min(height, max(upper + 1, round(box[3])))
    return left, upper, right, lower
