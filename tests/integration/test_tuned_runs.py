"""A comparison whose methods are tuned before, carried out with an interruption."""

from __future__ import annotations

import json
from io import StringIO
from itertools import count
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from support.in_process import Service
from support.small_comparison import METHODS, SMALL, compared

import branchgrpo as bg
from branchgrpo.comparison import report
from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.grid import Grid, read
from branchgrpo.comparison.runs import Comparison
from branchgrpo.comparison.tuning import Tuning
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.data.records import prompts_of
from branchgrpo.report.terminal import Display

FILES = [
    str(Path(__file__).parents[1] / "support" / "small_methods" / f"{name}.yaml")
    for name in METHODS
]
RATE = "learner.learning_rate"
RATES = "1e-4", "1e30"
"""At the second one weights are infinite: branchgrpo-splits takes one step, after which a gate
fails; dancegrpo takes more, which have no finite gradient."""


KEYS = {
    "sampling.steps": "8",
    "rollout.workers": "1",
    "learner.max_skips": "1",
    "learner.warmup": "0",
    "held_out": "split:4",
    "evaluation.diversity": "0",
}


def small(folder: Path) -> Comparison:
    grid = Grid(read([f"{RATE}={','.join(RATES)}"]), 1, Budget(iterations=2))
    keys = {key.replace(".", "__"): value for key, value in KEYS.items()}
    return compared(folder, FILES, seeds=1, budget="1", grid=grid, **keys)


class Process:
    """What one program has: a service for all runs."""

    def __init__(self, comparison: Comparison, calls: int = 1000):
        """calls: of `interrupted` that say no."""
        self.comparison, self.asked, self.calls = comparison, count(1), calls
        self.services: list[Service] = []
        self.seen: list[tuple[Config, set[str]]] = []  # of each run, prompts that were encoded

    def form(self, config: Config) -> Service:
        self.services = self.services or [Service(next(iter(self.comparison.configs.values())))]
        self.look()
        self.seen.append((config, set()))
        return self.services[0].configure(config)

    def look(self) -> None:
        """What the run before was."""
        calls = self.services[0].rollout_pool.calls
        for method, arguments in calls:
            if method == "encode":
                self.seen[-1][1].update(sample.prompt for sample in arguments[0])
        calls.clear()

    def work(self) -> bool:
        display = Display("test", 1, "ocr/exact", Console(file=StringIO()))
        finished = self.comparison.run(self.form, display, lambda: next(self.asked) > self.calls)
        if self.services:
            self.look()
        return finished


def tuning_of(process: Process) -> Tuning:
    assert process.comparison.tuning is not None
    return process.comparison.tuning


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Process:
    """Interrupted in the second of four runs of the grid, after its first iteration."""
    process = Process(small(tmp_path_factory.mktemp("tuned") / "x"), calls=3)
    assert not process.work()
    tuning, folder = tuning_of(process), process.comparison.folder
    assert tuning.left() == tuning.runs[1:] and tuning.carried(METHODS[0]) == {}
    report.write(process.comparison, "ocr/exact")
    assert "The grid is not done" in (folder / "compare.md").read_text()
    return process


@pytest.fixture(scope="module")
def whole(cut: Process) -> Process:
    """Another program that has gone on with it."""
    process = Process(small(cut.comparison.folder))
    assert process.work()
    return process


def test_an_interrupted_grid_goes_on_where_it_stopped(cut: Process, whole: Process) -> None:
    runs = tuning_of(whole).runs
    drawn = [(config.run.name, config.run.seed) for config, _ in whole.seen]
    assert [(config.run.name, config.run.seed) for config, _ in cut.seen] == [
        (method, seed) for method, _, seed in runs[:2]
    ]
    assert drawn == [(method, seed) for method, _, seed in runs[1:]] + [
        (method, 0) for method in METHODS
    ]


def test_runs_that_diverge_count_as_worst(whole: Process) -> None:
    methods = json.loads((whole.comparison.folder / "grid.json").read_text())["methods"]
    failures = [methods[method]["points"][1]["failed"] for method in METHODS]
    assert [one.partition(":")[0] for (one,) in failures] == ["GateError", "Diverged"]
    for method in METHODS:
        kept, failed = methods[method]["points"]
        scores = json.loads((tuning_of(whole).path(method, 1, 1000) / "held_out.json").read_text())
        assert kept["score"] == pytest.approx(sum(scores["after"]["total"]) / 2)
        assert (failed["score"], methods[method]["best"]) == (None, 1)
        assert methods[method]["edges"] == {RATE: "lowest"}


def test_the_best_trains_in_the_comparison(whole: Process) -> None:
    comparison = whole.comparison
    for method in METHODS:
        saved = (comparison.path(method, 0) / "config.yaml").read_text()
        assert yaml.safe_load(saved)["learner"]["learning_rate"] == 1e-4
        assert comparison.done(method, 0)
    report.write(comparison, "ocr/exact")
    rows = json.loads((comparison.folder / "compare.json").read_text())["rows"]
    assert [rows[method]["learning_rate"] for method in METHODS] == [1e-4, 1e-4]


def test_held_out_prompts_are_out_of_sight_of_the_grid(cut: Process, whole: Process) -> None:
    train, held_out = (
        set(prompts_of(part[:]))
        for part in prompts.lists(next(iter(whole.comparison.configs.values())))
    )
    grid = [seen for config, seen in (*cut.seen, *whole.seen) if config.run.seed == 1000]
    compared_on = [seen for config, seen in whole.seen if config.run.seed == 0]
    assert len(grid) == 5 and all(seen and seen <= train for seen in grid)
    assert len(compared_on) == 2 and held_out <= compared_on[0]


def test_a_finished_one_starts_nothing(whole: Process) -> None:
    folder = whole.comparison.folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = Process(small(folder))
    assert again.work() and not again.seen
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_api_gives_the_tables_of_a_finished_one(whole: Process) -> None:
    found = bg.compare(
        FILES,
        budget=1,
        overrides=SMALL | KEYS,
        grid={RATE: RATES},
        grid_budget=2,
        folder=whole.comparison.folder,
        quiet=True,
    )
    assert found.finished and found.summary["grid"]["methods"]["dancegrpo"]["best"] == 1
    assert f"dancegrpo: best of 2 points: {RATE} 0.0001" in " ".join(found.table.split())
