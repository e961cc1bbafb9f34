"""What is looked at of the trees that an iteration trained on."""

from __future__ import annotations

import numpy as np
import pytest
from support.in_process import Pool
from support.small_trees import plan_of, quickstart

from actors.pools import Rollouts
from actors.rollout import RolloutWorker
from branchgrpo.algo.tree import topology
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.training import look
from branchgrpo.types import LeafMedia, Sample, SegmentHeader, Subtree, TreeKey

PLAN = plan_of(2, 2, 1)
"""Seven nodes above four leaves; random are the first two steps."""
SAMPLES = [Sample(prompt=f"prompt {row}") for row in range(3)]


def batch_of(rewards: dict[tuple[int, int], list[float]]) -> RolloutBatch:
    """Whole trees of these leaf rewards; a leaf's picture has the colour 100·row + 10·tree +
    leaf."""
    subtrees = [Subtree(TreeKey("test", 0, row, tree), row, 0) for row, tree in rewards]
    edges = int(topology(PLAN).stochastic.sum())
    table = {key: np.array(values, np.float32) for key, values in rewards.items()}
    batch = RolloutBatch(
        scores={key: values[None] for key, values in table.items()},
        rewards=table,
        parts={"ocr/exact": {key: 2 * values for key, values in table.items()}},
    )
    for half in filter(None, (subtrees[::2], subtrees[1::2])):
        header = SegmentHeader(
            subtrees=tuple(half),
            start=0,
            stop=PLAN.steps,
            policy_version=0,
            log_prob=np.zeros((len(half), edges), np.float32),
            forwards=0,
            payload_bytes=0,
        )
        batch.segments.append((header, None))
        colours = [
            100 * one.prompt_index + 10 * one.key.tree + leaf for one in half for leaf in range(4)
        ]
        pixels = np.broadcast_to(
            np.array(colours, np.uint8)[:, None, None, None, None], (len(colours), 9, 2, 2, 3)
        )
        batch.media.append((tuple(half), LeafMedia(pixels, tuple(half))))
    return batch


BATCH = batch_of(
    {
        (0, 0): [0.9, 0.8, 0.7, 0.1],
        (0, 1): [0.6, 0.5, 0.95, 0.0],
        (1, 0): [0.2, 0.2, 0.2, 0.2],
        (2, 0): [0.3, 0.4, 0.3, 0.3],
    }
)


def test_the_best_and_worst_are_of_as_many_prompts_as_possible() -> None:
    best, worst = look.best_and_worst(BATCH)
    assert best == [(0, 1, 2), (0, 0, 0), (2, 0, 1), (1, 0, 0)]
    # the later one of those that are equal
    assert worst == [(0, 1, 3), (0, 0, 3), (1, 0, 3), (2, 0, 3)]
    few = batch_of({(0, 0): [0.5, 0.1, 0.2, 0.3]})
    assert look.best_and_worst(few) == ([(0, 0, 0), (0, 0, 3)], [(0, 0, 1), (0, 0, 2)])


def test_leaves_are_shown_with_their_own_pictures() -> None:
    worker = RolloutWorker(quickstart(KEYS), 0)  # cuts them out; needs no model for that
    best, worst = look.best_and_worst(BATCH)
    pixels = look.pictures(Rollouts(Pool([worker])), PLAN, BATCH, [*best, *worst])
    assert pixels.shape == (8, 4, 2, 2, 3)  # of videos four frames
    assert pixels[:, 0, 0, 0, 0].tolist() == [12, 0, 201, 100, 13, 3, 103, 203]
    assert look.lines(BATCH, SAMPLES, best)[2] == {
        "prompt": "prompt 2",
        "prompt_index": 2,
        "tree": 0,
        "leaf": 1,
        "reward": pytest.approx(0.4),
        "parts": {"ocr/exact": pytest.approx(0.8)},
    }


KEYS = {
    "rewards": "[{name: jpeg}]",
    "advantage": "{name: group, std: group, unbiased: true}",
    "pruning": "[]",
}
SPREAD = np.sqrt((4 + 1 + 0 + 9) / 3)
"""Unbiased, of the leaves 0, 1, 2 and 5, whose mean is 2."""


def test_advantages_are_told_by_depth() -> None:
    """Of a loss on edges: an edge earns the mean of the leaves below it."""
    credit = quickstart(KEYS | {"loss": "{name: clipped}"}).credit
    found = look.magnitudes(PLAN, batch_of({(0, 0): [0, 1, 2, 5]}), credit, 0)
    assert [*found] == [0, 1]
    assert found[0] == pytest.approx(np.array([1.5, 1.5]) / SPREAD, rel=1e-4)
    assert found[1] == pytest.approx(np.array([2, 1, 0, 3]) / SPREAD, rel=1e-4)


def test_an_iteration_is_told_as_histograms() -> None:
    credit = quickstart(KEYS | {"loss": "{name: clipped}"}).credit
    found = look.magnitudes(PLAN, BATCH, credit, 0)
    values, line = look.of_batch(PLAN, BATCH, credit, 0)
    assert values.keys() == {"reward/leaves", "advantage/depth0", "advantage/depth1"}
    assert line["flat_groups"] == pytest.approx(1 / 3)
    assert sum(line["rewards"]["counts"]) == 16
    assert [one["step"] for one in line["advantage"]] == [*found]
    for one, magnitudes in zip(line["advantage"], found.values(), strict=True):
        assert sum(one["counts"]) == len(magnitudes) and one["edges"][0] == 0
        # all leaves of prompt 1 are equal
        assert (magnitudes >= 0).all() and (magnitudes == 0).sum() >= 2


def test_a_loss_on_leaves_has_one_depth() -> None:
    """The z-score of each leaf among its prompt's, by hand."""
    credit = quickstart(KEYS | {"loss": "{name: nft}"}).credit
    found = look.magnitudes(PLAN, batch_of({(0, 0): [0, 1, 2, 5]}), credit, 0)
    assert [*found] == [PLAN.steps - 1]
    assert found[PLAN.steps - 1] == pytest.approx(np.array([2, 1, 0, 3]) / SPREAD, rel=1e-4)
