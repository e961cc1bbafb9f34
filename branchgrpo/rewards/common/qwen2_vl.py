"""Qwen2-VL that reads a score: what is common to rewards with a head on tokens of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError
from branchgrpo.models.files import json_file
from branchgrpo.rewards.base import Refusal, existing
from branchgrpo.rewards.common.checkpoints import check_processor, network
from branchgrpo.types import Sample

if TYPE_CHECKING:
    from torch import Tensor, nn

PROMPT = "{text_prompt}"
"""Where a template has the prompt."""

SPECIAL = re.compile(r"<\|\w+\|>")
EMBEDDING = "language_model.embed_tokens.weight"


def refusal(sample: Sample) -> Refusal | None:
    """Why a record's prompt cannot be scored: a special token in it."""
    if not (found := SPECIAL.search(sample.prompt)):
        return None
    what = f"{found.group()} in {sample.prompt!r}"
    return Refusal("a special token, which the network would take for ours", what)


def filled(key: str, template: str, prompt: str) -> str:
    """The template with the prompt. Raises UserError for one that holds a special token, which the
    network would take for ours."""
    if found := SPECIAL.search(prompt):
        raise UserError(
            f"{key}: expected prompts without special tokens, got {found.group()} in {prompt!r}"
        )
    return template.replace(PROMPT, prompt)


def checked_template(key: str, path: str, text: str, tokens: list[str]) -> str:
    """A template. Raises UserError unless it holds the prompt's place and each of our tokens
    once."""
    for part in (PROMPT, *tokens):
        if text.count(part) != 1:
            raise UserError(
                f"{key}.template: expected {part} once in {path}, found it {text.count(part)} times"
            )
    return text


def base_folder(key: str, base: str, default: Path) -> Path:
    """The folder of the Qwen2-VL that was fine-tuned; empty: `default`. Raises UserError for one
    that is missing."""
    return existing(f"{key}.base", base, "a Qwen2-VL folder") if base else default


def check_base(key: str, folder: Path) -> Path:
    """The folder. Raises UserError unless it is a Qwen2-VL's, with tokenizer and processor."""
    found = json_file(f"{key}.base", folder / "config.json").get("model_type")
    if found != "qwen2_vl":
        raise UserError(
            f"{key}.base: expected model_type qwen2_vl in {folder / 'config.json'}, got {found}"
        )
    return check_processor(f"{key}.base", str(folder), tokenizer=True)


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a Qwen2VLForConditionalGeneration of any version by Qwen2VLModel's names; the
    language head, which nobody reads, left out."""
    for pattern, name in (
        (r"^(model\.)?visual\.", "visual."),
        (r"^model\.(language_model\.)?", "language_model."),
    ):
        state = {re.sub(pattern, name, old): value for old, value in state.items()}
    state.pop("lm_head.weight", None)
    return state


class Reader:
    """The loaded network and its processor."""

    def __init__(
        self,
        key: str,
        path: Path,
        base: Path,
        state: dict[str, Tensor],
        tokens: list[str],
        **place: str,
    ):
        """key: of the config, as rewards.NAME; path: whose weights these are; state: as `own_names`
        has them, with the embedding; tokens: ours, which the tokenizer lacks; place: dtype and
        device. Raises UserError where they do not go together."""
        from transformers import AutoConfig, AutoProcessor, Qwen2VLModel

        config = AutoConfig.from_pretrained(check_base(key, base))
        rows = len(state[EMBEDDING])
        config.text_config.vocab_size = rows  # training resized it to the tokenizer
        self.device = place["device"]
        self.model: nn.Module = network(
            f"{key}.path",
            path=path,
            kind=Qwen2VLModel,
            config=config,
            state=state,
            dtype=place["dtype"],
        ).to(self.device)
        self.processor = AutoProcessor.from_pretrained(base)
        if not self.processor.chat_template:
            raise UserError(
                f"{key}.base: expected a chat template (chat_template.json or .jinja) in "
                f"{base}, found none"
            )
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "right"
        tokenizer.add_tokens(tokens, special_tokens=True)
        self.ids: list[int] = tokenizer.convert_tokens_to_ids(tokens)
        if max(self.ids) >= rows:
            raise UserError(
                f"{key}.path: expected embeddings of {1 + max(self.ids)} "
                f"tokens, the tokenizer's of {base}, got {rows}"
            )

    def states(self, texts: list[str], kind: str, **shown: Any) -> Tensor:
        """Last hidden states at our tokens [B, tokens, hidden], in float32.

        texts: B of a user's turn, after its picture or video. kind: image or video. shown: what the
        processor takes. Positions count tokens, as both published forwards have it, which give the
        language model embeddings alone; they are not Qwen2-VL's three-dimensional ones.
        """
        import torch

        content = ([{"type": kind}, {"type": "text", "text": text}] for text in texts)
        chat = [[{"role": "user", "content": parts}] for parts in content]
        said = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = self.processor(text=said, padding=True, return_tensors="pt", **shown)
        inputs = inputs.to(self.device)
        ids = inputs["input_ids"]
        names = {name for name in inputs if name.startswith(("pixel_values", f"{kind}_grid"))}
        with torch.inference_mode():
            found: Tensor = self.model(
                input_ids=ids,
                attention_mask=inputs["attention_mask"],
                position_ids=torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape),
                use_cache=False,
                **{name: inputs[name] for name in names},
            ).last_hidden_state
            return torch.stack([found[ids == token] for token in self.ids], 1).float()
