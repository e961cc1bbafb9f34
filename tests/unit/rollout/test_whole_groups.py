"""Leaves of a prompt put together, whoever grew them and whoever was ready first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import record
from support.small_trees import quickstart

from actors.reward import RewardWorker, chosen_pixels
from branchgrpo.rewards.base import Scorer
from branchgrpo.rollout.whole_groups import WholeGroups
from branchgrpo.types import F32, U8, LeafMedia, Sample, ScoreRequest, Subtree, TreeKey

PROMPTS, TREES, NODES, LEAVES = 3, 2, (4, 7, 9), 2
SUBTREES = [
    Subtree(TreeKey("test", 0, 10 + prompt, tree), prompt, node)
    for prompt in range(PROMPTS)
    for tree in range(TREES)
    for node in NODES
]
EACH = TREES * len(NODES)


def pixels_of(subtree: Subtree) -> U8:
    """[LEAVES, 1, 1, 2, 3], unlike those of any other leaf."""
    place = SUBTREES.index(subtree)
    return np.arange(LEAVES * 6, dtype=np.uint8).reshape(LEAVES, 1, 1, 2, 3) + np.uint8(12 * place)


class Place(Scorer):
    """Where a picture stands among those of its call, and how many are darker; all of one
    record."""

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        assert len({id(sample) for sample in samples}) == 1
        assert len(pixels) == EACH * LEAVES
        means = pixels.mean((1, 2, 3, 4))
        darker = (means[:, None] > means).sum(1)
        return {"score": (100 * np.arange(len(means)) + darker).astype(np.float32)}


class Mean(Scorer):
    """No matter what is scored beside."""

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        return {"score": pixels.mean((1, 2, 3, 4)).astype(np.float32)}


@pytest.fixture(scope="module")
def worker() -> RewardWorker:
    rewards = "[{name: jpeg, label: mean}, {name: jpeg, label: place}]"
    found = RewardWorker(quickstart({"rewards": rewards}), (0, 1), 0)
    found.scorers = [("mean", Mean()), ("place", Place())]
    return found


def request(rewards: tuple[int, ...], subtrees: list[Subtree], places: object) -> ScoreRequest:
    samples = [record(f"prompt {index}") for index in range(PROMPTS)]
    return ScoreRequest(
        rewards=rewards,
        subtrees=tuple(subtrees),
        places=tuple(places),  # type: ignore[arg-type]
        samples=tuple(samples[subtree.prompt_index] for subtree in subtrees),
    )


@settings(max_examples=100, deadline=None)
@given(st.permutations(SUBTREES), st.sets(st.integers(1, len(SUBTREES) - 1)))
def test_however_they_are_cut_and_whatever_comes_first(
    worker: RewardWorker, order: list[Subtree], cuts: set[int]
) -> None:
    """Trees of several prompts in one piece, and of one prompt in several: as if all of a prompt
    had been grown at once."""
    groups, seen = WholeGroups(EACH), {}
    for part in np.split(np.arange(len(order)), sorted(cuts)):
        subtrees = tuple(order[index] for index in part)
        media = LeafMedia(np.concatenate([pixels_of(one) for one in subtrees]), subtrees)
        alone = request((0,), list(subtrees), [(0, row) for row in range(len(subtrees))])
        assert worker.score(alone, media).trained[0].tolist() == [
            picture.mean() for one in subtrees for picture in pixels_of(one)
        ]
        for whole, places, parts in groups.add(subtrees, media):
            found = worker.score(request((1,), list(whole), places), *parts)
            assert found.ok.all() and found.parts.keys() == {"place/score"}
            seen[whole[0].prompt_index] = (list(whole), found.trained)
    assert sorted(seen) == list(range(PROMPTS))
    for prompt, (whole, trained) in seen.items():
        rows = slice(EACH * prompt, EACH * (prompt + 1))
        assert whole == SUBTREES[rows]  # by tree, then by node
        # pictures get lighter from one to the next
        assert trained.tolist() == [[101.0 * place for place in range(EACH * LEAVES)]]


def test_all_of_one_media_in_its_order_is_not_copied() -> None:
    media = LeafMedia(np.zeros((4, 1, 2, 2, 3), np.uint8), tuple(SUBTREES[:2]))
    assert chosen_pixels([(0, 0), (0, 1)], [media]) is media.pixels
    assert chosen_pixels([(0, 1), (0, 0)], [media]) is not media.pixels


def test_both_kinds_in_one_request(worker: RewardWorker) -> None:
    subtrees = SUBTREES[:EACH]
    media = LeafMedia(np.concatenate([pixels_of(one) for one in subtrees]), tuple(subtrees))
    places = [(0, row) for row in range(EACH)]
    found = worker.score(request((1, 0), subtrees, places), media)
    apart = [worker.score(request((index,), subtrees, places), media) for index in (1, 0)]
    assert found.parts.keys() == {"mean/score", "place/score"}
    assert np.array_equal(found.trained, np.concatenate([one.trained for one in apart]))
