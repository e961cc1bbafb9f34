"""What a learner rank needs to train FLUX.1-dev's transformer with LoRA: counted on the meta
device, and measured on a GPU where there is one.

Prints JSON. Weights are random and of the full size (12 B parameters); nothing is downloaded.
Counted are the weights, adapters, their gradients and AdamW's state, the activations that the
forward pass keeps for the backward one (with gradient
checkpointing: the inputs of blocks, and one block's own while it is computed again), each storage
once. Not counted: temporaries of kernels, fragmentation and the CUDA context.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

from branchgrpo.models.flux import FluxModel

GIB = 1 << 30
TEXT = 512


def transformer(
    rank: int, device: str, layers: tuple[int, int] = (19, 38)
) -> FluxTransformer2DModel:
    """FLUX.1-dev's shape in bfloat16, with float32 adapters and gradient checkpointing, as
    `branchgrpo.models.pipeline` sets it up."""
    with torch.device(device):
        model = FluxTransformer2DModel(
            num_layers=layers[0], num_single_layers=layers[1], guidance_embeds=True
        ).to(torch.bfloat16)
    model.requires_grad_(False)
    with torch.device(device):
        model.add_adapter(
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(FluxModel.attention_layers))
        )
    for value in model.parameters():
        if value.requires_grad:
            value.data = value.data.float()
    return model.eval()


def inputs(model: FluxTransformer2DModel, side: int, device: str) -> dict[str, Any]:
    """One latent of a square picture, with its text."""
    config = model.config
    tokens = (side // 16) ** 2
    kind = {"device": device, "dtype": torch.bfloat16}
    return {
        "hidden_states": torch.randn(1, tokens, config.in_channels, **kind),
        "encoder_hidden_states": torch.randn(1, TEXT, config.joint_attention_dim, **kind),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim, **kind),
        "timestep": torch.full((1,), 0.5, **kind),
        "guidance": torch.full((1,), 3.5, device=device),
        "img_ids": torch.zeros(tokens, 3, **kind),
        "txt_ids": torch.zeros(TEXT, 3, **kind),
        "return_dict": False,
    }


def kept_bytes(model: FluxTransformer2DModel, side: int) -> int:
    """Bytes of storages, weights apart, that a forward pass keeps for the backward one."""
    own = {value.untyped_storage()._cdata for value in model.parameters()}
    found: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # held, so that no other gets its name
            found[storage._cdata] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs(model, side, str(model.device)))
    return sum(size for size, _ in found.values())


def estimate(rank: int, side: int) -> dict[str, float]:
    """GiB by part."""
    model = transformer(rank, "meta")
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    weights = sum(
        value.numel() * value.element_size()
        for value in model.parameters()
        if not value.requires_grad
    )
    model.enable_gradient_checkpointing()
    inputs_of_blocks = kept_bytes(model, side)
    one = max(kept_bytes(transformer(rank, "meta", layers), side) for layers in ((1, 0), (0, 1)))
    parts = {
        "weights": weights,
        "adapters": 4 * trained,
        "gradients": 4 * trained,
        "optimiser": 8 * trained,
    }
    parts |= {"inputs of blocks": inputs_of_blocks, "one block": one}
    plain = kept_bytes(transformer(rank, "meta"), side)
    found = {name: size / GIB for name, size in parts.items()}
    return found | {
        "sum": sum(found.values()),
        "without checkpointing": (weights + 16 * trained + plain) / GIB,
    }


def measured(rank: int, side: int) -> float:
    """GiB that torch reserves at most for forward, backward and step on a GPU."""
    model = transformer(rank, "cuda")
    model.enable_gradient_checkpointing()
    optimiser = torch.optim.AdamW(
        [value for value in model.parameters() if value.requires_grad], lr=1e-5
    )
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        model(**inputs(model, side, "cuda"))[0].float().square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return torch.cuda.max_memory_allocated() / GIB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=32, help="of the adapters")
    parser.add_argument("--side", type=int, default=720, help="of the picture, in pixels")
    found = parser.parse_args()
    model = transformer(found.rank, "meta")
    adapters = sum(
        value.numel() * value.element_size() for value in model.parameters() if value.requires_grad
    )
    row = {
        "parameters": sum(value.numel() for value in model.parameters()),
        "rank": found.rank,
        "side": found.side,
        "published MB": adapters / 1e6,
        "of all weights in bfloat16": adapters
        / (2 * sum(value.numel() for value in model.parameters() if not value.requires_grad)),
        "estimate GiB": estimate(found.rank, found.side),
        "measured GiB": measured(found.rank, found.side) if torch.cuda.is_available() else None,
    }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
