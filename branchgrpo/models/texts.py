"""What a model's encoders see of records, and encodings on their way to other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.types import Conditioning, Sample

if TYPE_CHECKING:
    from torch import Tensor


def packed(tensors: Mapping[str, Tensor], rows: int) -> Conditioning:
    """Encodings of so many prompts in their own dtypes, ready to travel."""
    from branchgrpo.models.weights import to_numpy

    found = {name: to_numpy(tensor) for name, tensor in tensors.items()}
    return Conditioning(
        {name: array for name, (array, _) in found.items()},
        rows,
        {name: dtype for name, (array, dtype) in found.items() if dtype != array.dtype.name},
    )


def chat_lengths(tokenizer: Any, texts: list[str], *, thinking: bool) -> list[int]:
    """Tokens of each text as a user's one turn, and of what asks for an answer after it: with a
    place to think before, or an empty one."""
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for text in texts
    ]
    return [len(ids) for ids in tokenizer(asked, truncation=False)["input_ids"]]


def seen(model: PipelineModel, sample: Sample) -> Sample:
    """What the encoders see of a record: its prompt, and as many pictures as the model takes."""
    return Sample(prompt=sample.prompt, images=sample.images[: model.pictures_taken[1]])


def unwanted(model: PipelineModel, sample: Sample) -> Sample:
    """What they see of what guidance leads away from."""
    negative = sample.negative_prompt or model.negative_prompt
    return replace(seen(model, sample), prompt=negative)
