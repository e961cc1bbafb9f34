"""ImageReward's forward pass, written out in plain operations."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from reference import image_reward_package as package

SIDE = 64  # of the small ViT's pictures: 16 patches


State = dict[str, torch.Tensor]


def token_ids(prompt: str) -> list[int]:
    """By hand: lower case, words of the list, [CLS] … [SEP], at most 35."""
    words = prompt.lower().replace(",", " ,").replace("houses", "house ##s").split()
    return [
        2,
        *([package.WORDS.index(word) if word in package.WORDS else 1 for word in words][:33]),
        3,
    ]


def normalised(x: torch.Tensor, state: State, name: str, epsilon: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred
        / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def affine(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """[queries, width] from [queries, width] and twice [keys, width], head by head."""
    size = q.shape[1] // heads
    found = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        found.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), 1) @ v[:, part])
    return torch.cat(found, 1)


def seen(state: State, pixels: torch.Tensor) -> torch.Tensor:
    """The ViT: states [1 + patches, width] of pixels [3, side, side]."""
    root, size = "blip.visual_encoder", package.PATCH
    rows, columns = pixels.shape[1] // size, pixels.shape[2] // size
    kernel, bias = state[f"{root}.patch_embed.proj.weight"], state[f"{root}.patch_embed.proj.bias"]
    patches = [
        pixels[:, r * size : (r + 1) * size, c * size : (c + 1) * size]
        for r in range(rows)
        for c in range(columns)
    ]
    x = (
        torch.stack(
            [
                state[f"{root}.cls_token"][0, 0],
                *((kernel * patch).sum((1, 2, 3)) + bias for patch in patches),
            ]
        )
        + state[f"{root}.pos_embed"][0]
    )
    for layer in range(package.VISION_LAYERS):
        block = f"{root}.blocks.{layer}"
        q, k, v = affine(
            normalised(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv"
        ).chunk(3, 1)
        x = x + affine(attended(q, k, v, package.VISION_WIDTH // 64), state, f"{block}.attn.proj")
        x = x + affine(
            gelu(affine(normalised(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1")),
            state,
            f"{block}.mlp.fc2",
        )
    return normalised(x, state, f"{root}.norm", 1e-6)


def read(state: State, ids: list[int], picture: torch.Tensor) -> torch.Tensor:
    """The BERT: states [tokens, hidden] of a text without padding that sees the picture's
    states."""
    root = "blip.text_encoder"
    heads = package.TEXT["num_attention_heads"]
    epsilon = package.TEXT["layer_norm_eps"]
    x = (
        state[f"{root}.embeddings.word_embeddings.weight"][ids]
        + state[f"{root}.embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = normalised(x, state, f"{root}.embeddings.LayerNorm", epsilon)
    for layer in range(package.TEXT["num_hidden_layers"]):
        block = f"{root}.encoder.layer.{layer}"
        for name, source in (("attention", None), ("crossattention", picture)):
            inner = f"{block}.{name}.self"
            q = affine(x, state, f"{inner}.query")
            k, v = (
                affine(x if source is None else source, state, f"{inner}.{part}")
                for part in ("key", "value")
            )
            out = affine(attended(q, k, v, heads), state, f"{block}.{name}.output.dense")
            x = normalised(x + out, state, f"{block}.{name}.output.LayerNorm", epsilon)
        out = affine(
            gelu(affine(x, state, f"{block}.intermediate.dense")), state, f"{block}.output.dense"
        )
        x = normalised(x + out, state, f"{block}.output.LayerNorm", epsilon)
    return x


def slow_score(state: State, picture: np.ndarray, prompt: str, side: int = SIDE) -> float:
    """One picture [H, W, 3] and its prompt in float64, written out after the papers of BLIP and
    ImageReward."""
    x = read(state, token_ids(prompt), seen(state, by_torchvision(picture, side).double()))[0]
    for place in package.HEAD_PLACES:
        x = affine(x, state, f"mlp.layers.{place}")
    return (x.item() - 0.16717362830052426) / 1.0333394966054072


def by_torchvision(picture: np.ndarray, side: int) -> torch.Tensor:
    steps = [
        transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
    ]
    steps.append(
        transforms.Normalize(
            (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        )
    )
    found: torch.Tensor = transforms.Compose(steps)(Image.fromarray(picture))
    return found
