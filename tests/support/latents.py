"""Small random latents."""

from __future__ import annotations

import torch

SHAPE = (5, 4)


def batch(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and velocities [rows, *SHAPE]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *SHAPE, generator=generator), torch.randn(
        rows, *SHAPE, generator=generator
    )
