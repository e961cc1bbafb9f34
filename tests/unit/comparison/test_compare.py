"""Comparisons: fair, and resumable to the last digit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from support.in_process import Service
from support.small_comparison import METHODS, SMALL, compared
from support.small_trees import QUICKSTART

import branchgrpo as bg
from branchgrpo.comparison import report as compare_report
from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.runs import Comparison
from branchgrpo.config import load as config
from branchgrpo.errors import UserError
from branchgrpo.report import contact_sheet as sheet
from branchgrpo.report.sinks import read
from branchgrpo.report.terminal import Display


def display() -> Display:
    return Display("test", 1, "ocr/exact", Console(file=StringIO()))


def work(comparison: Comparison, interrupted: Callable[[], bool] = lambda: False) -> bool:
    """All that is left, as a new program does it."""
    services: list[Service] = []

    def form(wanted: config.Config) -> Service:
        services[:] = services or [Service(next(iter(comparison.configs.values())))]
        return services[0].configure(wanted)

    return comparison.run(form, display(), interrupted)


# Budgets and requests


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50", Budget(iterations=50)),
        (" 1 ", Budget(iterations=1)),
        ("240s", Budget(seconds=240)),
        ("0.5s", Budget(seconds=0.5)),
        ("4m", Budget(seconds=240)),
        ("1.5m", Budget(seconds=90)),
    ],
)
def test_budgets(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "0", "0s", "0.0m", "-3", "2.5", "4h", "m", "4 m", "1e3", "4m30s", "nan", "inf", "four"],
)
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--budget: expected") as caught:
        Budget.parse(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "iterations", "minutes", "every", "every_seconds"),
    [("24", 24, 0, 2, 0), ("5", 5, 0, 1, 0), ("240s", 0, 4, 0, 20), ("6m", 0, 6, 0, 30)],
)
def test_a_budget_sets_length_and_checks_of_every_run(
    tmp_path: Path, budget: str, iterations: int, minutes: float, every: int, every_seconds: float
) -> None:
    for one in compared(tmp_path, budget=budget).configs.values():
        # the quick start's 4.5 minutes are gone
        assert (one.run.iterations, one.run.max_minutes) == (iterations, pytest.approx(minutes))
        assert (one.evaluation.every, one.evaluation.every_seconds) == (
            every,
            pytest.approx(every_seconds),
        )


def test_methods_differ_in_nothing_but_the_method(tmp_path: Path) -> None:
    methods = ["dancegrpo", "flowgrpo", "flow-dppo", "tempflow", "branchgrpo-depthprune"]
    comparison = Comparison(
        base=QUICKSTART, methods=methods, seeds=2, budget=Budget(10), overrides={}, folder=tmp_path
    )
    assert list(comparison.configs) == [(method, seed) for seed in (0, 1) for method in methods]
    for seed in (0, 1):
        rest = []
        for method in methods:
            tree = yaml.safe_load(config.dump(comparison.configs[method, seed]))
            assert (
                tree["method"]
                == yaml.safe_load(config.dump(config.load(QUICKSTART, preset=method)))["method"]
            )
            assert (tree["run"].pop("name"), tree["run"]["seed"]) == (method, seed)
            assert tree["evaluation"]["steps"] == 20  # though flowgrpo samples with 10
            tree["sampling"].pop("steps")
            tree["learner"].pop("optimiser_steps")  # the method's
            rest.append(
                {key: value for key, value in tree.items() if key not in config.METHOD_SECTIONS}
            )
        assert all(one == rest[0] for one in rest)


def test_requests_are_told_apart(tmp_path: Path) -> None:
    first = compared(tmp_path)
    assert compared(tmp_path / "elsewhere").digest == first.digest
    others = [
        compared(tmp_path, seeds=1),
        compared(tmp_path, budget="3"),
        compared(tmp_path, METHODS[::-1]),
        compared(tmp_path, learner__learning_rate="1e-3"),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 5
    unnamed = Comparison(
        base=QUICKSTART, methods=METHODS, seeds=2, budget=Budget(2), overrides=SMALL
    )
    assert (
        unnamed.folder == Path("runs") / f"compare-{first.digest[:8]}"
        and not unnamed.folder.exists()
    )


def test_methods_must_differ(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected different methods, got dancegrpo dancegrpo"):
        compared(tmp_path, ["dancegrpo", "dancegrpo"])


def test_keys_of_the_compared_methods_need_not_fit_the_base(tmp_path: Path) -> None:
    """The quick start's own method has no `chains`; the compared ones have."""
    comparison = compared(tmp_path, ["dancegrpo", "mixgrpo"], method__chains="8")
    assert {one.method.chains for one in comparison.configs.values()} == {8}


