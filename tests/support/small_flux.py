"""The embedded FLUX and inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor

from branchgrpo.models.flux import Flux, FluxModel

PROMPTS = ["the number 38 in black on yellow", "a red circle on white"]


SMALL = {
    "sampling.steps": "5",
    "method.splits": "[0, 2]",
    "method.leaves": "4",
    "method.stochastic": "all",
    "learner.threads": "1",
    "rollout.threads": "1",
}


def build(**options: object) -> Flux:
    torch.manual_seed(0)
    return FluxModel(
        path="embedded:tiny-flux",
        height=32,
        width=32,
        guidance=2.5,
        max_sequence_length=16,
        **options,
    ).build("cpu")


def inputs(model: Flux, rows: int = 4) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(x, σ, conditioning) that one forward takes."""
    draw = torch.Generator().manual_seed(3)
    return (
        torch.randn(rows, *model.latent_shape, generator=draw),
        torch.linspace(1.0, 0.1, rows),
        model.fingerprint_conditioning(rows),
    )


def velocity(model: Flux, at: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None) -> Tensor:
    with torch.no_grad():
        return model.velocity(*(at or inputs(model)))


def move(model: Flux, size: float = 0.05) -> None:
    """Change every trainable parameter."""
    draw = torch.Generator().manual_seed(5)
    model.load(
        {
            name: value.detach() + size * torch.randn(value.shape, generator=draw)
            for name, value in model.trainable().items()
        }
    )
