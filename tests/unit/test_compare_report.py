"""The report of a comparison, of folders made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_comparison import compared

from branchgrpo import compare_report
from branchgrpo.compare import Comparison
from branchgrpo.compare_report import _curve, _reaches
from branchgrpo.metrics import read


def finish(
    comparison: Comparison, method: str, seed: int, pace: float, checks: dict[int, float], iterations: int = 4, after: tuple[float, ...] = (0, 1)
) -> None:
    """A finished run whose iterations take `pace` seconds; checks: iteration → held-out reward, the last one after training."""
    folder = comparison.path(method, seed)
    folder.mkdir(parents=True)
    last = max(checks)
    records: list[dict[str, Any]] = [{"iteration": 0, "held_out/total": checks[0], "held_out/ocr/exact": 0.0}]
    for iteration in range(1, iterations + 1):
        record = {
            "iteration": iteration,
            "time/iteration": pace,
            "time/grow": pace / 2,
            "time/training": pace * iteration,
            "tree/forwards": 30,
            "update/forwards": 10,
        }
        records.append(record | ({"held_out/total": checks[iteration]} if iteration in checks and iteration != last else {}))
    records.append({"iteration": iterations, "time/training": pace * iterations, "held_out/total": checks[last], "held_out/ocr/exact": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    scores = {name: list(after) for name in ("total", "ocr/exact")}
    (folder / "held_out.json").write_text(json.dumps({"before": scores, "after": scores}))
    summary = {
        "stopped_by": "iterations", "iterations": iterations, "diversity": {"mean": 0.25 * (seed + 1)},
        "forwards_per_leaf": {"rollout": 5.0 + seed, "training": None}, "edges_per_leaf": {"all": 4.0, "stochastic": 3.0, "trained": 2.5},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def made(tmp_path: Path) -> Comparison:
    """branchgrpo at 1 and 3 s an iteration against dancegrpo at 4 s; tempflow has not been run."""
    comparison = compared(tmp_path / "made", ["branchgrpo", "dancegrpo", "tempflow"])
    finish(comparison, "branchgrpo", 0, 1.0, {0: 0.1, 2: 0.6, 4: 0.7}, after=(0, 0, 1, 1))
    finish(comparison, "branchgrpo", 1, 3.0, {0: 0.1, 2: 0.2, 4: 0.3}, after=(0, 1, 1, 1), iterations=5)
    finish(comparison, "dancegrpo", 0, 4.0, {0: 0.1, 2: 0.3, 4: 0.5}, after=(0, 0, 0, 0))
    finish(comparison, "dancegrpo", 1, 4.0, {0: 0.1, 2: 0.6, 4: 0.4}, after=(0, 0, 0, 2))
    for seed, values in ((0, [0.0, 0.2]), (1, [0.4, 0.6])):
        row = {"scores": {"total": values, "ocr/exact": values}, "diversity": {"mean": seed / 2}}
        comparison.untrained_path(seed).write_text(json.dumps(row))
    return comparison


def test_rows(made: Comparison) -> None:
    found = compare_report.rows(made)
    assert list(found) == ["untrained", "branchgrpo", "dancegrpo"]
    # prompts' means over seeds 0.2 and 0.4: mean 0.3, std 0.1·√2, divided by √2
    half = 1.959964 * 0.1
    assert found["untrained"]["held_out"]["total"] == pytest.approx({"mean": 0.3, "low": 0.3 - half, "high": 0.3 + half, "n": 2})
    assert found["untrained"]["diversity"] == 0.25

    row = found["branchgrpo"]
    assert (row["seeds"], row["iterations"], row["training_seconds"]) == ([0, 1], [4, 5], [4.0, 15.0])
    assert row["seconds_per_iteration"]["median"] == 3.0  # of 1, 1, 1, 1, 3, 3, 3, 3, 3: the iterations of all seeds
    assert row["seconds_per_iteration"]["phases"] == {"encode": None, "grow": 1.5, "score": None, "update": None, "publish": None}
    assert (row["seconds_ratio"], found["dancegrpo"]["seconds_ratio"], row["reference"]) == (0.75, 1.0, "dancegrpo")
    assert row["nfe_old"] == {"forwards": 5.5, "edges": 4.0} and row["nfe_new"] == {"forwards": None, "edges": 2.5}
    assert row["diversity"] == 0.375
    # 0, ½, 1, 1 by prompt: mean 0.625, squared differences (25 + 1 + 9 + 9)/64, divided by 3, and by √4
    half = 1.959964 * (44 / 64 / 3) ** 0.5 / 2
    assert row["held_out"]["ocr/exact"] == pytest.approx({"mean": 0.625, "low": 0.625 - half, "high": 0.625 + half, "n": 4})
    assert row["held_out_by_seed"]["total"] == [0.5, 0.75]


def test_without_dancegrpo_ratios_refer_to_the_first_method(made: Comparison) -> None:
    shutil.rmtree(made.path("dancegrpo", 0))
    shutil.rmtree(made.path("dancegrpo", 1))
    found = compare_report.rows(made)
    assert list(found) == ["untrained", "branchgrpo"] and found["branchgrpo"]["reference"] == "branchgrpo" and found["branchgrpo"]["seconds_ratio"] == 1.0


def test_time_to_the_reference(made: Comparison) -> None:
    # seed 0: dancegrpo ends with 0.5 after 16 s; branchgrpo has 0.6 at 2 s and 0.7 at the end. Seed 1: 0.4 is never reached
    first, second = _reaches(made, "branchgrpo", "dancegrpo")
    goal = {"reward": 0.5, "seconds": 2.0, "share": 2 / 16}
    assert first == {"seed": 0, "end": goal, "best": goal}
    goal = {"reward": 0.4, "seconds": None, "share": None}  # its 0.6 did not hold
    assert second == {"seed": 1, "end": goal, "best": goal}
    # the reference itself: seed 0 at its end; seed 1 was there at 8 s already and stayed
    assert [one["end"]["share"] for one in _reaches(made, "dancegrpo", "dancegrpo")] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("checks", "seconds"),
    [
        ({0: 0.6, 1: 0.6, 4: 0.6}, 2.0),  # the check before training does not count
        ({0: 0.1, 1: 0.9, 2: 0.1, 3: 0.6, 4: 0.6}, 6.0),  # the first crossing did not hold
        ({0: 0.1, 1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1}, 2.0),  # it held at the next check, equality counts
        ({0: 0.1, 1: 0.9, 2: 0.1, 3: 0.9, 4: 0.1}, None),  # it never held
        ({0: 0.1, 4: 0.6}, 8.0),  # the last check has no next
    ],
)
def test_a_crossing_must_hold_at_the_next_check(tmp_path: Path, checks: dict[int, float], seconds: float | None) -> None:
    comparison = compared(tmp_path / "x", ["branchgrpo", "dancegrpo"])
    finish(comparison, "branchgrpo", 0, 2.0, checks)
    finish(comparison, "branchgrpo", 1, 2.0, checks)  # dancegrpo's second run is missing: nothing to reach
    finish(comparison, "dancegrpo", 0, 2.5, {0: 0.1, 4: 0.5})
    (found,) = _reaches(comparison, "branchgrpo", "dancegrpo")
    assert found["end"] == {"reward": 0.5, "seconds": seconds, "share": None if seconds is None else seconds / 10}


def test_the_reference_at_its_best(tmp_path: Path) -> None:
    comparison = compared(tmp_path / "x", ["branchgrpo", "dancegrpo"])
    finish(comparison, "branchgrpo", 0, 2.0, {0: 0.1, 1: 0.5, 2: 0.65, 3: 0.7, 4: 0.9})
    finish(comparison, "dancegrpo", 0, 2.5, {0: 0.9, 1: 0.8, 2: 0.2, 3: 0.7, 4: 0.6})  # 0.9 was before training, 0.8 a lucky check
    (found,) = _reaches(comparison, "branchgrpo", "dancegrpo")
    assert found["end"] == found["best"] == {"reward": 0.6, "seconds": 4.0, "share": 0.4}


def test_markdown(made: Comparison) -> None:
    text = compare_report.write(made, "ocr/exact")
    assert text == (made.folder / "compare.md").read_text(encoding="utf-8")
    assert json.loads((made.folder / "compare.json").read_text()) == compare_report.rows(made)
    head, rule, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert head.count("|") == rule.count("|") == 11 and {line.count("|") for line in lines} == {11}
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert list(cells) == ["untrained", "branchgrpo", "dancegrpo"]
    assert cells["untrained"] == ["–", "–", "–", "–", *["0.300 [0.104, 0.496]"] * 2, "0.250", "–", "–"]
    scores = ["0.625 [0.156, 1.094]"] * 2
    assert cells["branchgrpo"] == ["5.5 (4)", "– (2.5)", "3.00: –, 1.50, –, –, –", "0.75", *scores, "0.375", "4 (4 s), 5 (15 s)", "0.12 (0.12), never (never)"]
    assert cells["dancegrpo"][-1] == "1.00 (1.00), 0.50 (0.50)"
    with Image.open(made.folder / "compare.png") as image:
        assert image.width > 1000 and len(np.unique(np.asarray(image.convert("L")))) > 10  # not blank


def test_before_any_run_is_done_there_is_no_picture(tmp_path: Path) -> None:
    comparison = compared(tmp_path / "x")
    comparison.open()
    assert compare_report.write(comparison, "ocr/exact").count("\n") == 2  # the head of the table
    assert not (comparison.folder / "compare.png").exists()


def test_curves_are_cumulative(made: Comparison) -> None:
    records = read(made.path("branchgrpo", 0) / "metrics.jsonl")
    for x, expected in (("seconds", [0.0, 2.0, 4.0]), ("forwards", [0.0, 80.0, 160.0])):  # 30 + 10 forwards an iteration
        found, values = _curve(records, "total", x)
        assert found.tolist() == expected and values.tolist() == [0.1, 0.6, 0.7]
    assert [part.tolist() for part in _curve(records, "ocr/exact", "seconds")] == [[0.0, 4.0], [0.0, 0.5]]
