"""When held-out checks warn of reward hacking, and figures that end a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ledger
from support.ledger import Ledger
from support.quiet_display import Quiet
from support.small_trees import quickstart
from support.training import Memory, run_of
from test_checks import SMALL, clock, trained

from branchgrpo.config import conditions
from branchgrpo.training import alarms, loop
from branchgrpo.training.hooks import VelocityNorm
from branchgrpo.training.state import TrainState
from branchgrpo.types import F32

__all__ = ["clock"]  # a fixture

GOLD = ["colour/score", "colour/ink"]


def scores(*values: float) -> F32:
    return np.array(values, np.float32)


def test_the_change_of_a_score_is_paired() -> None:
    found = alarms.change("score", scores(1, 2, 4, 9), scores(2, 4, 8))
    assert found.mean == pytest.approx(7 / 3)
    assert found.error == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 6))
    assert str(found) == "score +2.33 ± 0.88"


@pytest.mark.parametrize(
    ("total", "score", "fell"),
    [
        ((1, 1, 1, 1), (0, 0, 0, 0), []),  # nothing fell
        ((1, 1, 1, 1), (-1, -1, -1, -1), ["colour/score"]),
        ((0, 0, 0, 0), (-1, -1, -1, -1), []),  # nothing rose
        ((-1, -1, -1, -1), (-1, -1, -1, -1), []),  # all is worse: no hacking
        ((1, 1, 1, 1), (1, 1, 1, 1), []),
        # means ± 0.5 with an error of 0.289: 1.73 of them
        ((0, 0, 1, 1), (-1, -1, -1, -1), []),
        ((1, 1, 1, 1), (0, 0, -1, -1), []),
    ],
)
def test_what_is_measured_falls_while_the_reward_rises(
    total: tuple[float, ...], score: tuple[float, ...], fell: list[str]
) -> None:
    before = {"total": scores(5, 6, 7, 8), GOLD[0]: scores(3, 3, 2, 2), GOLD[1]: scores(0, 0, 0, 0)}
    now = {
        "total": before["total"] + scores(*total),
        GOLD[0]: before[GOLD[0]] + scores(*score),
        GOLD[1]: before[GOLD[1]],
    }
    _, found = alarms.hacked(before, now, GOLD, 2.0)
    assert [one.score for one in found] == fell


def test_half_as_many_errors_are_enough_where_they_are_asked_for() -> None:
    before = {name: scores(0, 0, 0, 0) for name in ("total", GOLD[0])}
    now = {"total": scores(1, 1, 1, 1), GOLD[0]: scores(0, 0, -1, -1)}
    assert alarms.hacked(before, now, GOLD[:1], 1.7)[1]
    assert not alarms.hacked(before, now, GOLD[:1], 1.8)[1]


class Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_run_says_it_once_and_logs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quickstart(SMALL | {"evaluation.rewards": "[{name: colour}]"})
    run = run_of(config, Ledger(config), tmp_path, log=Memory())
    told = Notes()
    monkeypatch.setattr(run.display, "note", told.note, raising=False)
    low, high = scores(0, 0.1, 0, 0.1), scores(0.9, 1, 1, 1)
    run.before = {"total": low, **dict.fromkeys(("colour/score", "colour/ink"), high)}
    # colour/ground is not known of before
    hacked = {"total": high, "colour/score": low, "colour/ink": high, "colour/ground": low}
    assert run.hacking(hacked) == {"alarm/hacking": 1.0}
    assert run.hacking(hacked) == {"alarm/hacking": 1.0}
    assert run.hacked == ("colour/score",)
    assert run.hacking(run.before) == {"alarm/hacking": 0.0} and not run.hacked
    (line,) = told.said
    assert "reward hacking" in line and "total +0.925" in line and "colour/score -0.925" in line


@pytest.mark.parametrize(
    "keys", [{"evaluation.rewards": "[]"}, {"evaluation.alarm": "0"}], ids=["none", "off"]
)
def test_without_measured_rewards_there_is_no_figure(tmp_path: Path, keys: dict[str, str]) -> None:
    config = quickstart(SMALL | {"evaluation.rewards": "[{name: colour}]"} | keys)
    run = run_of(config, Ledger(config), tmp_path, log=Memory())
    run.before = {"total": scores(0, 0), "colour/score": scores(1, 1)}
    assert run.hacking({"total": scores(1, 1), "colour/score": scores(0, 0)}) == {}


@pytest.mark.parametrize(
    ("condition", "ended"),
    [
        ("update/version >= 3", 3),
        (" update/version>2 ", 3),
        ("held_out/total > -1", 2),  # seen at the first check
        ("held_out/none > -1", 0),
        ("update/version < 0", 0),
        ("update/version <= 1", 1),
    ],
)
def test_a_figure_ends_training(tmp_path: Path, condition: str, ended: int) -> None:
    keys = {"run__stop_when": f"['{condition}', 'reward/total < -9']", "evaluation__every": "2"}
    state, log = trained(tmp_path, **keys)
    if not ended:
        assert (state.stopped_by, state.iteration) == ("iterations", 5)
        return
    assert (state.stopped_by, state.iteration) == (f"stop_when: {condition.strip()}", ended)
    assert state.complete and log.records[-1]["iteration"] == ended


def test_a_driver_that_died_before_the_summary_trains_no_more(tmp_path: Path) -> None:
    loaded = quickstart(SMALL | {"run.stop_when": "[update/version >= 3]", "checkpoint.every": "9"})
    first = loop.train(run_of(loaded, Ledger(loaded), tmp_path))
    assert (first.iteration, first.stopped_by) == (3, "stop_when: update/version >= 3")
    again = loop.train(run_of(loaded, Ledger(loaded), tmp_path, resumed=True))
    assert (again.iteration, again.stopped_by, again.complete) == (3, first.stopped_by, True)
    # what no longer ends it does not, and whoever begins a new run there wants to train
    other = quickstart(SMALL | {"run.stop_when": "[update/version >= 4]", "checkpoint.every": "9"})
    assert loop.train(run_of(other, Ledger(other), tmp_path, resumed=True)).iteration == 4
    new = quickstart(SMALL | {"run.stop_when": "[update/version >= 4]", "checkpoint.every": "9"})
    assert loop.train(run_of(new, Ledger(new), tmp_path, origin=str(tmp_path))).iteration == 5


@pytest.mark.parametrize(("minutes", "ended"), [(0.1, 2), (0.2, 4)])
def test_time_that_was_over_is_over(
    tmp_path: Path, clock: None, minutes: float, ended: int
) -> None:
    del clock  # three seconds an iteration
    keys = SMALL | {"checkpoint.every": "9"}
    loaded = quickstart(keys | {"run.max_minutes": "0.1", "run.iterations": "99"})
    first = loop.train(run_of(loaded, Ledger(loaded), tmp_path))
    assert first.stopped_by == "max_minutes"
    loaded = quickstart(keys | {"run.max_minutes": str(minutes), "run.iterations": "99"})
    again = loop.train(run_of(loaded, Ledger(loaded), tmp_path, resumed=True))
    assert again.stopped_by == "max_minutes"
    assert again.iteration - first.iteration == ended - 2


def test_a_norm_that_moved_is_said_once_and_logged(tmp_path: Path) -> None:
    config, display = quickstart(SMALL), Quiet()
    run = run_of(config, Ledger(config), tmp_path, log=Memory(), display=display)
    hook, state = VelocityNorm(), TrainState()
    assert not hook.due(run, state)  # it was not measured
    for ratio, figure in ((1.149, 0.0), (0.851, 0.0), (1.151, 1.0), (1.3, 1.0), (1.0, 0.0)):
        state.record = {"update/velocity_norm": ratio}
        assert hook.due(run, state)
        hook(run, state)
        assert state.record["alarm/norm"] == figure and run.inflated is bool(figure)
    (line,) = display.notes
    assert "norm is 1.15 times" in line and "more than 0.15 away" in line and "\n" not in line
    for ratio in (0.849, math.nan, math.inf):
        assert alarms.inflated(ratio, 0.15)
    off = quickstart(SMALL | {"evaluation.norm_alarm": "0"})
    assert not hook.due(run_of(off, Ledger(off), tmp_path, log=Memory()), state)


def test_a_norm_that_moved_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ledger.stats
    monkeypatch.setattr(
        ledger, "stats", lambda version: replace(plain(version), velocity_norm=1 + version / 16)
    )
    state, log = trained(tmp_path, run__stop_when="['alarm/norm > 0']")
    assert (state.stopped_by, state.iteration) == ("stop_when: alarm/norm > 0", 3)
    assert [one["alarm/norm"] for one in log.updates] == [0.0, 0.0, 1.0]
    assert log.updates[0]["update/velocity_norm"] == 1 + 1 / 16


@pytest.mark.parametrize(
    "condition", ["update/loss", "a b < 3", "loss < much", "loss = 3", "loss > nan", "< 3", ""]
)
def test_what_is_no_condition(condition: str) -> None:
    with pytest.raises(ValueError, match="expected FIGURE < VALUE") as caught:
        conditions.parsed(condition)
    assert repr(condition) in str(caught.value) and "\n" not in str(caught.value)


def test_conditions_are_checked_with_the_config() -> None:
    from branchgrpo.errors import UserError

    with pytest.raises(UserError, match=r"run\.stop_when.*expected FIGURE < VALUE"):
        quickstart({"run.stop_when": "[loss]"})


def test_figures_that_are_not_numbers_meet_no_condition() -> None:
    record: dict[str, Any] = {"update/loss": float("nan")}
    assert conditions.met(("update/loss < 1", "update/loss >= 1"), record) == ""
