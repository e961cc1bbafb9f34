"""Small random CLIPs in the formats of the published ones, for the tests of the rewards that use
them."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from branchgrpo.errors import UserError
from branchgrpo.rewards.aesthetic import AestheticReward
from branchgrpo.rewards.base import Resources, RewardOptions
from branchgrpo.rewards.clip import ClipReward
from branchgrpo.rewards.hps import HpsReward

NARROW_H = {  # ViT-H-14, but narrow and shallow
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
SMALL = NARROW_H | {
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
}
OTHER = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)}  # a normalisation that is not the default


def lively(kind: type[torch.nn.Module], *sizes: object, **parts: object) -> torch.nn.Module:
    """A random network whose features depend on its input: fresh networks have weights so small
    that they hardly do."""
    torch.manual_seed(0)
    network = kind(*sizes, **parts)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "embedding" in name:
                parameter.normal_(0, 0.5)
            elif parameter.ndim > 1:
                parameter.normal_(0, 2 / parameter[0].numel() ** 0.5)
    return network.eval()


def hps_reward(folder: Path) -> HpsReward:
    """A narrow ViT-H-14 under the published checkpoint's name."""
    (folder / "narrow.json").write_text(json.dumps(NARROW_H))
    torch.save(
        {"state_dict": lively(open_clip.CLIP, **NARROW_H).state_dict()},
        folder / "HPS_v2.1_compressed.pt",
    )
    return HpsReward(path=str(folder / "HPS_v2.1_compressed.pt"), model=str(folder / "narrow.json"))


def clip_reward(folder: Path) -> ClipReward:
    """A folder as open_clip keeps one, weights as its training writes them."""
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": SMALL, "preprocess_cfg": OTHER})
    )
    state = lively(open_clip.CLIP, **SMALL).state_dict()
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    torch.save(
        {
            "fence": 3,
            "name": "run",
            "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        },
        folder / "epoch_3.pt",
    )
    return ClipReward(path=str(folder / "epoch_3.pt"), model=str(folder / "open_clip_config.json"))


def clip_folder(path: Path) -> Path:
    """A CLIPModel with its processor; the tokenizer knows letters only."""
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
        projection_dim=24,
    )
    lively(CLIPModel, config).save_pretrained(path)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, CLIPTokenizer(vocabulary, [], model_max_length=16)).save_pretrained(path)
    return path


def head_weights(width: int) -> dict[str, torch.Tensor]:
    """The published head's names and sizes."""
    torch.manual_seed(1)
    sizes = {
        "layers.0": (1024, width),
        "layers.2": (128, 1024),
        "layers.4": (64, 128),
        "layers.6": (16, 64),
        "layers.7": (1, 16),
    }
    drawn = {
        name: (torch.randn(shape) / shape[1] ** 0.5, torch.randn(shape[0]))
        for name, shape in sizes.items()
    }
    return {
        f"{name}.{part}": tensor
        for name, pair in drawn.items()
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    }


def aesthetic_reward(clip_model: Path, folder: Path) -> AestheticReward:
    """A head under the published checkpoint's name."""
    torch.save(head_weights(24), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return AestheticReward(
        path=str(clip_model), head=str(folder / "sac+logos+ava1-l14-linearMSE.pth")
    )


def refused(options: RewardOptions, build: bool = False) -> str:
    """The message of check, or of build once check has passed."""
    if build:
        options.check()
    with pytest.raises(UserError) as caught:
        options.build(Resources()) if build else options.check()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"rewards.{options.name}.")
    return str(caught.value)
