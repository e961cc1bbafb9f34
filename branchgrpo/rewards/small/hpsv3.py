"""A small random Qwen2-VL with HPSv3's head, in the file that is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from branchgrpo.rewards.small.video_align import enlarged, processor, small_config

TEXT = "\nRate this picture of {text_prompt}\n\n\nRating: <|Reward|>\n\nEND\n"


def small_hpsv3(made: Qwen2VLProcessor) -> Any:
    """Qwen2-VL with the head; the vocabulary is the tokenizer's and one token more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Qwen2VLForConditionalGeneration(small_config(made, len(made.tokenizer) + 1))
        hidden = model.config.text_config.hidden_size
        model.rm_head = nn.Sequential(
            *(nn.Linear(hidden, 1024), nn.ReLU(), nn.Dropout(0.05)),
            *(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)),
        )
        return enlarged(model)


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As transformers 4.45 names them, by which the file was written."""
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
        for name, value in state.items()
    }


def save_hpsv3(folder: Path) -> dict[str, str]:
    """HPSv3.safetensors, the Qwen2-VL folder that it was made from, and a text; the keys that name
    them."""
    made, base = processor(), folder / "base"
    made.save_pretrained(base)
    small_config(made, 400).save_pretrained(base)  # a larger vocabulary than training leaves
    save_file(published_names(small_hpsv3(made).state_dict()), folder / "HPSv3.safetensors")
    template = folder / "template.txt"
    template.write_text(TEXT, encoding="utf-8")
    return {"path": str(folder), "base": str(base), "template": str(template)}
