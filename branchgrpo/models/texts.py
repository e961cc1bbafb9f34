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


def pair(wanted: Mapping[str, Tensor], unwanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encodings for guidance: [P, 2, …], each prompt's row beside its negative one (or one for all,
    [1, …]), so that rows stay independent. Where the texts differ in length, dimension 1 is padded
    with zeros after."""
    import torch

    found = {}
    for name, array in wanted.items():
        other = unwanted[name]
        if array.ndim > 1:
            width = max(array.shape[1], other.shape[1])
            array, other = padded(array, width), padded(other, width)
        found[name] = torch.stack([array, other.expand_as(array)], 1)
    return found


def padded(array: Tensor, width: int) -> Tensor:
    """[n, l, …] as [n, width, …], zeros after."""
    if array.shape[1] == width:
        return array
    found = array.new_zeros(len(array), width, *array.shape[2:])
    found[:, : array.shape[1]] = array
    return found
