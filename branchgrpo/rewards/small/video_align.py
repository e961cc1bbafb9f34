"""A small random Qwen2-VL with VideoAlign's head, and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in "
    "message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
    "%}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}


class RewardModel(Qwen2VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2-VL with the head, as VideoAlign trains it."""

    def __init__(self, config: Qwen2VLConfig, outputs: int = 1):
        super().__init__(config)
        self.rm_head = torch.nn.Linear(config.text_config.hidden_size, outputs, bias=False)
        self.post_init()


def processor() -> Qwen2VLProcessor:
    """Bytes are tokens; the sizes of pictures are Qwen2-VL's."""
    made = Qwen2Tokenizer(
        vocab={character: index for index, character in enumerate(bytes_to_unicode().values())},
        merges=[],
    )
    made.add_special_tokens(
        {"eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "additional_special_tokens": SPECIAL[1:]}
    )
    return Qwen2VLProcessor(
        Qwen2VLImageProcessor(),
        made,
        Qwen2VLVideoProcessor(cap_pixels_per_frame=False),
        chat_template=CHAT,
    )


def small_config(made: Qwen2VLProcessor, vocabulary: int) -> Qwen2VLConfig:
    ids = {
        f"{name}_token_id": made.tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (("image", "image_pad"), ("video", "video_pad"))
    }
    ids |= {
        f"{name}_token_id": made.tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end")
    }
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2}
    return Qwen2VLConfig(
        text_config={
            **SIZES,
            "vocab_size": vocabulary,
            "rope_parameters": ROPE,
            "bos_token_id": None,
            "eos_token_id": made.tokenizer.eos_token_id,
        },
        vision_config=vision,
        **ids,
    )


def small_model(made: Qwen2VLProcessor, outputs: int) -> Any:
    """Random weights that are large enough for every part to matter; the vocabulary is the
    tokenizer's, the three tokens included."""
    torch.manual_seed(outputs)
    return enlarged(RewardModel(small_config(made, len(made.tokenizer) + 3), outputs))


def enlarged(model: Any) -> Any:
    """The model with random weights of which every part matters."""
    for name, value in model.named_parameters():
        spread = (
            1.0 if "embed_tokens" in name else value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        )
        spread *= 3.0 if "q_proj" in name or "k_proj" in name or "visual.blocks" in name else 1.0
        value.data = torch.randn_like(value) * spread + float(
            value.ndim == 1 and "norm" in name and "weight" in name
        )
    return model.eval()


def save_video_align(folder: Path) -> dict[str, str]:
    """A checkpoint of merged weights, and the Qwen2-VL folder that it was made from; the keys that
    name them."""
    made, base, path = processor(), folder / "base", folder / "merged"
    made.save_pretrained(base)
    small_config(made, 400).save_pretrained(base)  # a larger vocabulary than training leaves
    small_model(made, 1).save_pretrained(path)
    return {"path": str(path), "base": str(base), "template": ""}
