"""Records in the messages of a remote reward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from branchgrpo.rewards.http.values import ProtocolError, mapping, require, seen, typed
from branchgrpo.types import Picture, Sample

MAX_IMAGES = 64
"""Of a record."""
OVERHEAD = 128
"""Bytes of a record besides its texts, metadata and pictures, at most."""


def packed(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "id": sample.id,
        "negative_prompt": sample.negative_prompt,
        "images": [picture.read() for picture in sample.images],
        "metadata": json_of(sample.metadata),
    }


def json_of(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, ensure_ascii=False) if metadata else "{}"


def sample_bytes(sample: Sample) -> int:
    """Bytes that a record takes of a request, about."""
    texts = (sample.prompt, sample.id, sample.negative_prompt, json_of(sample.metadata))
    pictures = sum(len(picture.read()) + 5 for picture in sample.images)
    return sum(len(text.encode()) for text in texts) + pictures + OVERHEAD


def sample_of(entry: Any, where: str) -> Sample:
    keys = ("prompt", "id", "negative_prompt", "images", "metadata")
    found = mapping(entry, where, keys)
    texts = {key: typed(found[key], str, f"{where}.{key}") for key in keys if key != "images"}
    images = typed(found["images"], list, f"{where}.images")
    require(len(images) <= MAX_IMAGES, f"{where}.images", f"at most {MAX_IMAGES}", str(len(images)))
    text = texts.pop("metadata")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{where}.metadata: expected JSON, got {seen(text)}") from error
    pictures = (
        Picture(f"{where}.images[{index}]", typed(data, bytes, f"{where}.images[{index}]"))
        for index, data in enumerate(images)
    )
    return Sample(
        **texts, images=tuple(pictures), metadata=typed(metadata, dict, f"{where}.metadata")
    )
