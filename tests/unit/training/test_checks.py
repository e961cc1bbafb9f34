"""When held-out checks are made, and when training ends: the loop on a ledger in place of a
model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.ledger import Ledger, Rollouts, Tasks
from support.small_trees import quickstart
from support.training import Memory, run_of

from branchgrpo.training import loop
from branchgrpo.training.state import TrainState
from branchgrpo.types import (
    EVALUATION,
    Sample,
    SegmentRequest,
)

SMALL = {
    "run.iterations": "5",
    "sampling.steps": "4",
    "method.splits": "[0]",
    "method.leaves": "2",
    "rollout.workers": "1",
    "rollout.prompts": "1",
    "evaluation.prompts": "4",
    "evaluation.prompts_between": "2",
    "evaluation.every": "0",
    "evaluation.steps": "2",
    "evaluation.diversity": "0",
    "checkpoint.every": "0",
}


def trained(
    folder: Path, interrupted: Callable[[], bool] = lambda: False, **keys: str
) -> tuple[TrainState, Memory]:
    """A whole run, with its untrained model measured; keys have __ for dots."""
    config = quickstart(SMALL | {key.replace("__", "."): value for key, value in keys.items()})
    log = Memory()
    run = run_of(config, Ledger(config), folder, log=log, before=None, interrupted=interrupted)
    return loop.train(run), log


def checks(log: Memory) -> list[float]:
    """Iterations of the records that hold a held-out score."""
    return [record["iteration"] for record in log.records if "held_out/total" in record]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever the loop looks: every iteration takes 3 s (it looks at both ends
    and twice between)."""
    ticks = count()
    monkeypatch.setattr(loop, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.parametrize(("every", "expected"), [("0", [0, 5]), ("2", [0, 2, 4, 5]), ("5", [0, 5])])
def test_checks_by_iterations(tmp_path: Path, every: str, expected: list[int]) -> None:
    assert checks(trained(tmp_path, evaluation__every=every)[1]) == expected


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [("0", [0, 5]), ("6", [0, 2, 4, 5]), ("7", [0, 3, 5]), ("0.1", [0, 1, 2, 3, 4, 5])],
)
def test_checks_by_seconds(tmp_path: Path, seconds: str, expected: list[int]) -> None:
    # iterations end at 3, 6, 9, 12, 15 s
    assert checks(trained(tmp_path, evaluation__every_seconds=seconds)[1]) == expected


@pytest.mark.usefixtures("clock")
def test_without_iterations_the_time_limit_ends_training(tmp_path: Path) -> None:
    keys = {"run__iterations": "0", "learner__schedule": "constant"}
    state, log = trained(tmp_path, run__max_minutes="0.125", **keys)  # 7.5 s: 3 iterations of 3 s
    assert (state.stopped_by, state.iteration) == ("max_minutes", 3)
    assert log.records[-1]["time/training"] == 9.0
    assert checks(log) == [0, 3]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("ending", ["max_minutes", "interrupted"])
def test_the_last_iteration_is_checked_once(tmp_path: Path, ending: str) -> None:
    """A check on the way that falls on the end is left to the check after training, however
    training ends."""
    asked = count(1)
    keys = {
        "max_minutes": {
            "run__iterations": "0",
            "run__max_minutes": "0.08",
            "learner__schedule": "constant",
        },
        "interrupted": {"run__iterations": "9"},
    }[ending]  # 4.8 s: 2 iterations of 3 s
    state, log = trained(
        tmp_path,
        lambda: ending == "interrupted" and next(asked) == 2,
        evaluation__every="1",
        **keys,
    )
    assert (state.stopped_by, state.iteration) == (ending, 2)
    assert checks(log) == [0, 1, 2]


def test_checks_on_the_way_see_no_other_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the curve would begin and end with other prompts than it has between."""
    grown: list[int] = []
    grow = Rollouts.grow

    def spy(self: Rollouts, tasks: Tasks, plan: Any, request: SegmentRequest, **rest: Any) -> None:
        if request.subtrees[0].key.iteration == EVALUATION:
            grown.append(len(request.prompts))
        grow(self, tasks, plan, request, **rest)

    monkeypatch.setattr(Rollouts, "grow", spy)
    keys = {"run__iterations": "2", "rollout__prompts": "2", "evaluation__every": "1"}
    trained(tmp_path, evaluation__prompts_between="9", **keys)
    assert grown == [4, 4, 4]  # before, after iteration 1, after iteration 2


@pytest.mark.parametrize(
    ("kept_mb", "expected"),
    [
        # before (in batches of 3), iteration 1, and while it is trained on, those of iteration 2
        ("1", [3, 1, 2, 2]),
        # the same, and each check again
        ("0", [3, 1, 2, 2, 2, 3, 1]),
    ],
)
def test_prompts_are_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_mb: str, expected: list[int]
) -> None:
    """Those of an iteration while the one before it is trained on, and of none after the last;
    those of checks for all checks, where they may be kept."""
    encoded: list[int] = []
    encode = Rollouts.encode

    def spy(
        self: Rollouts, tasks: Tasks, samples: list[Sample], then: Any, evaluated: bool
    ) -> None:
        encoded.append(len(samples))
        encode(self, tasks, samples, then, evaluated)

    monkeypatch.setattr(Rollouts, "encode", spy)
    keys = {"run__iterations": "2", "rollout__prompts": "2", "evaluation__every": "1"}
    keys |= {"rollout__encode_batch": "3", "evaluation__kept_mb": kept_mb}
    trained(tmp_path, **keys)
    assert encoded == expected
