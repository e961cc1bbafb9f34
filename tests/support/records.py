"""Records of prompts that stand alone."""

from __future__ import annotations

from collections.abc import Iterable

from branchgrpo.types import Sample, ScoreRequest, Subtree, TreeKey


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
