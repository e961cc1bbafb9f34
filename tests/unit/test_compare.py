"""Comparisons: fair, resumable to the last digit, and reported by hand-made figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from in_process import Service
from PIL import Image
from rich.console import Console
from small_trees import QUICKSTART

from branchgrpo import compare_report, config
from branchgrpo.compare import Budget, Comparison
from branchgrpo.compare_report import _curve, _reaches
from branchgrpo.display import Display
from branchgrpo.errors import UserError
from branchgrpo.metrics import read

METHODS = ["branchgrpo-splits", "dancegrpo"]
SMALL = {
    "sampling.steps": "14", "rollout.prompts": "1", "rollout.threads": "1", "reward_workers.threads": "1", "learner.threads": "1",
    "evaluation.prompts": "4", "evaluation.prompts_between": "2", "evaluation.pictures": "1", "evaluation.diversity": "2",
}  # fmt: skip


def compared(folder: Path, methods: Iterable[str] = METHODS, seeds: int = 2, budget: str = "2", **keys: str) -> Comparison:
    overrides = SMALL | {key.replace("__", "."): value for key, value in keys.items()}
    return Comparison(QUICKSTART, list(methods), seeds, Budget.parse(budget), overrides, folder)


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


@pytest.mark.parametrize("text", ["", "0", "0s", "0.0m", "-3", "2.5", "4h", "m", "4 m", "1e3", "4m30s", "nan", "inf", "four"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--budget: expected") as caught:
        Budget.parse(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "iterations", "minutes", "every", "every_seconds"), [("24", 24, 0, 2, 0), ("5", 5, 0, 1, 0), ("240s", 0, 4, 0, 20), ("6m", 0, 6, 0, 30)]
)
def test_a_budget_sets_length_and_checks_of_every_run(tmp_path: Path, budget: str, iterations: int, minutes: float, every: int, every_seconds: float) -> None:
    for one in compared(tmp_path, budget=budget).configs.values():
        assert (one.run.iterations, one.run.max_minutes) == (iterations, pytest.approx(minutes))  # the quick start's 4.5 minutes are gone
        assert (one.evaluation.every, one.evaluation.every_seconds) == (every, pytest.approx(every_seconds))


def test_methods_differ_in_nothing_but_the_method(tmp_path: Path) -> None:
    methods = ["dancegrpo", "flowgrpo", "flow-dppo", "tempflow", "branchgrpo-depthprune"]
    comparison = Comparison(QUICKSTART, methods, 2, Budget(10), {}, tmp_path)
    assert list(comparison.configs) == [(method, seed) for seed in (0, 1) for method in methods]
    for seed in (0, 1):
        rest = []
        for method in methods:
            tree = yaml.safe_load(config.dump(comparison.configs[method, seed]))
            assert tree["method"] == yaml.safe_load(config.dump(config.load(QUICKSTART, preset=method)))["method"]
            assert (tree["run"].pop("name"), tree["run"]["seed"]) == (method, seed)
            assert tree["evaluation"]["steps"] == 20  # though flowgrpo samples with 10
            tree["sampling"].pop("steps")
            tree["learner"].pop("optimiser_steps")  # flow-dppo's 2 are the method's
            rest.append({key: value for key, value in tree.items() if key not in config.METHOD_SECTIONS})
        assert all(one == rest[0] for one in rest)


def test_requests_are_told_apart(tmp_path: Path) -> None:
    first = compared(tmp_path)
    assert compared(tmp_path / "elsewhere").digest == first.digest
    others = [compared(tmp_path, seeds=1), compared(tmp_path, budget="3"), compared(tmp_path, METHODS[::-1]), compared(tmp_path, learner__learning_rate="1e-3")]
    assert len({first.digest, *(other.digest for other in others)}) == 5
    unnamed = Comparison(QUICKSTART, METHODS, 2, Budget(2), SMALL)
    assert unnamed.folder == Path("runs") / f"compare-{first.digest[:8]}" and not unnamed.folder.exists()


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


@pytest.mark.parametrize("content", ["", '{"held_out": {"total"', "{}", '{"stopped_by": "interrupted"}', "\N{NULL}"])
def test_a_summary_that_is_not_whole_counts_as_not_done(tmp_path: Path, content: str) -> None:
    comparison = compared(tmp_path / "x")
    comparison.open()
    for (method, seed), text in zip(comparison.configs, ['{"stopped_by": "iterations"}', content, '{"stopped_by": "max_minutes"}', content], strict=True):
        comparison.path(method, seed).mkdir(parents=True)
        (comparison.path(method, seed) / "summary.json").write_text(text)
    assert comparison.open() == [("dancegrpo", 0), ("dancegrpo", 1)]
    assert (comparison.complete("branchgrpo-splits"), comparison.complete("dancegrpo")) == ([0, 1], [])


# Resuming


TIMES = {"elapsed", "seconds", "training_seconds", "seconds_per_iteration", "seconds_ratio", "share"}


def timeless(value: Any) -> Any:
    """Without what a clock measured."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES and not key.startswith("time/")}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def results(comparison: Comparison) -> list[Any]:
    """compare.json, then of every run what it logged, its summary and its scores."""
    compare_report.write(comparison, "ocr/exact")
    found = [json.loads((comparison.folder / "compare.json").read_text())]
    for run in comparison.configs:
        folder = comparison.path(*run)
        found += [read(folder / "metrics.jsonl"), *(json.loads((folder / name).read_text()) for name in ("summary.json", "held_out.json"))]
    return [timeless(one) for one in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison that nothing disturbed."""
    comparison = compared(tmp_path_factory.mktemp("compare") / "whole")
    assert work(comparison)
    return comparison


def test_an_undisturbed_comparison(whole: Comparison) -> None:
    compare, *_ = results(whole)
    assert list(compare) == ["untrained", *METHODS]
    for seed in (0, 1):  # every run starts from the same scores
        kept = json.loads(whole.untrained_path(seed).read_text())["scores"]
        for method in METHODS:
            assert json.loads((whole.path(method, seed) / "held_out.json").read_text())["before"] == kept
    split = compare["branchgrpo-splits"]  # 14 steps, split at 3, 6, 9, 12: 4·1 + 3·(2 + 4 + 8) + 16 parents, as many but the root and 16 children more edges
    assert split["nfe_old"] == {"forwards": 62 / 16, "edges": (62 - 1 + 16) / 16} and split["nfe_new"] == {"forwards": 15 / 16, "edges": 30 / 16}
    assert compare["dancegrpo"]["nfe_old"] == {"forwards": 14.0, "edges": 14.0}
    assert compare["dancegrpo"]["nfe_new"] == {"forwards": 13.0, "edges": 13.0}
    assert split["iterations"] == [2, 2] and split["seeds"] == [0, 1]
    assert (whole.folder / "compare.png").stat().st_size > 0 and "| dancegrpo |" in (whole.folder / "compare.md").read_text()


def test_an_interrupted_comparison_ends_with_the_same_numbers(whole: Comparison, tmp_path: Path) -> None:
    asked = count(1)
    assert not work(compared(tmp_path / "x"), lambda: next(asked) == 4)  # asked before each run and between its 2 iterations: in the second run
    cut = compared(tmp_path / "x")
    assert cut.open() == list(cut.configs)[1:]
    assert json.loads((cut.path(*list(cut.configs)[1]) / "summary.json").read_text())["iterations"] == 1
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


# The report, of folders made by hand


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


def test_methods_that_would_not_be_compared_fairly_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "easier.yaml"
    other.write_text("preset: dancegrpo\nheld_out: embedded:train\n")
    with pytest.raises(UserError, match="the same held_out for all methods, got another with easier"):
        compared(tmp_path / "x", ["dancegrpo", str(other)])
    other.write_text("preset: dancegrpo\nlearner: {ranks: 2, learning_rate: 1.0e-3}\n")
    with pytest.raises(UserError, match=r"the same learner\.ranks for all methods"):
        compared(tmp_path / "x", ["dancegrpo", str(other)])
    other.write_text("preset: dancegrpo\nlearner: {learning_rate: 1.0e-3}\n")
    comparison = compared(tmp_path / "x", ["dancegrpo", str(other)])
    rates = {name: config.learner.learning_rate for (name, _), config in comparison.configs.items()}
    assert rates["easier"] == 1e-3 != rates["dancegrpo"]
