"""Records for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO

from PIL import Image

from branchgrpo.models.base import ModelOptions
from branchgrpo.types import Picture, Sample, ScoreRequest, Subtree, TreeKey


def record(text: str) -> Sample:
    return Sample(prompt=text)


def records(texts: Iterable[str]) -> list[Sample]:
    """One a text, and one object of texts that are equal, as a scorer gets them."""
    found = list(texts)
    each = {text: record(text) for text in dict.fromkeys(found)}
    return [each[text] for text in found]


def request_of(texts: Iterable[str]) -> ScoreRequest:
    """For a worker of one reward: whole trees of these prompts, a tree each, of one LeafMedia."""
    samples = tuple(records(texts))
    return ScoreRequest(
        rewards=(0,),
        subtrees=tuple(Subtree(TreeKey("test", 0, row, 0), row, 0) for row in range(len(samples))),
        places=tuple((0, row) for row in range(len(samples))),
        samples=samples,
    )


def seen_by(options: ModelOptions, texts: Iterable[str]) -> list[Sample]:
    """Records of these prompts, with as many grey pictures as the model must have."""
    file = BytesIO()
    Image.new("RGB", (24, 16), (90, 90, 90)).save(file, "PNG")
    pictures = tuple(
        Picture(f"picture {index}", file.getvalue()) for index in range(options.pictures_taken[0])
    )
    return [replace(sample, images=pictures) for sample in records(texts)]
