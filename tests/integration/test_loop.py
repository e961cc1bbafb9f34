"""Whole runs in one process: growing ahead, trees that are too old, checkpoints, and going
on from one exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.in_process import Service
from support.quiet_display import Quiet
from support.small_loop import config, weights
from support.training import Memory, run_of

from branchgrpo.checkpoint.store import Store
from branchgrpo.errors import StaleFence, UserError
from branchgrpo.training.loop import step, train
from branchgrpo.training.run import Run
from branchgrpo.training.state import TrainState
from branchgrpo.types import EVALUATION, Sample


@dataclass
class Whole:
    """A run that nothing disturbed."""

    store: Path  # its checkpoints
    run: Run
    service: Service
    log: Memory
    weights: str

    def copy(self, folder: Path) -> Path:
        """A store to change."""
        return Path(shutil.copytree(self.store, folder / "store"))


Made = Callable[..., Whole]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Runs by what their config changes, each carried out once. Tests may look at them and not
    change them."""
    runs: dict[str, Whole] = {}

    def made(**options: str) -> Whole:
        key = repr(options)
        if key not in runs:
            loaded, log, store = config(**options), Memory(), tmp_path_factory.mktemp("whole")
            service = Service(loaded)
            run = run_of(loaded, service, store, log=log)
            assert train(run).complete
            runs[key] = Whole(
                store=store, run=run, service=service, log=log, weights=weights(service)
            )
        return runs[key]

    return made


def test_trees_are_grown_ahead_as_far_as_they_may_be_old(made: Made) -> None:
    for staleness, expected in ((0, [0, 0, 0, 0]), (1, [0, 1, 1, 1]), (2, [0, 1, 2, 2])):
        found = made(**{"async.max_staleness": str(staleness)})
        assert [record["tree/staleness"] for record in found.log.updates] == expected
        assert not found.run.ahead.pending and found.run.ahead.dropped == 0
        grown = {
            arguments[1].subtrees[0].key.iteration
            for method, arguments in found.service.rollout_pool.calls
            if method == "grow"
        }
        assert grown == {EVALUATION, 0, 1, 2, 3}


def test_without_staleness_it_is_the_synchronous_loop(made: Made) -> None:
    one, again = made(), made(**{"async.max_staleness": "0"})
    assert one is not again
    assert one.weights == again.weights != made(**{"async.max_staleness": "1"}).weights


def test_ratios_of_older_trees_are_against_the_policy_that_grew_them(made: Made) -> None:
    fresh, old = made().log.updates, made(**{"async.max_staleness": "1"}).log.updates
    # one optimiser step: on policy
    assert all(record["update/ratio_deviation"] < 1e-6 for record in fresh)
    assert old[0]["update/ratio_deviation"] < 1e-6
    assert all(record["update/ratio_deviation"] > 1e-5 for record in old[1:])


def test_trees_that_are_too_old_are_dropped_and_counted(tmp_path: Path) -> None:
    loaded, log, state = config(**{"async.max_staleness": "1"}), Memory(), TrainState()
    run = run_of(loaded, Service(loaded), tmp_path, log=log)
    run.begin(state)
    step(run, state)
    # as if two updates had passed
    run.ahead.pending[0] = replace(run.ahead.pending[0], version=-1)
    step(run, state)
    assert log.records[-1]["tree/stale_dropped"] == 1 and log.records[-1]["tree/staleness"] == 0


@pytest.mark.parametrize(
    "preset",
    [
        {},
        pytest.param({"method.adapt_every": "1"}, marks=pytest.mark.slow),
        pytest.param({"model.lora_rank": "2", "loss.kl_beta": "0.1"}, marks=pytest.mark.slow),
    ],
    ids=["plain", "adaptive", "lora"],
)
def test_a_run_goes_on_exactly(made: Made, tmp_path: Path, preset: dict[str, str]) -> None:
    whole = made(**preset)
    loaded, first, asked = config(**preset), Memory(), [False, True]
    cut = run_of(
        loaded, Service(loaded), tmp_path / "cut", log=first, interrupted=lambda: asked.pop(0)
    )
    state = train(cut)
    assert state.stopped_by == "interrupted" and state.saved == 2
    service, display = Service(loaded), Quiet()
    rest = run_of(loaded, service, tmp_path / "cut", log=first, display=display, resumed=True)
    assert train(rest).complete and rest.saving.fence == 2
    assert display.notes == ["going on from the checkpoint of iteration 2"]
    assert weights(service) == whole.weights
    names = (
        "iteration",
        "reward/total",
        "update/loss",
        "update/learning_rate",
        "update/version",
        "splits/0",
    )
    assert [[record.get(name) for name in names] for record in first.updates] == [
        [record.get(name) for name in names] for record in whole.log.updates
    ]


def test_a_checkpoint_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, display = config(), Quiet()
    run = run_of(loaded, Service(loaded), tmp_path, display=display)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("branchgrpo.checkpoint.store.Store.save", full)
    state = train(run)
    assert state.iteration == 4 and state.saved == 0
    assert display.notes[0] == (
        "checkpoint of iteration 2 could not be written: OSError: [Errno 28] No space left "
        "on device; training goes on"
    )