def test_a_folder_keeps_one_comparison(tmp_path: Path) -> None:
    everything = [(method, seed) for seed in (0, 1) for method in METHODS]
    assert compared(tmp_path / "x").open() == everything == compared(tmp_path / "x").open()
    with pytest.raises(UserError, match="holds another comparison") as caught:
        compared(tmp_path / "x", budget="3").open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("first", "then"), [(None, 0.1), (0.1, None), (0.1, 0.2)])
def test_the_gain_is_named_before_the_runs(
    tmp_path: Path, first: float | None, then: float | None
) -> None:
    def named(gain: float | None) -> Comparison:
        return Comparison(
            base=QUICKSTART,
            methods=METHODS,
            seeds=2,
            budget=Budget(2),
            overrides=SMALL,
            folder=tmp_path / "x",
            gain=gain,
        )

    named(first).open()
    named(first).open()
    with pytest.raises(UserError, match="named before the runs") as caught:
        named(then).open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gain", [0.0, -0.1, float("nan"), float("inf")])
def test_gains_that_are_none(tmp_path: Path, gain: float) -> None:
    with pytest.raises(UserError, match="--gain: expected a gain of the held-out reward above 0"):
        Comparison(
            base=QUICKSTART,
            methods=METHODS,
            seeds=2,
            budget=Budget(2),
            overrides=SMALL,
            folder=tmp_path / "x",
            gain=gain,
        )


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "preset: dancegrpo\nlearner: {learning_rate: 7.0e-5, optimiser_steps: 5, ema: "
        "0.9}\nevaluation: {weights: ema}\n"
    )
    found = compared(tmp_path / "x", ["branchgrpo-splits", str(mine)]).settings()
    keys = ["learner.learning_rate", "learner.optimiser_steps", "learner.ema", "evaluation.weights"]
    assert found["mine"] == dict(zip(keys, [7e-5, 5, 0.9, "ema"], strict=True))
    assert (
        list(found["branchgrpo-splits"]) == keys and found["branchgrpo-splits"]["learner.ema"] == 0
    )


@pytest.mark.parametrize(
    "content", ["", '{"held_out": {"total"', "{}", '{"stopped_by": "interrupted"}', "\N{NULL}"]
)
def test_a_summary_that_is_not_whole_counts_as_not_done(tmp_path: Path, content: str) -> None:
    comparison = compared(tmp_path / "x")
    comparison.open()
    for (method, seed), text in zip(
        comparison.configs,
        ['{"stopped_by": "iterations"}', content, '{"stopped_by": "max_minutes"}', content],
        strict=True,
    ):
        comparison.path(method, seed).mkdir(parents=True)
        (comparison.path(method, seed) / "summary.json").write_text(text)
    assert comparison.open() == [("dancegrpo", 0), ("dancegrpo", 1)]
    assert (comparison.complete("branchgrpo-splits"), comparison.complete("dancegrpo")) == (
        [0, 1],
        [],
    )


# Resuming


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
    comparison = compared(tmp_path_factory.mktemp("compare") / "whole")
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
    # 14 steps, split at 3, 6, 9, 12: 4·1 + 3·(2 + 4 + 8) + 16 parents, as many but the root and 16
    # children more edges
    split = compare["branchgrpo-splits"]
    assert split["nfe_old"] == {"forwards": 62 / 16, "edges": (62 - 1 + 16) / 16} and split[
        "nfe_new"
    ] == {"forwards": 15 / 16, "edges": 30 / 16}
    assert compare["dancegrpo"]["nfe_old"] == {"forwards": 14.0, "edges": 14.0}
    assert compare["dancegrpo"]["nfe_new"] == {"forwards": 13.0, "edges": 13.0}
    assert split["iterations"] == [2, 2] and split["seeds"] == [0, 1]
    assert [compare[method]["leaves"] for method in METHODS] == [16, 16]
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
    compare_report.write(compared(whole.folder), "ocr/exact")
    assert (whole.folder / "compare-samples.png").read_bytes() == before


