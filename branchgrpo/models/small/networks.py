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


def qwen3(kind: Any, words: int, width: int, layers: int, factor: float) -> Any:
    """A text encoder of one of transformers' Qwen3 classes, made loud."""
    from transformers import Qwen3Config

    return loud(
        kind(
            Qwen3Config(
                vocab_size=words,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=0,
            )
        ),
        factor,
    )
