"""Small random CLIPs, as open_clip and transformers keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

NARROW_H: dict[str, Any] = {  # ViT-H-14, but narrow and shallow
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 224,
        "layers": 2,
        "width": 160,
        "head_width": 80,
        "patch_size": 14,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
SMALL: dict[str, Any] = NARROW_H | {
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
}
OTHER: dict[str, Any] = {
    "mean": (0.5, 0.4, 0.3),
    "std": (0.5, 0.6, 0.7),
}  # a normalisation that is not the default

FEATURES = 24  # of the CLIP that transformers loads


def lively(kind: Any, *sizes: object, **parts: object) -> Any:
    """A random network whose features depend on its input: fresh networks have weights so small
    that they hardly do."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = kind(*sizes, **parts)
        for name, parameter in network.named_parameters():
            if "embedding" in name:
                parameter.normal_(0, 0.5)
            elif parameter.ndim > 1:
                parameter.normal_(0, 2 / parameter[0].numel() ** 0.5)
    return network.eval()


def save_hps(folder: Path) -> tuple[Path, Path]:
    """A narrow ViT-H-14 under the published checkpoint's name, and its open_clip config."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    model, path = folder / "narrow.json", folder / "HPS_v2.1_compressed.pt"
    model.write_text(json.dumps(NARROW_H))
    torch.save({"state_dict": lively(open_clip.CLIP, **NARROW_H).state_dict()}, path)
    return path, model


def save_open_clip(folder: Path) -> tuple[Path, Path]:
    """A checkpoint as open_clip's training writes it, and its config; beside them the weights as
    open_clip keeps them in a folder."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    model, path = folder / "open_clip_config.json", folder / "epoch_3.pt"
    model.write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": OTHER}))
    state = lively(open_clip.CLIP, **SMALL).state_dict()
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"fence": 3, "name": "run", "state_dict": wrapped}, path)
    return path, model


def save_clip(path: Path) -> Path:
    """A CLIPModel with its processor; the tokenizer knows letters only."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {
        token: i
        for i, token in enumerate(
            [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        )
    }
    ids = {
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "pad_token_id": len(vocabulary) - 1,
    }
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = shape | ids | {"vocab_size": len(vocabulary), "max_position_embeddings": 16}
    config = CLIPConfig(
        text_config=text,
        vision_config=shape | {"image_size": 32, "patch_size": 8},
        projection_dim=FEATURES,
    )
    lively(CLIPModel, config).save_pretrained(path)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, CLIPTokenizer(vocabulary, [], model_max_length=16)).save_pretrained(path)
    return path


def head_weights(width: int) -> dict[str, torch.Tensor]:
    """The published head's names and sizes."""
    draw = torch.Generator().manual_seed(1)
    sizes = {
        "layers.0": (1024, width),
        "layers.2": (128, 1024),
        "layers.4": (64, 128),
        "layers.6": (16, 64),
        "layers.7": (1, 16),
    }
    drawn = {
        name: (
            torch.randn(shape, generator=draw) / shape[1] ** 0.5,
            torch.randn(shape[0], generator=draw),
        )
        for name, shape in sizes.items()
    }
    return {
        f"{name}.{part}": tensor
        for name, pair in drawn.items()
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    }


def save_head(folder: Path, width: int = FEATURES) -> Path:
    """An aesthetic head under the published checkpoint's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(head_weights(width), path)
    return path