def test_an_interrupted_comparison_ends_with_the_same_numbers(
    whole: Comparison, tmp_path: Path
) -> None:
    asked = count(1)
    # asked before each run and between its 2 iterations: in the second run
    assert not work(compared(tmp_path / "x"), lambda: next(asked) == 4)
    cut = compared(tmp_path / "x")
    assert cut.open() == list(cut.configs)[1:]
    assert (
        json.loads((cut.path(*list(cut.configs)[1]) / "summary.json").read_text())["iterations"]
        == 1
    )
    assert work(cut) and results(cut) == results(whole)


def test_a_lost_summary_is_made_again(whole: Comparison, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "x")
    again = compared(tmp_path / "x")
    (again.path("dancegrpo", 0) / "summary.json").write_text('{"config": "dance')
    again.untrained_path(0).unlink()  # is measured again, too
    assert again.open() == [("dancegrpo", 0)]
    assert work(again) and results(again) == results(whole)


def test_a_finished_comparison_does_nothing(whole: Comparison) -> None:
    def form(wanted: config.Config) -> Service:
        raise AssertionError(wanted)

    again = compared(whole.folder)
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    assert again.open() == [] and again.run(form, display(), lambda: False)
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")} == before


def test_the_api_gives_the_tables_of_a_finished_comparison(whole: Comparison) -> None:
    found = bg.compare(METHODS, seeds=2, budget=2, overrides=SMALL, folder=whole.folder, quiet=True)
    assert found.finished and found.folder == whole.folder.resolve()
    assert list(found.summary["rows"]) == ["untrained", *METHODS]
    assert "dancegrpo" in found.table
    with pytest.raises(UserError, match="holds another comparison"):
        bg.compare(
            METHODS,
            seeds=2,
            budget=2,
            overrides=SMALL,
            rewards=[lambda images, samples: [1.0] * len(images)],
            folder=whole.folder,
        )


def test_methods_that_would_not_be_compared_fairly_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "easier.yaml"
    other.write_text("preset: dancegrpo\nheld_out: embedded:train\n")
    with pytest.raises(
        UserError, match="the same held_out for all methods, got another with easier"
    ):
        compared(tmp_path / "x", ["dancegrpo", str(other)])
    other.write_text("preset: dancegrpo\nlearner: {ranks: 2, learning_rate: 1.0e-3}\n")
    with pytest.raises(UserError, match=r"the same learner\.ranks for all methods"):
        compared(tmp_path / "x", ["dancegrpo", str(other)])
    other.write_text("preset: dancegrpo\nlearner: {learning_rate: 1.0e-3}\n")
    comparison = compared(tmp_path / "x", ["dancegrpo", str(other)])
    rates = {name: config.learner.learning_rate for (name, _), config in comparison.configs.items()}
    assert rates["easier"] == 1e-3 != rates["dancegrpo"]


def test_the_fair_comparison_differs_in_what_its_files_say(tmp_path: Path) -> None:
    """docs/benchmarks/fair: rates and steps, nothing else but the method."""
    files = sorted((Path(__file__).parents[3] / "docs" / "benchmarks" / "fair").glob("*.yaml"))
    comparison = Comparison(
        base=QUICKSTART,
        methods=[str(file) for file in files],
        seeds=3,
        budget=Budget(seconds=150),
        overrides={},
        folder=tmp_path,
    )
    learners = {name: one.learner for (name, seed), one in comparison.configs.items() if seed == 0}
    chosen = {
        name: (one.optimiser_steps, one.learning_rate, one.warmup, one.schedule)
        for name, one in learners.items()
    }
    assert chosen == {
        "branchgrpo-flash-1e-4": (1, 1e-4, 10, "constant"),
        "dancegrpo-1step": (1, 2e-4, 10, "constant"),
        "dancegrpo-3steps": (3, 7e-5, 10, "constant"),
    }
    assert {key for one in comparison.settings().values() for key in one} == {
        "learner.learning_rate",
        "learner.optimiser_steps",
    }
