"""Forwards without a gradient, by the compiled code of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def as_in_training(denoiser: Any, checkpointing: bool) -> Iterator[None]:
    """Compiled, forwards with and without gradient are different code, which rounds differently:
    within this they are with it, but nothing is kept for a backward, and no checkpoints
    (`checkpointing`: there are some in training) hold the inputs of blocks."""
    nothing = torch.empty(0)
    denoiser.disable_gradient_checkpointing()
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(lambda _: nothing, lambda kept: kept),
        ):
            yield
    finally:
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
