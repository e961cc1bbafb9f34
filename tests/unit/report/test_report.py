"""The metrics against hand-made sums, the curve by its pixels."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from branchgrpo.report import summary as report
from branchgrpo.types import F32


def scores(*values: float) -> F32:
    return np.array(values, np.float32)


def records(count: int) -> list[dict[str, Any]]:
    return [
        {
            "iteration": i,
            "elapsed": 2.0 * i,
            "reward/total": i / 8,
            "time/grow": 0.5 * i,
            "time/iteration": float(i),
            "tree/leaves": 64,
            "tree/forwards": 640,
            "tree/edges": 128,
            "update/forwards": 64,
            "update/edges": 32 * i,
            "driver/bytes": 100 * i,
            "latents/bytes": 10000,
        }
        for i in range(1, count + 1)
    ]


def test_paired_interval() -> None:
    # differences 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 3
    found = report.paired(scores(0, 0, 0, 0), scores(1, 2, 3, 6))
    half = 3.182446 * (14 / 3) ** 0.5 / 2  # Student's t of 3 degrees of freedom
    assert found == pytest.approx(
        {"before": 0, "after": 3, "difference": 3, "low": 3 - half, "high": 3 + half, "n": 4}
    )


def test_interval_is_students() -> None:
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2; t of 2 degrees of freedom
    half = 4.302653 * (7 / 3) ** 0.5
    assert report.interval(scores(1, 2, 6)) == pytest.approx(
        {"mean": 3, "low": 3 - half, "high": 3 + half, "n": 3}
    )


def test_paired_takes_out_what_prompts_have_in_common() -> None:
    found = report.paired(scores(1, 20, 300), scores(2, 21, 301))
    assert (found["difference"], found["low"], found["high"]) == (1, 1, 1)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (0, 0), (2, 3)])
def test_paired_needs_two_equal_lengths(before: int, after: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        report.paired(np.zeros(before, np.float32), np.zeros(after, np.float32))


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_curve(tmp_path: Path, count: int) -> None:
    found = records(count)
    if count:
        found[-1] |= {"held_out/ocr/exact": 0.5, "reward/total": None}
    report.curve(tmp_path / "curve.png", found, "ocr/exact", "run")
    picture = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB"))
    assert picture.shape == (845, 1170, 3)
    orange = (picture == (255, 127, 14)).all(axis=-1).any()
    assert orange == (count > 0)  # the held-out point


def test_summary_in_closed_form() -> None:
    before = {"ocr/exact": scores(0, 0), "ocr/edit": scores(0, 1)}
    after = {"ocr/exact": scores(1, 1)}
    found = report.summary(
        "quickstart",
        seed=3,
        before=before,
        after=after,
        metric="ocr/exact",
        records=records(3),
        seconds={"start_up": 2.0, "training": 6.5},
        stopped_by="max_minutes",
    )
    assert found == {
        "config": "quickstart",
        "seed": 3,
        "metric": "ocr/exact",
        "held_out": {
            "ocr/exact": {"before": 0, "after": 1, "difference": 1, "low": 1, "high": 1, "n": 2}
        },
        "iterations": 3,
        "stopped_by": "max_minutes",
        "seconds": {"start_up": 2.0, "training": 6.5, "total": 8.5},
        "seconds_per_iteration": {
            "median": 2.0,
            "phases": {"encode": None, "grow": 1.0, "score": None, "update": None, "publish": None},
        },
        "forwards_per_leaf": {"rollout": 10.0, "training": 1.0},
        "edges_per_leaf": {"all": None, "stochastic": 2.0, "trained": 1.0},
        "driver_bytes_per_iteration": 200.0,
        "latent_bytes_per_iteration": 10000.0,
        "driver_share_of_latent_bytes": 0.02,
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_summary_and_table_without_an_iteration() -> None:
    found = report.summary(
        "quickstart",
        seed=0,
        before={"ocr/exact": scores(0, 1)},
        after={},
        metric="ocr/exact",
        records=[],
        seconds={"start_up": 2.0},
        stopped_by="interrupted",
    )
    json.dumps(found, allow_nan=False)
    assert found["held_out"] == {} and found["iterations"] == 0 and found["seconds"]["total"] == 2
    assert found["forwards_per_leaf"] == {"rollout": None, "training": None}
    assert found["seconds_per_iteration"]["median"] is found["driver_share_of_latent_bytes"] is None
    console = Console(file=StringIO(), width=100)
    console.print(report.table(found))


def test_table_has_the_figures() -> None:
    file = StringIO()
    sides = {"ocr/exact": scores(0, 0, 0, 0)}, {"ocr/exact": scores(1, 2, 3, 6)}
    found = report.summary(
        "quickstart", 0, *sides, "ocr/exact", records(3), {"training": 6.0}, "iterations"
    )
    Console(file=file, width=100).print(report.table(found))
    for part in (
        "ocr/exact",
        "+3",
        "[-0.4374, +6.437]",
        "rollout 10, training 1",
        "stochastic 2, trained 1",
        "grow 1,",
        "ended by: iterations",
    ):
        assert part in file.getvalue()
