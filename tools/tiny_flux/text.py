"""Caption encoding for training, equal to ``FluxPipeline.encode_prompt``.

The pipeline pads both token sequences to full length, gives the T5 encoder no attention mask, and
takes the sequence from T5 and the pooled vector from CLIP. Training tokenises once and runs the
encoders in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import FluxPipeline


@dataclass(frozen=True)
class CaptionTokens:
    """Token numbers of captions for CLIP and for T5, each ``[count, length]``."""

    clip: torch.Tensor
    t5: torch.Tensor

    @classmethod
    def of(cls, pipe: FluxPipeline, captions: Sequence[str]) -> CaptionTokens:
        clip, t5 = (
            tokenizer(
                list(captions),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)
        )
        return cls(clip, t5)

    def __getitem__(self, picked: torch.Tensor) -> CaptionTokens:
        return CaptionTokens(self.clip[picked], self.t5[picked])

    def replaced(self, where: torch.Tensor, other: CaptionTokens) -> CaptionTokens:
        """Return these tokens with ``other``, a single caption's, in the rows where ``where`` is
        true."""
        mask = where[:, None]
        return CaptionTokens(
            torch.where(mask, other.clip, self.clip), torch.where(mask, other.t5, self.t5)
        )


def embed(
    text_encoder: torch.nn.Module, text_encoder_2: torch.nn.Module, tokens: CaptionTokens
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the T5 sequence ``[count, length, width]`` and the pooled CLIP vector ``[count,
    width]``."""
    pooled = text_encoder(tokens.clip, output_hidden_states=False).pooler_output
    sequence = text_encoder_2(tokens.t5, output_hidden_states=False)[0]
    return sequence, pooled
