"""Comparisons that are carried out, and resumed to the last digit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.in_process import Service
from support.small_comparison import METHODS, SMALL, compared

import branchgrpo as bg
from branchgrpo.comparison import report as compare_report
from branchgrpo.comparison.runs import Comparison
from branchgrpo.config import load as config
from branchgrpo.errors import UserError
from branchgrpo.report import contact_sheet as sheet
from branchgrpo.report.sinks import read
from branchgrpo.report.terminal import Display

FILES = [
    str(Path(__file__).parents[1] / "support" / "small_methods" / f"{name}.yaml")
    for name in METHODS
]
"""The presets with 8 leaves, in trees of 8 steps."""


def small(folder: Path) -> Comparison:
    return compared(folder, FILES, sampling__steps="8", rollout__workers="1")


def display() -> Display:
    return Display("test", 1, "ocr/exact", Console(file=StringIO()))


def work(comparison: Comparison, interrupted: Callable[[], bool] = lambda: False) -> bool:
    """All that is left, as a new program does it."""
    services: list[Service] = []

    def form(wanted: config.Config) -> Service:
        services[:] = services or [Service(next(iter(comparison.configs.values())))]
        return services[0].configure(wanted)

    return comparison.run(form, display(), interrupted)


TIMES = {
    "elapsed",
    "seconds",
    "training_seconds",
    "seconds_per_iteration",
    "seconds_ratio",
    "time_to_gain",
}


def timeless(value: Any) -> Any:
    """Without what a clock measured."""
    if isinstance(value, dict):
        return {
            key: timeless(one)
            for key, one in value.items()
            if key not in TIMES and not key.startswith("time/")
        }
    return [timeless(one) for one in value] if isinstance(value, list) else value


def results(comparison: Comparison) -> list[Any]:
    """compare.json, then of every run what it logged, its summary and its scores."""
    compare_report.write(comparison, "ocr/exact")
    found = [json.loads((comparison.folder / "compare.json").read_text())]
    for run in comparison.configs:
        folder = comparison.path(*run)
        found += [
            read(folder / "metrics.jsonl"),
            *(
                json.loads((folder / name).read_text())
                for name in ("summary.json", "held_out.json")
            ),
        ]
    return [timeless(one) for one in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison that nothing disturbed."""
    comparison = small(tmp_path_factory.mktemp("compare") / "whole")
    assert work(comparison)
    return comparison


def test_an_undisturbed_comparison(whole: Comparison) -> None:
    found, *_ = results(whole)
    compare = found["rows"]
    assert list(compare) == ["untrained", *METHODS]
    for seed in (0, 1):  # every run starts from the same scores
        kept = json.loads(whole.untrained_path(seed).read_text())["scores"]
        for method in METHODS:
            assert (
                json.loads((whole.path(method, seed) / "held_out.json").read_text())["before"]
                == kept
            )
    # 8 steps, split at 1, 3, 5: 2·(1 + 2 + 4 + 8) parents, as many but the root and 8 children more
    # edges
    split = compare["branchgrpo-splits"]
    assert split["nfe_old"] == {"forwards": 30 / 8, "edges": (30 - 1 + 8) / 8}
    assert split["nfe_new"] == {"forwards": 7 / 8, "edges": 14 / 8}
    assert compare["dancegrpo"]["nfe_old"] == {"forwards": 8.0, "edges": 8.0}
    assert compare["dancegrpo"]["nfe_new"] == {"forwards": 7.0, "edges": 7.0}
    assert split["iterations"] == [2, 2] and split["seeds"] == [0, 1]
    assert [compare[method]["leaves"] for method in METHODS] == [8, 8]
    assert [compare[method]["optimiser_steps"]["taken"] for method in METHODS] == [[2, 2], [6, 6]]
    assert (
        compare["dancegrpo"]["difference"] is None
        and compare["branchgrpo-splits"]["difference"]["total"]["n"] == 2
    )
    assert (whole.folder / "compare.png").stat().st_size > 0 and "| dancegrpo |" in (
        whole.folder / "compare.md"
    ).read_text()


def test_pictures_are_kept_as_they_are(whole: Comparison) -> None:
    """Of the untrained model and of every run, so that the sheet can be drawn again."""
    compare_report.write(whole, "ocr/exact")
    before = (whole.folder / "compare-samples.png").read_bytes()
    files = [
        whole.untrained_path(0).with_suffix(".npz"),
        *(whole.path(method, 0) / "samples" / "after.npz" for method in METHODS),
    ]
    for file in files:
        pixels, captions, scores = sheet.kept(file)
        assert (
            pixels.shape == (1, 1, 32, 32, 3)
            and pixels.std() > 1
            and captions[0].startswith("the number")
            and len(scores) == 1
        )
    assert (
        json.loads((whole.path("dancegrpo", 0) / "held_out.json").read_text())["after"][
            "ocr/exact"
        ][0]
        == sheet.kept(files[-1])[2][0]
    )
    (whole.folder / "compare-samples.png").unlink()
    compare_report.write(small(whole.folder), "ocr/exact")
    assert (whole.folder / "compare-samples.png").read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_comparison_ends_with_the_same_numbers(
    whole: Comparison, tmp_path: Path
) -> None:
    asked = count(1)
    # asked before each run and between its 2 iterations: in the second run
    assert not work(small(tmp_path / "x"), lambda: next(asked) == 4)
    cut = small(tmp_path / "x")
    assert cut.open() == list(cut.configs)[1:]
    assert (
        json.loads((cut.path(*list(cut.configs)[1]) / "summary.json").read_text())["iterations"]
        == 1
    )
    assert work(cut) and results(cut) == results(whole)


def test_a_lost_summary_is_made_again(whole: Comparison, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "x")
    again = small(tmp_path / "x")
    (again.path("dancegrpo", 0) / "summary.json").write_text('{"config": "dance')
    again.untrained_path(0).unlink()  # is measured again, too
    assert again.open() == [("dancegrpo", 0)]
    assert work(again) and results(again) == results(whole)


def test_a_finished_comparison_does_nothing(whole: Comparison) -> None:
    def form(wanted: config.Config) -> Service:
        raise AssertionError(wanted)

    again = small(whole.folder)
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    assert again.open() == [] and again.run(form, display(), lambda: False)
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")} == before


def test_the_api_gives_the_tables_of_a_finished_comparison(whole: Comparison) -> None:
    keys = SMALL | {"sampling.steps": "8", "rollout.workers": "1"}
    found = bg.compare(FILES, seeds=2, budget=2, overrides=keys, folder=whole.folder, quiet=True)
    assert found.finished and found.folder == whole.folder.resolve()
    assert list(found.summary["rows"]) == ["untrained", *METHODS]
    assert "dancegrpo" in found.table
    with pytest.raises(UserError, match="holds another comparison"):
        bg.compare(
            FILES,
            seeds=2,
            budget=2,
            overrides=keys,
            rewards=[lambda images, samples: [1.0] * len(images)],
            folder=whole.folder,
        )
