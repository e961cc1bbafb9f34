"""One real iteration of the paper's full tree by the actors, its work counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.records import records, request_of

from actors.learner import Learner
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from branchgrpo.config import load as configs
from branchgrpo.service import UpdateRequest
from branchgrpo.types import (
    BranchPlan,
    SegmentRequest,
    Subtree,
    TreeKey,
)

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
PROMPT = "the number 38 in black on yellow"


ONE = (Subtree(TreeKey("test", 0, 0, 0), 0, 0),)


def whole(plan: BranchPlan, subtrees: tuple[Subtree, ...]) -> SegmentRequest:
    """Whole trees, with untrained weights."""
    return SegmentRequest(version=0, subtrees=subtrees, start=0, stop=plan.steps)


def test_full_tree_iteration_counts_and_gates() -> None:
    config = configs.load(
        QUICKSTART,
        {
            "method.splits": "[0, 3, 6, 9]",
            "method.stochastic": "all",
            "rollout.threads": "1",
            "reward_workers.threads": "1",
            "learner.threads": "1",
        },
        "branchgrpo",
    )
    rollout, learner = RolloutWorker(config, 0), Learner(config, 0, list)
    rollout.ready(), learner.join(1, "")
    plan = config.method.plan(0, config.schedule())
    subtrees = (Subtree(TreeKey("test", 0, 0, 0), 0, 0),)
    encoded, conditioning = rollout.encode(records([PROMPT]))
    assert encoded.truncated == 0
    header, payload, media = rollout.grow(plan, whole(plan, subtrees), conditioning)
    worker = RewardWorker(config, (0,), 0)
    worker.ready()
    scores = worker.score(request_of([PROMPT]), media)
    assert media.pixels.shape == (16, 1, 32, 32, 3) and scores.ok.all()
    assert header.forwards / 16 == 12.6875  # METHODS: 203 forwards a tree
    before = rollout.fingerprint()

    stats = learner.update(
        UpdateRequest(
            plan=plan,
            iteration=0,
            segments=[(header, payload)],
            conditioning=[conditioning],
            scores={(0, 0): scores.trained},
        )
    )
    assert stats.forwards / 16 <= 11.7  # distinct parents, last step dropped
    assert stats.edges == stats.edges_stochastic == 202  # 218 less the last step's 16
    assert stats.on_policy_deviation <= 1e-5
    _, update, *chunks = learner.publish()
    assert rollout.load_weights(update, *chunks) == update.digest
    assert np.array_equal(rollout.fingerprint(), learner.fingerprint()) and not np.array_equal(
        rollout.fingerprint(), before
    )
    with pytest.raises(RuntimeError, match="asked to grow with weights v0"):
        rollout.grow(plan, whole(plan, subtrees), conditioning)
    with pytest.raises(RuntimeError, match="trees were grown with weights v0"):
        learner.update(
            UpdateRequest(
                plan=plan,
                iteration=1,
                segments=[(header, payload)],
                conditioning=[conditioning],
                scores={(0, 0): scores.trained},
            )
        )
