"""How an actor that runs the denoiser computes."""

from __future__ import annotations

import torch

from branchgrpo.config.roles import Role


def prepare(role: Role) -> None:
    """Use the role's threads; on a GPU, TF32 for products of float32: their factors are rounded to
    11 bits (bfloat16 has 8). CPUs keep the full precision."""
    torch.set_num_threads(role.compute_threads)
    if role.device == "cuda":
        torch.set_float32_matmul_precision("high")
