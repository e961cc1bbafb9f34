"""Who grows trees: `cluster.layout` beside the number of rollout workers."""

from __future__ import annotations

import pytest
from support.small_trees import quickstart

from branchgrpo.app.roles import begun, without_learners
from branchgrpo.errors import UserError

ALONE = {"cluster.layout": "shared", "rollout.workers": "0"}


def test_ranks_may_grow_alone_when_they_share() -> None:
    loaded = quickstart(ALONE | {"learner.ranks": "2", "rollout.min_workers": "3"})
    assert (loaded.rollout.least, loaded.rollout.begun) == (0, 0)
    assert {role: count for role, (_, count) in begun(loaded).items()} == {
        "rollout": 0,
        "reward": 1,
        "learner": 2,
    }


def test_auto_begins_with_the_fewest() -> None:
    loaded = quickstart({"rollout.workers": "auto", "rollout.min_workers": "3"})
    assert (loaded.rollout.least, loaded.rollout.begun) == (3, 3)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"rollout.workers": "0"},
            "rollout.workers: expected at least 1 with cluster.layout: separate, got 0",
        ),
        (
            {"rollout.workers": "auto", "rollout.min_workers": "0"},
            "rollout.min_workers: expected at least 1 with cluster.layout: separate, got 0",
        ),
        (
            ALONE | {"async.max_staleness": "1"},
            "rollout.workers: expected at least 1 with async.max_staleness above 0, since learner "
            "ranks grow nothing during an update, got 0",
        ),
        (
            {"learner.shard": "2", "learner.ranks": "2"},
            "learner.shard: expected 0 with learner.parallel ddp, got 2",
        ),
        (
            {"learner.shard": "4", "learner.ranks": "6", "learner.parallel": "fsdp"},
            "learner.shard: expected a number that divides learner.ranks, 6, got 4",
        ),
    ],
    ids=["none", "auto from none", "none and async", "shards of ddp", "uneven shards"],
)
def test_layouts_that_cannot_be(options: dict[str, str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        quickstart(options)
    assert line in str(caught.value)


def test_without_learners_workers_take_the_ranks_place() -> None:
    loaded = without_learners(
        quickstart(
            ALONE
            | {
                "learner.ranks": "2",
                "learner.gpus": "1",
                "learner.cpus": "3",
                "learner.threads": "5",
                "learner.resource": "cards",
            }
        )
    )
    rollout = loaded.rollout
    assert (rollout.begun, rollout.device, rollout.gpus, rollout.cpus) == (2, "cuda", 1.0, 3.0)
    assert (rollout.compute_threads, rollout.resource, rollout.prompts) == (5, "cards", 4)
    # others are as they are
    plain = quickstart({"learner.gpus": "1"})
    assert without_learners(plain) is plain
