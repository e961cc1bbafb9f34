"""ImageReward-v1.0 (Xu et al. 2023, https://arxiv.org/abs/2304.05977): human preference from a BLIP
encoder.

A ViT reads the picture, a BERT with cross-attention to it reads the prompt, and a linear head maps
the state of the first token to a number: score = (head − MEAN) / STD. Held against the package
image-reward, from which the preprocessing and the constants come (ImageReward/ImageReward.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models.files import json_file
from branchgrpo.rewards.base import (
    BYTES,
    Footprint,
    PictureOptions,
    PictureScorer,
    Resources,
)
from branchgrpo.rewards.common.checkpoints import check_checkpoint, given, network, read_state
from branchgrpo.types import F32, U8

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "rewards.image_reward"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64  # of the ViT's attention: the checkpoint does not tell

VISION = "blip.visual_encoder."
TEXT = "blip.text_encoder."
HEAD = "mlp.layers."
# a contrastive head, a constant
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)
TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
)


class ImageRewardReward(PictureOptions):
    """ImageReward-v1.0. Prompts of more than 35 tokens are truncated, as in the package."""

    file_keys: ClassVar[tuple[str, ...]] = ("path", "config", "tokenizer")

    name: Literal["image_reward"] = Field("image_reward", description="the reward")
    path: str = Field("", description="ImageReward.pt, the state dict of ImageReward-v1.0")
    config: str = Field(
        "", description="med_config.json, the sizes of the text encoder; empty: next to path"
    )
    tokenizer: str = Field("", description="folder of the BERT tokenizer (bert-base-uncased)")

    def files(self) -> tuple[Path, Path, Path]:
        """Checkpoint, config and tokenizer folder. Raises UserError for one that is missing."""
        path = given(f"{KEY}.path", self.path, "ImageReward.pt")
        config = given(
            f"{KEY}.config", self.config or str(path.parent / "med_config.json"), "med_config.json"
        )
        tokenizer = given(f"{KEY}.tokenizer", self.tokenizer, "a folder of a BERT tokenizer")
        if not any((tokenizer / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
            raise UserError(
                f"{KEY}.tokenizer: expected vocab.txt or tokenizer.json in {tokenizer}, found none"
            )
        return path, config, tokenizer

    def check(self) -> None:
        path, config, _ = self.files()
        check_checkpoint(f"{KEY}.path", path)
        text_sizes(config)

    def footprint(self, frames: int) -> Footprint:
        # BLIP's ViT-L/16 on 197 tokens, and a BERT with cross-attention on 35, whatever the picture
        each, shown = BYTES[self.dtype], min(frames, self.frames)
        return Footprint(
            weights=each * 446e6,
            activations=each * 8 * self.batch * 197 * 1024,
            flops=shown * 0.13e12,
        )

    def build(self, resources: Resources) -> ImageReward:
        return ImageReward(self, resources.device)


def text_sizes(path: Path) -> dict[str, Any]:
    """Sizes of the text encoder. Raises UserError where one is missing."""
    found = json_file(f"{KEY}.config", path)
    missing = [name for name in TEXT_SIZES if name not in found]
    if missing:
        raise UserError(
            f"{KEY}.config: expected {', '.join(TEXT_SIZES)} in {path}, which lacks "
            f"{', '.join(missing)}"
        )
    return {name: found[name] for name in TEXT_SIZES}


def parts(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Weights of the ViT and the BERT under transformers' names, and (weight, bias) of each linear
    layer of the head.

    Raises UserError for a file that is no ImageReward checkpoint: every tensor must belong to one
    of the three.
    """
    state = read_state(f"{KEY}.path", path)
    vision, text, head = (
        {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        for prefix in (VISION, TEXT, HEAD)
    )
    text.pop("embeddings.position_ids", None)
    strange = [name for name in state if not name.startswith((VISION, TEXT, HEAD, *UNUSED))]
    if (
        strange
        or not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"}
        <= vision.keys()
        or not text
        or not head
    ):
        named = strange[0] if strange else next(iter(state))
        raise UserError(
            f"{KEY}.path: expected tensors named {VISION}*, {TEXT}* and {HEAD}* in {path}, "
            f"got {len(state)} with {named}"
        )
    for pattern, name in RENAMED:
        vision = {re.sub(pattern, name, old): value for old, value in vision.items()}
    layers = head_layers(path, head)
    return vision, text, layers


def head_layers(path: Path, head: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of the linear layers, in their order. Raises UserError unless each fits the
    next and the last gives one number."""
    places = sorted({int(name.partition(".")[0]) for name in head if name[0].isdigit()})
    if head.keys() != {f"{place}.{part}" for place in places for part in ("weight", "bias")}:
        raise UserError(
            f"{KEY}.path: expected {HEAD}N.weight and {HEAD}N.bias in {path}, got "
            f"{', '.join(sorted(head))}"
        )
    layers = [(head[f"{place}.weight"].float(), head[f"{place}.bias"].float()) for place in places]
    shapes = [tuple(weight.shape) for weight, _ in layers]
    if [rows for rows, _ in shapes] != [*(columns for _, columns in shapes[1:]), 1]:
        raise UserError(
            f"{KEY}.path: expected linear layers that end in 1 number in {path}, got {shapes}"
        )
    return layers


def vision_sizes(vision: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the ViT, read from its weights."""
    width = vision["embeddings.class_embedding"].shape[-1]
    patch = vision["embeddings.patch_embedding.weight"].shape[-1]
    return {
        "hidden_size": width,
        "intermediate_size": vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1
        + max(int(name.split(".")[2]) for name in vision if name.startswith("encoder.layers.")),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "patch_size": patch,
        "image_size": patch * math.isqrt(vision["embeddings.position_embedding"].shape[1] - 1),
        "layer_norm_eps": 1e-6,
    }


class ImageReward(PictureScorer):
    """The loaded network. The head runs in float32 whatever the dtype, as in the package."""

    def __init__(self, options: ImageRewardReward, device: str):
        from transformers import (
            BertTokenizer,
            BlipTextConfig,
            BlipTextModel,
            BlipVisionConfig,
            BlipVisionModel,
        )

        super().__init__(options)
        path, config, folder = options.files()
        vision, text, layers = parts(path)
        seeing = BlipVisionConfig(**vision_sizes(vision))
        # is_decoder: has cross-attention
        reading = BlipTextConfig(
            **text_sizes(config), encoder_hidden_size=seeing.hidden_size, is_decoder=True
        )
        self.device, self.size = device, int(seeing.image_size)
        self.vision = network(
            f"{KEY}.path",
            path=path,
            kind=BlipVisionModel,
            config=seeing,
            state=vision,
            dtype=options.dtype,
        ).to(device)
        self.text = network(
            f"{KEY}.path",
            path=path,
            kind=BlipTextModel,
            config=reading,
            state=text,
            dtype=options.dtype,
            add_pooling_layer=False,
        ).to(device)
        self.layers = [(weight.to(device), bias.to(device)) for weight, bias in layers]
        if layers[0][0].shape[1] != reading.hidden_size:
            raise UserError(
                f"{KEY}.path: expected a head on {reading.hidden_size} features in {path}, "
                f"got {layers[0][0].shape[1]}"
            )
        self.tokenizer = BertTokenizer.from_pretrained(folder)
        if len(self.tokenizer) > reading.vocab_size:
            raise UserError(
                f"{KEY}.tokenizer: expected at most {reading.vocab_size} tokens, the text "
                f"encoder's, got {len(self.tokenizer)} in {folder}"
            )

    def networks(self) -> Iterable[nn.Module]:
        return self.vision, self.text

    def pictures(self, pictures: U8, prompts: list[str]) -> F32:
        import torch

        x = torch.from_numpy(np.stack([prepared(picture, self.size) for picture in pictures])).to(
            self.device, self.vision.dtype
        )
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            seen = self.vision(pixel_values=x).last_hidden_state
            read = self.text(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                encoder_hidden_states=seen,
            ).last_hidden_state
            state = read[:, 0].float()
            for weight, bias in self.layers:
                state = torch.nn.functional.linear(state, weight, bias)
        scores: F32 = ((state[:, 0] - MEAN) / STD).cpu().numpy()
        return scores


def prepared(picture: U8, size: int) -> F32:
    """A picture u8 [H, W, 3] as the ViT takes it, [3, size, size]: shorter side to `size`
    (bicubic), centre, CLIP's normalisation."""
    from PIL import Image

    image = Image.fromarray(picture)
    short = min(image.size)
    image = image.resize(
        (int(size * image.width / short), int(size * image.height / short)),
        Image.Resampling.BICUBIC,
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    x = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / np.float32(255)
    mean, deviation = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    return ((x - mean) / deviation).transpose(2, 0, 1).astype(np.float32, copy=False)
