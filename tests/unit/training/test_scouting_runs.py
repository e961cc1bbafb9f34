"""Runs with scouts: cut off and gone on with, in the shared layout, and ahead of updates."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.in_process import Service
from support.small_loop import SMALL, weights
from support.small_trees import quickstart
from support.training import Memory, run_of

from branchgrpo.config.schema import Config
from branchgrpo.training.loop import train

pytestmark = pytest.mark.networks


def config(**options: str) -> Config:
    small = {key: value for key, value in SMALL.items() if not key.startswith("method.")}
    method = {
        "method": "{name: chains, chains: 2, root: private, stochastic: none, scouts: 5}",
        "loss": "{name: awm}",
        "advantage": "{name: group}",
        "rewards": "[{name: jpeg}]",
        "sampling.steps": "3",
        "evaluation.prompts": "2",
        "evaluation.steps": "2",
    }
    return quickstart(small | method | options)


def told(log: Memory) -> list[dict[str, float]]:
    """All but times; nothing is compared that is not a number."""
    return [
        {
            name: value
            for name, value in one.items()
            if not name.startswith(("time/", "service/", "checkpoint/")) and value == value
        }
        for one in log.updates
    ]


@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_a_run_with_scouts_that_was_cut_off_comes_out_the_same(layout: str, tmp_path: Path) -> None:
    keys = {"cluster.layout": layout} | ({"rollout.workers": "0"} if layout == "shared" else {})
    loaded = config(**keys)
    whole, record = Service(loaded), Memory()
    train(run_of(loaded, whole, tmp_path / "whole", log=record))
    first, second, halves = Memory(), Memory(), iter([False, True])
    train(
        run_of(
            loaded,
            Service(loaded),
            tmp_path / "cut",
            log=first,
            interrupted=lambda: next(halves),
        )
    )
    again = Service(loaded)
    train(run_of(loaded, again, tmp_path / "cut", log=second, resumed=True))
    assert len(told(first)) == len(told(second)) == 2
    assert told(first) + told(second) == told(record)
    assert weights(again) == weights(whole)
    for one in record.updates:  # two prompts: five scouts of a step, two chains of three
        assert one["tree/scout_forwards"] == 2 * 5 and one["tree/forwards"] == 2 * (5 + 2 * 3)
        assert one["tree/trees"] == one["tree/leaves"] == 4 and -1 <= one["scout/agreement"] <= 1
        assert {"scout/total", "time/scout"} <= one.keys()


def test_scouts_go_ahead_of_the_update(tmp_path: Path) -> None:
    """The same candidates and choices at the first iteration, which has the same weights."""
    logs = {}
    for staleness in (0, 1):
        loaded, logs[staleness] = config(**{"async.max_staleness": str(staleness)}), Memory()
        train(run_of(loaded, Service(loaded), tmp_path / str(staleness), log=logs[staleness]))
    fresh, ahead = logs[0].updates, logs[1].updates
    assert [one["tree/staleness"] for one in ahead] == [0, 1, 1, 1]
    assert all(one["tree/scout_forwards"] == 10 for one in ahead)
    for name in ("scout/total", "scout/agreement", "reward/total"):
        assert fresh[0][name] == ahead[0][name]
    assert [one["scout/total"] for one in fresh[2:]] != [one["scout/total"] for one in ahead[2:]]
