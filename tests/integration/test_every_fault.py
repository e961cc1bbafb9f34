"""Every call of the service that can fail, fails: before and after it took effect, in each
iteration, with and without the learners. The run must come out as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.ledger import Fault, Ledger
from support.small_trees import quickstart
from support.training import Memory, run_of

from branchgrpo.config.schema import Config
from branchgrpo.training.loop import train

SMALL = {
    "run.iterations": "4",
    "sampling.steps": "4",
    "method.splits": "[0]",
    "method.leaves": "2",
    "rollout.workers": "1",
    "rollout.prompts": "2",
    "rollout.encode_batch": "3",
    "evaluation.prompts": "4",
    "evaluation.every": "2",
    "evaluation.steps": "2",
    "evaluation.diversity": "2",
    "evaluation.weights": "ema",
    "evaluation.pictures": "2",
    "learner.ema": "0.5",
    "checkpoint.every": "3",
    "checkpoint.every_minutes": "0",
}


@dataclass
class Course:
    """All that must not depend on what failed."""

    weights: str
    exported: str
    rewards: list[tuple[float, float]]
    held_out: list[float]
    recoveries: int = field(compare=False)
    calls: dict[str, int] = field(compare=False)
    records: list[dict[str, float]] = field(compare=False)


def run(config: Config, folder: Path, *script: Fault, slow_storage: bool = False) -> Course:
    """A whole run."""
    service, log = Ledger(config, *script, slow_storage=slow_storage), Memory()
    made = run_of(config, service, folder, log=log, weights=folder / "weights", before=None)
    state = train(made)
    assert not service.script, f"{service.script} did not fail"
    assert made.before is not None
    return Course(
        weights=service.learners.weights,
        exported=service.learners.exported,
        rewards=[(one["iteration"], one.get("reward/total", 0.0)) for one in log.records],
        held_out=[float(scores["total"].mean()) for scores in (made.before, made.after)],
        recoveries=state.recoveries,
        calls=dict(service.calls),
        records=log.records,
    )


def everywhere(whole: Course) -> list[Fault]:
    """A fault for each call of a run, of each kind."""
    return [
        Fault(call, at, after, gone)
        for call, count in whole.calls.items()
        for at in range(1, count + 1)
        for after in (False, True)
        for gone in (False, True)
    ]


def test_a_run_comes_out_the_same_whatever_fails(tmp_path: Path) -> None:
    config = quickstart(SMALL)
    whole = run(config, tmp_path / "whole")
    kinds = set(whole.calls)
    assert kinds >= {"grow", "score", "start update", "update", "publish policy", "publish ema"}
    assert kinds >= {"checkpoint", "regroup", "export", "pixels", "fingerprints", "fingerprint"}
    assert kinds >= {"encode", "follow", "some"}
    faults = everywhere(whole)
    assert len(faults) > 150
    for index, fault in enumerate(faults):
        found = run(config, tmp_path / str(index), fault)
        assert found.recoveries == 1, fault
        assert found == whole, fault


@pytest.mark.parametrize("every", ["1", "3"])
def test_also_while_checkpoints_are_written(tmp_path: Path, every: str) -> None:
    """Each is there only after the next iteration or the one after that; with one an iteration,
    storage is slower than the interval."""
    config = quickstart(SMALL | {"checkpoint.every": every})
    whole = run(config, tmp_path / "whole", slow_storage=True)
    assert whole == run(config, tmp_path / "at once")
    saved = [row.get("checkpoint/iteration", 0.0) for row in whole.records]
    assert whole.calls["checkpointed"] >= 2 and saved[3] < 3.0
    for index, fault in enumerate(everywhere(whole)):
        found = run(config, tmp_path / str(index), fault, slow_storage=True)
        assert found.recoveries == 1, fault
        assert found == whole, fault


def test_trees_that_were_grown_ahead_are_grown_again(tmp_path: Path) -> None:
    """By newer weights than before, so the numbers differ; the ledger sees to it that no tree is
    older than it may be."""
    config = quickstart(SMALL | {"async.max_staleness": "1"})
    whole = run(config, tmp_path / "whole")
    rows = [row["iteration"] for row in whole.records]
    for index, fault in enumerate(everywhere(whole)):
        found = run(config, tmp_path / str(index), fault)
        assert found.recoveries == 1, fault
        assert [row["iteration"] for row in found.records] == rows, fault
        assert all(row.get("tree/staleness", 0.0) <= 1.0 for row in found.records), fault


@pytest.mark.parametrize("gone", [False, True])
def test_also_when_the_recovery_fails(tmp_path: Path, gone: bool) -> None:
    config = quickstart(SMALL)
    whole = run(config, tmp_path / "whole")
    first = Fault("update", 4, True, gone)
    once = run(config, tmp_path / "once", first)
    again = [
        Fault(call, at, after, lost)
        for call in ("restore", "publish policy")
        for at in range(whole.calls.get(call, 0) + 1, once.calls[call] + 1)
        for after in (False, True)
        for lost in (False, True)
    ]
    assert again
    for index, second in enumerate(again):
        found = run(config, tmp_path / f"{index}", first, second)
        assert found == whole, second
