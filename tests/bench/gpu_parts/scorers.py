"""A reward of PickScore's shape with random weights: a CLIP of ViT-H/14, made on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from branchgrpo.rewards.base import PictureOptions, PictureScorer, Resources

if TYPE_CHECKING:
    from branchgrpo.types import F32, U8

TOKENS = 77


class PickScoreShape(PictureOptions):
    """Options of the reward; loading them needs no torch."""

    narrow: bool = Field(False, description="a network for machines without a card")

    def build(self, resources: Resources) -> Scorer:
        return Scorer(self, resources.device)


class Scorer(PictureScorer):
    """The cosine of a picture's features and random words'."""

    def __init__(self, options: PickScoreShape, device: str):
        import torch

        super().__init__(options)
        self.device = device
        self.dtype = getattr(torch, options.dtype)
        self.network = clip(options.narrow).to(self.dtype).to_empty(device=device).eval()
        self.size = self.network.config.vision_config.image_size
        with torch.no_grad():
            for value in self.network.parameters():
                value.normal_(0.0, 0.02)
            for name, value in self.network.named_buffers():
                if "position_ids" in name:
                    value.copy_(torch.arange(value.shape[-1], device=device)[None])

    def pictures(self, pictures: U8, prompts: list[str]) -> F32:
        import torch

        with torch.no_grad():
            x = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).to(self.dtype) / 255
            x = torch.nn.functional.interpolate(x, (self.size, self.size), mode="bilinear")
            ids = torch.arange(TOKENS, device=self.device)[None].expand(len(prompts), -1)
            found = self.network(input_ids=ids, pixel_values=2 * x - 1)
            score: F32 = found.logits_per_image.diagonal().float().cpu().numpy()
            return score


def clip(narrow: bool) -> Any:
    """CLIP-ViT-H-14, whose weights PickScore_v1 has, on the meta device."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    sizes = (32, 64, 2, 2, 16) if narrow else (1024, 4096, 24, 16, 1024)
    width, inner, layers, heads, projection = sizes
    text = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection,
        "eos_token_id": TOKENS - 1,
    }
    wide = (32, 64, 2, 2, 32) if narrow else (1280, 5120, 32, 16, 224)
    width, inner, layers, heads, side = wide
    vision = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": 14 if not narrow else 8,
        "projection_dim": projection,
    }
    with torch.device("meta"):
        return CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
        )
