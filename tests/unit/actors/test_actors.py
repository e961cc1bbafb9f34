"""The actors without a cluster: one real iteration of the paper's full tree, its work counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.records import records
from support.small_trees import METHOD

from actors.learner import Learner
from actors.rollout import RolloutWorker
from branchgrpo.config import load as configs
from branchgrpo.errors import GateError
from branchgrpo.service import UpdateRequest
from branchgrpo.types import (
    BranchPlan,
    SegmentRequest,
    Subtree,
    TreeKey,
)

pytestmark = pytest.mark.networks

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
PROMPT = "the number 38 in black on yellow"


ONE = (Subtree(TreeKey("test", 0, 0, 0), 0, 0),)


def whole(plan: BranchPlan, subtrees: tuple[Subtree, ...]) -> SegmentRequest:
    """Whole trees, with untrained weights."""
    return SegmentRequest(version=0, subtrees=subtrees, start=0, stop=plan.steps)


@pytest.mark.parametrize("damage", ["flipped bit", "other names", "missing chunk"])
def test_a_worker_with_damaged_weights_refuses_to_grow(damage: str) -> None:
    config = configs.load(QUICKSTART, {"learner.threads": "1"}, METHOD)
    rollout, learner = RolloutWorker(config, 0), Learner(config, 0, list)
    rollout.ready(), learner.join(1, "")
    learner.version = 1
    plan = config.method.plan(0, config.schedule())
    _, conditioning = rollout.encode(records([PROMPT]))
    first = SegmentRequest(version=1, subtrees=ONE, start=0, stop=1)
    _, update, *chunks = learner.publish()
    wrong, bad = update, [[part.copy() for part in chunk] for chunk in chunks]
    if damage == "flipped bit":
        bad[-1][-1][-1] ^= 1
    elif damage == "other names":
        wrong = replace(update, names=(*update.names[:-1], "other"))
    else:
        bad.pop()
    with pytest.raises(ValueError, match="weights"):
        rollout.load_weights(wrong, *bad)
    for version in (0, 1):
        with pytest.raises(RuntimeError, match="asked to grow"):
            rollout.grow(plan, replace(first, version=version), conditioning)
    assert rollout.load_weights(update, *chunks) == update.digest
    assert rollout.grow(plan, first, conditioning)[0].policy_version == 1


def test_on_policy_gate_sees_a_wrong_log_prob() -> None:
    config = configs.load(QUICKSTART, {"learner.threads": "1"}, METHOD)
    rollout, learner = RolloutWorker(config, 0), Learner(config, 0, list)
    rollout.ready(), learner.join(1, "")
    plan = config.method.plan(0, config.schedule())
    _, conditioning = rollout.encode(records([PROMPT]))
    header, payload, _ = rollout.grow(plan, whole(plan, ONE), conditioning)
    header.log_prob[0, 3] += 1e-3
    with pytest.raises(GateError, match="on-policy ratio"):
        learner.update(
            UpdateRequest(
                plan=plan,
                iteration=0,
                segments=[(header, payload)],
                conditioning=[conditioning],
                scores={(0, 0): np.linspace(0, 1, 16, dtype=np.float32)[None]},
            )
        )
