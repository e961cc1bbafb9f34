"""What the small models share."""

from __future__ import annotations

from typing import Any

import torch


def loud(module: Any, factor: float) -> Any:
    """The module with its matrices scaled: transformers' initial weights are so small that all
    texts look alike."""
    with torch.no_grad():
        for value in module.parameters():
            if value.ndim > 1:
                value.mul_(factor)
    return module.eval()
