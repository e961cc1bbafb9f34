"""Rewards that fail: retried, then the prompt's group is dropped or the run ends; never a silent
0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import in_process
from support.records import records, request_of
from support.small_trees import quickstart

from actors.reward import RewardWorker
from branchgrpo.config.schema import Config
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Scorer
from branchgrpo.rewards.ocr import OcrReward
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.service import UpdateRequest
from branchgrpo.types import EVALUATION, F32, U8, LeafMedia, Sample, Subtree, TreeKey

pytestmark = pytest.mark.networks

PROMPTS = [
    "the number 38 in black on yellow",
    "the number 12 in red on white",
    "the number 70 in blue on pink",
]
SMALL = {
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.workers": "1",
    "rollout.threads": "1",
    "learner.threads": "1",
}


class Flaky(Scorer):
    """Does what its script says, one entry an attempt; then scores properly: the number of the
    prompt / 100."""

    reports = ("score", "other")

    def __init__(self, script: list[str], only: str = ""):
        self.script = script
        self.only = only
        self.attempts = 0

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        self.attempts += 1
        prompts = prompts_of(samples)
        values = np.array([float(prompt.split()[2]) / 100 for prompt in prompts], np.float32)
        act = self.script.pop(0) if self.script and self.only in prompts[0] else ""
        if act == "raise":
            raise ConnectionError("no route\nto the scorer")
        if act == "user":
            raise UserError("rewards.flaky: expected a token")
        if act == "short":
            return {"score": values[:-1], "other": values}
        if act == "nothing":
            return {"other": values}
        if act in ("nan", "inf"):
            values[0] = float(act)
        return {"score": values, "other": values}


def worker(scorer: Flaky, **options: str) -> RewardWorker:
    found = RewardWorker(quickstart(SMALL | options), (0,), 0)
    found.scorers = [("flaky", scorer)]
    return found


def media(texts: list[str]) -> LeafMedia:
    trees = tuple(Subtree(TreeKey("test", 0, row, 0), row, 0) for row in range(len(texts)))
    return LeafMedia(np.zeros((4 * len(texts), 1, 8, 8, 3), np.uint8), trees)


@pytest.mark.parametrize("act", ["raise", "nan", "inf", "short", "nothing"])
def test_a_failure_is_retried_and_counted(act: str) -> None:
    scorer = Flaky([act, act])
    found = worker(scorer, **{"reward_workers.retries": "2"}).score(
        request_of(PROMPTS[:1]), media(PROMPTS[:1])
    )
    assert (found.retries, scorer.attempts, found.ok.all()) == (2, 3, True)
    np.testing.assert_allclose(found.trained, np.full((1, 4), 0.38), rtol=1e-6)
    np.testing.assert_allclose(found.parts["flaky/other"], np.full(4, 0.38), rtol=1e-6)


@pytest.mark.parametrize(
    ("act", "ok", "reason"),
    [
        ("raise", 0, "flaky: ConnectionError: no route to the scorer"),
        ("nan", 3, "flaky: 1 of 4 scores are not finite"),
        ("inf", 3, "flaky: 1 of 4 scores are not finite"),
        ("short", 0, "flaky: BadScores: expected 4 scores named score, got (3,)"),
        ("nothing", 0, "flaky: BadScores: expected 4 scores named score, got none"),
    ],
)
def test_what_fails_for_good_says_why_and_is_never_zero(act: str, ok: int, reason: str) -> None:
    found = worker(Flaky([act] * 2)).score(request_of(PROMPTS[:1]), media(PROMPTS[:1]))
    assert (int(found.ok.sum()), found.reason, found.retries) == (ok, reason, 1)
    assert not np.isfinite(found.trained[0][~found.ok]).any()


def test_a_mistake_of_the_user_is_not_retried() -> None:
    scorer = Flaky(["user"])
    with pytest.raises(UserError, match="expected a token"):
        worker(scorer).score(request_of(PROMPTS[:1]), media(PROMPTS[:1]))
    assert scorer.attempts == 1


def service(script: list[str], **options: str) -> tuple[Config, in_process.Service]:
    """Everything in one process, with one tree of each prompt; the reward fails for the prompt of
    12 alone."""
    config = quickstart(SMALL | {"rollout.tasks_per_worker": "3"} | options)
    made = in_process.Service(config)
    for one in made.reward_pools[0].workers:
        one.scorers = [("ocr", Flaky(script, "12"))]
    return config, made


def grow(config: Config, made: Any, iteration: int = 0) -> RolloutBatch:
    plan = config.method.plan(0, config.schedule())
    return RolloutCollector(config, made, "test").collect(
        plan, iteration=iteration, version=0, prompts=[0, 1, 2], samples=records(PROMPTS), trees=1
    )


DROP = {"reward_workers.on_failure": "drop_group", "reward_workers.retries": "0"}


def test_a_dropped_group_leaves_the_others_as_they_are() -> None:
    config, made = service(["raise"], **DROP)
    batch = grow(config, made)
    assert (
        sorted(batch.rewards)
        == sorted(batch.scores)
        == sorted(batch.parts["ocr/score"])
        == [(0, 0), (2, 0)]
    )
    assert batch.dropped == {1: "ocr: ConnectionError: no route to the scorer"}
    plan = config.method.plan(0, config.schedule())
    draw = np.random.default_rng(1)
    scores = {key: draw.normal(size=(1, 4)).astype(np.float32) for key in batch.scores}
    request = UpdateRequest(
        plan=plan,
        iteration=0,
        segments=batch.segments,
        conditioning=batch.conditioning,
        scores=scores,
    )
    stats = made.learners.start_update(request, 1.0).result()
    config, whole = service([], **DROP)
    both = grow(config, whole)
    assert not both.dropped
    kept = [
        (header, payload)
        for header, payload in both.segments
        if header.subtrees[0].prompt_index != 1
    ]
    assert len(kept) == 2
    request = UpdateRequest(
        plan=plan,
        iteration=0,
        segments=kept,
        conditioning=both.conditioning,
        scores=scores,
    )
    other = whole.learners.start_update(request, 1.0).result()
    assert (
        stats.edges == other.edges > 0
        and stats.loss == other.loss
        and stats.gradient_norm == other.gradient_norm
    )


def test_without_leave_to_drop_the_run_ends_and_says_why() -> None:
    config, made = service(["raise"], **{"reward_workers.retries": "0"})
    with pytest.raises(
        RuntimeError,
        match="4 of 4 leaves have no reward: ocr: ConnectionError: no route to the scorer",
    ):
        grow(config, made)


def test_a_held_out_check_drops_nothing() -> None:
    config, made = service(["nan"], **DROP)
    with pytest.raises(RuntimeError, match="1 of 4 leaves have no reward"):
        grow(config, made, EVALUATION)


def test_no_group_left_is_an_error() -> None:
    config, made = service(["nan"] * 9, **DROP)
    for one in made.reward_pools[0].workers:
        one.scorers[0][1].only = ""
    with pytest.raises(RuntimeError, match="all 3 prompt groups were dropped: ocr: 1 of 4"):
        grow(config, made)


def test_rewards_of_other_environments_have_their_own_workers() -> None:
    ocr = "{name: ocr, target: 'number (\\d+)'}"
    jpeg = "{name: jpeg, label: LABEL, runtime_env: {env_vars: {A: VALUE}}}"
    both = ", ".join(
        [
            ocr,
            *(
                jpeg.replace("LABEL", label).replace("VALUE", value)
                for label, value in (("one", "'1'"), ("two", "'2'"), ("three", "'1'"))
            ),
        ]
    )
    config = quickstart(SMALL | {"rewards": f"[{both}]"})
    assert config.reward_groups == [(0,), (1, 3), (2,)]
    made = in_process.Service(config)
    batch = grow(config, made)
    assert set(batch.parts) == {
        "ocr/exact",
        "ocr/edit",
        "ocr/likelihood",
        "one/score",
        "two/score",
        "three/score",
    }
    for key, values in batch.scores.items():
        assert (
            np.isfinite(values).all()
            and np.array_equal(values[1], values[2])
            and np.array_equal(values[1], values[3])
        )
        assert np.array_equal(values[0], batch.parts["ocr/likelihood"][key])
        np.testing.assert_allclose(batch.rewards[key], values.sum(0), rtol=1e-6)


def test_the_same_reward_twice_needs_labels() -> None:
    with pytest.raises(UserError, match="different labels"):
        quickstart(
            SMALL
            | {
                "rewards": (
                    "[{name: ocr, target: 'number (\\d+)'}, {name: ocr, target: 'number (\\d+)'}]"
                )
            }
        )
    assert OcrReward(label="digits").title == "digits" and OcrReward().title == "ocr"
