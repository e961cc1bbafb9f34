"""Figures of a run reach both files, and come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from branchgrpo.metrics import MetricsLog, read, smooth


def test_records_come_back_with_nulls_for_what_json_lacks(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run") as log:
        log.write(1, {"reward/total": 0.5, "update/loss": float("nan"), "tree/leaves": 64})
        log.write(2, {"reward/total": 0.75, "update/loss": float("inf")})
    records = read(tmp_path / "run" / "metrics.jsonl")
    elapsed = [record.pop("elapsed") for record in records]
    assert 0 <= elapsed[0] <= elapsed[1] < 60
    assert records == [
        {"iteration": 1, "reward/total": 0.5, "update/loss": None, "tree/leaves": 64.0},
        {"iteration": 2, "reward/total": 0.75, "update/loss": None},
    ]


def test_a_record_is_on_disk_when_write_returns_and_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), MetricsLog(tmp_path) as log:
        log.write(1, {"reward/total": 0.5})
        assert len(read(tmp_path / "metrics.jsonl")) == 1
        raise RuntimeError("boom")
    assert read(tmp_path / "metrics.jsonl")[0]["reward/total"] == 0.5


def test_tensorboard_has_the_same_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    with MetricsLog(tmp_path) as log:
        for iteration in range(1, 4):
            log.write(iteration, {"reward/total": iteration / 4, "held_out/ocr/exact": iteration / 8})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"reward/total", "held_out/ocr/exact"}
    assert [(event.step, event.value) for event in events.Scalars("reward/total")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert [(event.step, event.value) for event in events.Scalars("held_out/ocr/exact")] == [(1, 0.125), (2, 0.25), (3, 0.375)]


@pytest.mark.parametrize("cut", range(len('{"iteration": 2}')))
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n' + '{"iteration": 2}'[:cut], encoding="utf-8")
    assert read(path) == [{"iteration": 1}]


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}', encoding="utf-8")
    assert [record["iteration"] for record in read(path)] == [1, 2]


@pytest.mark.parametrize("bad", ["{", "", "3", json.dumps([1])])
def test_any_other_bad_line_is_an_error_that_names_it(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n' + bad + '\n{"iteration": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read(path)
    path.write_text('{"iteration": 1}\n' + bad + "\n", encoding="utf-8")  # last, but not torn: its end was written
    with pytest.raises(ValueError, match="line 2"):
        read(path)


def test_smooth_starts_at_the_first_value_and_weights_the_newest() -> None:
    assert smooth([]) == []
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    # weights 0.5 and 0.25 of the two newest, over their sum
    assert smooth([1.0, 4.0], weight=0.5) == pytest.approx([1.0, (0.5 * 4 + 0.25 * 1) / 0.75])
