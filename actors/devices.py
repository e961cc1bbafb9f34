"""How an actor computes."""

from __future__ import annotations

import os
import sys

from branchgrpo.config.roles import Role


def prepare(role: Role) -> None:
    """Use the role's threads; on a GPU, TF32 for products of float32: their factors are rounded to
    11 bits (bfloat16 has 8). CPUs keep the full precision."""
    import torch

    torch.set_num_threads(role.compute_threads)
    if role.device == "cuda":
        torch.set_float32_matmul_precision("high")


def use_threads(count: int) -> None:
    """So many threads for torch, if it is loaded, or for who may load it later: at most the
    machine's cores then. An actor that never needs torch never loads it."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
    else:  # OpenMP, which torch takes its number from, reads this as it is loaded
        os.environ["OMP_NUM_THREADS"] = str(count)
