"""Scores of the package image-reward, in an environment of its own: it needs an old transformers.

    python3.11 -m venv package-env
    package-env/bin/pip install image-reward==1.5 "transformers==4.45.2" "numpy<2.3"
    IMAGE_REWARD_PYTHON=package-env/bin/python python -m pytest -s tests/unit/test_image_reward.py

That test writes a small checkpoint, pictures and prompts into a folder, and runs this program on
it.
"""

from __future__ import annotations

import json
import sys
import types
from itertools import pairwise
from pathlib import Path

CHECKPOINT = "ImageReward.pt"
CONFIG = "med_config.json"
VOCABULARY = "vocab.txt"
PICTURES, PROMPTS = "picture-{}.png", "prompts.json"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "fox",
    "in",
    "the",
    "snow",
    "blue",
    "house",
    ",",
    "##s",
]
TEXT = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS) + 2,  # [DEC] and [ENC]
    "encoder_width": 48,
    "add_cross_attention": True,
}
# widths of the MLP's layers; the published ones are 768, 1024, 128, 64, 16, 1
HEAD = (48, 32, 16, 8, 4, 1)
HEAD_PLACES = (0, 2, 4, 6, 7)  # dropout sits between them
VISION_WIDTH = 128
VISION_LAYERS = 2
PATCH = 16


def write_checkpoint(folder: Path, side: int, seed: int = 0) -> None:
    """A small ImageReward checkpoint with the published names, its med_config.json and vocab.txt;
    pictures are `side` wide."""
    import torch

    random, state = torch.Generator().manual_seed(seed), {}

    def add(name: str, *shape: int, spread: float = 0.1, middle: float = 0.0) -> None:
        state[name] = middle + spread * torch.randn(shape, generator=random)

    def linear(name: str, out: int, into: int) -> None:
        add(f"{name}.weight", out, into, spread=into**-0.5)
        add(f"{name}.bias", out)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width, middle=1.0)
        add(f"{name}.bias", width)

    vision = "blip.visual_encoder"
    text = "blip.text_encoder"
    width = VISION_WIDTH
    add(f"{vision}.cls_token", 1, 1, width)
    add(f"{vision}.pos_embed", 1, 1 + (side // PATCH) ** 2, width)
    add(f"{vision}.patch_embed.proj.weight", width, 3, PATCH, PATCH, spread=1 / 28)
    add(f"{vision}.patch_embed.proj.bias", width)
    for layer in range(VISION_LAYERS):
        block = f"{vision}.blocks.{layer}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
    norm(f"{vision}.norm", width)
    hidden, inner = TEXT["hidden_size"], TEXT["intermediate_size"]
    state[f"{text}.embeddings.position_ids"] = torch.arange(TEXT["max_position_embeddings"])[None]
    add(f"{text}.embeddings.word_embeddings.weight", TEXT["vocab_size"], hidden, spread=1.0)
    add(
        f"{text}.embeddings.position_embeddings.weight",
        TEXT["max_position_embeddings"],
        hidden,
        spread=0.3,
    )
    norm(f"{text}.embeddings.LayerNorm", hidden)
    for layer in range(TEXT["num_hidden_layers"]):
        block = f"{text}.encoder.layer.{layer}"
        for attention, seen in (("attention", hidden), ("crossattention", width)):
            linear(f"{block}.{attention}.self.query", hidden, hidden)
            linear(f"{block}.{attention}.self.key", hidden, seen)
            linear(f"{block}.{attention}.self.value", hidden, seen)
            linear(f"{block}.{attention}.output.dense", hidden, hidden)
            norm(f"{block}.{attention}.output.LayerNorm", hidden)
        linear(f"{block}.intermediate.dense", inner, hidden)
        linear(f"{block}.output.dense", hidden, inner)
        norm(f"{block}.output.LayerNorm", hidden)
    linear("blip.vision_proj", 256, width)
    linear("blip.text_proj", 256, hidden)
    for place, into, out in zip(HEAD_PLACES, HEAD[:-1], HEAD[1:], strict=True):
        linear(f"mlp.layers.{place}", out, into)
    torch.save(state, folder / CHECKPOINT)
    (folder / CONFIG).write_text(json.dumps(TEXT), encoding="utf-8")
    (folder / VOCABULARY).write_text("\n".join(WORDS) + "\n", encoding="utf-8")


def package_scores(folder: Path) -> list[float]:
    """Scores of a folder's pictures for its prompts by the package's own class."""
    import torch

    # OpenAI's, which another score of the package imports
    sys.modules["clip"] = types.ModuleType("clip")
    from ImageReward.ImageReward import ImageReward
    from ImageReward.models.BLIP import blip, blip_pretrain
    from transformers import BertTokenizer

    def small_vit(
        vit: str, image_size: int, *_: object, **__: object
    ) -> tuple[torch.nn.Module, int]:
        del vit
        return blip.VisionTransformer(
            image_size,
            PATCH,
            embed_dim=VISION_WIDTH,
            depth=VISION_LAYERS,
            num_heads=VISION_WIDTH // 64,
        ), VISION_WIDTH

    def tokenizer() -> BertTokenizer:
        made = BertTokenizer(str(folder / VOCABULARY))
        made.add_special_tokens({"bos_token": "[DEC]"})
        made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        return made

    blip_pretrain.create_vit, blip_pretrain.init_tokenizer = small_vit, tokenizer
    scorer = ImageReward(med_config=str(folder / CONFIG), device="cpu")
    linear = [torch.nn.Linear(into, out) for into, out in pairwise(HEAD)]
    for place, layer in zip(HEAD_PLACES, linear, strict=True):
        scorer.mlp.layers[place] = layer
    scorer.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True), strict=False)
    scorer.eval()
    prompts = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    with torch.no_grad():
        return [
            float(scorer.score(prompt, str(folder / PICTURES.format(index))))
            for index, prompt in enumerate(prompts)
        ]


if __name__ == "__main__":
    print(json.dumps(package_scores(Path(sys.argv[1]))))
