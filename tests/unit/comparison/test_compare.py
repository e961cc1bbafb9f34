"""Comparisons before they are carried out: fair, and told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.small_comparison import METHODS, SMALL, compared
from support.small_trees import QUICKSTART

from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.runs import Comparison
from branchgrpo.config import load as config
from branchgrpo.errors import UserError


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
            assert tree["run"].pop("label") == method
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