def test_a_run_that_was_taken_over_ends_and_counts_it(tmp_path: Path) -> None:
    loaded, log = config(), Memory()
    service = Service(loaded)
    claimed = list[int]()

    def take_over() -> bool:
        claimed.append(Store(str(tmp_path)).claim())
        return False

    run = run_of(loaded, service, tmp_path, log=log, interrupted=take_over)
    with pytest.raises(StaleFence, match="fence 1 rejected: fence 3 has been claimed"):
        train(run)
    assert claimed == [2, 3] and [record["iteration"] for record in log.updates] == [1]
    assert service.reports[-1]["metrics"] == {"checkpoint/rejected": 1.0}
    assert not Store(str(tmp_path)).all()


def test_every_checkpoint_damaged_is_an_error_and_no_new_beginning(
    made: Made, tmp_path: Path
) -> None:
    store = made().copy(tmp_path)
    for file in store.glob("fence-*/state.json"):
        file.write_text("{")
    service = Service(config())
    with pytest.raises(
        UserError,
        match=r"^checkpoints: expected a valid one in .*, every one is damaged: fence-[^\n]+$",
    ):
        train(run_of(config(), service, store, resumed=True))
    assert len(list(store.glob("fence-*/state.json"))) == 2


def test_the_newest_checkpoint_damaged_costs_iterations_and_nothing_else(
    made: Made, tmp_path: Path
) -> None:
    whole = made()
    store = whole.copy(tmp_path)
    newest = max(store.glob("fence-*-iteration-00000004-*"))
    with max(newest.glob("*.safetensors"), key=lambda file: file.stat().st_size).open(
        "r+b"
    ) as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    service = Service(config())
    display = Quiet()
    again = Memory()
    train(run_of(config(), service, store, log=again, display=display, resumed=True))
    assert display.notes[0].startswith(f"checkpoint passed over: {newest.name}: ")
    assert display.notes[1:] == ["going on from the checkpoint of iteration 2"]
    assert weights(service) == whole.weights
    assert [record["reward/total"] for record in again.updates] == [
        record["reward/total"] for record in whole.log.updates[2:]
    ]


def test_a_run_that_has_finished_trains_no_further(made: Made, tmp_path: Path) -> None:
    """Its driver died in the last check: there is no summary yet."""
    service, log = Service(config()), Memory()
    state = train(run_of(config(), service, made().copy(tmp_path), log=log, resumed=True))
    assert state.iteration == 4 and state.stopped_by == "iterations" and not log.updates
    assert weights(service) == made().weights


def test_a_new_run_begins_at_a_checkpoint(made: Made, tmp_path: Path) -> None:
    whole = made()
    (origin,) = whole.store.glob("fence-*-iteration-00000002-*")
    service, log = Service(config()), Memory()
    train(run_of(config(), service, tmp_path / "new", log=log, origin=str(origin)))
    assert weights(service) == whole.weights
    assert [record["iteration"] for record in log.updates] == [3, 4]


def test_a_methods_state_of_another_kind_is_refused_in_one_line(made: Made, tmp_path: Path) -> None:
    store = made(**{"method.adapt_every": "1"}).copy(tmp_path)
    loaded = config(**{"method.adapt_every": "1", "sampling.steps": "5"})
    with pytest.raises(
        UserError,
        match=r"^checkpoint: state\.json: driver\.method: "
        "expected splits, and what was measured at 4 steps$",
    ):
        train(run_of(loaded, Service(loaded), store, resumed=True))


def test_what_is_easily_overlooked_is_said_once_and_counted(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "\n".join(
            f"the number {number} in red on white" + " the number 38" * 9 * (number % 2)
            for number in range(10, 18)
        )
    )
    loaded = config(
        prompts=str(prompts),
        **{"reward_workers.on_failure": "drop_group", "reward_workers.retries": "0"},
    )
    service = Service(loaded)
    display = Quiet()
    log = Memory()
    score = service.reward_pools[0].workers[0].scorers[0][1].score

    def failing(pixels: Any, samples: list[Sample]) -> Any:
        scores, bad = score(pixels, samples), [one.prompt[:13] for one in samples]
        return {
            name: np.where(np.array(bad) == "the number 16", np.nan, values)
            for name, values in scores.items()
        }

    service.reward_pools[0].workers[0].scorers[0][1].score = failing
    train(run_of(loaded, service, tmp_path / "store", log=log, display=display))
    # four iterations of two prompts: each of the eight once
    assert sum(record["prompts/truncated"] for record in log.updates) == 4
    assert sum(record["reward/dropped_groups"] for record in log.updates) == 1
    cut, dropped = sorted(display.notes, key=lambda note: "dropped" in note)
    assert (
        "of 2 prompts are longer than the text encoders take and were cut (said once; "
        "prompts/truncated counts)" in cut
    )
    assert (
        "1 of 2 prompt groups dropped (said once; reward/dropped_groups counts)" in dropped
        and "not finite" in dropped
    )
